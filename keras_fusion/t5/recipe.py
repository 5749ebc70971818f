"""Recipes: what is trained, on what, for how long. One TOML file each, in `recipes/`."""

import dataclasses
import tomllib
from pathlib import Path

from keras_fusion.t5.model import Architecture
from keras_fusion.t5.tree import Node, parse, trainings

FOLDER = Path(__file__).parent / "recipes"
_WIDTHS = ("hidden_dim", "intermediate_dim", "num_heads")


@dataclasses.dataclass(frozen=True)
class Text:
    """The pre-training text and how it is cut.

    Attributes:
        source: string. See `documents.open_source`.
        vocabulary: string. Path of a SentencePiece model; empty to train one.
        vocabulary_size: int. Token ids, sentinels included, of a vocabulary to train.
        sentinels: int. Sentinel ids.
        input_length: int. Tokens in a row of inputs, after the corruption.
        noise_density: float. The share of tokens that is cut out.
        mean_span_length: float. The mean length of what is cut out in one piece.
        validation_batches: int.
    """

    source: str
    vocabulary: str
    vocabulary_size: int
    sentinels: int
    input_length: int
    noise_density: float
    mean_span_length: float
    validation_batches: int


@dataclasses.dataclass(frozen=True)
class Training:
    """How each node is trained.

    Attributes:
        steps: int. Of a node; the tree's `[steps=...]` overrides it.
        batch_size: int. Rows in a batch, over all devices.
        peak_rate: float. Adafactor's rate, which falls as one over the square root of the
            step behind `constant_steps`. In units of the weights' root mean square.
        warmup_steps: int. Steps of a linear rise; 0 for none, as in T5.
        constant_steps: int.
        fused_rate: float. On the rate of a node that starts from a fusion.
        evaluate_every: int. Steps.
        checkpoint_every: int. Steps.
    """

    steps: int
    batch_size: int
    peak_rate: float
    warmup_steps: int
    constant_steps: int
    fused_rate: float
    evaluate_every: int
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class Fusion:
    """How parents are joined.

    Attributes:
        norms: string. See `keras_fusion.fuse`; for distinct parents.
        off_diagonal: string. Of distinct parents.
        self_off_diagonal: string. Of a self-fusion.
        off_diagonal_scale: float. Of the noise, relative to the kernel's deviation.
    """

    norms: str
    off_diagonal: str
    self_off_diagonal: str
    off_diagonal_scale: float


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """How trained nodes are fine-tuned.

    Attributes:
        tasks: tuple of strings. See `tasks.open_task`.
        steps: int.
        batch_size: int.
        input_length: int.
        target_length: int.
        rate: float. Adafactor's, constant.
    """

    tasks: tuple[str, ...]
    steps: int
    batch_size: int
    input_length: int
    target_length: int
    rate: float


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the results.

    Attributes:
        name: string, such as `"T5-M"`.
        seeds: int. Over how many seeds.
        trees: dict from a setting's name to its tree.
        baseline: string. The setting that others are compared with.
    """

    name: str
    seeds: int
    trees: dict[str, Node]
    baseline: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All of it.

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
        """How long a node is trained."""
        return node.option("steps", self.training.steps)

    def nodes(self, seeds: int | None = None) -> list[tuple[int, Node]]:
        """All trainings of the tables, as pairs of a run's seed and a node.

        Args:
            seeds: int. At most so many seeds of each table. Defaults to the table's own.
        """
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
            ValueError: naming the node and what does not fit.
        """
        if node.shape not in self.shapes:
            raise ValueError(
                f"The tree {node.name!r} has the shape {node.shape!r}, which the recipe "
                f"{self.scale!r} does not have. Its shapes are {sorted(self.shapes)}."
            )
        for parent in node.parents:
            self.check(parent)
        if not node.parents:
            return
        own = self.shapes[node.shape]
        parents = [self.shapes[p.shape] for p in node.parents] * node.copies
        expected = dict(parents[0]) | {k: sum(p[k] for p in parents) for k in _WIDTHS}
        if own != expected:
            raise ValueError(
                f"The fusion {node.name!r} makes a model of the sizes {expected}, and "
                f"{node.shape!r} has {own}. The widths of the parents must add up to the "
                "child's, and their depth and head size be equal."
            )


def load(scale: str) -> Recipe:
    """Reads a recipe.

    Args:
        scale: the name of a file in `recipes/`, such as `"tiny"`, or the path of a TOML
            file of one's own.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if there is none of this name, or it is not a recipe.

    Example:

    >>> from keras_fusion.t5.recipe import load
    >>> recipe = load("tiny")
    >>> recipe.shapes["M"]["hidden_dim"] == 2 * recipe.shapes["S"]["hidden_dim"]
    True
    """
    path = Path(scale) if scale.endswith(".toml") else FOLDER / f"{scale}.toml"
    if not path.is_file():
        names = sorted(p.stem for p in FOLDER.glob("*.toml"))
        raise ValueError(
            f"There is no recipe scale={scale!r}. Give one of {names}, or the path of a "
            "file that ends in .toml."
        )
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        tables = tuple(_table(name, rows) for name, rows in content["tables"].items())
        recipe = Recipe(
            scale=path.stem,
            shapes=content["shapes"],
            text=Text(**content["text"]),
            training=Training(**content["training"]),
            fusion=Fusion(**content["fusion"]),
            finetuning=Finetuning(**content["finetuning"]),
            tables=tables,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The recipe {str(path)!r} is not one: {error}. Compare it with those in "
            f"{str(FOLDER)!r}."
        ) from error
    for table in recipe.tables:
        for tree in table.trees.values():
            recipe.check(tree)
    return recipe


def _table(name, rows):
    trees = {key: parse(text) for key, text in rows["trees"].items()}
    return Table(name, rows["seeds"], trees, next(iter(trees)))
