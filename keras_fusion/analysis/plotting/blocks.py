"""The picture of a fused model: the parents' blocks in each kernel."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_fusion.analysis.plotting.figure import (
    INK,
    NEW_CAPACITY,
    PARENTS,
    new_figure,
    save,
)
from keras_fusion.errors import FusionError
from keras_fusion.layout import parent_blocks
from keras_fusion.layout.axes import Axis, block_index, is_readout
from keras_fusion.layout.parent_blocks import Blocks, Place
from keras_fusion.models import host
from keras_fusion.models.names import helpful

Kernel = tuple[keras.Variable, Place]

_COLUMNS = 4
_PIXELS = 96  # The largest number of entries along each side of a drawn kernel.
_OFF_DIAGONAL, _NEW = -1, -2


@helpful
def plot_fusion(
    fused: keras.Model,
    *,
    kernels: str | None = None,
    most: int = 8,
    path: str | None = None,
) -> Any:
    """Draws the parents' blocks in the kernels of a fused model.

    Each parent has a colour; off-diagonal blocks, from one parent's inputs to another's
    outputs, are grey, and units that no parent had are green. The larger a weight, the
    darker it is drawn: off-diagonal zeros are white, and after some training one sees
    what has grown there. Rows are inputs, columns are outputs.

    Args:
        fused: model that `fuse` returned or a growth callback has grown, in this process;
            it may have been trained since.
        kernels: string. A regular expression; only kernels whose path it matches
            somewhere are drawn. By default all kernels that grew, one of each kind of
            repeated block.
        most: int. The largest number of kernels to draw. Defaults to 8.
        path: string. File to save the picture to, if given.

    Returns:
        The matplotlib `Figure`, with one panel per kernel.

    Raises:
        ImportError: without matplotlib, which `pip install keras-fusion[plot]` installs.
        FusionError: if the model is not a fused one, or has no such kernels.

    Example:

    >>> import keras, keras_fusion
    >>> def parent():
    ...     return keras.Sequential(
    ...         [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(2)]
    ...     )
    >>> figure = keras_fusion.plot_fusion(keras_fusion.fuse([parent(), parent()]))
    >>> len(figure.axes)
    2
    """
    blocks = _blocks_of(fused)
    drawn, count = _chosen(fused, blocks, kernels, most), blocks.count
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = new_figure(max(2.3 * columns, 5), 2.5 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    owners = set()
    titles = _titles([variable.path for variable, _ in drawn])
    for axes, title, (variable, place) in zip(panels, titles, drawn, strict=False):
        owners |= _draw(axes, variable, place, count)
        if is_readout(place.axes) and count > 1:
            title += f"\nreadout, each over {count}"
        axes.set_title(title, fontsize=8, color=INK)
    for axes in panels[len(drawn) :]:
        axes.remove()
    _add_legend(figure, count, owners)
    save(figure, path)
    return figure


def _blocks_of(model: keras.Model) -> Blocks:
    """The blocks of a model's last growth, which must still fit the model."""
    found = parent_blocks.of(model)
    if found is None:
        raise FusionError(
            f"{getattr(model, 'name', model)!r} was not fused in this process, so its "
            "blocks are unknown. Pass the result of `fuse`, or a model that `DeepFusion` "
            "has grown; a file does not contain them."
        )
    weights = model.weights
    pairs = zip(weights, found.places, strict=False)
    if len(weights) != len(found.places) or any(
        place and place.shape != tuple(variable.shape) for variable, place in pairs
    ):
        raise FusionError(
            f"The weights of {model.name!r} have other shapes than right after its last "
            "fusion; draw a model before it is changed by other means."
        )
    return found


def _chosen(
    model: keras.Model, blocks: Blocks, pattern: str | None, most: int
) -> list[Kernel]:
    """The kernels to draw, of those that grew."""
    weights = model.weights
    pairs = [
        (variable, place)
        for variable, place in zip(weights, blocks.places, strict=True)
        if place is not None and _is_kernel(place)
    ]
    if pattern is not None:
        pairs = [pair for pair in pairs if re.search(pattern, pair[0].path)]
    else:
        # Repeated blocks have equal shapes, and names that differ only in numbers.
        once: dict[Any, Kernel] = {}
        for variable, place in pairs:
            alike = re.sub(r"_?\d+", "", variable.path), place.shape
            once.setdefault(alike, (variable, place))
        pairs = list(once.values())
    if not pairs:
        raise FusionError(
            f"No kernel that grew in {model.name!r} matches kernels={pattern!r}. It has, "
            f"for example, {[v.path for v in weights[:3]]}."
        )
    # The last one is often the readout.
    return pairs if len(pairs) <= most else [*pairs[: most - 1], pairs[-1]]


