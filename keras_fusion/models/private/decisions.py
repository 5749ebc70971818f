"""What keras-hub's layers decide once for all features, decided as each parent does.

A mixture of experts sends a token to experts by all features together, and CLIP compares
whole embeddings. Here each class is computed for every parent's features alone.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_fusion.models.private.views import as_class


@dataclasses.dataclass(frozen=True)
class Group:
    """The features of one parent in a layer's inputs.

    Args:
        members: vector tensor, one per feature: 1 where it is the parent's, else 0.
        scale: scalar tensor. One over the parent's share in the mean of all.
        differences: what the parent adds to each of the variables that are shared.
        weight: scalar tensor. The factor on losses that the layer adds.
    """

    members: Any
    scale: Any
    differences: Sequence[Any]
    weight: Any

    def own(self, x: Any) -> Any:
        """A tensor whose last axis is the features, without those of other parents."""
        return x * ops.cast(self.members, x.dtype)

    def mean(self, x: Any) -> Any:
        """The parent's part of a mean."""
        return x / ops.cast(self.scale, x.dtype)


class Decision(abc.ABC):
    """How a class of layers decides something for all of its input's features."""

    # Whether features of no parent take part: none may change what is decided.
    takes_new = True

    @abc.abstractmethod
    def size(self, layer: Any) -> int | None:
        """The number of features; `None` if the layer does not tell."""

    @abc.abstractmethod
    def shared(self, layer: Any) -> list[keras.Variable]:
        """The variables that all features share; each parent has its own values of them."""

    @abc.abstractmethod
    def outputs(
        self,
        layer: Any,
        groups: Sequence[Group],
        blend: Any,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """The stock layer's outputs, decided for each group alone, and for all at once.

        `blend` is the factor on losses that the layer adds for all at once.
        """


@dataclasses.dataclass(frozen=True)
class Mixture(Decision):
    """A mixture of experts, which routes each token by all of its features.

    The kernels of the routers hold the parents' own divided by the number of parents,
    since the logits of the stock layer are the mean of theirs.

    Args:
        routers: the attributes that hold what reads features and decides: a `Dense`, or
            with a dot one of a layer.
        computing: the attributes that hold layers whose outputs are features.
    """

    routers: tuple[str, ...]
    computing: tuple[str, ...]

    def size(self, layer: Any) -> int | None:
        """The width of the stream."""
        return layer.hidden_dim

    def shared(self, layer: Any) -> list[keras.Variable]:
        """The routers' biases."""
        held = (_at(layer, path) for path in self.routers)
        return [router.bias for router in held if router.bias is not None]

    def outputs(
        self,
        layer: Any,
        groups: Sequence[Group],
        blend: Any,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """The features, and what else is given, by a routing for each group, and by one.

        The rest, such as the routings, is the mean over the groups.
        """
        # All experts compute once, for all features.
        once = {name: _once(getattr(layer, name)) for name in self.computing}
        parts = []
        for group in groups:
            view = _view(layer, group.weight, **once, **self._routings(layer, group))
            own = keras.tree.flatten(layer.stock.call(view, *args, **kwargs))
            parts.append([group.own(own[0]), *map(group.mean, own[1:])])
        joint = layer.stock.call(_view(layer, blend, **once), *args, **kwargs)
        sums = [sum(each) for each in zip(*parts, strict=True)]
        return keras.tree.pack_sequence_as(joint, sums), joint

    def _routings(self, layer: Any, group: Group) -> dict[str, Callable]:
        """What computes in the routers' places as one parent's."""
        differences = iter(group.differences)
        return dict(_routing(layer, r, group, differences) for r in self.routers)


def _view(layer: Any, weight: Any, **instead: Any) -> Any:
    """The stock layer with other parts, and a factor on the losses that it adds."""

    def add_loss(loss: Any) -> None:
        layer.add_loss(weight * loss)

    return as_class(layer, layer.stock, add_loss=add_loss, **instead)


def _at(holder: Any, path: str) -> Any:
    for name in path.split("."):
        holder = getattr(holder, name)
    return holder


def _once(layer: Any) -> Callable:
    """A layer that computes at its first call, and gives that output at each."""
    outputs: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not outputs:
            outputs.append(layer(*args, **kwargs))
        return ops.copy(outputs[0])  # PyTorch's `*=` would change it for all.

    return call


def _routing(
    holder: Any, path: str, group: Group, differences: Iterator[Any]
) -> tuple[str, Callable]:
    """The first name of a router's path, and what computes there as the parent's does."""
    name, _, rest = path.partition(".")
    child = getattr(holder, name)
    if not rest:
        difference = None if child.bias is None else next(differences)
        return name, lambda x: _logits(child, group, difference, x)
    inner = dict([_routing(child, rest, group, differences)])
    return name, as_class(child, type(child), **inner).call


def _logits(router: Any, group: Group, difference: Any, x: Any) -> Any:
    """What the `Dense` of one parent makes of its features."""
    logits = router(group.own(x))
    scale = ops.cast(group.scale, logits.dtype)
    if difference is None:
        return scale * logits
    bias: Any = ops.cast(ops.convert_to_tensor(router.bias), logits.dtype)
    return scale * (logits - bias) + bias + ops.cast(difference, logits.dtype)


@dataclasses.dataclass(frozen=True)
class Comparison(Decision):
    """Cosines of two embeddings.

    Args:
        names: the attributes that hold scalar variables: the scale of the cosines, and
            perhaps what is added to them.
    """

    names: tuple[str, ...]

    # They would change the lengths of the embeddings.
    takes_new = False

    def size(self, layer: Any) -> int | None:
        """The width of the embeddings."""
        return ((layer.get_build_config() or {}).get("input_shape") or (None,))[-1]

    def shared(self, layer: Any) -> list[keras.Variable]:
        """The scale, and what is added."""
        return [getattr(layer, name) for name in self.names]

    def outputs(
        self,
        layer: Any,
        groups: Sequence[Group],
        blend: Any,
        args: tuple,
        kwargs: dict[str, Any],
    ) -> tuple[Any, Any]:
        """The means over each group's comparisons, and the comparisons of all features."""

        def compared(group: Group) -> Any:
            own: Any = keras.tree.map_structure(group.own, (args, kwargs))
            view = as_class(layer, layer.stock, **self._values(layer, group))
            logits = layer.stock.call(view, *own[0], **own[1])
            return keras.tree.map_structure(group.mean, logits)

        parts = [compared(group) for group in groups]
        apart = keras.tree.map_structure(lambda *logits: sum(logits), *parts)
        return apart, layer.stock.call(as_class(layer, layer.stock), *args, **kwargs)

    def _values(self, layer: Any, group: Group) -> dict[str, Any]:
        """One parent's scale, and what it adds."""
        values: dict[str, Any] = {}
        for name, difference in zip(self.names, group.differences, strict=True):
            shared: Any = ops.convert_to_tensor(getattr(layer, name))
            values[name] = shared + ops.cast(difference, shared.dtype)
        return values


_MIXTRAL = Mixture(("_sparse_feedforward_gate_dense",), ("expert_bank",))
DECISIONS: dict[str, Decision] = {
    "keras_hub>MixtralSparseMoeBlock": _MIXTRAL,
    "keras_hub>QwenSparseMoeBlock": Mixture(
        ("_sparse_feedforward_gate_dense", "shared_expert_gate_dense"),
        ("expert_bank", "shared_expert_dense"),
    ),
    "keras_hub>Qwen3SparseMoeBlock": _MIXTRAL,
    "keras_hub>Qwen3_5MoeSparseMoeBlock": Mixture(
        ("_router_gate", "_shared_expert_gate"), ("expert_bank", "shared_expert")
    ),
    "keras_hub>GptOssSparseMoeBlock": Mixture(("router.router_dense",), ("experts",)),
    "keras_hub>CLIPHead": Comparison(("logit_scale",)),
    "keras_hub>MetaCLIP2Head": Comparison(("logit_scale",)),
    "keras_hub>SigLIPHead": Comparison(("logit_scale", "logit_bias")),
}
