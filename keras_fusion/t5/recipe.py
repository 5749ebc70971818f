"""Recipes: what is trained, on what, for how long. One TOML file each, in `recipes/`."""

import dataclasses
import re
import tomllib
from pathlib import Path

from keras_fusion.errors import FusionError
from keras_fusion.t5.architecture import SIZES, WIDTHS, Architecture
from keras_fusion.t5.checks import (
    above,
    at_least,
    between,
    named,
    number,
    one_of,
    section,
    whole_number,
)
from keras_fusion.t5.span_corruption import SpanCorruption
from keras_fusion.t5.tree import (
    OFF_DIAGONALS,
    OLD_NAMES,
    SELF_OFF_DIAGONALS,
    Node,
    parse,
    trainings,
)

FOLDER = Path(__file__).parent / "recipes"

# What `keras_fusion.fuse` can do with the norms of distinct parents.
NORMS = ("auto", "block", "calibrated", "joint")

OPTIMIZER_STATES = ("carry", "reset")

# SentencePiece takes no other coverage.
_LEAST_COVERAGE = 0.98

# A vocabulary of fewer pieces would be mostly bytes, of which there are 256.
_PIECES_WITH_BYTES = 512


@dataclasses.dataclass(frozen=True)
class Text:
    """The pre-training text, its vocabulary, and its span corruption.

    Attributes:
        source: string. See `documents.open_source`.
        vocabulary: string. Path of a SentencePiece model; empty to train one.
        vocabulary_size: int. Token ids, sentinels included, of a vocabulary to train.
        sentinels: int. Sentinel ids.
        input_length: int. Tokens in a row of inputs, after the corruption.
        noise_density: float. The share of tokens that is cut out.
        mean_span_length: float. The mean length of the spans that are cut out.
        validation_batches: int.
        vocabulary_coverage: float. The share of the text's characters that get a piece
            of their own in a vocabulary to train. Defaults to 0.9995.
        byte_fallback: bool. Whether a vocabulary to train spells other characters in
            bytes, so that nothing is unknown; that takes 256 pieces. Defaults to `None`:
            if the vocabulary has 512 pieces or more.
    """

    source: str
    vocabulary: str
    vocabulary_size: int = at_least(1)
    sentinels: int = at_least(1)
    input_length: int = at_least(3)
    noise_density: float = between(0, 1)
    mean_span_length: float = at_least(1)
    validation_batches: int = at_least(1)
    vocabulary_coverage: float = number(
        lambda share: _LEAST_COVERAGE <= share <= 1,
        f"between {_LEAST_COVERAGE} and 1",
        default=0.9995,
    )
    byte_fallback: bool | None = None

    @property
    def uses_bytes(self) -> bool:
        """Whether a vocabulary to train has the 256 bytes among its pieces."""
        if self.byte_fallback is not None:
            return self.byte_fallback
        return self.vocabulary_size - self.sentinels >= _PIECES_WITH_BYTES

    def corruption(
        self, first_sentinel: int | None = None, eos_id: int = 1
    ) -> SpanCorruption:
        """The span corruption, by default with the ids of a vocabulary to train."""
        last = self.vocabulary_size - 1
        return SpanCorruption.for_input_length(
            self.input_length,
            first_sentinel=last if first_sentinel is None else first_sentinel,
            eos_id=eos_id,
            noise_density=self.noise_density,
            mean_span_length=self.mean_span_length,
            sentinels=self.sentinels,
        )


@dataclasses.dataclass(frozen=True)
class Training:
    """The training of each node.

    Attributes:
        steps: int. Of a node; the tree's `[steps=...]` overrides it.
        batch_size: int. Rows in a batch, over all devices.
        peak_rate: float. Adafactor's rate, which falls as one over the square root of the
            step after `constant_steps`. In units of the weights' root mean square.
        warmup_steps: int. Steps of a linear rise; 0 for none, as in T5.
        constant_steps: int.
        fused_rate: float. Multiplies the rate of a node that starts from a fusion.
        evaluate_every: int. Steps.
        checkpoint_every: int. Steps.
    """

    steps: int = at_least(1)
    batch_size: int = at_least(1)
    peak_rate: float = above(0)
    warmup_steps: int = at_least(0)
    constant_steps: int = at_least(1)
    fused_rate: float = above(0)
    evaluate_every: int = at_least(1)
    checkpoint_every: int = at_least(1)


