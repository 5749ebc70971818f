"""Tables in Markdown, for the console and between the marks of a page."""

from collections.abc import Sequence
from pathlib import Path


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, aligned: bool = False
) -> str:
    """Writes a table.

    Args:
        head: sequence of strings.
        rows: sequence of sequences of as many strings.
        aligned: bool. Whether to pad the cells, so that the text reads well as it is: the
            first column to the left, the others to the right. Defaults to `False`, so that
            a cell that changes in a file changes its own line alone.

    Returns:
        String, without a line break at the end.

    Raises:
        ValueError: if a row has more or fewer cells than the head.

    Example:

    >>> from keras_fusion.t5.markdown import table
    >>> print(table(("model", "loss"), [("small", "3.1"), ("wide", "2.75")], aligned=True))
    | model | loss |
    | ----- | ---: |
    | small |  3.1 |
    | wide  | 2.75 |
    """
    wrong = [row for row in rows if len(row) != len(head)]
    if wrong:
        raise ValueError(f"Each row needs {len(head)} cells. Received: {wrong[0]}.")
    lines, rule = [head, *rows], ["---"] * len(head)
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


def insert(text: str, page: Path, name: str = "tables") -> None:
    """Puts text between two marks of a page, in place of what is there.

    Args:
        text: string.
        page: `Path` of a Markdown file with the lines `<!-- tables begin -->` and
            `<!-- tables end -->`.
        name: string. What the marks name. Defaults to `"tables"`.

    Raises:
        ValueError: if the page does not have both marks.
    """
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    content = page.read_text(encoding="utf-8")
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"The page {str(page)!r} needs the lines {begin} and {end}.")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
