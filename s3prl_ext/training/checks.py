"""Checks of an experiment before it is built: its folder, its checkpoint, its upstream, its flags."""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, ExtError, UsageError
from s3prl_ext.training import checkpoint

SETTINGS_FILES = r"(args|config)_[0-9-]+\.yaml|frame_shift"  # what s3prl writes before anything is built
FEATURE_FLAGS = ("-s", "--upstream_feature_selection", "-l", "--upstream_layer_selection")


def prepare_folder(args: Namespace) -> None:
    """Refuse a folder that holds an experiment, or empty it of checkpoints if ``args.overwrite`` is set.

    Raises:
        UsageError: a new training run would overwrite checkpoints.
    """
    if args.mode != "train" or args.past_exp:
        return
    if not getattr(args, "overwrite", False):
        checkpoint.refuse_overwriting(args.expdir)
        return
    for old in Path(args.expdir).glob("*.ckpt"):
        old.unlink()


def remove_empty_folder(expdir: str) -> None:
    """Remove the folder of an experiment that did not come to be: it holds only s3prl's copies of its settings."""
    written = list(Path(expdir).iterdir())
    if written and all(re.fullmatch(SETTINGS_FILES, path.name) for path in written):
        for path in written:
            path.unlink()
        Path(expdir).rmdir()


def check_origin(states: Mapping[str, Any], args: Namespace) -> None:
    """Raise DataError where a checkpoint (``-i``) was made with another upstream or task than `args` name."""
    stored = states.get("Args")
    for name, flag in (("upstream", "-u"), ("downstream", "-d")):
        before, now = getattr(stored, name, None), getattr(args, name)
        if before is not None and before != now:
            raise DataError(
                f"{args.init_ckpt} was trained with {flag} {before}, not with {flag} {now}; "
                f"repeat {flag} {before} or choose another checkpoint."
            )


def features_given(args: Namespace) -> bool:
    """Return whether the user chose the features with ``-s`` or ``-l``."""
    on_command_line = any(a == f or a.startswith(f + "=") for a in sys.argv[1:] for f in FEATURE_FLAGS)
    return (
        on_command_line
        or args.upstream_feature_selection != "hidden_states"
        or args.upstream_layer_selection is not None
    )


def upstream_problem(args: Namespace, error: Exception) -> ExtError | None:
    """Return the sentence for an upstream that s3prl could not build, or None where only its own error tells more."""
    name, ckpt = args.upstream, args.upstream_ckpt
    if isinstance(error, OSError) and error.filename is None:
        return DataError(
            f"the upstream '{name}' could not be downloaded or read ({' '.join(str(error).split())[:160]} ...); check the "
            "network, or give a local model: -u hubert_local -k FILE, -u hf_hubert_custom -k FOLDER and the like."
        )
    if ckpt is None:
        return UsageError(f"-u {name} cannot be built without a model: name its checkpoint or folder with -k.")
    if not Path(ckpt).exists() and "://" not in ckpt:
        return UsageError(f"-k {ckpt}: no such file or folder.")
    return None


def known_tasks() -> list[str]:
    """Return the names for ``-d``: every folder of s3prl's downstream package that has an expert."""
    import s3prl.downstream

    return sorted(path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py"))
