"""``s3prl-ext apply`` and ``revert``: turn a base model on disk into the tuned one, and back, bit by bit."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from s3prl_ext import plugin
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.commands.flags import apply as flags_of
from s3prl_ext.deltas.plain_upstream import build, is_merged, upstream_of_file
from s3prl_ext.deltas.trained_task import TrainedTask, check_foldable
from s3prl_ext.deltas.writing import check_new, write_copy
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.locks import one_writer
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.run_folder import CHECKPOINT_SUFFIX
from s3prl_ext.training.methods import prepare_base
from s3prl_ext.training.run_spec import RunSpec

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Apply a delta to a copy of a base model; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    args = flags_of.parser("apply").parse_args(argv)
    with one_writer(args.out):
        _apply(args)
    sys.stdout.write(f"{args.out}\n")
    return 0


def _apply(args: argparse.Namespace) -> None:
    task, plain, model = _opened(args)
    check_foldable(task)
    if task.upstream:
        raise UsageError(f"{task.path} holds a whole upstream, no delta: write it as a model with s3prl-ext export.")
    if task.path.suffix == CHECKPOINT_SUFFIX or not task.is_rounded or not _is_tuned(task.delta, model):
        prepare_base(model, task.tuning)
    _check_base(task, model, args.model)
    task.tune(model)
    write_copy(plain, model.state_dict(), args.out)


def revert_main(argv: Sequence[str] | None = None) -> int:
    """Take a delta out of a copy of a tuned model; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    args = flags_of.parser("revert").parse_args(argv)
    with one_writer(args.out):
        _revert(args)
    sys.stdout.write(f"{args.out}\n")
    return 0


def _revert(args: argparse.Namespace) -> None:
    task, plain, model = _opened(args)
    delta = task.delta
    if task.upstream:
        raise UsageError(
            f"{task.path} holds a whole upstream, which cannot be taken out of a tuned model: keep the base."
        )
    if task.path.suffix == CHECKPOINT_SUFFIX:
        raise UsageError(
            f"{task.path} is a checkpoint, which holds tuned weights only: give the run's delta.safetensors."
        )
    if delta.added:
        raise UsageError(
            f"{task.path} holds the weights of {task.method}, not the ones they replaced, so they cannot be taken out "
            "of a tuned model: keep the base."
        )
    state = model.state_dict()
    if state_sha256(state) == delta.base_sha256:
        raise DataError(f"{args.model} is the base of {task.path} already: there is nothing to revert.")
    delta.toggle(state)
    found = state_sha256(state)
    if found != delta.base_sha256:
        raise DataError(
            f"{args.model} is not what {task.path} makes of its base (hash {delta.base_sha256[:12]}, but {found[:12]} "
            "comes out): give the model that the delta was applied to."
        )
    write_copy(plain, state, args.out)


def _opened(args: argparse.Namespace) -> tuple[TrainedTask, RunSpec, nn.Module]:
    """Read the delta and load the model."""
    check_new(args.out, "--out")
    task = TrainedTask.read(args.delta)
    plugin.install()
    named = task.tuned_from(args.upstream, str(args.model) if args.upstream else None, args.upstream_model_config)
    plain = upstream_of_file(named.spec, args.model)
    return task, plain, build(plain)


def _check_base(task: TrainedTask, model: nn.Module, path: Path) -> None:
    """Raise DataError where `model` is not the base, with the reason where it can be told."""
    try:
        delta = task.over(model)
    except DataError as error:
        if task.path.suffix != CHECKPOINT_SUFFIX and _is_tuned(task.delta, model):
            raise DataError(f"{path} holds {task.path} already: there is nothing to apply.") from None
        if is_merged(task.info["upstream"]):
            raise DataError(
                f"{error} The task was tuned on the merged upstream {task.info['upstream']}: write that with s3prl-ext "
                "merge first, or use s3prl-ext export."
            ) from None
        raise
    logger.info("%s changes %d weights of %s", task.path, len(delta), path)


def _is_tuned(delta: Delta, model: nn.Module) -> bool:
    state = model.state_dict()
    try:
        delta.toggle(state)
    except DataError:
        return False
    found = state_sha256(state)
    delta.toggle(state)
    return found == delta.base_sha256
