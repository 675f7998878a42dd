"""Build an upstream once before the runs of a study start, so that they do not download it side by side.

``python -m s3prl_ext.studies.fetch MARKER -u NAME [-k CKPT] [-g CONFIG]`` leaves the file MARKER when it is done, which
says whether weights of the upstream are drawn by the seed of a run: those of which its files hold none.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from s3prl_ext import plugin
from s3prl_ext.errors import as_command
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.studies.jobs import DRAWN
from s3prl_ext.training.upstream_checks import upstream_of_flags
from s3prl_ext.writing import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Build the upstream; its downloads stay in their caches."""
    parser = argparse.ArgumentParser(prog="python -m s3prl_ext.studies.fetch")
    parser.add_argument("marker", type=Path)
    for flag, name in (("-u", "upstream"), ("-k", "upstream_ckpt"), ("-g", "upstream_model_config")):
        parser.add_argument(flag, dest=name)
    flags = parser.parse_args(argv)
    plugin.install()
    drawn = _hash(flags, seed=0) != _hash(flags, seed=1)
    flags.marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(flags.marker, {DRAWN: drawn})
    return 0


def _hash(flags: argparse.Namespace, seed: int) -> str:
    """Return the hash of the upstream as a run with a seed builds it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return state_sha256(upstream_of_flags(flags).state_dict())


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
