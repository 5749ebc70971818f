"""The layout of each variable of the fused model: the parents' blocks and their scale."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.architecture.parents import Match
from keras_fusion.architecture.widths import Placement, Widths, contiguous
from keras_fusion.errors import FusionError, StructureError, is_integer
from keras_fusion.layout import tied_readout
from keras_fusion.layout.axes import Axis, is_readout
from keras_fusion.models import inner_roles, rules, tree
from keras_fusion.models.block_norms import BLEND
from keras_fusion.models.exchange import values_by_parent
from keras_fusion.models.stock import is_block_norm


@dataclasses.dataclass(frozen=True)
class VariableLayout:
    """The blocks of the parents' variables in one variable of the fused model.

    Args:
        address: string. The variable's address in the model.
        sources: tuple of K `keras.Variable`, one per parent.
        target: the fused model's `keras.Variable`.
        axes: tuple of `Axis`, one per dimension.
        scales: tuple of K factors on the parents' values (of a norm before a tied
            readout); ones elsewhere.
        offset: float. Constant that the layer adds to the value before it multiplies.
        before_tied_readout: bool. Whether the variable carries the factor of the mean,
            for a readout that cannot.
        copies: float. Number of parents, or of copies of one parent, that the variable
            holds.
        initial: function without arguments that draws initial values of the target's
            shape for new capacity, the same each time; `None` without new capacity.

    Example: the kernel of a readout after a self-fusion.

    >>> import keras, keras_fusion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model.add(keras.layers.Dense(1))
    >>> layout = keras_fusion.lay_out(model, factor=2).layouts[2]
    >>> layout.address, [axis.grown for axis in layout.axes], layout.gradient_scale
    ('layers[1].kernel', [True, False], 1.0)
    """

    address: str
    sources: tuple[keras.Variable, ...]
    target: keras.Variable
    axes: tuple[Axis, ...]
    scales: tuple[float, ...]
    offset: float = 0.0
    before_tied_readout: bool = False
    copies: float = 1.0
    initial: Callable[[], np.ndarray] | None = None

    def __repr__(self) -> str:
        """The layout in one line, without the variables' values."""
        own = ", ".join(str(tuple(source.shape)) for source in self.sources[:2])
        more = f" and {len(self.sources) - 2} more" if len(self.sources) > 2 else ""
        shape = tuple(self.target.shape)
        return f"<VariableLayout {self.address!r}: {own}{more} to {shape}>"

    @property
    def grown(self) -> bool:
        """Whether each parent has a block of its own in this variable."""
        return any(axis.grown for axis in self.axes)

    @property
    def has_new(self) -> bool:
        """Whether some entries belong to no parent."""
        return any(axis.unused().size for axis in self.axes)

    @property
    def is_state(self) -> bool:
        """Whether the variable holds integers or booleans: copied and not averaged."""
        return not keras.backend.is_float_dtype(self.target.dtype)

    @property
    def is_seed(self) -> bool:
        """Whether the variable is the state of a random generator."""
        return self.is_state and self.target.path.endswith("seed_generator_state")

    @property
    def gradient_scale(self) -> float:
        """The ratio of this variable's gradient to a parent's.

        In a self-fusion each of K copies has 1/K of the influence on the outputs. So
        a hidden block gets g/K; a readout, itself divided by K, gets g; a variable that
        did not grow gets g.
        """
        if not self.grown or is_readout(self.axes):
            return 1.0
        return 1.0 / (self.copies * float(np.mean(self.scales)))


def lay_out(
    matches: Sequence[Match],
    widths: Widths,
    *,
    must_grow: bool = True,
) -> tuple[VariableLayout, ...]:
    """Lays out the parents' blocks in the bigger model, variable by variable.

    Args:
        matches: the corresponding layers of the parents and the bigger model, see
            `Parents.matched_with`.
        widths: the result of `widths.analyse` on the parents' graphs.
        must_grow: bool. Whether it is an error if no shape differs from the parent's.

    Returns:
        One `VariableLayout` per variable of the bigger model, including seeds.

    Raises:
        StructureError: if shapes do not fit; the message names the variable.
        UnregisteredLayerError: if a layer's weights have no roles.
        FusionError: if nothing grew at all.
    """
    scales = tied_readout.scales(matches)
    given = inner_roles.given(
        (match.rule, layer)
        for match in matches
        if match.rule is not None and match.rule.inner
        for layer in (*match.layers, match.grown)
    )
    layouts, planned = [], set()
    for match in matches:
        own = values_by_parent(match.grown) if is_block_norm(match.grown) else []
        planned |= {id(variable) for variable in own}  # They have their values.
        for *sources, target in tree.shared_variables([*match.layers, match.grown]):
            if id(target) not in planned:
                planned.add(id(target))
                roles = _Roles(match, given, target)
                layouts.append(_layout(roles, sources, scales, widths))
    if must_grow and not any(layout.grown for layout in layouts):
        first, fused = matches[0].layers[0], matches[0].grown
        raise FusionError(
            f"Nothing grows from {first.name!r} to {fused.name!r}: all widths are "
            "equal. Those of inputs and outputs stay: put a layer that sets a width of "
            "its own (Dense) before the last one, register the width keys of your classes, "
            "or pass a bigger model as `into`."
        )
    return tuple(layouts)


