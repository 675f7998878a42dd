"""The flags of commands that take seconds to import, apart from them: help and wrong flags are answered at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

PARSERS = {  # command -> file here, arguments of its function ``parser``
    "apply": ("apply", ("apply",)),
    "revert": ("apply", ("revert",)),
    **{name: (name, ()) for name in ("export", "layers", "merge", "methods", "predict", "push", "report", "sweep")},
}


def check(command: str, argv: Sequence[str]) -> None:
    """Parse the flags of a command, where it has a parser here; ``--help`` and a wrong flag end the process.

    Args:
        command: such as ``merge``.
        argv: its flags.
    """
    if command in PARSERS:
        file, arguments = PARSERS[command]
        importlib.import_module(f"{__name__}.{file}").parser(*arguments).parse_args(argv)
