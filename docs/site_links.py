"""A hook of mkdocs: files outside docs/ are named in the site, where the pages on a code host link to them."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with ``[text](../PATH)`` as text and the path in the repository."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2` in the repository)", markdown)
