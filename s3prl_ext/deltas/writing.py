"""Write the weights of an upstream into a copy of its file or folder, and prove that they load again bit by bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from s3prl_ext.attention.files import owners_of
from s3prl_ext.deltas.plain_upstream import build
from s3prl_ext.deltas.tensor_names import match_names
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.export import write_weights
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.writing import unfinished_folder


def write_upstream(plain: RunSpec, state: Mapping[str, Tensor], out: Path) -> Path:
    """Write the model of `plain` with the weights `state` into the folder `out`, and load it again as a check.

    All else of the file or folder, such as the head of a speech recogniser, keeps its bits.

    Args:
        plain: how to load the model on disk, see :func:`~s3prl_ext.deltas.plain_upstream.plain_upstream`.
        state: state dict of the upstream.
        out: existing folder.

    Returns:
        What ``-k`` takes: `out` where `plain` is a folder, else the file in it.

    Raises:
        DataError: the file cannot hold these weights exactly.
    """
    stored = changed_tensors(plain, state)
    write_weights(plain.model, out, list(stored), lambda name, _: stored[name])
    written = out if plain.model.is_dir() else out / plain.model.name
    if state_sha256(build(replace(plain, upstream_ckpt=str(written))).state_dict()) != state_sha256(state):
        raise DataError(
            f"{plain.model} cannot hold the tuned weights: loaded again they differ; "
            "was the upstream changed in memory?"
        )
    return written


def changed_tensors(plain: RunSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `state` that differ from those on disk, under their names on disk.

    Raises:
        DataError: the model on disk is another one.
    """
    files = owners_of(plain.model)
    shapes = {name: tuple(reader[name].shape) for name, reader in files.items()}
    names = match_names({name: tuple(tensor.shape) for name, tensor in state.items()}, shapes, str(plain.model))
    changed = {}
    for name, stored in names.items():
        old, new = files[stored][stored], state[name].detach().cpu()
        if torch.equal(old.to(new.dtype).reshape(-1).view(torch.uint8), new.reshape(-1).view(torch.uint8)):
            continue
        changed[stored] = new
    return changed


def write_copy(plain: RunSpec, state: Mapping[str, Tensor], out: Path) -> None:
    """Write the model of `plain` with the weights `state` to `out`, which appears only when it is complete.

    Args:
        plain: how to load the model on disk.
        state: state dict of the upstream.
        out: missing; it becomes a folder where `plain` is one, else a file.

    Raises:
        DataError: the file cannot hold these weights exactly.
    """
    with unfinished_folder(out) as folder:
        os.replace(write_upstream(plain, state, folder), out)


def check_new(out: Path, flag: str) -> None:
    """Raise UsageError where there is a file or folder already, or where no folder can be made for it."""
    if out.exists():
        raise UsageError(f"{flag} {out} exists already: name a new one.")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UsageError(f"{flag} {out} cannot be made: {above} is a file; name another place.")
