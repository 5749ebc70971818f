"""`fusion_report`: the difference of a fused model from its parents, layer by layer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.errors import FusionError
from keras_fusion.models import host, tree
from keras_fusion.models import probe as probes
from keras_fusion.models.observe import observe
from keras_fusion.models.renamed import renamed

Loss = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class LayerDifference:
    """The difference of one layer's output from its parents'.

    Args:
        address: string. The layer's address.
        kind: string. Its class.
        difference: float. `|fused - parents|` over `|parents|`, as Euclidean norms over
            the probe. A grown output is compared block by block, any other output with
            the parents' mean.
    """

    address: str
    kind: str
    difference: float


@dataclasses.dataclass(frozen=True)
class FusionReport:
    """A comparison of a fused model with the mean of its parents, on one probe.

    Args:
        difference: `Difference` of the outputs.
        layers: list of `LayerDifference`, in the order of the computation.
        parent_losses: list of K floats; empty without targets.
        ensemble_loss: float or `None`. Loss of the mean of the parents' outputs.
        fused_loss: float or `None`.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(2))
    >>> fused = keras_fusion.fuse(model, factor=2)
    >>> report = keras_fusion.fusion_report([model], fused, np.ones((3, 4)))
    >>> print(report.first_departure())
    None
    """

    difference: probes.Difference
    layers: list[LayerDifference]
    parent_losses: list[float]
    ensemble_loss: float | None
    fused_loss: float | None

    def first_departure(self, tolerance: float = 1e-4) -> LayerDifference | None:
        """The first layer whose output differs by more than `tolerance`."""
        return next((x for x in self.layers if x.difference > tolerance), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """The report as a table."""
        width = max([len(x.address) for x in self.layers] + [10])
        lines = [f"Outputs: {self.difference}"]
        lines += [f"{'layer':<{width}}  {'class':<26}  difference"]
        lines += [
            f"{x.address:<{width}}  {x.kind:<26.26}  {x.difference:.1e}"
            for x in self.layers
        ]
        first = self.first_departure()
        if first is not None:
            lines += [f"The function first departs at {first.address!r}."]
        losses = [(f"parent {k}", v) for k, v in enumerate(self.parent_losses)]
        losses += [("ensemble", self.ensemble_loss), ("fused", self.fused_loss)]
        lines += [f"loss of {name}: {v:.4f}" for name, v in losses if v is not None]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Draws the difference of each layer, in the order of the computation.

        Args:
            ax: matplotlib axes. By default those of a new figure.

        Returns:
            The axes.
        """
        from matplotlib import pyplot

        ax = pyplot.subplots()[1] if ax is None else ax
        values = [max(x.difference, 1e-9) for x in self.layers]
        ax.semilogy(range(len(values)), values, marker="o")
        ax.set_xticks(range(len(values)), [x.address for x in self.layers], rotation=90)
        ax.set_xlabel("layer")
        ax.set_ylabel("relative difference")
        return ax


@renamed(batch="probe")
def fusion_report(
    parents: Sequence[keras.Model] | keras.Model,
    fused: keras.Model,
    probe: Any,
    targets: Any = None,
    loss: Loss | None = None,
) -> FusionReport:
    """Compares a fused model with the mean of its parents.

    Args:
        parents: list of the built parents; for a self-fusion the one model.
        fused: the model fused from them.
        probe: inputs in the structure of the models' inputs, of shape `(batch, ...)`.
        targets: targets of the probe, for the losses.
        loss: function `(targets, outputs) -> loss` such as a `keras.losses.Loss`; required
            with `targets`.

    Returns:
        A `FusionReport`; print it for a table.

    Raises:
        FusionError: if only one of `targets` and `loss` is given, or the models have
            several outputs.

    Example:

    >>> import keras, keras_fusion, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(2))
    >>> fused = keras_fusion.fuse(model, factor=2)
    >>> report = keras_fusion.fusion_report([model], fused, np.ones((3, 4)))
    >>> report.difference.largest < 1e-5
    True
    """
    parents = [parents] if isinstance(parents, keras.Model) else list(parents)
    if (targets is None) != (loss is None):
        raise FusionError(
            "The losses need both `targets` and `loss`. Received: "
            f"targets={'given' if targets is not None else None}, loss={loss!r}."
        )
    mean, outputs = probes.mean_outputs(parents, probe), probes.outputs(fused, probe)
    difference = probes.difference(mean, outputs)
    layers = _layer_differences(parents, fused, probe)
    if loss is None:
        return FusionReport(difference, layers, [], None, None)
    return FusionReport(
        difference,
        layers,
        [_loss(loss, targets, probes.outputs(parent, probe)) for parent in parents],
        _loss(loss, targets, mean),
        _loss(loss, targets, outputs),
    )


def _loss(loss: Loss, targets: Any, outputs: Sequence[np.ndarray | None]) -> float:
    if len(outputs) > 1:
        raise FusionError(
            f"`loss` is for one output; the model has {len(outputs)}. Leave it out, or "
            "compare the models with evaluate()."
        )
    value = loss(keras.ops.convert_to_tensor(targets), outputs[0])
    return float(np.mean(host.to_numpy(value)))


def _layer_differences(
    parents: Sequence[keras.Model], fused: keras.Model, probe: Any
) -> list[LayerDifference]:
    places = [
        (address, layers)
        for address, layers in tree.lockstep([*parents, fused])
        if address
    ]
    models = [*parents, fused]
    seen = [
        observe(model, probe, [layers[k] for _, layers in places])
        for k, model in enumerate(models)
    ]
    order = {key: i for i, key in enumerate(seen[-1].order)}
    found = []
    for address, layers in sorted(places, key=lambda p: order.get(id(p[1][-1]), 0)):
        calls = [own[id(layer)] for own, layer in zip(seen, layers, strict=True)]
        values = [
            _departure([y for _, y in outs[:-1]], outs[-1][1])
            for outs in zip(*calls, strict=False)
        ]
        values = [value for value in values if value is not None]
        if values:
            found.append(
                LayerDifference(address, type(layers[-1]).__name__, max(values))
            )
    return found


def _departure(
    outputs: Sequence[np.ndarray | None], fused: np.ndarray | None
) -> float | None:
    """The relative difference, or `None` where outputs cannot be compared."""
    known = [y for y in outputs if y is not None]
    if fused is None or len(known) < len(outputs) or fused.dtype.kind != "f":
        return None
    if any(y.ndim != fused.ndim for y in known):
        return None
    expected = _expected(known, fused.shape)
    if expected is None:
        return None
    scale = np.linalg.norm(expected)
    return float(np.linalg.norm(fused - expected) / scale) if scale else None


def _expected(outputs: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    """The fused output that is expected: the parents' concatenation, or their mean."""
    if all(y.shape == shape for y in outputs):
        return np.mean(outputs, axis=0)
    grown = [i for i in range(len(shape)) if outputs[0].shape[i] != shape[i]]
    if len(grown) != 1:
        return None
    sizes = [y.shape[grown[0]] for y in outputs]
    if len(outputs) == 1:  # a self-fusion
        outputs = outputs * (shape[grown[0]] // sizes[0])
    joined = np.concatenate(outputs, axis=grown[0])
    return joined if joined.shape == shape else None
