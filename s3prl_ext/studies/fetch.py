"""Build an upstream once before the runs of a study start, so that they do not download it side by side.

``python -m s3prl_ext.studies.fetch MARKER -u NAME [-k CKPT] [-g CONFIG]`` leaves the file MARKER when it is done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext import plugin
from s3prl_ext.errors import as_command
from s3prl_ext.training.upstream_checks import upstream_of_flags
from s3prl_ext.writing import write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Build the upstream; its downloads stay in their caches."""
    parser = argparse.ArgumentParser(prog="python -m s3prl_ext.studies.fetch")
    parser.add_argument("marker", type=Path)
    for flag, name in (("-u", "upstream"), ("-k", "upstream_ckpt"), ("-g", "upstream_model_config")):
        parser.add_argument(flag, dest=name)
    flags = parser.parse_args(argv)
    plugin.install()
    upstream_of_flags(flags)
    flags.marker.parent.mkdir(parents=True, exist_ok=True)
    write_text(flags.marker, "")
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