def _is_kernel(place: Place) -> bool:
    """Whether a variable grew and maps inputs to outputs, unlike a bias or a gamma."""
    if len(place.axes) < 2:
        return False
    has_inputs = any(axis.role == "in" for axis in place.axes)
    return place.grown and (has_inputs or not place.axes[0].grown)


def _draw(axes: Any, variable: keras.Variable, place: Place, count: int) -> set[int]:
    """Draws one kernel; returns the owners that occur in it."""
    value = np.abs(np.asarray(host.to_numpy(variable), "float32"))
    owner = _owners(place, count)
    value, owner = (_as_matrix(a, place.axes) for a in (value, owner))
    full = value.shape
    rows, columns = (_sampled(size) for size in full)
    value, owner = value[np.ix_(rows, columns)], owner[np.ix_(rows, columns)]
    axes.imshow(_colours(value, owner), aspect="auto", interpolation="nearest")
    _add_numbers(axes, owner, count)
    axes.set_ylabel(f"inputs, {full[0]:,}", fontsize=7, color=INK)
    axes.set_xlabel(f"outputs, {full[1]:,}", fontsize=7, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    return set(np.unique(owner).tolist())


def _owners(place: Place, count: int) -> np.ndarray:
    """Array of the variable's shape with the owner of each entry: a parent, or none."""
    owner = np.full(place.shape, _NEW)
    for out_parent in range(count):
        for parent in range(count):
            if parent != out_parent:
                owner[block_index(place.axes, parent, out_parent)] = _OFF_DIAGONAL
    for parent in range(count):
        owner[block_index(place.axes, parent)] = parent
    return owner


def _as_matrix(array: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """The array with its input axes as rows and all others as columns."""
    roles = [axis.role for axis in axes]
    known = [role for role in roles if role is not None]
    # An axis that is not a width, such as a head's size, goes with the one before it.
    for i, role in enumerate(roles):
        if role is None:
            roles[i] = roles[i - 1] if i else ("in" if "in" in known else None)
    if "in" not in roles:
        roles = ["in", *roles[1:]]  # An embedding: its ids are its inputs.
    rows = [i for i, role in enumerate(roles) if role == "in"]
    columns = [i for i in range(len(axes)) if i not in rows]
    height = int(np.prod([array.shape[i] for i in rows]))
    return array.transpose(*rows, *columns).reshape(height, -1)


def _sampled(size: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(size, _PIXELS)).astype(int)


def _colours(value: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """White for zeros, the owner's colour for the largest weights; shape (..., 3)."""
    from matplotlib.colors import to_rgb

    top = np.quantile(value, 0.98) or value.max() or 1.0
    strength = np.sqrt(np.clip(value / top, 0, 1))
    # A parent's block is always visible, however small its weights are.
    strength = np.where(owner >= 0, 0.15 + 0.85 * strength, strength)
    full = np.empty((*owner.shape, 3))
    for code in np.unique(owner):
        full[owner == code] = to_rgb(_colour(code))
    return 1 - strength[..., None] * (1 - full)


def _colour(owner: int) -> str:
    if owner == _OFF_DIAGONAL:
        return INK
    return NEW_CAPACITY if owner == _NEW else PARENTS[owner % len(PARENTS)]


def _add_numbers(axes: Any, owner: np.ndarray, count: int) -> None:
    """Writes each parent's number on its block."""
    for parent in range(count):
        rows, columns = np.nonzero(owner == parent)
        if len(rows):
            axes.text(
                np.median(columns),
                np.median(rows),
                str(parent + 1),
                ha="center",
                va="center",
                fontsize=9,
                color=INK,
                bbox={
                    "boxstyle": "circle,pad=0.2",
                    "facecolor": "white",
                    "edgecolor": "none",
                    "alpha": 0.85,
                },
            )


def _titles(paths: Sequence[str]) -> list[str]:
    """The ends of the paths, long enough to be distinct."""
    parts = [path.split("/") for path in paths]
    ends = list(paths)
    for length in range(2, max(map(len, parts)) + 1):
        ends = ["/".join(p[-length:]) for p in parts]
        if len(set(ends)) == len(ends):
            break
    return [end if len(end) <= 30 else f"…{end[-29:]}" for end in ends]


def _add_legend(figure: Any, count: int, owners: set[int]) -> None:
    from matplotlib.patches import Patch

    labels = {_OFF_DIAGONAL: "off-diagonal", _NEW: "new units"}
    labels |= {k: f"parent {k + 1}" for k in range(count)}
    order = [*range(count), _OFF_DIAGONAL, _NEW]
    handles = [
        Patch(facecolor=_colour(k), label=labels[k]) for k in order if k in owners
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=8,
        title="darker: a larger weight; white: zero",
        title_fontsize=8,
    )
