"""The formats of predictions, by name; without torch."""

from __future__ import annotations

from pathlib import Path

FORMATS = ("text", "jsonl", "csv", "rttm")
SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".rttm": "rttm"}  # of --out; others are text


def format_of(out: Path | None) -> str:
    """Return the format that the suffix of a file stands for."""
    return SUFFIXES.get(out.suffix.lower(), "text") if out is not None else "text"
