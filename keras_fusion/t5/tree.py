"""Fusion trees, as a small language: nodes are trainings, links are fusions.

    M                     a T5-M, trained from scratch
    M(S, S)               two T5-S trained separately, fused, trained further
    M(2*S)                one T5-S fused with itself (a double link), trained further
    L(M(S, S), M(S, S))   seven trainings: four T5-S, two T5-M, one T5-L
    M[steps=500, off_diagonal=random](S, S)

A name in capitals is a shape of the recipe. Trainings from scratch are numbered from left
to right, so that `M(S, S)` is `M(S1, S2)`, two trainings with different seeds; write a
number to use one training twice. Equal texts are the same training, in all trees.
"""

import ast
import dataclasses
import hashlib
import math
import re
import warnings
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar, cast

from keras_fusion.errors import FusionError

T = TypeVar("T")

# What `keras_fusion.fuse` accepts for distinct parents, and for copies of one.
OFF_DIAGONALS = ("zeros", "random")
SELF_OFF_DIAGONALS = (*OFF_DIAGONALS, "paired")

OPTIONS = ("noise_scale", "off_diagonal", "rate", "steps")
_OF_A_FUSION = ("noise_scale", "off_diagonal")

# Of earlier versions. A node keeps the name that it was given, and with it its folder.
OLD_NAMES = {"off_diagonal_scale": "noise_scale"}


@dataclasses.dataclass(frozen=True)
class Node:
    """One training, and what it starts from.

    Attributes:
        shape: string. The name of its shape in the recipe.
        number: int, or `None`. Tells trainings from scratch apart.
        options: tuple of pairs of a name and a value: what differs from the recipe.
        parents: tuple of `Node`. Empty for a training from scratch.
        copies: int. How many copies of the one parent are fused; 1 without self-fusion.
    """

    shape: str
    number: int | None = None
    options: tuple[tuple[str, int | float | str], ...] = ()
    parents: tuple["Node", ...] = ()
    copies: int = 1

    @property
    def name(self) -> str:
        """The node in the tree's language; equal names are the same training."""
        number = "" if self.number is None else self.number
        options = ",".join(f"{key}={value}" for key, value in self.options)
        times = f"{self.copies}*" if self.copies > 1 else ""
        parents = ",".join(parent.name for parent in self.parents)
        return (
            f"{self.shape}{number}"
            + (f"[{options}]" if options else "")
            + (f"({times}{parents})" if parents else "")
        )

    @property
    def folder(self) -> str:
        """A name for files, different for every node."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return f"{readable[:40]}-{digest}"

    def seed(self, run: int) -> int:
        """The seed of its weights, batches and fusion in the run with this seed."""
        digest = hashlib.sha256(f"{run} {self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def option(self, name: str, default: T) -> T:
        """The value of an option, or the recipe's; both are of one type."""
        found = {OLD_NAMES.get(key, key): value for key, value in self.options}
        return cast(T, found.get(name, default))

    def __str__(self) -> str:
        return self.name


def parse(text: str) -> Node:
    """Reads a tree.

    Args:
        text: string in the language above.

    Returns:
        The `Node` of its root, every training from scratch numbered.

    Raises:
        FusionError: if the text is no tree, or an option has a value that it cannot
            have; the message says where.

    Example:

    >>> from keras_fusion.t5.tree import parse, trainings
    >>> tree = parse("L(M(S, S), M(2*S))")
    >>> tree.name
    'L(M(S1,S2),M(2*S3))'
    >>> [node.name for node in trainings([tree])][:3]
    ['S1', 'S2', 'M(S1,S2)']
    """
    return _numbered(_Reader(text).tree())


def trainings(trees: Iterable[Node]) -> list[Node]:
    """All trainings of some trees, each once, parents before their children."""
    found = {}

    def visit(node):
        for parent in node.parents:
            visit(parent)
        found.setdefault(node.name, node)

    for tree in trees:
        visit(tree)
    return list(found.values())


