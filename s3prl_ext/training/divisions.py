"""The single values that divide a corpus, such as the fold of a cross-validation: those of a checkpoint and those now.

A checkpoint holds its task file, so its fold is known whatever wrote it.
"""

from __future__ import annotations

import logging
from argparse import Namespace

from s3prl_ext.configs import Section, value_at
from s3prl_ext.errors import UsageError
from s3prl_ext.tasks import task_of
from s3prl_ext.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def division_of(downstream: str, config: Section, variant: str | None) -> dict[str, object]:
    """Return the values of a task file that divide its corpus, by their dotted keys, as far as it says them.

    Args:
        downstream: name for ``-d``.
        config: the task file.
        variant: ``-v``, which names the fold where the task file does not.
    """
    task = task_of(downstream, config.get("downstream_expert"))
    found = {key: value_at(config, key) for key in task.divided_by}
    if task.folds is not None:
        named = variant if variant in task.folds.names else task.folds.unnamed
        found = {task.folds.key: value_at(config, task.folds.key) or named} | found
    return {key: value for key, value in found.items() if value is not None}


def check_division(ckpt: Checkpoint, config: Section, args: Namespace) -> None:
    """Check that a run divides its corpus by the same fold and ratios as the training of its checkpoint.

    A task may complete its section when it is built, so this comes after that.

    Args:
        ckpt: the checkpoint or delta; empty for none.
        config: the present task file.
        args: the arguments of ``run_downstream.py``.

    Raises:
        UsageError: another one would be scored or trained further; where a new training begins with the weights, it is
            logged.
    """
    downstream = ckpt.arguments.get("downstream")
    if downstream != args.downstream or not ckpt.config:
        return
    before = division_of(downstream, ckpt.config, ckpt.arguments.get("downstream_variant"))
    now = division_of(downstream, config, getattr(args, "downstream_variant", None))
    for key, value in before.items():
        if key not in now or now[key] == value:
            continue
        sentence = (
            f"{ckpt.path} was trained with {key} {value}, and now it is {now[key]}, so that clips that it was trained "
            "on would be scored"
        )
        if args.mode != "train" or args.past_exp:
            raise UsageError(f"{sentence}: keep {value}, or train with {now[key]} in a new experiment.")
        logger.warning("%s; training begins with it anyway", sentence)
