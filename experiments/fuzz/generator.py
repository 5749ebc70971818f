"""Random models from seeds: functional, Sequential and subclassed ones."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_fusion
from experiments.fuzz import catalogue
from experiments.fuzz.catalogue import Entry, Listed

FORMS = ("functional", "functional", "sequential", "subclassed")
WIDTH = 4
LENGTH = 4
SHAPES = {
    "features": (5,),
    "sequence": (LENGTH, 3),
    "image": (4, 4, 2),
    "volume": (2, 2, 2, 2),
    "ids": (LENGTH,),
}
VOCABULARY = 6


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a model: what is called on which earlier tensors."""

    entry: Entry
    seed: int
    sources: tuple[int, ...]

    def made(self, width: int) -> Any:
        """The layer, or the function, of this step."""
        return self.entry.make(np.random.default_rng(self.seed), width)


@dataclasses.dataclass(frozen=True)
class Program:
    """A random model without its widths.

    Args:
        form: one of `FORMS`.
        kind: one of `SHAPES`.
        steps: the steps; tensor 0 is the input.
        ends: the tensors from which outputs are made.
        heads: the last layers, by name.
    """

    form: str
    kind: str
    steps: tuple[Step, ...]
    ends: tuple[int, ...]
    heads: tuple[str, ...]

    def describe(self) -> str:
        """The program in one line."""
        names = [f"{s.entry.name}{list(s.sources)}" for s in self.steps]
        return (
            f"{self.form} {self.kind}: {', '.join(names)} -> {self.ends} {self.heads}"
        )


def program(seed: int) -> Program:
    """Draws a program, of steps that can be called."""
    rng = np.random.default_rng(seed)
    form = FORMS[rng.integers(len(FORMS))]
    kind = list(SHAPES)[rng.choice(len(SHAPES), p=[0.25, 0.35, 0.15, 0.05, 0.2])]
    tensors = [_stem(kind)(_input(kind))]
    steps: list[Step] = []
    for _ in range(int(rng.integers(2, 8))):
        step = _drawn(rng, tensors, chained=form == "sequential")
        if step is not None:
            steps.append(step[0])
            tensors.append(step[1])
    floats = [i for i, t in enumerate(tensors) if "float" in t.dtype]
    ends = {floats[-1]}
    if form != "sequential" and rng.integers(4) == 0:
        ends.add(int(rng.choice(floats)))
    if form == "sequential":
        ends = {len(tensors) - 1}
    heads = tuple(str(rng.choice(list(HEADS))) for _ in ends)
    return Program(form, kind, tuple(steps), tuple(sorted(ends)), heads)


def _drawn(rng, tensors, chained):
    """A step that these tensors allow, and its result; `None` if none was found."""
    for _ in range(20):
        from_layers = rng.random() < 0.65
        pool = catalogue.LAYERS if from_layers else catalogue.OPERATIONS
        entry = pool[rng.integers(len(pool))]
        if chained and (entry.inputs > 1 or not from_layers):
            continue
        fitting = [
            i
            for i, t in enumerate(tensors)
            if len(t.shape) in entry.ranks and "float" in t.dtype
        ]
        if chained:
            fitting = [i for i in fitting if i == len(tensors) - 1]
        if not fitting:
            continue
        # Mostly the last ones, so that models are deep.
        picks = rng.choice(fitting[-3:], entry.inputs)
        step = Step(entry, int(rng.integers(2**31)), tuple(int(i) for i in picks))
        try:
            result = step.made(WIDTH)(*(tensors[i] for i in step.sources))
        except Exception:
            continue
        if not isinstance(result, keras.KerasTensor) or not _is_usable(result):
            continue
        return step, result
    return None


def _is_usable(tensor):
    size = np.prod([d or 1 for d in tensor.shape[1:]])
    return len(tensor.shape) > 1 and tensor.shape[0] is None and size <= 2000


HEADS: dict[str, Any] = {
    "dense": lambda: layers.Dense(3),
    "softmax": lambda: layers.Dense(3, activation="softmax"),
    "flat": lambda: layers.Dense(2),
    "none": lambda: layers.Identity(),
}


def _input(kind):
    dtype = "int32" if kind == "ids" else None
    return keras.Input(SHAPES[kind], dtype=dtype)


def _stem(kind, width=WIDTH):
    return layers.Embedding(VOCABULARY, width) if kind == "ids" else layers.Dense(width)


def batch(kind: str, count: int = 6, seed: int = 0) -> np.ndarray:
    """Inputs for the models of a kind."""
    rng = np.random.default_rng(seed)
    if kind == "ids":
        return rng.integers(0, VOCABULARY, (count, *SHAPES[kind]))
    return rng.standard_normal((count, *SHAPES[kind]))


class _Made:
    """The layers of a program at one width."""

    def __init__(self, drawn: Program, width: int):
        self.program = drawn
        self.stem = _stem(drawn.kind, width)
        self.steps = [step.made(width) for step in drawn.steps]
        self.flat = [layers.Flatten() for _ in drawn.ends]
        self.heads = [HEADS[name]() for name in drawn.heads]

    def __call__(self, inputs: Any) -> Any:
        tensors = [self.stem(inputs)]
        for step, made in zip(self.program.steps, self.steps, strict=True):
            tensors.append(made(*(tensors[i] for i in step.sources)))
        names = self.program.heads
        rows = zip(self.program.ends, names, self.flat, self.heads, strict=True)
        found = [
            head(flat(tensors[i]) if name == "flat" else tensors[i])
            for i, name, flat, head in rows
        ]
        return found[0] if len(found) == 1 else found

    @property
    def layers(self) -> list[keras.Layer]:
        """All layers, in the order of their use."""
        steps = [x.layer if isinstance(x, Listed) else x for x in self.steps]
        pairs = zip(self.flat, self.program.heads, strict=True)
        flat = [x for x, name in pairs if name == "flat"]
        found = [self.stem, *steps, *flat, *self.heads]
        return [layer for layer in found if isinstance(layer, keras.Layer)]


@keras.saving.register_keras_serializable("fuzz")
class Fuzzed(keras.Model):
    """A model written as a class, whose program is found by its seed."""

    def __init__(self, width: int, drawn: int, **options: Any):
        super().__init__(**options)
        self.width, self.drawn = width, drawn
        self.made = _Made(program(drawn), width)
        self.parts = self.made.layers

    def call(self, inputs: Any) -> Any:
        """Runs the program."""
        return self.made(inputs)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"width": self.width, "drawn": self.drawn}


keras_fusion.register(Fuzzed, widths=("width",))


def model(seed: int, values: int = 0) -> keras.Model:
    """The model of a seed, with random weights.

    Args:
        seed: int. The seed of its program.
        values: int. The seed of its weights.
    """
    drawn = program(seed)
    keras.utils.set_random_seed(values)
    if drawn.form == "subclassed":
        built: keras.Model = Fuzzed(WIDTH, seed)
        built(batch(drawn.kind))
    elif drawn.form == "sequential":
        made = _Made(drawn, WIDTH)
        built = keras.Sequential([_input(drawn.kind), *made.layers])
    else:
        inputs = _input(drawn.kind)
        built = keras.Model(inputs, _Made(drawn, WIDTH)(inputs))
    return _perturbed(built, values)


def _perturbed(built, seed):
    """Gives biases and norms values as after a training."""
    rng = np.random.default_rng(seed)
    for variable in built.trainable_variables:
        value = np.array(keras.ops.convert_to_numpy(variable))
        noise = 0.3 * rng.standard_normal(value.shape)
        variable.assign((value + noise).astype(value.dtype))
    return built
