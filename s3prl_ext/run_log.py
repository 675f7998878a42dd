"""What ``s3prl-ext run`` prints: log lines as sentences, without what other packages say of themselves."""

from __future__ import annotations

import logging
import warnings

# Warnings of torch about s3prl's code that a user can do nothing about.
OTHERS_WARNINGS = ("This DataLoader will create", "'pin_memory' argument is set", ".*weight_norm. is deprecated")


class _Plain(logging.Formatter):
    """Our own records as sentences; those of other packages with their name in front."""

    def format(self, record: logging.LogRecord) -> str:
        name = "" if record.name.partition(".")[0] == "s3prl_ext" else f"{record.name}: "
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{level}{name}{super().format(record)}"


def show_log() -> None:
    """Write the log to stderr, one sentence a line, in place of the format that s3prl chooses."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for message in OTHERS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