@dataclasses.dataclass(frozen=True)
class Fusion:
    """The fusion of parents.

    Attributes:
        norms: string. See `keras_fusion.fuse`; for distinct parents.
        off_diagonal: string. See `keras_fusion.fuse`; for distinct parents.
        self_off_diagonal: string. The same for a self-fusion.
        noise_scale: float. The noise's deviation relative to the kernel's. Recipes of
            earlier versions call it `off_diagonal_scale`.
        optimizer_state: string. `"carry"` lets Adafactor go on with the parents' state,
            and its rate with their steps; `"reset"` begins anew. Defaults to `"reset"`.
    """

    norms: str = one_of(NORMS)
    off_diagonal: str = one_of(OFF_DIAGONALS)
    self_off_diagonal: str = one_of(SELF_OFF_DIAGONALS)
    noise_scale: float = at_least(0)
    optimizer_state: str = one_of(OPTIMIZER_STATES, default="reset")


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """The fine-tuning of trained nodes.

    Attributes:
        tasks: tuple of strings. See `tasks.open_task`.
        steps: int.
        batch_size: int.
        input_length: int.
        target_length: int.
        rate: float. Adafactor's, constant.
    """

    tasks: tuple[str, ...]
    steps: int = at_least(1)
    batch_size: int = at_least(1)
    input_length: int = at_least(2)
    target_length: int = at_least(2)
    rate: float = above(0)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the results.

    Attributes:
        name: string, such as `"T5-M"`.
        seeds: int. Number of seeds.
        trees: dict from a setting's name to its tree.
        baseline: string. The setting that others are compared with: the first one.
    """

    name: str
    seeds: int
    trees: dict[str, Node]
    baseline: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        scale: string. The recipe's name.
        shapes: dict from a name to the sizes of `Architecture` but the vocabulary's.
        text: `Text`.
        training: `Training`.
        fusion: `Fusion`.
        finetuning: `Finetuning`.
        tables: tuple of `Table`.
    """

    scale: str
    shapes: dict[str, dict[str, int]]
    text: Text
    training: Training
    fusion: Fusion
    finetuning: Finetuning
    tables: tuple[Table, ...]

    def architecture(self, node: Node, vocabulary_size: int) -> Architecture:
        """The sizes of a node's model."""
        return Architecture(**self.shapes[node.shape], vocabulary_size=vocabulary_size)

    def steps(self, node: Node) -> int:
        """The number of steps of a node's training."""
        return node.option("steps", self.training.steps)

    def off_diagonal(self, node: Node) -> str:
        """The filling of the blocks off the diagonal at a node's fusion."""
        fusion = self.fusion
        default = fusion.self_off_diagonal if node.copies > 1 else fusion.off_diagonal
        return node.option("off_diagonal", default)

    def noise_scale(self, node: Node) -> float:
        """The scale of the noise at a node's fusion."""
        return node.option("noise_scale", self.fusion.noise_scale)

    def rate(self, node: Node) -> float:
        """The factor of the peak rate in a node's training."""
        return node.option("rate", self.training.fused_rate if node.parents else 1.0)

    def nodes(self, seeds: int | None = None) -> list[tuple[int, Node]]:
        """All trainings of the tables, as pairs of a run's seed and a node.

        Args:
            seeds: int. At most so many seeds of each table. Defaults to the table's own.

        Raises:
            FusionError: if `seeds` is less than 1.
        """
        if seeds is not None and seeds < 1:
            raise FusionError(f"`seeds` must be at least 1. Received: seeds={seeds}.")
        found = {}
        for table in self.tables:
            for seed in range(min(table.seeds, seeds or table.seeds)):
                for node in trainings(table.trees.values()):
                    found.setdefault((seed, node.name), node)
        # Seed by seed, parents first: a run that is cut off has whole results.
        rows = [(seed, node) for (seed, _), node in found.items()]
        return sorted(rows, key=lambda row: row[0])

    def check(self, node: Node) -> None:
        """Checks that a tree's shapes exist and its fusions make them.

        Raises:
            FusionError: naming the node and what does not fit.
        """
        if node.shape not in self.shapes:
            raise FusionError(
                f"The tree {node.name!r} has the shape {node.shape!r}, which the recipe "
                f"{self.scale!r} does not have. Its shapes are {sorted(self.shapes)}."
            )
        for parent in node.parents:
            self.check(parent)
        if not node.parents:
            return
        own = self.shapes[node.shape]
        parents = [self.shapes[parent.shape] for parent in node.parents]
        sums = {k: node.copies * sum(p[k] for p in parents) for k in WIDTHS}
        if any(own != parent | sums for parent in parents):
            raise FusionError(
                f"The fusion {node.name!r} makes a model of the sizes "
                f"{parents[0] | sums}, and {node.shape!r} has {own}. The widths of the "
                "parents must add up to the child's, and their depth and head size must "
                "be equal."
            )
        scaled = node.option("noise_scale", None)
        if scaled is not None and self.off_diagonal(node) == "zeros":
            raise FusionError(
                f"The node {node.name!r} has noise_scale={scaled} and no noise: its "
                "off_diagonal is 'zeros'. Add off_diagonal=random, or leave the scale out."
            )


