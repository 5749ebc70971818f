"""A study as data: which models are trained, grown when and how, on how much."""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator

CLOCKS = ("flops", "steps")
PARENTS = ("counted", "free")
NEW = ("operator", "random")
NEW_BLOCKS = ("copies", "random")
ORDERS = ("together", "bottom", "top")


@dataclasses.dataclass(frozen=True)
class Size:
    """How big a model is.

    Args:
        width: int. Features of the residual stream.
        layers: int. Of each of its stacks.
    """

    width: int
    layers: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Reads a size such as `64x4`: 64 wide, 4 layers."""
        if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
            raise ValueError(f"A size reads like '64x4'. Received: {text!r}.")
        return cls(*map(int, found.groups()))

    def __str__(self):
        return f"{self.width}x{self.layers}"


@dataclasses.dataclass(frozen=True)
class Text:
    """What is read.

    Args:
        source: string, see `keras_fusion.t5.documents.open_source`.
        vocabulary_size: int. Token ids. Defaults to 1024.
        tokens: int. How many to train on, again and again. Defaults to all.
    """

    source: str
    vocabulary_size: int = 1024
    tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """What all models of a run have in common, and how they are trained.

    Args:
        kind: `"decoder"` (keras-hub's Llama), `"t5"`, `"gpt2"` or `"bert"`.
        optimizer: dict of the arguments of an optimizer of Keras, its class as `name`.
        head_size: int. Features of a head; a width has as many heads as fit. Defaults
            to 32.
        row_length: int. Tokens in a row. Defaults to 128.
        batch_size: int. Rows in a batch. Defaults to 8.
        warmup_steps: int. Defaults to 60.
        decay: float. The last share of every run, over which the rate falls to zero.
            Defaults to 0.2.
        initialization: dict of changes to the initial values, see
            `initialization.initialize`. Defaults to none.
        validation_batches: int. For a final loss, of 32 rows. Defaults to 32.
    """

    kind: str
    optimizer: dict
    head_size: int = 32
    row_length: int = 128
    batch_size: int = 8
    warmup_steps: int = 60
    decay: float = 0.2
    initialization: dict = dataclasses.field(default_factory=dict)
    validation_batches: int = 32


@dataclasses.dataclass(frozen=True)
class Budget:
    """The run from scratch that others are measured by; its length is the unit.

    Args:
        size: `Size`. Of the run from scratch, and of the grown models as a rule.
        steps: int. Defaults to what `tokens_per_parameter` says.
        tokens_per_parameter: float.
        clock: `"flops"` or `"steps"`: what moments and ends are shares of. By steps a
            grown run spends fewer FLOPs to the same end. Defaults to `"flops"`.
    """

    size: Size
    steps: int | None = None
    tokens_per_parameter: float | None = None
    clock: str = "flops"

    def __post_init__(self):
        _one_of("clock", self.clock, CLOCKS)
        if (self.steps is None) == (self.tokens_per_parameter is None):
            raise ValueError("Give a budget either `steps` or `tokens_per_parameter`.")


@dataclasses.dataclass(frozen=True)
class Growth:
    """One growth of a run.

    Args:
        to: `Size` after it.
        at: float. The share of the budget that is spent before it.
        operator: string, the name of one of `keras_fusion.known_operators()`.
        options: dict for the operator.
        parents: int. How many distinct models are fused. Defaults to 1.
        annealed: bool. Whether the parents' rate falls to zero before. Defaults to
            `False`.
        new_blocks: `"copies"` leaves the operator's values; `"random"` gives added
            layers those of a fresh model. Defaults to `"copies"`.
        new_features: `"operator"` leaves the operator's values; `"random"` gives added
            features those of a fresh model, see `initialization.renew_features`. Defaults
            to `"operator"`.
        anneal_steps: int. Steps over which block norms become stock norms, from the
            growth on. Defaults to 0: they stay.
        anneal_order: `"together"`, or one after the other from the `"bottom"` or from
            the `"top"` of the model.
        training: dict of arguments of `GrowModel`, such as `learning_rate_factor`.
    """

    to: Size
    at: float
    operator: str = "FusionOperator"
    options: dict = dataclasses.field(default_factory=dict)
    parents: int = 1
    annealed: bool = False
    new_blocks: str = "copies"
    new_features: str = "operator"
    anneal_steps: int = 0
    anneal_order: str = "together"
    training: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _one_of("new_blocks", self.new_blocks, NEW_BLOCKS)
        _one_of("new_features", self.new_features, NEW)
        _one_of("anneal_order", self.anneal_order, ORDERS)

    def at_rate(self, factor: float) -> "Growth":
        """The growth with another `learning_rate_factor`, whose default is 1."""
        training = self.training | {"learning_rate_factor": factor}
        return dataclasses.replace(self, training=training)


@dataclasses.dataclass(frozen=True)
class Course:
    """What one run does.

    Args:
        setting: string. What is tried, in words; the same for all seeds.
        size: `Size` at the start.
        rate: float. The constant learning rate at the start.
        text: `Text`.
        model: `Model`.
        budget: `Budget`.
        growths: tuple of `Growth`.
        budgets: tuple of floats. Shares of the budget at which a branch with falling
            rate ends.
        parents: `"counted"` or `"free"`: whether what the parents spend is part of the
            budget, or the clock starts at the last growth. Defaults to `"counted"`.
        seed: int. Of weights, data and growths.
    """

    setting: str
    size: Size
    rate: float
    text: Text
    model: Model
    budget: Budget
    growths: tuple[Growth, ...] = ()
    budgets: tuple[float, ...] = (1.0,)
    parents: str = "counted"
    seed: int = 0

    def __post_init__(self):
        _one_of("parents", self.parents, PARENTS)

    def to_dict(self) -> dict:
        """The course as plain data."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @property
    def name(self) -> str:
        """A file's name of its own."""
        words = "".join(c if c.isalnum() or c == "." else "-" for c in self.setting)
        return f"{words}-seed{self.seed}-{digest(self)}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A setting at several rates and the like, and with several seeds.

    The first seed tries all of them; the others run at the choice that ends lowest.

    Args:
        course: `Course`, at any rate and seed.
        rates: tuple of floats.
        seeds: tuple of ints.
        weight_decays: tuple of floats. Defaults to the optimizer's own.
        factors: tuple of floats, `learning_rate_factor` of the last growth. Defaults to
            the growth's own.
    """

    course: Course
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    weight_decays: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    def tries(self) -> list[Course]:
        """The first seed at all rates, weight decays and factors."""
        first = dataclasses.replace(self.course, seed=self.seeds[0])
        choices = itertools.product(self._models(), self._growths(), self.rates)
        return [
            dataclasses.replace(first, rate=rate, model=model, growths=growths)
            for model, growths, rate in choices
        ]

    def _models(self):
        model = self.course.model
        return [
            dataclasses.replace(
                model, optimizer=model.optimizer | {"weight_decay": decay}
            )
            for decay in self.weight_decays
        ] or [model]

    def _growths(self):
        growths = self.course.growths
        return [
            (*growths[:-1], growths[-1].at_rate(factor)) for factor in self.factors
        ] or [growths]

    def others(self, best: Course) -> list[Course]:
        """The other seeds at the best choice."""
        return [dataclasses.replace(best, seed=seed) for seed in self.seeds[1:]]


@dataclasses.dataclass(frozen=True)
class Case:
    """Settings that a table and a picture compare.

    Args:
        title: string.
        picture: string, a file's name.
        settings: tuple of strings. Those that grow.
        beside: tuple of strings. Those in the picture that do not.
        parents: `"counted"`, `"free"` or `"parallel"`, see `analysis.ends`.
    """

    title: str
    picture: str
    settings: tuple[str, ...]
    beside: tuple[str, ...] = ("scratch",)
    parents: str = "counted"

    def __post_init__(self):
        _one_of("parents", self.parents, (*PARENTS, "parallel"))


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Args:
        name: string.
        title: string.
        sweeps: tuple of `Sweep`; empty if the study is concluded.
        tables: dict from headings to folders of results.
        reference: tuple of strings. The first of these settings that was run is what
            others are compared with, at equal budgets.
        compared_at: float. The budget for that.
        chosen_on: tuple of ints. Seeds that the settings were chosen on. The tables
            report the others of each setting that has some.
        cases: tuple of `Case`, shown before the tables.
    """

    name: str
    title: str
    sweeps: tuple[Sweep, ...]
    tables: dict[str, str]
    reference: tuple[str, ...] = ()
    compared_at: float = 1.0
    chosen_on: tuple[int, ...] = ()
    cases: tuple[Case, ...] = ()

    def courses(self, loss) -> Iterator[Course]:
        """The runs that can be said so far: what no other waits for comes first.

        Args:
            loss: function from a `Course` to its loss at its last end, `None` as long as
                it has not finished.
        """
        tries = [sweep.tries() for sweep in self.sweeps]
        for sweep, tried in zip(self.sweeps, tries, strict=True):
            yield from tried
            if len(tried) == 1:
                yield from sweep.others(tried[0])
        for sweep, tried in zip(self.sweeps, tries, strict=True):
            losses = [loss(course) for course in tried]
            if len(tried) > 1 and None not in losses:
                yield from sweep.others(tried[losses.index(min(losses))])


def _one_of(name, value, allowed):
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {allowed}. Received: {value!r}.")


def digest(*parts) -> str:
    """Eight characters that differ where dataclasses or plain data do.

    Defaults do not count, so that an option that comes later changes no name.
    """
    text = json.dumps([_told(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _told(value):
    if isinstance(value, (list, tuple)):
        return [_told(part) for part in value]
    if not dataclasses.is_dataclass(value):
        return value
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {
        f.name: _told(plain[f.name])
        for f in dataclasses.fields(value)
        if plain[f.name] != f.default
        and (f.default_factory is dataclasses.MISSING or plain[f.name])
    }
