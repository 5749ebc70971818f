"""What the trees of a recipe will cost and save, before anything is trained.

FLOPs and bytes are counted on models that have no values. What a fused node saves is
predicted by a scaling law, as `keras_fusion.plan_growth` does: the fused model goes on
along its own curve, from where that has its parents' loss. Distinct parents count as the
best of them, although their ensemble is better.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_fusion.analysis.growth_plan import mixing_bounds, worth
from keras_fusion.analysis.scaling_law import ScalingLaw
from keras_fusion.errors import FusionError
from keras_fusion.graft.sizes import bytes_of
from keras_fusion.models import private
from keras_fusion.models.flops import model_flops
from keras_fusion.t5.costs import Cost, Spent, cost
from keras_fusion.t5.markdown import table
from keras_fusion.t5.model import build
from keras_fusion.t5.recipe import Recipe
from keras_fusion.t5.tree import Node, trainings

_FLOAT_BYTES = 4

# Hoffmann et al., Training Compute-Optimal Large Language Models, 2022, their approach 3;
# and the same runs fitted anew by Besiroglu et al., Chinchilla Scaling: A Replication
# Attempt, 2024. Both are of decoders on other text.
LAWS = (
    ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28),
    ScalingLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3658),
)


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices that one training gets.

    Args:
        devices: int.
        peak_tflops: float. Of one device, in 1e12 FLOPs a second. Defaults to 197, a TPU
            v5e in bfloat16.
        utilization: float, above 0 and at most 1. The share of it that a training uses.
            Defaults to 0.4.
    """

    devices: int
    peak_tflops: float = 197.0
    utilization: float = 0.4

    def hours(self, flops: int) -> float:
        """The time that FLOPs take on all devices."""
        rate = self.devices * self.peak_tflops * 1e12 * self.utilization
        return flops / rate / 3600


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A tree before it is trained.

    Attributes:
        node: `Node`, the root.
        params: int. The root's parameters.
        trainings: int. How many the tree has.
        cost: `Cost`.
        device_bytes: int. The root's weights, gradients and optimizer state on one
            device of a data-parallel training, without activations.
        share: `(lowest, highest)`, floats. The FLOPs after which the root has the final
            loss of the same model from scratch, over those of that run; parents free.
        share_counted: the same with the parents' FLOPs.
    """

    node: Node
    params: int
    trainings: int
    cost: Cost
    device_bytes: int
    share: tuple[float, float]
    share_counted: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class _Model:
    """What is known of a shape."""

    params: int
    row_flops: int
    device_bytes: int


class Forecaster:
    """Foretells the trees of one recipe.

    Args:
        recipe: `Recipe`.
        machine: `Machine`.
        laws: sequence of `ScalingLaw`, each of which is asked. Defaults to `LAWS`.
        mixing: pair of floats, see `keras_fusion.plan_growth`. Defaults to zeros.
    """

    def __init__(
        self,
        recipe: Recipe,
        machine: Machine,
        laws: Sequence[ScalingLaw] = LAWS,
        mixing: tuple[float, float] = (0.0, 0.0),
    ):
        self.recipe, self.machine = recipe, machine
        self.assumptions = list(itertools.product(laws, mixing_bounds(mixing)))
        self.task = recipe.text.corruption()
        self.model = functools.cache(self._model)

    def forecast(self, node: Node) -> Forecast:
        """What is predicted of a tree."""
        own, total = self.model(node.shape), cost(node, self.spent)
        before = (total.flops - total.own_flops) / total.own_flops
        shares = [self._share(node, *assumed) for assumed in self.assumptions]
        low, high = min(shares), max(shares)
        return Forecast(
            node=node,
            params=own.params,
            trainings=len(trainings([node])),
            cost=total,
            device_bytes=own.device_bytes,
            share=(low, high),
            share_counted=(low + before, high + before),
        )

    def spent(self, node: Node) -> Spent:
        """What a node's own training will take."""
        rows = self.recipe.steps(node) * self.recipe.training.batch_size
        flops = rows * self.model(node.shape).row_flops
        return Spent(flops, self.machine.hours(flops), self.machine.devices)

    def tokens(self, node: Node) -> float:
        """The tokens that a node's own training reads and writes."""
        row = self.task.input_length + self.task.target_length
        return float(self.recipe.steps(node) * self.recipe.training.batch_size * row)

    def _share(self, node: Node, law: ScalingLaw, mixing: float) -> float:
        own = self.tokens(node)
        return max(own - self._start(node, law, mixing), 0.0) / own

    def _start(self, node: Node, law: ScalingLaw, mixing: float) -> float:
        """The tokens on its own curve that a node starts at."""
        if not node.parents:
            return 0.0
        ends = {p: self._start(p, law, mixing) + self.tokens(p) for p in node.parents}
        params = self.model(node.shape).params
        return max(
            worth(law, params, law.loss(self.model(p.shape).params, end), end, mixing)
            for p, end in ends.items()
        )

    def _model(self, shape: str) -> _Model:
        """Builds a shape without values, and counts."""
        text = self.recipe.text
        with private.without_values():
            model = build(
                self.recipe.architecture(Node(shape), text.vocabulary_size), seed=0
            )
        inputs = {
            f"{side}_{name}": keras.ops.ones((1, length), "int32")
            for side, length in (
                ("encoder", self.task.input_length),
                ("decoder", self.task.target_length),
            )
            for name in ("token_ids", "padding_mask")
        }
        trained = model.trainable_variables
        held = bytes_of(model.weights) + bytes_of(trained) + _adafactor_bytes(trained)
        return _Model(model.count_params(), model_flops(model, inputs), held)


