"""griffe extension that puts a docstring's `>>>` examples into fenced code blocks.

Python's doctest runs them as written in the sources; Markdown would render them as
quotations.
"""

import griffe


class Examples(griffe.Extension):
    """Edits each docstring when it is loaded."""

    def on_object(self, *, obj, **kwargs):
        """Puts the examples of an object's docstring into fences."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text):
    """The text, with every block that begins with `>>>` in a fence."""
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
