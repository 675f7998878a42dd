"""``s3prl-ext run``, ``python -m s3prl_ext.run_downstream`` and ``torchrun -m s3prl_ext.run_downstream``.

All run s3prl's own ``run_downstream`` with this plug-in installed. :func:`prepare_argv` completes the command line
before s3prl parses it; the stock commands get the same treatment through the start-up hook.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import runpy
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from s3prl_ext import locks
from s3prl_ext.errors import as_command, one_sentence_errors, show_errors_as_sentences
from s3prl_ext.run_checks import (
    check_arguments,
    check_files,
    check_head,
    check_names,
    check_numbers,
    check_overrides,
    check_processes,
    check_same_command,
    check_task_file,
    latest_of,
    mention_unused,
    only_best,
    refuse_dead_flags,
    stay_with,
)
from s3prl_ext.run_flags import (
    MODES,
    Unparsable,
    canonical,
    is_new,
    overrides_of,
    parser,
    task_file,
    with_arguments,
    with_literals,
)

logger = logging.getLogger(__name__)

AUTO_RESUME = ("-a", "--auto_resume")

# Warnings of torch about s3prl's code that a user can do nothing about.
OTHERS_WARNINGS = ("This DataLoader will create", "'pin_memory' argument is set", ".*weight_norm. is deprecated")


def main(argv: Sequence[str] | None = None) -> None:
    """Run s3prl's ``run_downstream`` with the plug-in installed.

    Args:
        argv: its flags; None takes them from the command line.
    """
    from s3prl_ext import plugin, progress

    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help", "--help-upstreams"} & set(argv):
        _print_help(argv)
        return
    sys.argv = ["run_downstream.py", *argv]
    progress.quiet_bars_of_others()
    with as_command(), _locks_given_back():
        plugin.install()
        _show_log()
        prepare_argv()
        runpy.run_module("s3prl.run_downstream", run_name="__main__", alter_sys=True)


def _print_help(argv: Sequence[str]) -> None:
    from s3prl_ext.commands import run_help

    print(run_help.upstreams_page() if "--help-upstreams" in argv else run_help.PAGE)


def prepare_argv() -> None:
    """Complete and check ``sys.argv`` of a ``run_downstream`` command in place; doing it twice changes nothing."""
    show_errors_as_sentences()
    with one_sentence_errors():
        _hold_folder(sys.argv[1:])
        sys.argv[1:] = complete(sys.argv[1:])


@contextlib.contextmanager
def _locks_given_back() -> Iterator[None]:
    try:
        yield
    finally:
        locks.release_all()


def _hold_folder(argv: Sequence[str]) -> None:
    """Let rank 0 of a training hold its folder, before anything of it is read.

    Raises:
        UsageError: another run, sweep or race writes there.
    """
    try:
        flags, _ = parser().parse_known_args(canonical(argv))
    except Unparsable:
        return  # s3prl's own parser says what is wrong
    if flags.mode != "train" or flags.help or os.environ.get("RANK", "0") != "0":
        return
    folder = flags.expdir or (f"result/downstream/{flags.expname}" if flags.expname else None)
    if flags.past_exp is not None:
        folder = flags.past_exp if Path(flags.past_exp).is_dir() else str(Path(flags.past_exp).parent)
    options = [part.partition("=") for part in (flags.override or "").split(",,")]
    folder = next((value.strip().strip("'\"") for key, _, value in options if key.strip() == "args.expdir"), folder)
    if folder is not None and (flags.past_exp is None or Path(flags.past_exp).exists()):
        locks.hold(folder)
        atexit.register(locks.release_all)  # for the stock command


def complete(argv: Sequence[str]) -> list[str]:
    """Return the flags with everything added that s3prl would miss.

    - flags are written as :func:`s3prl_ext.run_flags.canonical` does; under torchrun ``--local_rank`` is added.
    - ``-c asr/ad_tuning`` becomes the path of the shipped task file; a missing ``-c`` the task's ``superb`` preset.
    - ``-a`` and ``-e FOLDER`` become ``-e`` with the latest checkpoint, where there is one.
    - ``-e delta.safetensors`` becomes the upstream, task and task file of that delta, with ``-i``.
    - ``-o args.upstream_trainable=false`` becomes ``=False``, so that s3prl takes no text for true.
    - without CUDA the device is the CPU and the backend gloo, unless they are given.

    Raises:
        UsageError: a flag cannot work: abbreviation, unknown preset, missing checkpoint or file, malformed ``-o``.
    """
    argv = list(argv)
    try:
        argv = canonical(argv)
        flags, _ = parser().parse_known_args(argv)
    except Unparsable:
        return argv  # s3prl's own parser says what is wrong
    if flags.help or flags.mode not in MODES:
        return argv  # s3prl's own parser shows its page, or says which modes there are
    refuse_dead_flags(flags)
    argv = with_literals(argv, flags.override)
    argv, flags = _of_delta(argv, parser().parse_known_args(argv)[0])
    overrides = overrides_of(flags.override)
    check_arguments(overrides)
    given = with_arguments(flags, overrides)
    refuse_dead_flags(given)
    added: list[str] = []
    begins_too = flags.auto_resume and flags.past_exp is None  # the same command that started the experiment
    latest, best = latest_of(flags), only_best(flags)
    added += ["-e", str(latest)] if latest is not None else []
    if best is not None:
        flags.past_exp = str(best)
        added += ["-e", str(best)]
    ckpt = check_files(flags, given, overwrite=bool(overrides.get("args.overwrite")))
    if is_new(flags):
        check_names(given)
    check_numbers(given)
    if flags.local_rank is None and "LOCAL_RANK" in os.environ:
        added.append(f"--local_rank={os.environ['LOCAL_RANK']}")
    added += _device_flags(given)
    if ckpt is not None:
        check_same_command(ckpt, flags, overrides, begins_too)
    if ckpt is not None and flags.mode == "train":
        check_processes(ckpt, flags)
    if ckpt is not None:
        stay_with(ckpt)
    config = task_file(flags)
    if flags.mode is not None:
        check_head(given, overrides, is_new(flags), config)
    check_overrides(overrides, flags, ckpt, config)
    mention_unused(overrides, flags, ckpt)
    if config is not None:
        check_task_file(config, flags)
        if config != flags.config:
            added += ["-c", config]
    return [word for word in argv if word not in AUTO_RESUME] + added


def _of_delta(argv: list[str], flags: argparse.Namespace) -> tuple[list[str], argparse.Namespace]:
    """Replace ``-e`` with a delta by the flags that build its upstream and task; others stay as they are."""
    if flags.past_exp is None:
        return argv, flags
    from s3prl_ext.deltas import evaluation  # imports torch: not before it is needed

    delta = evaluation.find_delta(flags.past_exp) or evaluation.find_moved(flags)
    if delta is None:
        return argv, flags
    argv = evaluation.evaluation_flags(argv, flags, delta)
    return argv, parser().parse_known_args(argv)[0]


def _device_flags(flags: argparse.Namespace) -> list[str]:
    import torch

    if torch.cuda.is_available():
        return []
    added = []
    if flags.device is None:
        logger.info("no CUDA device: running on the CPU")
        added += ["--device", "cpu"]
    if flags.backend is None:
        added += ["--backend", "gloo"]
    return added


class _Plain(logging.Formatter):
    """Our own records as sentences; those of other packages with their name in front."""

    def format(self, record: logging.LogRecord) -> str:
        name = "" if record.name.partition(".")[0] == "s3prl_ext" else f"{record.name}: "
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{level}{name}{super().format(record)}"


def _show_log() -> None:
    """Write the log to stderr, one sentence a line, in place of the format that s3prl chooses."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for message in OTHERS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    main()
