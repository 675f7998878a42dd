"""The published sizes of speech encoders, by name; without torch."""

from __future__ import annotations

SIZES = ("base", "large")