def load(scale: str) -> Recipe:
    """Reads a recipe.

    Args:
        scale: the name of a file in `recipes/`, such as `"tiny"`, or the path of a TOML
            file of one's own.

    Returns:
        A `Recipe`.

    Raises:
        FusionError: if there is none of this name, or it is not a recipe: the message
            names the entry.

    Example:

    >>> from keras_fusion.t5.recipe import load
    >>> recipe = load("tiny")
    >>> recipe.shapes["M"]["hidden_dim"] == 2 * recipe.shapes["S"]["hidden_dim"]
    True
    """
    path = Path(scale) if scale.endswith(".toml") else FOLDER / f"{scale}.toml"
    if not path.is_file():
        names = sorted(p.stem for p in FOLDER.glob("*.toml"))
        raise FusionError(
            f"There is no recipe scale={scale!r}. Give one of {names}, or the path of a "
            "file that ends in .toml."
        )
    try:
        return _recipe(path.stem, tomllib.loads(path.read_text(encoding="utf-8")))
    # What is no UTF-8 and what is no TOML are both ValueErrors, as a FusionError is.
    except (ValueError, RecursionError) as error:
        raise FusionError(
            f"The recipe {str(path)!r} is not one: {str(error).rstrip('.')}. Compare it "
            f"with those in {str(FOLDER)!r}."
        ) from error


_SECTIONS = {
    "text": Text,
    "training": Training,
    "fusion": Fusion,
    "finetuning": Finetuning,
}


def _recipe(scale: str, content: dict) -> Recipe:
    named("A recipe", content, (*_SECTIONS, "shapes", "tables"))
    fusion = content["fusion"]
    if isinstance(fusion, dict) and "noise_scale" not in fusion:
        content["fusion"] = {OLD_NAMES.get(key, key): fusion[key] for key in fusion}
    recipe = Recipe(
        scale=scale,
        shapes=_shapes(content["shapes"]),
        tables=_tables(content["tables"]),
        **{key: section(kind, key, content[key]) for key, kind in _SECTIONS.items()},
    )
    recipe.text.corruption()  # Its numbers are checked together.
    for table in recipe.tables:
        for tree in table.trees.values():
            recipe.check(tree)
    return recipe


def _shapes(content):
    named("shapes", content, (), content)
    for name, sizes in content.items():
        if not re.fullmatch("[A-Z]+", name):
            raise FusionError(
                f"shapes.{name} must have a name in capitals, such as shapes.M, to stand "
                "in a tree."
            )
        named(f"shapes.{name}", sizes, SIZES)
        for key, size in sizes.items():
            whole_number(f"shapes.{name}.{key}", size)
    return content


def _tables(content):
    named("tables", content, (), content)
    if not content:
        raise FusionError("tables must have at least one table, such as tables.T5-M.")
    return tuple(_table(name, rows) for name, rows in content.items())


def _table(name, rows):
    if not name or set(name) & set('/\\:*?"<>|'):
        raise FusionError(
            f"tables.{name!r} must have a name that can be part of a file's name."
        )
    named(f"tables.{name}", rows, ("seeds", "trees"))
    whole_number(f"tables.{name}.seeds", rows["seeds"])
    named(f"tables.{name}.trees", rows["trees"], (), rows["trees"])
    trees = {}
    for setting, text in rows["trees"].items():
        if not isinstance(text, str):
            raise FusionError(
                f"tables.{name}.trees.{setting} must be a tree, such as 'M(S, S)'. "
                f"Received: {text!r}."
            )
        trees[setting] = parse(text)
    if not trees:
        raise FusionError(f"tables.{name}.trees must have at least one tree.")
    return Table(name, rows["seeds"], trees, next(iter(trees)))
