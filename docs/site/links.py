"""MkDocs hook: links that leave docs/ point to the repository, as they do there."""

import re


def on_page_markdown(markdown, page, config, files):
    """Replaces `](../x)` where x is not in docs/."""
    depth = page.file.src_uri.count("/")
    outside = "../" * (depth + 1)
    base = f"{config.repo_url.rstrip('/')}/blob/main/"
    return re.sub(
        rf"\]\({re.escape(outside)}(?!\.\.)([^)]+)\)", rf"]({base}\1)", markdown
    )
