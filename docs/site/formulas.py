"""MkDocs hook: formulas become MathML, which browsers show without a script.

`pymdownx.arithmatex` finds them: `$...$` in a line, `$$...$$` on lines of their own.
"""

import html
import re

from latex2mathml.converter import convert

FOUND = re.compile(
    r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>', re.DOTALL
)


def on_page_content(content, page, config, files):
    """Replaces the LaTeX of a page."""
    return FOUND.sub(_mathml, content)


def _mathml(found):
    latex = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(latex)
    # A formula that is wider than the window scrolls by itself.
    return f'<div style="overflow-x: auto">{convert(latex, display="block")}</div>'
