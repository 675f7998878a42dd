"""What a user is told where s3prl's or transformers' code stops at the upstream that was asked for."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from s3prl_ext.errors import DataError, ExtError, UsageError, is_out_of_memory
from s3prl_ext.training.upstream_flags import needs_checkpoint, without_checkpoint


def upstream_problem(args: Namespace, error: Exception) -> ExtError | None:
    """Return the sentence for an upstream that s3prl could not build, or None where only its own error tells more."""
    name, ckpt = args.upstream, args.upstream_ckpt
    if isinstance(error, OSError) and error.filename is None:
        return DataError(
            f"the upstream '{name}' could not be downloaded or read ({' '.join(str(error).split())[:160]} ...); check the "
            "network, or give a local model: -u hubert_local -k FILE, -u hf_hubert_custom -k FOLDER and the like."
        )
    if isinstance(error, (ValueError, pickle.UnpicklingError)):
        return _not_converted(name, ckpt, error) or _does_not_load(name, ckpt, error)
    if ckpt is None:
        return without_checkpoint(name) if needs_checkpoint(name) and "CUDA" not in str(error) else None
    if not Path(ckpt).exists() and "://" not in ckpt:
        return UsageError(f"-k {ckpt}: no such file or folder.")
    return _does_not_load(name, ckpt, error)


def _does_not_load(name: str, ckpt: str | None, error: Exception) -> DataError | None:
    """Return the sentence for a model that is there and that the upstream's code stops at."""
    if ckpt is None or is_out_of_memory(error) or "CUDA" in str(error) or isinstance(error, OSError):
        return None
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160] or 'no message'}"
    return DataError(
        f"-u {name} cannot load -k {ckpt} ({reason}): it may be of another kind, or its config.json damaged."
    )


@contextmanager
def first_features(args: Namespace) -> Iterator[None]:
    """Say of an error at the first audio that a model of ``-k`` reads which model it is."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        known = dist.is_initialized() or is_out_of_memory(error) or "CUDA" in str(error)
        if args.upstream_ckpt is None or known or isinstance(error, NotImplementedError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160] or 'no message'}"
        raise DataError(
            f"-u {args.upstream} with -k {args.upstream_ckpt} fails at one second of audio ({reason}): the model's settings "
            "do not fit each other, get its config.json again."
        ) from error


def _not_converted(name: str, ckpt: str | None, error: Exception) -> DataError | None:
    """Return the sentence for a checkpoint as fairseq writes it, or None where the error is about something else."""
    lacks = re.search(r"required key: (\w+) is missing", str(error))
    if lacks is None and not isinstance(error, pickle.UnpicklingError):
        return None
    family = re.sub(r"_(local|custom|url)$", "", name)
    return DataError(
        f"-k {ckpt} is no converted checkpoint for -u {name}, it "
        f"{f'lacks {lacks[1]}' if lacks else 'holds objects of another program'}: convert one of fairseq with "
        f"`python -m s3prl.upstream.{family}.convert` (needs fairseq), or load the model's transformers folder with "
        "-u hf_hubert_custom or -u hf_wav2vec2_custom."
    )
