"""Reading JSON that others may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str) -> Any:
    """Return the content of a JSON text.

    Raises:
        json.JSONDecodeError: it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text[:80], 0) from None
