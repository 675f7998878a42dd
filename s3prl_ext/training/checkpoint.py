"""Checkpoint files: s3prl's keys and names, written to a temporary file and renamed, read with clear errors."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.errors import DataError, UsageError, is_disk_full
from s3prl_ext.reading import check_archive, is_archive
from s3prl_ext.upstreams.merged_attention.record import UNKNOWN
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

EXTENSION_KEY = "S3prlExt"  # holds what s3prl's own checkpoints lack; s3prl ignores it
LAST_HIDDEN_STATE_KEY = "last_hidden_state"  # under it, which one was trained on, see training/last_hidden_state.py
DELTA_KEY = "Delta"  # the changes of the upstream, where a delta is read like a checkpoint
DELTA_SUFFIX = ".safetensors"
FEATURES_KEY = "Features"  # in the head of an export, which has no arguments: the values of FEATURES
FEATURES = ("upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize")  # what a task reads


def load(path: str | os.PathLike, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of s3prl or of this package, or a delta, onto the CPU, without executing pickled code.

    Args:
        path: the file; of a delta come the weights that a checkpoint of its step would hold, and nothing of how far
            it was trained.
        mmap: read a tensor only when it is used; the file must not change meanwhile.

    Raises:
        DataError: the file is missing, truncated, damaged, no checkpoint, or holds unknown classes.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such checkpoint: {path}.")
    if path.suffix == DELTA_SUFFIX:
        return _of_delta(delta_files.load(path))
    check_archive(path)
    try:
        torch.serialization.add_safe_globals([argparse.Namespace, *_schedules()])  # s3prl stores such objects
        states = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path} cannot be read as a checkpoint (truncated, damaged or of another kind): {first_line[:200]}"
        ) from error
    if not isinstance(states, dict) or not ({"Downstream", "Featurizer", "Step"} & set(states)):
        raise DataError(f"{path} is no s3prl downstream checkpoint: it has neither Downstream, Featurizer nor Step.")
    return states


def _of_delta(delta: Delta) -> dict[str, Any]:
    info = delta.info
    states = {
        "Args": argparse.Namespace(**{name: info.get(name) for name in ("downstream", *FEATURES)}),
        "Config": info.get("config") or {},
        EXTENSION_KEY: {
            "upstream_sha256": delta.base_sha256,
            "candidate": info.get("candidate"),
            "step": info.get("step"),
            "merge": info.get("merge", UNKNOWN),
            LAST_HIDDEN_STATE_KEY: info.get(LAST_HIDDEN_STATE_KEY),
        },
        **delta.task,
    }
    states |= {DELTA_KEY: delta} if delta.indices or delta.added else {}
    return states


def _schedules() -> list[type]:
    """Return the schedule classes of which s3prl's ``*_with_schedule`` optimizers keep an object in their state."""
    from s3prl import optimizers

    kinds = [value for value in vars(optimizers).values() if isinstance(value, type)]
    return [kind for kind in kinds if issubclass(kind, optimizers._LRSchedule)]


def load_into(module: Any, state: Any, what: str, path: str | os.PathLike | None) -> None:
    """Load a state dict of a checkpoint into a model or optimizer.

    Raises:
        DataError: it does not fit; the message names the file and `what`.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        other = (
            "other learning rates in the section tuning" if what == "optimizer" else "another upstream, task or size"
        )
        raise DataError(f"{path} does not fit this {what} ({other}?): {reason}") from error


def check_readable(path: str | os.PathLike) -> None:
    """Raise DataError where a file is no checkpoint, truncated (such files have no directory) or damaged."""
    path = Path(path)
    if path.suffix == DELTA_SUFFIX:
        delta_files.load(path)
        return
    with path.open("rb") as file:
        legacy = file.read(2) == b"\x80\x02"  # torch < 1.6 wrote a plain pickle
    if not legacy and not is_archive(path):
        raise DataError(
            f"{path} is truncated or no checkpoint ({path.stat().st_size:,} bytes); choose an earlier one with -e."
        )
    load(path, mmap=not legacy)


def save(states: dict[str, Any], paths: Iterable[str | os.PathLike]) -> None:
    """Write `states` once for each path, flushed to disk before the file takes its name.

    Raises:
        DataError: the folder cannot be written or the disk is full; no partial file is left, older files stay.
    """
    for path in paths:
        try:
            with written(path) as temporary, temporary.open("wb") as file:
                torch.save(states, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            code = getattr(error, "errno", None)
            full = is_disk_full(error) or (code is None and "write" in str(error))
            cause = "the disk is full" if full else os.strerror(code) if code else str(error).splitlines()[0]
            raise DataError(
                f"cannot write the checkpoint {path}: {cause}; earlier checkpoints are untouched, "
                "free some space and resume with -a."
            ) from error


def step_of(path: str | os.PathLike) -> int:
    """Return N of a file named ``states-N.ckpt``."""
    return int(Path(path).stem.split("-")[-1])


def numbered(expdir: str | os.PathLike) -> list[Path]:
    """Return the ``states-N.ckpt`` files of a folder, lowest N first."""
    files = [p for p in Path(expdir).glob("states-*.ckpt") if p.stem.split("-")[-1].isdigit()]
    return sorted(files, key=step_of)


def best(expdir: str | os.PathLike) -> list[Path]:
    """Return the checkpoints of a folder that its task has named, such as ``dev-best.ckpt``."""
    return sorted(path for path in Path(expdir).glob("*.ckpt") if not path.name.startswith("states-"))


def remove_older(newest: str | os.PathLike, keep: int, spared: Path | None = None) -> None:
    """Delete all but `keep` of the ``states-N.ckpt`` beside `newest`, which stays in any case, as does `spared`.

    Files of a later step than `newest` go first: they belong to a run that was left for an earlier checkpoint.
    """
    newest = Path(newest)
    others = [path for path in numbered(newest.parent) if path not in (newest, spared)]
    others.sort(key=lambda path: (step_of(path) <= step_of(newest), step_of(path)))
    for path in others[: max(0, len(others) - (keep - 1))]:
        if step_of(path) > step_of(newest):
            logger.warning("removing %s: the run went on from an earlier checkpoint and is at %s", path, newest.name)
        path.unlink(missing_ok=True)


def refuse_overwriting(expdir: str | os.PathLike) -> None:
    """Raise UsageError where a folder holds an experiment already: a checkpoint under any name."""
    found = sorted(Path(expdir).glob("*.ckpt"))
    if found:
        raise UsageError(
            f"{expdir} already holds an experiment ({found[0].name}): resume it with -a, choose another folder with "
            "-p, or replace it with -o args.overwrite=True."
        )
