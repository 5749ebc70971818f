"""Extension of griffe: puts a docstring's `>>>` examples into fences.

Python's doctest runs them as they stand in the sources; Markdown would take them for
quotations.
"""

import griffe


class Examples(griffe.Extension):
    """Changes each docstring as soon as it has been read."""

    def on_object(self, *, obj, **kwargs):
        """Puts fences around the examples of an object's docstring."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text):
    """The text, every block that begins with `>>>` in a fence."""
    lines, inside = [], False
    for line in text.splitlines():
        if not inside and line.startswith(">>>"):
            lines.append("```pycon")
            inside = True
        elif inside and not line:
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)
