"""``-m evaluate -e delta.safetensors``: the flags of ``run_downstream`` that score a delta on the base it belongs to.

A checkpoint whose upstream has moved, as ``-k`` or ``-g`` say, is treated in the same way: s3prl would ignore them.
"""

from __future__ import annotations

import argparse
import atexit
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import UsageError
from s3prl_ext.run_folder import CHECKPOINT_SUFFIX, DELTA_SUFFIX, RunFolder
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.run_spec import TASK_ARGUMENTS, RunSpec


def find_delta(past_exp: str) -> Path | None:
    """Return the delta that ``-e`` names: the file, or that of a folder without ``states-N.ckpt``; None otherwise."""
    path = Path(past_exp)
    if path.is_dir() and not RunFolder(path).numbered():
        path = RunFolder(path).delta
    return path if path.suffix == DELTA_SUFFIX and path.is_file() else None


def find_moved(flags: argparse.Namespace) -> Path | None:
    """Return the checkpoint that ``-m evaluate -e`` names where ``-k`` or ``-g`` say that its upstream has moved.

    None for one that does not hold the hash of its upstream, such as s3prl's own: nothing would tell another model.
    """
    given = {name: getattr(flags, name) for name in ("upstream_ckpt", "upstream_model_config")}
    if flags.mode != "evaluate" or not any(given.values()):
        return None
    path = Path(flags.past_exp)
    path = RunFolder(path).latest() or path
    if path.suffix != CHECKPOINT_SUFFIX or not path.is_file():
        return None
    ckpt = Checkpoint.read(path, mmap=True)
    stored = RunSpec.of(ckpt.args)
    if ckpt.args is None or not ckpt.extension.upstream_sha256:
        return None
    moved = any(value is not None and value != getattr(stored, name) for name, value in given.items())
    return path if moved and flags.upstream in (None, stored.upstream) else None


def evaluation_flags(argv: Sequence[str], flags: argparse.Namespace, delta: Path) -> list[str]:
    """Return flags of a new experiment that evaluates what a delta was trained for, in place of ``-e DELTA``.

    Task, features, task file and seed are the delta's; its upstream, unless ``-u``, ``-k`` or ``-g`` say where the base
    is now. Results go next to the delta, unless ``-p`` says otherwise.

    Args:
        argv: the flags as given.
        flags: what they say.
        delta: the file, or a checkpoint.

    Raises:
        UsageError: training cannot be resumed from a delta.
        DataError: it is corrupt, or not a delta.
    """
    if flags.mode == "train":
        raise UsageError(
            f"-e {delta}: a delta has no optimizer state, so training cannot be resumed from it: name a checkpoint "
            "(states-N.ckpt), or evaluate the delta with -m evaluate."
        )
    task = TrainedTask.read(delta)
    _refuse_others(flags, task)
    spec = task.tuned_from(flags.upstream, flags.upstream_ckpt, flags.upstream_model_config).spec
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-e", "--past_exp")
    _, others = parser.parse_known_args(list(argv))
    added = spec.flags("upstream", *TASK_ARGUMENTS, "upstream_ckpt", "upstream_model_config", "seed")
    added += ["-p", str(delta.parent)] if flags.expdir is None and flags.expname is None else []
    return [*others, *added, "-i", str(delta), "-c", _task_file(task.info["config"])]


def _refuse_others(flags: argparse.Namespace, task: TrainedTask) -> None:
    """Raise UsageError where a flag says something else than the task, which decides what is scored."""
    given = RunSpec.of({name: getattr(flags, name) for name in TASK_ARGUMENTS[:-1]})
    for flag, before, now in task.spec.differences(given):
        raise UsageError(f"{task.path} was made with {flag} {before}, not {flag} {now}: leave {flag} out.")
    if flags.config is not None:
        raise UsageError(
            f"-c {flags.config} is not read: {task.path} holds its task file; "
            "change a setting of it with -o config.KEY=VALUE."
        )


def _task_file(config: Mapping[str, Any]) -> str:
    """Write a task file that is there until this process ends; return its path."""
    handle, path = tempfile.mkstemp(prefix="s3prl_ext-", suffix=".yaml")
    atexit.register(Path(path).unlink, missing_ok=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        yaml.safe_dump(dict(config), file, sort_keys=False, allow_unicode=True)
    return path