def _adafactor_bytes(variables: Sequence[keras.Variable]) -> int:
    """The bytes of the state of Keras's Adafactor, whose iteration and rate are small.

    It holds the means of rows and columns, and yet a velocity as large as each variable.
    """
    shapes = [tuple(v.shape) for v in variables]
    means = sum(
        math.prod(shape[:-1]) + math.prod((*shape[:-2], shape[-1]))
        for shape in shapes
        if len(shape) > 1
    )
    placeholders = 2 * sum(len(shape) < 2 for shape in shapes)
    return bytes_of(variables) + _FLOAT_BYTES * (means + placeholders)


def read_law(path: Path) -> ScalingLaw:
    """Reads the constants of a law from a JSON file.

    Args:
        path: of a file with `ScalingLaw`'s five constants by name.

    Raises:
        FusionError: if they are not what the file holds.
    """
    names = [f.name for f in dataclasses.fields(ScalingLaw) if f.name != "resampled"]
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        constants: dict[str, Any] = {name: float(held[name]) for name in names}
        law = ScalingLaw(**constants)
    except (KeyError, TypeError, ValueError) as error:
        raise FusionError(
            f"{str(path)!r} is no scaling law: it must be JSON with the numbers "
            f"{', '.join(names)}. Received: {type(error).__name__}: {error}."
        ) from error
    return law


def markdown(forecasts: dict[str, Forecast]) -> str:
    """A table of trees.

    Args:
        forecasts: dict from a setting's name to its `Forecast`.
    """
    head = (
        "setting",
        "tree",
        "trainings",
        "parameters",
        "EFLOP",
        "without parents",
        "GiB on a device",
        "device hours",
        "hours in series",
        "in parallel",
        "share of scratch's FLOPs",
        "with parents",
    )
    rows = [_row(name, found) for name, found in forecasts.items()]
    return table(head, rows)


def _row(name: str, found: Forecast) -> tuple[str, ...]:
    total = found.cost
    return (
        name,
        f"`{found.node.name}`",  # or it reads like a link
        str(found.trainings),
        f"{found.params / 1e6:,.0f}M",
        f"{total.flops / 1e18:,.3g}",
        f"{total.own_flops / 1e18:,.3g}",
        f"{found.device_bytes / 2**30:.1f}",
        f"{total.accelerator_hours:,.3g}",
        f"{total.hours_in_series:,.3g}",
        f"{total.hours_in_parallel:,.3g}",
        _interval(found.share),
        _interval(found.share_counted),
    )


def _interval(bounds: tuple[float, float]) -> str:
    low, high = (f"{bound:.2f}" for bound in bounds)
    return low if low == high else f"{low} to {high}"