@dataclasses.dataclass(frozen=True)
class _Roles:
    """The roles of the axes of one variable, in each parent and in the bigger model.

    Args:
        match: the layers.
        given: what the layers that hold them say, see `inner_roles.given`.
        target: the bigger model's variable.
    """

    match: Match
    given: Mapping[int, Mapping[str, Any]]
    target: keras.Variable

    def of(self, layer: keras.Layer) -> Any:
        """The roles in one of the layers, or `None`."""
        rule, key = self.match.weights_rule, tree.stable_name(self.target)
        own = self.given.get(id(layer), {}).get(key)
        return rule.variable_roles(layer).get(key) if own is None and rule else own

    def of_first(self, name: str, rank: int) -> tuple[rules.Role, ...]:
        """The roles in the first parent, one per axis."""
        layer = self.match.layers[0]
        if is_block_norm(layer) and self.target.name == BLEND:
            return ()
        roles = self.of(layer)
        if roles is None:
            raise rules.unregistered(layer, name, tree.own_variables(layer))
        if len(roles) != rank:
            raise FusionError(
                f"The rule of {type(layer).__name__} gives {self.target.name!r} the roles "
                f"{roles}, but it has {rank} axes of sizes {tuple(self.target.shape)}. "
                f"Give one role per axis, e.g. "
                f"roles={rules.example_roles([self.target])}."
            )
        return roles

    def parts(self, name: str, i: int, sizes: Sequence[int]) -> list[list[int]]:
        """The sizes of an axis's tensors, in each parent and in the bigger model."""
        found = []
        for layer, size in zip(
            (*self.match.layers, self.match.grown), sizes, strict=True
        ):
            parts = self.of(layer)[i][1]
            is_count = is_integer(parts, 1)
            if is_count and size % parts == 0:
                found.append([size // parts] * parts)
            elif not is_count and _are_sizes(parts) and sum(parts) == size:
                found.append(list(parts))
            else:
                raise FusionError(
                    f"The rule of {type(layer).__name__} gives axis {i} of {name!r} the "
                    f"parts {parts!r}, but it has {size} entries in {layer.name!r}. Give "
                    "a number that divides them, or sizes that add up to them."
                )
        return found


def _layout(
    roles: _Roles,
    sources: Sequence[keras.Variable],
    scales: tied_readout.Scales,
    widths: Widths,
) -> VariableLayout:
    match, target = roles.match, roles.target
    address, key = match.address, tree.stable_name(target)
    name = f"{address}.{target.name}" if address else target.name
    place = (id(match.layers[0]), key)
    rule = match.weights_rule
    return VariableLayout(
        name,
        tuple(sources),
        target,
        _axes(name, sources, roles, widths),
        scales.get(place, (1.0,) * len(sources)),
        rule.offset(key) if rule else 0.0,
        place in scales and key != "embeddings",
        copies=float(len(sources)),
    )


def _axes(
    name: str,
    sources: Sequence[keras.Variable],
    roles: _Roles,
    widths: Widths,
) -> tuple[Axis, ...]:
    shapes = [tuple(v.shape) for v in sources]
    shape = tuple(roles.target.shape)
    if len({len(s) for s in (*shapes, shape)}) > 1:
        raise StructureError(
            f"Variable {name!r} has shapes {shapes} in the parents and {shape} in the "
            "fused model; their ranks differ."
        )
    unchanged = all(s == shape for s in shapes)
    is_state = not keras.backend.is_float_dtype(roles.target.dtype)
    if is_state and unchanged:  # As of a seed, which no rule describes.
        return tuple(Axis(size) for size in shape)
    own = roles.of_first(name, len(shape))
    return tuple(
        _axis(name, i, own[i], [s[i] for s in shapes], shape[i], roles, widths)
        for i in range(len(shape))
    )


def _are_sizes(parts: Any) -> bool:
    return isinstance(parts, Sequence) and all(is_integer(part, 1) for part in parts)


def _axis(
    name: str,
    i: int,
    role: rules.Role,
    sizes: Sequence[int],
    size: int,
    roles: _Roles,
    widths: Widths,
) -> Axis:
    layers = roles.match.layers
    role, parts = role if isinstance(role, tuple) else (role, None)
    placement = _placement(role, layers, widths) if parts is None else None
    role = "out" if role == "each" else role
    if all(s == size for s in sizes) and (role is None or placement is None):
        return Axis(size, role)
    if placement is not None and placement.size == size:
        return Axis(size, role, placement.blocks, placement.stretches)
    if role is None or (parts is None and sum(sizes) > size):
        raise StructureError(
            f"Axis {i} of {name!r} has sizes {sizes} in the parents and {size} in the "
            f"fused model. " + _size_advice(role, sizes)
        )
    if placement is not None and not placement.is_contiguous:
        raise FusionError(
            f"Axis {i} of {name!r} reads features that are not contiguous, and it has "
            f"{size} entries for {placement.size}. Put the layers that flatten or "
            "concatenate outside of composite layers."
        )
    if all(s == size for s in sizes):
        return Axis(size, role)
    if parts is None:
        return Axis(size, role, contiguous(sizes))
    blocks = _stacked(name, i, roles.parts(name, i, [*sizes, size]))
    return Axis(size, role, blocks, stacked=True)


def _stacked(name: str, i: int, parts: list[list[int]]) -> tuple[np.ndarray, ...]:
    """The blocks of an axis of several concatenated tensors, from `_Roles.parts`."""
    *own, whole = parts
    blocks: list[list[np.ndarray]] = [[] for _ in own]
    starts = np.cumsum([0, *whole[:-1]])
    for *sizes, size, start in zip(*own, whole, starts, strict=True):
        # A tensor that does not grow is the same for all parents.
        stays = all(each == size for each in sizes)
        if not stays and sum(sizes) > size:
            raise StructureError(
                f"Axis {i} of {name!r} holds tensors of {own} entries in the parents and "
                f"of {whole} in the fused model, which must be at least their sums."
            )
        found = [np.arange(size)] * len(sizes) if stays else contiguous(sizes)
        for block, part in zip(blocks, found, strict=True):
            block.append(start + part)
    return tuple(map(np.concatenate, blocks))


def _size_advice(role: str | None, sizes: Sequence[int]) -> str:
    if role is None:
        return (
            "It is not a width, so it must be equal everywhere (a vocabulary, a sequence "
            "length, a head size)."
        )
    return f"It must be at least {sum(sizes)}, the sum of the parents' sizes."


def _placement(
    role: str | None, layers: Sequence[keras.Layer], widths: Widths
) -> Placement | None:
    if role in ("in", "each"):
        return widths.entries.get(id(layers[0]))
    if role == "out":
        return widths.outputs.get(id(layers[0]))
    return None


def composed(stages: Sequence[Sequence[VariableLayout]]) -> tuple[VariableLayout, ...]:
    """Composes the layouts of consecutive growths into those of one growth.

    Args:
        stages: the layouts of each growth; the sources of one are the targets of the one
            before.

    Returns:
        Layouts from the sources of the first growth to the targets of the last.
    """
    first, *later = stages
    for stage in later:
        known = {id(layout.target): layout for layout in first}
        # What a block-wise layer has beside the stock layer's has no source in the first.
        own = [layout for layout in stage if id(layout.sources[0]) in known]
        first = [_after(known[id(layout.sources[0])], layout) for layout in own]
    return tuple(first)


def _after(first: VariableLayout, second: VariableLayout) -> VariableLayout:
    """The layout of one variable after two growths."""
    return dataclasses.replace(
        second,
        sources=first.sources * len(second.sources),
        axes=tuple(map(_axis_after, first.axes, second.axes)),
        scales=tuple(a * b for b in second.scales for a in first.scales),
        before_tied_readout=first.before_tied_readout or second.before_tied_readout,
        copies=first.copies * second.copies,
    )


def _axis_after(first: Axis, second: Axis) -> Axis:
    if not (first.grown or second.grown):
        return second
    outer = second.blocks or (second.positions(0),)
    inner = first.blocks or (first.positions(0),)
    blocks = tuple(own[block] for own in outer for block in inner)
    stacked = first.stacked or second.stacked
    return Axis(second.size, second.role or first.role, blocks, stacked=stacked)
