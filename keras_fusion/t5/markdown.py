"""Tables in Markdown, for the console and between the marks of a page."""

from collections.abc import Sequence
from pathlib import Path

from keras_fusion.errors import FusionError
from keras_fusion.training.files import whole


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False
) -> str:
    r"""Writes a table.

    Args:
        head: sequence of strings.
        rows: sequence of sequences of as many strings.
        aligned: bool. Whether to pad the cells for a reader of the source: the first
            column to the left, the others to the right. Defaults to `False`, so that a
            cell that changes in a file changes its own line alone.

    Returns:
        String, without a line break at the end.

    Raises:
        ValueError: if a row has more or fewer cells than the head.

    Example:

    >>> from keras_fusion.t5.markdown import table
    >>> print(table(("model", "loss"), [("a|b", "3.1"), ("wide", "2.75")], aligned=True))
    | model | loss |
    | ----- | ---: |
    | a\|b  |  3.1 |
    | wide  | 2.75 |
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"Each row needs {len(head)} cells. Received: {wrong[0]}.")
    lines = [[_cell(text) for text in line] for line in (head, *rows)]
    rule = ["---"] * len(head)
    if aligned:
        first, *others = (max(map(len, cells)) for cells in zip(*lines, strict=True))
        lines = [
            [name.ljust(first), *map(str.rjust, cells, others)]
            for name, *cells in lines
        ]
        rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in [lines[0], rule, *lines[1:]]
    )


def _cell(text):
    """A text that ends neither its cell nor its line."""
    return " ".join(text.replace("|", "\\|").split())


def insert(text: str, page: Path, name: str = "tables") -> None:
    """Puts text between two marks of a page, in place of what is there.

    Args:
        text: string.
        page: `Path` of a Markdown file with the lines `<!-- tables begin -->` and
            `<!-- tables end -->`.
        name: string. The name in the marks. Defaults to `"tables"`.

    Raises:
        FusionError: if there is no such page, or it does not have both marks.
    """
    begin, end = _marks(name)
    before, after = _around(page, name)
    with whole(page) as unfinished:
        unfinished.write_text(
            f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8"
        )


def check_page(page: Path, name: str = "tables") -> None:
    """Checks that text can be put into a page.

    Args:
        page: `Path`.
        name: string. The name in the marks. Defaults to `"tables"`.

    Raises:
        FusionError: see `insert`.
    """
    _around(page, name)


def _marks(name):
    return f"<!-- {name} begin -->", f"<!-- {name} end -->"


def _around(page, name):
    """The text before the marks of a page, and the text after them."""
    if not page.is_file():
        raise FusionError(f"There is no page {str(page)!r} to put {name} into.")
    try:
        content = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FusionError(f"The page {str(page)!r} is not UTF-8: {error}.") from error
    begin, end = _marks(name)
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise FusionError(f"The page {str(page)!r} needs the lines {begin} and {end}.")
    return before, after
