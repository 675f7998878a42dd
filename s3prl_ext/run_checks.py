"""Checks of a ``run_downstream`` command before s3prl makes a folder or loads a model."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ext.configs import expand_variables, load_yaml, shipped_dir
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.run_flags import (
    expdir,
    is_new,
    named_task_file,
    overridden,
    preset_path,
)
from s3prl_ext.run_folder import RunFolder, missing
from s3prl_ext.tasks import named, of_downstream, task_of

if TYPE_CHECKING:
    from s3prl_ext.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


def refuse_dead_flags(flags: argparse.Namespace) -> None:
    """Raise UsageError for flags of s3prl that cannot work any more, or not together."""
    if flags.hub == "huggingface":
        raise UsageError(
            "--hub huggingface logs in with a password, which the hub no longer allows; "
            "load such a model with -u hf_hubert_custom -k OWNER/NAME or -u hf_wav2vec2_custom -k OWNER/NAME."
        )
    if flags.past_exp is not None and flags.init_ckpt is not None:
        raise UsageError("-e resumes an experiment and -i starts a new one with its weights: give one of the two.")
    for name, advice in (("upstream_revision", "-k OWNER/NAME@REVISION"), ("upstream_model_name", "-k FILE")):
        if getattr(flags, name) is not None:
            raise UsageError(f"--{name} belongs to --hub huggingface, which cannot log in any more: use {advice}.")
    if flags.push_to_hf_hub not in (None, "False", "false"):
        raise UsageError(
            "--push_to_hf_hub needs a part of huggingface_hub that was removed (Repository); "
            "train without it and upload the experiment folder with `hf upload`."
        )


TOO_LATE = {"mode": "-m", "past_exp": "-e", "config": "-c", "auto_resume": "-a", "expname": "-n", "override": "-o"}
"""Arguments that s3prl has read when it comes to ``-o``."""


def check_arguments(overrides: Mapping[str, Any]) -> None:
    """Refuse arguments in ``-o`` that would have no effect, or half of one."""
    for name, flag in TOO_LATE.items():
        if f"args.{name}" in overrides:
            raise UsageError(f"-o args.{name}: s3prl has read it by then; give {flag} instead.")


def check_files(flags: argparse.Namespace, given: argparse.Namespace, overwrite: bool) -> Checkpoint | None:
    """Check checkpoints and folders; return the checkpoint that -e or -a resumes, or None for a new experiment.

    Args:
        flags: as on the command line, of which s3prl takes -a and -e.
        given: the same after ``-o``, see :func:`s3prl_ext.run_flags.with_arguments`.
        overwrite: whether ``-o`` says ``args.overwrite``.
    """
    folder = RunFolder(expdir(given))
    auto = flags.auto_resume and RunFolder(expdir(flags)).numbered()
    if flags.auto_resume and overwrite:
        raise UsageError("-a resumes an experiment, args.overwrite=True replaces it: give one of the two.")
    resumed = None
    for flag, value in (("-a", expdir(flags) if auto else None), ("-e", flags.past_exp), ("-i", given.init_ckpt)):
        if value is None:
            continue
        ckpt = _readable(flag, value)
        resumed = resumed or (ckpt if flag != "-i" else None)
    if is_new(flags) and flags.mode is not None:
        for flag, value, meaning in (("-u", given.upstream, "upstream"), ("-d", given.downstream, "task")):
            if value is None:
                raise UsageError(f"{flag} is missing: name the {meaning}, or resume an experiment with -e.")
        if given.expdir is None and flags.expname is None:
            raise UsageError("-p is missing: name the folder of the experiment (or -n for result/downstream/NAME).")
        if folder.path.exists() and not folder.path.is_dir():
            raise UsageError(f"-p {folder.path} is a file: name the folder of the experiment.")
        if flags.mode == "train" and not overwrite:
            folder.refuse_overwriting()
        if flags.mode == "evaluate":
            refuse_to_replace(given)
    return resumed


def check_head(given: argparse.Namespace, overrides: Mapping[str, Any], new: bool, config: str | None) -> None:
    """Refuse to score a head that has learnt nothing, unless ``-o args.untrained_head=True`` asks for it.

    Args:
        given: the flags after ``-o``.
        overrides: keys and values of ``-o``.
        new: whether no checkpoint is resumed.
        config: path of the task file of a new experiment; None for the one of a clone of s3prl.
    """
    alone = new and given.init_ckpt is None and given.mode != "train"
    if overrides.get("args.untrained_head"):
        if not alone:
            raise UsageError("-o args.untrained_head is for -m evaluate without a checkpoint (-e, -i): leave it out.")
    elif alone:
        path = config or f"./downstream/{given.downstream}/config.yaml"
        refuse_untrained_head(
            given.downstream, overridden(load_yaml(path), given),
            "and would score chance: give its checkpoint with -e (or -i), or to see what chance is, "
            "-o args.untrained_head=True.",
        )  # fmt: skip


def refuse_untrained_head(downstream: str, config: Mapping[str, Any], advice: str) -> None:
    """Refuse a task whose head must be trained first; those with a head of their own look at it when they are built.

    Args:
        downstream: name for ``-d``.
        config: the task file.
        advice: the end of the sentence.
    """
    task = task_of(downstream, config.get("downstream_expert"))
    if task.trains and not task.own_head:
        raise UsageError(f"the head of -d {downstream} is untrained {advice}")


def refuse_to_replace(given: argparse.Namespace) -> None:
    """Refuse to write scores of weights that no step has trained next to those of a training, which they would replace.

    Args:
        given: the flags of a new evaluation, after ``-o``.
    """
    from s3prl_ext.training.checkpoint import Checkpoint  # imports torch: not before it is needed
    from s3prl_ext.training.results.result_file import step_of

    folder = RunFolder(expdir(given))
    later = {path: step for path in folder.results() if (step := step_of(path))}
    if not later or (given.init_ckpt is not None and Checkpoint.read(Path(given.init_ckpt), mmap=True).weights_step):
        return
    path, step = next(iter(later.items()))
    raise UsageError(
        f"{path} holds the scores of step {step}, and this command scores weights that no step has trained: give "
        "another folder with -p, or the checkpoint of this one with -e."
    )


def _readable(flag: str, value: str) -> Checkpoint:
    """Read the checkpoint or delta that a flag names: a file, or a folder whose latest checkpoint -e and -a resume."""
    from s3prl_ext.training.checkpoint import Checkpoint  # imports torch: not before it is needed

    path = Path(value)
    if not path.exists():
        raise UsageError(f"{flag} {value}: {missing(path)}")
    latest = path if path.is_file() else RunFolder(path).latest()
    kind = RunFolder(path).other_kind()
    if latest is None or (path.is_dir() and (flag == "-i" or kind)):
        why = "-i takes a file" if flag == "-i" else "this folder has no states-N.ckpt"
        raise UsageError(f"{flag} {value}: {f'this {kind}' if kind else f'name a checkpoint; {why}'}.")
    ckpt = Checkpoint.read(latest, mmap=True)
    if flag != "-i" and ckpt.args is not None and "expdir" not in ckpt.arguments:
        raise UsageError(
            f"{flag} {value}: this is the head of an export, not a run: give it with -i, and its upstream and task "
            "with -u, -k, -d and -c, as in the README.md next to it."
        )
    return ckpt


def only_best(flags: argparse.Namespace) -> Path | None:
    """Return the newest best checkpoint of a folder that -a resumes and that has no ``states-N.ckpt``.

    s3prl looks for ``states-N.ckpt`` alone, but a run may have been killed before its first one.
    """
    from s3prl_ext.training.checkpoint import Checkpoint

    folder = RunFolder(expdir(flags))
    if not flags.auto_resume or flags.past_exp is not None or flags.mode != "train" or folder.numbered():
        return None
    return max(folder.best(), key=lambda path: Checkpoint.read(path, mmap=True).step, default=None)


def latest_of(flags: argparse.Namespace) -> Path | None:
    """Return the ``states-N.ckpt`` of the last step in the folder that -a or -e resumes; None where they name none.

    s3prl looks for it by a pattern that begins with the name of the folder, which takes ``exp/x[1]`` for ``exp/x1``.
    """
    folders = [expdir(flags)] if flags.auto_resume else []
    folders += [flags.past_exp] if flags.past_exp is not None else []
    return next((latest for folder in folders if (latest := RunFolder(folder).latest()) is not None), None)


def check_processes(ckpt: Checkpoint, flags: argparse.Namespace) -> None:
    """Refuse to resume with another number of processes; s3prl stops at an assertion there."""
    from s3prl_ext.training import resume

    started = flags.local_rank is not None or "LOCAL_RANK" in os.environ
    resume.check_processes(ckpt, int(os.environ.get("WORLD_SIZE", "1")) if started else 0)


def check_same_command(
    ckpt: Checkpoint, flags: argparse.Namespace, overrides: Mapping[str, Any], begins_too: bool
) -> None:
    """Refuse flags or a task file that say something else than the checkpoint, which s3prl would ignore."""
    from s3prl_ext.training.resume import check_command

    asked, stored = None, ckpt.config
    # s3prl's own tasks take keys out of what its checkpoints hold
    if (
        ckpt.is_ours
        and stored is not None
        and (flags.config is not None or (begins_too and flags.downstream is not None))
    ):
        path = named_task_file(flags) or f"./downstream/{flags.downstream}/config.yaml"
        asked, stored = overridden(load_yaml(path), flags), overridden(stored, flags)
    check_command(ckpt, flags, asked, stored, overrides)


def stay_with(ckpt: Checkpoint) -> None:
    """Let a run write next to its checkpoint: s3prl writes where the checkpoint was made.

    A copied or moved experiment would otherwise write into the one that it came from.
    """
    from s3prl_ext.training.resume import keep_in_its_folder

    made_in = ckpt.arguments.get("expdir")
    assert ckpt.path is not None
    if made_in is not None and Path(made_in).resolve() != ckpt.path.parent.resolve():
        keep_in_its_folder(ckpt.path)


def check_names(flags: argparse.Namespace) -> None:
    """Refuse an unknown upstream or task, or flags that do not belong to them, before s3prl makes a folder."""
    if flags.mode is None:
        return
    from s3prl import hub

    from s3prl_ext.training.known_settings import known_tasks
    from s3prl_ext.training.upstream_checks import check_upstream_flags

    if not callable(getattr(hub, flags.upstream, None)):
        raise unknown_name("upstream (-u)", flags.upstream, hub.options())
    if flags.downstream not in known_tasks():
        raise unknown_name("task (-d)", flags.downstream, known_tasks())
    check_upstream_flags(flags)
    if flags.config is not None:
        _check_preset(flags.config, flags.downstream)


def _check_preset(config: str, downstream: str) -> None:
    """Refuse a shipped task file of another task."""
    path = Path(config) if Path(config).is_file() else preset_path(config)
    if path.resolve().parent.parent != shipped_dir("downstream_configs").resolve():
        return
    owner = named(path.resolve().parent.name)
    if owner.downstream != downstream:
        fitting = [f"-c {task.preset}" for task in of_downstream(downstream) if task.preset]
        instead = f", or {' or '.join(fitting)} for -d {downstream}" if fitting else ""
        raise UsageError(f"-c {config} is of -d {owner.downstream}, not of -d {downstream}: give that{instead}.")


def check_overrides(
    overrides: Mapping[str, Any], flags: argparse.Namespace, ckpt: Checkpoint | None, task_file: str | None
) -> None:
    """Refuse keys of -o that are misspelt, and mention those that nothing reads."""
    if not overrides:
        return
    from s3prl_ext.training.known_settings import check_overrides

    if ckpt is not None:
        config, task = ckpt.config, ckpt.arguments.get("downstream")
    else:
        path = task_file or f"./downstream/{flags.downstream}/config.yaml"
        config, task = (load_yaml(path) if flags.downstream else None), flags.downstream
    if config is None or task is None:
        return  # s3prl's own parser says what is missing
    for remark in check_overrides(overrides, config, task):
        logger.warning("%s", remark)


def mention_unused(overrides: Mapping[str, Any], flags: argparse.Namespace, ckpt: Checkpoint | None) -> None:
    """Log which parts of a command, and of the user's own task file, have no effect."""
    from s3prl_ext.training.known_settings import unread_settings, unused_flags

    for remark in unused_flags(flags, ckpt.path if ckpt else None, overrides):
        logger.warning("%s", remark)
    if ckpt is None and flags.downstream and flags.config is not None and Path(flags.config).is_file():
        for remark in unread_settings(load_yaml(flags.config), flags.downstream):
            logger.warning("%s", remark)


def check_numbers(flags: argparse.Namespace) -> None:
    """Refuse a seed, rank, layer or device that cannot be, before a model is loaded."""
    for flag in ("seed", "local_rank", "upstream_layer_selection"):
        value = getattr(flags, flag)
        if value is not None and not re.fullmatch(r"\s*[+-]?\d+\s*", value):
            raise UsageError(f"--{flag} must be a whole number, got {value}.")
    if flags.seed is not None and not 0 <= int(flags.seed) < 2**32:
        raise UsageError(f"--seed must be between 0 and {2**32 - 1}, got {flags.seed}.")
    if flags.local_rank is not None and "RANK" not in os.environ:
        raise UsageError(
            "--local_rank is set by torchrun: leave it out for one process, or start several with torchrun "
            "--nproc_per_node N -m s3prl_ext.run_downstream FLAGS."
        )
    if flags.device is not None:
        from s3prl_ext.training.devices import check_device

        check_device(flags.device)


def check_task_file(path: str, flags: argparse.Namespace) -> None:
    """Refuse a task file that cannot work, with the overrides of -o applied."""
    from s3prl_ext.training.task_file import TaskFile

    TaskFile.read(expand_variables(overridden(load_yaml(path), flags)), downstream=flags.downstream)
