"""The page docs/python.md as a notebook: ``python -m tests.support.notebook`` writes docs/python.ipynb."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.support.documentation import ROOT

PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def cells() -> list[tuple[str, str]]:
    """Return the cells of the page: kind (``markdown`` or ``code``) and text."""
    parts = re.split(r"```python\n(.*?)```\n", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    kinds = ("markdown", "code")
    return [(kinds[number % 2], part.strip("\n")) for number, part in enumerate(parts) if part.strip()]


def notebook() -> str:
    """Return the notebook as JSON, without outputs."""
    content = []
    for number, (kind, text) in enumerate(cells()):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        content.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": content, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
