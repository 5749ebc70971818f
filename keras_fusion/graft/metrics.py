"""Metrics inside layers: what they have counted so far belongs to the run."""

from collections.abc import Iterator

import keras

from keras_fusion.errors import FusionError
from keras_fusion.models import host, tree
from keras_fusion.models.private.attributes import instance_attributes

_Pair = tuple[keras.Variable, keras.Variable]


def check(live: keras.Model, fused: keras.Model) -> None:
    """Checks that the metrics of a model's layers can go on in the bigger one.

    Raises:
        FusionError: naming the layer and the metric.
    """
    for _ in _pairs(live, fused):
        pass


def carry(live: keras.Model, fused: keras.Model) -> None:
    """Gives the metrics of the bigger model's layers the state of the live one's."""
    for source, target in _pairs(live, fused):
        host.write(target, host.read(source))


def _pairs(live: keras.Model, fused: keras.Model) -> Iterator[_Pair]:
    """Yields the variables of corresponding metrics."""
    places = dict(tree.by_attribute(fused))
    for address, layer in tree.by_attribute(live):
        new = places.get(address)
        if layer is live or new is None:
            continue
        for old_metric, metric in zip(_metrics(layer), _metrics(new), strict=False):
            old, own = old_metric.variables, metric.variables
            if [v.shape for v in old] != [v.shape for v in own]:
                raise FusionError(
                    f"The metric {old_metric.name!r} of layer {address!r} cannot go on "
                    f"in the grown model: its variables have the shapes "
                    f"{[tuple(v.shape) for v in old]}, and there "
                    f"{[tuple(v.shape) for v in own]}. Make its state independent of "
                    "the width, and its variables in its constructor."
                )
            yield from zip(old, own, strict=True)


def _metrics(layer: keras.Layer) -> list[keras.Metric]:
    return list(instance_attributes(layer).get("_metrics", []))