class _Reader:
    """Reads a tree as a Python expression of names, calls and products.

    Python has no options in square brackets, so the parser is given round ones. Every
    character keeps its place, and the original text tells which bracket it was.
    """

    def __init__(self, text):
        self.text = text

    def fail(self, at, reason) -> NoReturn:
        rest = self.text[at : at + 40]
        raise FusionError(
            f"The tree {self.text[:200]!r} cannot be read at position {at} ({rest!r}): "
            f"{reason}. A tree is a shape, such as M, with its parents, such as M(S, S), "
            "or M(2*S) for a self-fusion; options stand in square brackets, such as "
            "M[steps=500](S, S)."
        )

    def tree(self):
        strange = re.search(r"[^A-Za-z0-9_()\[\],*=.+\-\s]", self.text)
        if strange:
            self.fail(strange.start(), f"{strange.group()!r} has no meaning in a tree")
        # Spaces in place of line ends; none before the first name, where Python would
        # take them for an indentation.
        flat = re.sub(r"\s", " ", self.text).translate(str.maketrans("[]", "()"))
        start = len(flat) - len(flat.lstrip())
        if start == len(flat):
            self.fail(0, "it is empty")
        try:
            with warnings.catch_warnings():
                # Of something like `2or`, which is refused below.
                warnings.simplefilter("ignore")
                expression = ast.parse(flat[start:], mode="eval").body
        except SyntaxError as error:
            at = start + max((error.offset or 1) - 1, 0)
            here = self.text[at : at + 1] or "end"
            self.fail(at, str(error.msg).replace("'('", repr(here)))
        except (MemoryError, RecursionError):
            self.fail(0, "it is nested too deeply")
        self.start = start
        return self.node(expression)

    def at(self, expression):
        return self.start + expression.col_offset

    def brackets(self, call):
        """The two brackets of a call, as they stand in the text."""
        behind = self.start + call.func.end_col_offset
        first = self.text[behind:].lstrip()[0]
        return first + self.text[self.start + call.end_col_offset - 1]

    def node(self, expression):
        copies, parents, options = 1, (), ()
        if isinstance(expression, ast.Call) and self.brackets(expression) == "()":
            copies, parents = self.parents(expression)
            expression = expression.func
        if isinstance(expression, ast.Call) and self.brackets(expression) == "[]":
            noise = SELF_OFF_DIAGONALS if copies > 1 else OFF_DIAGONALS
            options = self.options(expression, noise if parents else ())
            expression = expression.func
        if isinstance(expression, ast.Call):
            self.fail(
                self.at(expression),
                "expected options in square brackets, then parents, each once",
            )
        name = expression.id if isinstance(expression, ast.Name) else ""
        match = re.fullmatch(r"([A-Z]+)(\d{0,9})", name)
        if not match:
            self.fail(self.at(expression), "expected a shape in capitals")
        shape, number = match.group(1), match.group(2)
        if parents and number:
            self.fail(
                self.at(expression),
                f"expected no number: {shape}{number} has parents, which tell it apart",
            )
        return Node(shape, int(number) if number else None, options, parents, copies)

    def parents(self, call):
        for keyword in call.keywords:
            self.fail(self.at(keyword), "expected options in square brackets")
        if len(call.args) > 1:
            for argument in call.args:
                if isinstance(argument, ast.BinOp):
                    self.fail(self.at(argument), "a self-fusion has one parent")
            return 1, tuple(self.node(argument) for argument in call.args)
        if not call.args or not isinstance(call.args[0], ast.BinOp):
            self.fail(self.at(call), "expected a second parent, or copies such as 2*S")
        product = call.args[0]
        times = getattr(product.left, "value", None)
        if not isinstance(product.op, ast.Mult) or type(times) is not int or times < 2:
            self.fail(
                self.at(product),
                "expected a number of copies above 1 and *, such as 2*S",
            )
        return times, (self.node(product.right),)

    def options(self, call, allowed_noise):
        """The options of a node, in alphabetical order.

        `allowed_noise` has the values of `off_diagonal` for its fusion; it is empty for a
        training from scratch.
        """
        if call.args or not call.keywords:
            place = call.args[0] if call.args else call
            self.fail(self.at(place), f"expected options: {', '.join(OPTIONS)}")
        found, names = {}, set()
        for keyword in call.keywords:
            try:
                value = _option(keyword, allowed_noise)
            except FusionError as error:
                self.fail(self.at(keyword), str(error))
            name = OLD_NAMES.get(keyword.arg, keyword.arg)
            if name in names:
                self.fail(self.at(keyword), f"{name} is given twice")
            names.add(name)
            found[keyword.arg] = value
        return tuple(sorted(found.items()))


def _option(keyword, allowed_noise):
    """The value of an option, checked."""
    name, value = OLD_NAMES.get(keyword.arg, keyword.arg), _literal(keyword.value)
    if name not in OPTIONS:
        raise FusionError(f"expected one of the options {', '.join(OPTIONS)}")
    if name in _OF_A_FUSION and not allowed_noise:
        raise FusionError(
            f"{name} is for a fusion, and a node without parents has none"
        )
    if name == "off_diagonal":
        if value not in allowed_noise:
            words = " or ".join(allowed_noise)
            raise FusionError(f"expected {name} to be {words} for such a fusion")
        return value
    if name == "steps":
        if type(value) is not int or not 0 < value < 2**31:
            raise FusionError(f"expected {name} to be an integer above 0")
        return value
    zero_too = name == "noise_scale"
    is_number = type(value) in (int, float) and value < math.inf
    if is_number and (value > 0 or (zero_too and value == 0)):
        return float(value)
    bound = "of at least 0" if zero_too else "above 0"
    raise FusionError(f"expected {name} to be a finite number {bound}")


def _literal(expression) -> Any:
    """A number, or the text of a word; `None` for anything else."""
    if isinstance(expression, ast.Name):
        return expression.id
    try:
        return ast.literal_eval(expression)
    except (TypeError, ValueError):
        return None


def _numbered(tree):
    """Numbers trainings from scratch, per shape, with numbers that are not taken."""
    taken, last = set(), {}

    def collect(node):
        if node.number is not None:
            taken.add((node.shape, node.number))
        for parent in node.parents:
            collect(parent)

    def number(node):
        if node.parents:
            parents = tuple(number(parent) for parent in node.parents)
            return dataclasses.replace(node, parents=parents)
        if node.number is not None:
            return node
        following = last.get(node.shape, 0) + 1
        while (node.shape, following) in taken:
            following += 1
        last[node.shape] = following
        return dataclasses.replace(node, number=following)

    collect(tree)
    return number(tree)
