"""Fusion trees, as a small language: nodes are trainings, links are fusions.

    M                     a T5-M, trained from scratch
    M(S, S)               two T5-S trained apart, fused, trained on
    M(2*S)                one T5-S fused with itself (a double link), trained on
    L(M(S, S), M(S, S))   seven trainings: four T5-S, two T5-M, one T5-L
    M[steps=500, off_diagonal=random](S, S)

A name in capitals is a shape of the recipe. Trainings from scratch are numbered from left
to right, so that `M(S, S)` is `M(S1, S2)`, two trainings of different seeds; a number may
be written, to use one training twice. Equal texts are the same training, in all trees.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable

OPTIONS = {
    "steps": int,
    "off_diagonal": str,
    "off_diagonal_scale": float,
    "rate": float,
}

_TOKEN = re.compile(r"\s*([A-Z]+\d*|\d+|\[[^]]*\]|[(),*])")


@dataclasses.dataclass(frozen=True)
class Node:
    """One training, and what it starts from.

    Attributes:
        shape: string. The name of its shape in the recipe.
        number: int, or `None`. Tells trainings from scratch apart.
        options: tuple of pairs of a name and a value: what differs from the recipe.
        parents: tuple of `Node`. Empty for a training from scratch.
        copies: int. How often the one parent is fused with itself; 1 without self-fusion.
    """

    shape: str
    number: int | None = None
    options: tuple[tuple[str, object], ...] = ()
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
        """A name for files, which tells every node from every other."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:8]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return f"{readable[:40]}-{digest}"

    def seed(self, run: int) -> int:
        """The seed of its weights, batches and fusion in a run of this seed."""
        digest = hashlib.sha256(f"{run} {self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def option(self, name: str, default):
        """The value of an option, or what the recipe says."""
        return dict(self.options).get(name, default)

    def __str__(self) -> str:
        return self.name


def parse(text: str) -> Node:
    """Reads a tree.

    Args:
        text: string in the language above.

    Returns:
        The `Node` of its root, every training from scratch numbered.

    Raises:
        ValueError: if the text is no tree; the message says where.

    Example:

    >>> from keras_fusion.t5.tree import parse, trainings
    >>> tree = parse("L(M(S, S), M(2*S))")
    >>> tree.name
    'L(M(S1,S2),M(2*S3))'
    >>> [node.name for node in trainings([tree])][:3]
    ['S1', 'S2', 'M(S1,S2)']
    """
    reader = _Reader(text)
    tree = reader.node()
    reader.end()
    return _numbered(tree)


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
    """Reads a text from left to right."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def fail(self, wanted):
        raise ValueError(
            f"The tree {self.text!r} cannot be read at position {self.at} "
            f"({self.text[self.at :]!r}): expected {wanted}. A tree is a shape, such as M, "
            "with its parents, such as M(S, S), or M(2*S) for a self-fusion."
        )

    def peek(self):
        match = _TOKEN.match(self.text, self.at)
        return match.group(1) if match else ""

    def take(self):
        match = _TOKEN.match(self.text, self.at)
        self.at = match.end()
        return match.group(1)

    def end(self):
        if self.text[self.at :].strip():
            self.fail("the end")

    def node(self):
        match = re.fullmatch(r"([A-Z]+)(\d*)", self.peek())
        if not match:
            self.fail("a shape in capitals")
        self.take()
        shape, number = match.group(1), match.group(2)
        options = self.options() if self.peek().startswith("[") else ()
        copies, parents = self.parents() if self.peek() == "(" else (1, ())
        if parents and number:
            self.fail(f"no number: {shape}{number} has parents, which tell it apart")
        return Node(shape, int(number) if number else None, options, parents, copies)

    def parents(self):
        self.take()
        copies = 1
        if self.peek().isdigit():
            copies = int(self.take())
            if copies < 2 or self.peek() != "*":
                self.fail("a number of copies above 1 and *, such as 2*S")
            self.take()
        parents = [self.node()]
        while self.peek() == "," and copies == 1:
            self.take()
            parents.append(self.node())
        if self.peek() != ")":
            self.fail("one closing bracket" if copies > 1 else "a comma or a bracket")
        if len(parents) == 1 and copies == 1:
            self.fail("a second parent, or copies such as 2*S")
        self.take()
        return copies, tuple(parents)

    def options(self):
        found = {}
        for part in self.peek()[1:-1].split(","):
            key, _, value = (piece.strip() for piece in part.partition("="))
            if key not in OPTIONS or key in found:
                self.fail(f"options of {sorted(OPTIONS)}, each once, as in [steps=500]")
            try:
                found[key] = OPTIONS[key](value)
            except ValueError:
                self.fail(f"a value of type {OPTIONS[key].__name__} for {key}")
        self.take()
        return tuple(sorted(found.items()))


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
