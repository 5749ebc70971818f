"""The judge: a grown model against its parents, at several scales of the inputs."""

import collections
import dataclasses
import hashlib
import json
import traceback
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_fusion as kf
from experiments.fuzz import generator
from keras_fusion.models import observe, samples, tree
from keras_fusion.operators import verification

SCALES = (1.0, 0.1, 30.0)
# Larger changes are wrong; those of layer norms over two features are roundings.
TOLERANCE = {"float64": 1e-6, "float32": 5e-3}


def _operator(make: Callable[[], Any]) -> Callable[..., keras.Model]:
    def grow(model, seed):
        plan = make().plan(model, seed)
        plan.fill()
        verification.verify(plan, samples.sample(model))
        return plan.fused

    return grow


def _distinct(norms):
    def grow(models, seed):
        return kf.fuse(models, norms=norms, seed=seed)

    return grow


GROWTHS: dict[str, Callable[..., keras.Model]] = {
    "zeros": lambda m, seed: kf.fuse(m, factor=2, off_diagonal="zeros", seed=seed),
    "paired": lambda m, seed: kf.fuse(m, factor=2, off_diagonal="paired", seed=seed),
    "factor 1.5": lambda m, seed: kf.fuse(m, factor=1.5, seed=seed),
    "distinct": _distinct("joint"),
    "distinct, block norms": _distinct("block"),
    "HyperCloning": _operator(lambda: kf.HyperCloning(2, noise_scale=0.1)),
    "Net2Net": _operator(lambda: kf.Net2Net(1.5)),
    "Lemon": _operator(lambda: kf.Lemon(1.5)),
    "ZeroPadding": _operator(lambda: kf.ZeroPadding(2)),
    "StagedTraining": _operator(lambda: kf.StagedTraining()),
    "DepthStacking": _operator(lambda: kf.DepthStacking(identity=True)),
    "Chain": _operator(lambda: kf.Chain([kf.HyperCloning(2), kf.ZeroPadding(1.5)])),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one growth.

    Args:
        seed: int.
        growth: string, a key of `GROWTHS`.
        result: `"exact"` (of distinct parents with activations behind their logits: these
            are the mean), `"refused"`, `"approximate"` (distinct parents under joint
            norms), `"output grew"` (a class's hidden states), `"no model"`, or a fault:
            `"wrong"`, `"error"`, `"parents"`.
        detail: string.
    """

    seed: int
    growth: str
    result: str
    detail: str

    @property
    def is_fault(self) -> bool:
        """Whether a promise is broken."""
        return self.result in ("wrong", "error", "parents")


def judged(seed: int) -> Verdict:
    """Grows the model of a seed in one way, which the seed chooses too."""
    growth = list(GROWTHS)[seed % len(GROWTHS)]
    is_distinct = growth.startswith("distinct")
    kind = generator.program(seed).kind
    try:
        parents = [generator.model(seed, k) for k in range(2 if is_distinct else 1)]
        expected = [_answers(parent, kind) for parent in parents]
    except Exception as error:
        return Verdict(seed, growth, "no model", f"{type(error).__name__}: {error}")
    digests = [_digest(parent) for parent in parents]
    try:
        grown = GROWTHS[growth](parents if is_distinct else parents[0], seed)
        result = _compared(parents, grown, expected, seed, growth)
    except kf.FusionError as error:
        result = "refused", str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        result = "error", f"{type(error).__name__}: {error} ({place})"
    if [_digest(parent) for parent in parents] != digests:
        result = "parents", "a parent has changed"
    return Verdict(seed, growth, *result)


def _batches(kind) -> list[np.ndarray]:
    x = generator.batch(kind)
    return [x] if kind == "ids" else [scale * x for scale in SCALES]


def _answers(model, kind) -> list[list[np.ndarray]]:
    """By scale, the outputs."""
    found = []
    for inputs in _batches(kind):
        tensors = keras.tree.flatten(model(keras.ops.convert_to_tensor(inputs)))
        found.append([np.array(keras.ops.convert_to_numpy(y)) * 1.0 for y in tensors])
    return found


def _compared(parents, grown, expected, seed, growth) -> tuple[str, str]:
    tolerance = TOLERANCE[keras.config.floatx()]
    worst, kind = 0.0, generator.program(seed).kind
    for *before, after in zip(*expected, _answers(grown, kind), strict=True):
        for *olds, new in zip(*before, after, strict=True):
            if olds[0].shape != new.shape:
                if generator.program(seed).form == "subclassed":
                    return "output grew", f"shape {olds[0].shape} became {new.shape}"
                return "wrong", f"shape {olds[0].shape} became {new.shape}"
            with np.errstate(all="ignore"):
                worst = max(worst, _change(np.mean(olds, axis=0), new))
    if worst <= tolerance:
        return "exact", f"{worst:.1e}"
    if len(parents) > 1 and growth == "distinct" and _has_norms(parents[0]):
        return "approximate", f"{worst:.1e}"
    # Outputs without a readout may be a function of the mean of logits.
    is_function = _is_softmax(parents[0]) or "none" in generator.program(seed).heads
    if len(parents) > 1 and is_function:
        worst = _change_of_logits(parents, grown, kind)
        return "exact" if worst <= tolerance else "wrong", f"{worst:.1e} of logits"
    return "wrong", f"{worst:.1e}"


def _change_of_logits(parents, grown, kind) -> float:
    """The change of what the layers make that did not grow, before their activation.

    There the parents meet, in their mean; infinite if there is no such layer.
    """
    worst = []
    for inputs in _batches(kind):
        *before, after = [_made(model, inputs) for model in (*parents, grown)]
        for address, new in after.items():
            olds = [made.get(address) for made in before]
            if all(y is not None and y.shape == new.shape for y in olds):
                with np.errstate(all="ignore"):
                    worst.append(_change(np.mean(olds, axis=0), new))
    return max(worst, default=np.inf)


def _made(model, inputs) -> dict[tuple[str, int], np.ndarray]:
    """What each layer with weights makes at each of its calls, without activation."""
    layers = {name: x for name, x in tree.walk(model) if tree.own_variables(x)}
    calls = observe.watch(model, inputs, layers.values()).calls
    found = {}
    for name, layer in layers.items():
        for i, seen in enumerate(calls.get(id(layer), [])):
            value = seen.output if seen.inner is None else seen.inner
            if value is not None:
                found[name, i] = value
    return found


def _change(old, new) -> float:
    finite = np.isfinite(old)
    if not finite.any():
        return 0.0
    change = np.abs(new[finite] - old[finite])
    change = np.max(np.where(np.isfinite(change), change, np.inf))
    size = np.max(np.abs(old[finite]))
    return float(change / max(size, 1e-30)) if change else 0.0


def _has_norms(model) -> bool:
    norms = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
    return any(isinstance(layer, norms) for layer in model._flatten_layers())


def _is_softmax(model) -> bool:
    """Whether the logits are averaged, and not the outputs."""
    return any(
        getattr(getattr(layer, "activation", None), "__name__", "") == "softmax"
        for layer in model._flatten_layers()
    )


def _digest(model) -> str:
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def summary(verdicts: list[Verdict]) -> str:
    """The counts by result and by growth, and the faults."""
    counts = collections.Counter(verdict.result for verdict in verdicts)
    by_growth: dict[str, dict] = {}
    for verdict in verdicts:
        own = by_growth.setdefault(verdict.growth, collections.Counter())
        own[verdict.result] += 1
    lines = [json.dumps(counts), *(f"{k}: {dict(v)}" for k, v in by_growth.items())]
    for verdict in verdicts:
        if verdict.is_fault:
            drawn = generator.program(verdict.seed).describe()
            lines.append(
                f"seed {verdict.seed} {verdict.growth} {verdict.result} "
                f"{verdict.detail}\n    {drawn}"
            )
    return "\n".join(lines)
