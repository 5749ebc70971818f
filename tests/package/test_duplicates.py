"""No two places of the package share ten or more equal lines of code."""

import ast

from sources import FILES, name_of

LINES = 10


def code_lines(source):
    """Pairs of a line's number and its words, without what says or does nothing.

    Imports, docstrings, comments and blank lines are left out.
    """
    tree, skipped = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        ):
            if ast.get_docstring(node) is None:
                continue
            node = node.body[0]
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        skipped.update(range(node.lineno, node.end_lineno + 1))
    for number, line in enumerate(source.splitlines(), 1):
        words = " ".join(line.split())
        if words and not words.startswith("#") and number not in skipped:
            yield number, words


def duplicates(sources):
    """Pairs of places, `name:line`, from which on ten lines are equal.

    `sources` maps names to source texts. A longer stretch is told by its start.
    """
    first, last = {}, {}
    for name, source in sources.items():
        lines = list(code_lines(source))
        for start in range(len(lines) - LINES + 1):
            window = tuple(words for _, words in lines[start : start + LINES])
            earlier = first.setdefault(window, (name, start, lines[start][0]))
            if earlier[:2] == (name, start):
                continue
            # The window before may have told of the same stretch.
            told = last.get((name, start - 1)) == (earlier[0], earlier[1] - 1)
            last[name, start] = earlier[:2]
            if not told:
                yield f"{earlier[0]}:{earlier[2]}", f"{name}:{lines[start][0]}"


def test_no_two_places_share_ten_lines():
    sources = {name_of(path): path.read_text(encoding="utf-8") for path in FILES}
    found = [f"{one} and {other}" for one, other in duplicates(sources)]
    assert not found, f"{LINES} or more equal lines; put them in one place: {found}"


# The check itself.


def numbered(count, indent=""):
    return "".join(f"{indent}x{i} = {i}\n" for i in range(count))


def test_equal_lines_are_found_wherever_they_stand():
    one = '"""A module."""\nimport keras\n' + numbered(12)
    other = "import numpy\n\n\ndef f():\n" + numbered(12, "    # Why.\n    ")
    assert list(duplicates({"a": one, "b": other})) == [("a:3", "b:6")]
    assert list(duplicates({"a": one, "b": numbered(LINES - 1)})) == []
    twice = numbered(12) + "y = 1\n" + numbered(12)
    assert list(duplicates({"a": twice})) == [("a:1", "a:14")]


def test_imports_and_docstrings_may_be_equal():
    imports = "".join(f"import a{i}\n" for i in range(12))
    text = '"""A.\n' + "".join(f"word {i}\n" for i in range(12)) + '"""\n'
    assert list(duplicates({"a": text + imports, "b": text + imports})) == []
