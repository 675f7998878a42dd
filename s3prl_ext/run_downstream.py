"""``s3prl-ext run``, ``python -m s3prl_ext.run_downstream`` and ``torchrun -m s3prl_ext.run_downstream``.

All run s3prl's own ``run_downstream`` with this plug-in installed. :func:`prepare_argv` completes the command line
before s3prl parses it; the stock commands get the same treatment through the start-up hook.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import copy
import io
import logging
import os
import re
import runpy
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from s3prl_ext import locks
from s3prl_ext.configs import expand_variables, load_yaml, package_dir, shipped_dir
from s3prl_ext.errors import UsageError, as_command, one_sentence_errors, show_errors_as_sentences, unknown_name

logger = logging.getLogger(__name__)

# Preset that stands in for s3prl's ./downstream/<task>/config.yaml, which is not in its wheel.
DEFAULT_PRESETS = {
    "speech_commands": "ks/superb",
    "fluent_commands": "ic/superb",
    "voxceleb1": "sid/superb",
    "asr": "asr/superb",
    "diarization": "sd/superb",
    "ljspeech": "ljspeech/mam",
    "vctk": "vctk/mam",
    "esc50": "esc50/mam",
}


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
        show_log()
        prepare_argv()
        with _sentences_of_argparse():
            runpy.run_module("s3prl.run_downstream", run_name="__main__", alter_sys=True)


def _print_help(argv: Sequence[str]) -> None:
    from s3prl_ext.commands import run_help

    print(run_help.upstreams_page() if "--help-upstreams" in argv else run_help.PAGE)


# Warnings of torch about s3prl's code that a user can do nothing about.
OTHERS_WARNINGS = ("This DataLoader will create", "'pin_memory' argument is set", ".*weight_norm. is deprecated")


class _Plain(logging.Formatter):
    """Our own records as sentences; those of other packages with their name in front."""

    def format(self, record: logging.LogRecord) -> str:
        name = "" if record.name.partition(".")[0] == "s3prl_ext" else f"{record.name}: "
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{level}{name}{super().format(record)}"


def show_log() -> None:
    """Write the log to stderr, one sentence a line, in place of the format that s3prl chooses."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for message in OTHERS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def _sentences_of_argparse() -> Iterator[None]:
    """Let s3prl's parser complain in one sentence, without its usage of 40 lines."""
    complain = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UsageError(f"{message}; s3prl-ext run -h shows the flags.")

    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = complain  # type: ignore[method-assign]


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
    """Let the first process of a training hold its folder, before anything of it is read.

    Raises:
        UsageError: another run, sweep or race writes there.
    """
    try:
        flags, _ = _parser().parse_known_args(argv)
    except _Unparsable:
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

    - ``--local-rank`` (torch.distributed.launch) is spelt ``--local_rank``; under torchrun it is added.
    - ``-c asr/ad_tuning`` becomes the path of the shipped task file; a missing ``-c`` the task's ``superb`` preset.
    - ``-e delta.safetensors`` becomes the upstream, task and task file of that delta, with ``-i``.
    - without CUDA the device is the CPU and the backend gloo, unless they are given.

    Raises:
        UsageError: a flag cannot work: unknown preset, missing checkpoint or file, malformed ``-o``.
    """
    argv = [arg.replace("--local-rank", "--local_rank", 1) if arg.startswith("--local-rank") else arg for arg in argv]
    try:
        flags, _ = _parser().parse_known_args(argv)
    except _Unparsable:
        return argv  # s3prl's own parser says what is wrong
    if flags.help or flags.mode not in MODES:
        return argv  # s3prl's own parser shows its page, or says which modes there are
    _refuse_dead_flags(flags)
    argv, flags = _of_delta(argv, flags)
    overrides = _overrides(flags.override)
    added: list[str] = []
    begins_too = flags.auto_resume and flags.past_exp is None  # the same command that started the experiment
    best = _only_best(flags)
    if best is not None:
        flags.past_exp = str(best)
        added += ["-e", str(best)]
    ckpt = _check_files(flags, overwrite=overrides.get("args.overwrite") == "True")
    _check_names(flags, overrides)
    _check_numbers(flags)
    if flags.local_rank is None and "LOCAL_RANK" in os.environ:
        added.append(f"--local_rank={os.environ['LOCAL_RANK']}")
    added += _device_flags(flags)
    if ckpt is not None:
        _check_same_command(ckpt, flags, overrides, begins_too)
    if ckpt is not None and flags.mode == "train":
        _check_processes(ckpt, flags)
    if ckpt is not None:
        _stay_with(ckpt)
    config = _task_file(flags)
    _check_overrides(overrides, flags, ckpt, config)
    _mention_unused(overrides, flags, ckpt)
    if config is not None:
        _check_task_file(config, flags)
        if config != flags.config:
            added += ["-c", config]
    return argv + added


MODES = ("train", "evaluate", "inference")


class _Unparsable(Exception):
    pass


class _QuietParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Unparsable(message)


def _parser() -> argparse.ArgumentParser:
    parser = _QuietParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    for short, long in (
        ("-m", "--mode"), ("-t", "--evaluate_split"), ("-o", "--override"), ("-e", "--past_exp"), ("-i", "--init_ckpt"),
        ("-c", "--config"), ("-d", "--downstream"), ("-u", "--upstream"), ("-n", "--expname"), ("-p", "--expdir"),
        ("-k", "--upstream_ckpt"), ("-g", "--upstream_model_config"), ("-s", "--upstream_feature_selection"),
        ("-l", "--upstream_layer_selection"), ("-v", "--downstream_variant"),
    ):  # fmt: skip
        parser.add_argument(short, long)
    for long in (
        "--backend", "--local_rank", "--hub", "--device", "--push_to_hf_hub", "--seed", "--upstream_model_name",
        "--upstream_revision",
    ):  # fmt: skip
        parser.add_argument(long)
    for short, long in (("-f", "--upstream_trainable"), ("-a", "--auto_resume"), ("-r", "--upstream_refresh")):
        parser.add_argument(short, long, action="store_true")
    parser.add_argument("--upstream_feature_normalize", action="store_true")
    return parser


def _of_delta(argv: list[str], flags: argparse.Namespace) -> tuple[list[str], argparse.Namespace]:
    """Replace ``-e`` with a delta by the flags that build its upstream and task; others stay as they are."""
    if flags.past_exp is None:
        return argv, flags
    from s3prl_ext.deltas import evaluation  # imports torch: not before it is needed

    delta = evaluation.find_delta(flags.past_exp) or evaluation.find_moved(flags)
    if delta is None:
        return argv, flags
    argv = evaluation.evaluation_flags(argv, flags, delta)
    return argv, _parser().parse_known_args(argv)[0]


def _refuse_dead_flags(flags: argparse.Namespace) -> None:
    if flags.hub == "huggingface":
        raise UsageError(
            "--hub huggingface logs in with a password, which the hub no longer allows; "
            "load such a model with -u hf_hubert_custom -k OWNER/NAME or -u hf_wav2vec2_custom -k OWNER/NAME."
        )
    if flags.past_exp is not None and flags.init_ckpt is not None:
        raise UsageError("-e goes on with an experiment and -i begins a new one with its weights: give one of the two.")
    for name, advice in (("upstream_revision", "-k OWNER/NAME@REVISION"), ("upstream_model_name", "-k FILE")):
        if getattr(flags, name) is not None:
            raise UsageError(f"--{name} belongs to --hub huggingface, which cannot log in any more: use {advice}.")
    if flags.push_to_hf_hub not in (None, "False", "false"):
        raise UsageError(
            "--push_to_hf_hub needs a part of huggingface_hub that was removed (Repository); "
            "train without it and upload the experiment folder with `hf upload`."
        )


def _overrides(override: str | None) -> dict[str, str]:
    """Return the options of ``-o``: dotted key -> value as written.

    Raises:
        UsageError: an option is not of the form config.KEY=VALUE or args.KEY=VALUE.
    """
    options = {}
    for option in [] if override is None or override.lower() == "none" else override.split(",,"):
        key, *values = option.strip().split("=")
        if len(values) != 1 or key.strip().split(".")[0] not in ("args", "config"):
            raise UsageError(
                f"-o: '{option.strip()}' must read config.KEY=VALUE or args.KEY=VALUE, with one '='; "
                "several are separated by ',,'."
            )
        options[key.strip()] = values[0].strip()
    return options


def _check_files(flags: argparse.Namespace, overwrite: bool) -> Path | None:
    """Check checkpoints and folders; return the checkpoint that -e or -a resumes, or None for a new experiment."""
    from s3prl_ext.deltas import folders  # imports torch: not before it is needed
    from s3prl_ext.training import checkpoint

    auto = flags.auto_resume and checkpoint.numbered(_expdir(flags))
    if flags.auto_resume and overwrite:
        raise UsageError("-a resumes an experiment, args.overwrite=True replaces it: give one of the two.")
    resumed = None
    for flag, value in (("-a", _expdir(flags) if auto else None), ("-e", flags.past_exp), ("-i", flags.init_ckpt)):
        if value is None:
            continue
        path = Path(value)
        if not path.exists():
            raise UsageError(f"{flag} {value}: {folders.missing(path)}")
        if path.is_dir():
            kind = folders.other_kind(path)
            if flag == "-i" or kind or not checkpoint.numbered(path):
                why = "-i takes a file" if flag == "-i" else "this folder holds no states-N.ckpt to choose"
                raise UsageError(f"{flag} {value}: {f'this {kind}' if kind else f'name a checkpoint; {why}'}.")
            path = checkpoint.numbered(path)[-1]
        checkpoint.check_readable(path)
        resumed = resumed or (path if flag != "-i" else None)
    if _is_new(flags) and flags.mode is not None:
        for flag, value, meaning in (("-u", flags.upstream, "upstream"), ("-d", flags.downstream, "task")):
            if value is None:
                raise UsageError(f"{flag} is missing: name the {meaning}, or resume an experiment with -e.")
        if flags.expdir is None and flags.expname is None:
            raise UsageError("-p is missing: name the folder of the experiment (or -n for result/downstream/NAME).")
        if Path(_expdir(flags)).exists() and not Path(_expdir(flags)).is_dir():
            raise UsageError(f"-p {_expdir(flags)} is a file: name the folder of the experiment.")
        if flags.mode == "train" and not overwrite:
            checkpoint.refuse_overwriting(_expdir(flags))
    return resumed


def _only_best(flags: argparse.Namespace) -> Path | None:
    """Return the newest best checkpoint of a folder that -a resumes and that holds no ``states-N.ckpt``.

    s3prl looks for ``states-N.ckpt`` alone, but a run may have been killed before its first one.
    """
    from s3prl_ext.training import checkpoint

    if not flags.auto_resume or flags.past_exp is not None or flags.mode != "train":
        return None
    found = [] if checkpoint.numbered(_expdir(flags)) else sorted(Path(_expdir(flags)).glob("*.ckpt"))
    for path in found:
        checkpoint.check_readable(path)
    return max(
        found, key=lambda path: checkpoint.load(path, mmap=zipfile.is_zipfile(path)).get("Step", 0), default=None
    )


def _check_processes(ckpt: Path, flags: argparse.Namespace) -> None:
    """Refuse to go on with another number of processes; s3prl stops at an assertion there."""
    from s3prl_ext.training import checkpoint
    from s3prl_ext.training.checks import check_processes

    started = flags.local_rank is not None or "LOCAL_RANK" in os.environ
    states = checkpoint.load(ckpt, mmap=zipfile.is_zipfile(ckpt))
    check_processes(states, ckpt, int(os.environ.get("WORLD_SIZE", "1")) if started else 0)


def _check_same_command(ckpt: Path, flags: argparse.Namespace, overrides: dict[str, str], begins_too: bool) -> None:
    """Refuse flags or a task file that say something else than the checkpoint, which s3prl would ignore."""
    from s3prl_ext.training import checkpoint
    from s3prl_ext.training.resumed_command import check_command

    states = checkpoint.load(ckpt, mmap=zipfile.is_zipfile(ckpt))
    asked, stored = None, states.get("Config")
    ours = checkpoint.EXTENSION_KEY in states  # s3prl's own tasks take keys out of what its checkpoints hold
    if ours and stored is not None and (flags.config is not None or (begins_too and flags.downstream is not None)):
        path = _named_task_file(flags) or f"./downstream/{flags.downstream}/config.yaml"
        asked, stored = _overridden(load_yaml(path), flags), _overridden(stored, flags)
    check_command(states, ckpt, flags, asked, stored, overrides)


def _stay_with(ckpt: Path) -> None:
    """Let a run write beside its checkpoint: s3prl goes on where the checkpoint was made.

    A copied or moved experiment would otherwise write into the one that it came from.
    """
    from s3prl_ext.training import checkpoint
    from s3prl_ext.training.relocated import stay_beside

    made_in = getattr(checkpoint.load(ckpt, mmap=zipfile.is_zipfile(ckpt)).get("Args"), "expdir", None)
    if made_in is not None and Path(made_in).resolve() != ckpt.parent.resolve():
        stay_beside(ckpt)


def _expdir(flags: argparse.Namespace) -> str:
    return flags.expdir or f"result/downstream/{flags.expname}"


def _is_new(flags: argparse.Namespace) -> bool:
    """Return whether the command starts an experiment, rather than resuming one with -e or -a."""
    from s3prl_ext.training import checkpoint

    return flags.past_exp is None and not (flags.auto_resume and checkpoint.numbered(_expdir(flags)))


def _check_names(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Refuse an unknown upstream or task, or flags that the upstream does not read, before s3prl makes a folder."""
    if not _is_new(flags) or flags.mode is None:
        return
    from s3prl import hub

    from s3prl_ext.training.checks import known_tasks
    from s3prl_ext.training.upstream_flags import check_upstream_flags

    if not callable(getattr(hub, flags.upstream, None)):
        raise unknown_name("upstream (-u)", flags.upstream, hub.options())
    if flags.downstream not in known_tasks():
        raise unknown_name("task (-d)", flags.downstream, known_tasks())
    given = copy.copy(flags)
    for name in ("upstream_ckpt", "upstream_model_config"):
        value = overrides.get(f"args.{name}", getattr(flags, name))
        setattr(given, name, None if value == "None" else value)
    if overrides.get("args.upstream") is None:
        check_upstream_flags(given)


def _check_overrides(
    overrides: Mapping[str, str], flags: argparse.Namespace, ckpt: Path | None, task_file: str | None
) -> None:
    """Refuse keys of -o that are misspelt, and mention those that nothing reads."""
    if not overrides:
        return
    from s3prl_ext.training import checkpoint
    from s3prl_ext.training.known_settings import check_overrides

    if ckpt is not None:
        states = checkpoint.load(ckpt, mmap=zipfile.is_zipfile(ckpt))
        config, task = states.get("Config"), getattr(states.get("Args"), "downstream", None)
    else:
        path = task_file or f"./downstream/{flags.downstream}/config.yaml"
        config, task = (load_yaml(path) if flags.downstream else None), flags.downstream
    if config is None or task is None:
        return  # s3prl's own parser says what is missing
    for remark in check_overrides(overrides, config, task):
        logger.warning("%s", remark)


def _mention_unused(overrides: Mapping[str, str], flags: argparse.Namespace, ckpt: Path | None) -> None:
    """Log what of a command, and of a task file of one's own, has no effect."""
    from s3prl_ext.training.known_settings import misspelt_settings, unused_flags

    for remark in unused_flags(flags, ckpt, overrides):
        logger.warning("%s", remark)
    if ckpt is None and flags.downstream and flags.config is not None and Path(flags.config).is_file():
        for remark in misspelt_settings(load_yaml(flags.config), flags.downstream):
            logger.warning("%s", remark)


def _check_numbers(flags: argparse.Namespace) -> None:
    """Refuse a seed, rank, layer or device that cannot be, before a model is loaded."""
    for flag in ("seed", "local_rank", "upstream_layer_selection"):
        value = getattr(flags, flag)
        if value is not None and not re.fullmatch(r"\s*[+-]?\d+\s*", value):
            raise UsageError(f"--{flag} must be a whole number, but is {value}.")
    if flags.seed is not None and not 0 <= int(flags.seed) < 2**32:
        raise UsageError(f"--seed must lie between 0 and {2**32 - 1}, but is {flags.seed}.")
    if flags.local_rank is not None and "RANK" not in os.environ:
        raise UsageError(
            "--local_rank is set by torchrun: leave it out for one process, or start several with torchrun "
            "--nproc_per_node N -m s3prl_ext.run_downstream FLAGS."
        )
    if flags.device is not None:
        from s3prl_ext.training.devices import check_device

        check_device(flags.device)


def _check_task_file(path: str, flags: argparse.Namespace) -> None:
    """Refuse a task file that cannot work, with the overrides of -o applied."""
    from s3prl_ext.training.task_file import TaskFile

    TaskFile.read(expand_variables(_overridden(load_yaml(path), flags)))


def _overridden(config: Mapping[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """Return a task file with the options of -o."""
    from s3prl.utility.helper import override

    changed = copy.deepcopy(dict(config))
    if flags.override is not None and flags.override.lower() != "none":
        with contextlib.redirect_stderr(io.StringIO()):
            override(flags.override, argparse.Namespace(), changed)
    return changed


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


def _task_file(flags: argparse.Namespace) -> str | None:
    """Return the path of the task file of a new experiment."""
    return None if flags.past_exp is not None else _named_task_file(flags)


def _named_task_file(flags: argparse.Namespace) -> str | None:
    """Return the path of the task file: as given, from the shipped presets, or the task's default; else s3prl's."""
    if flags.config is not None:
        return str(preset_path(flags.config)) if not Path(flags.config).is_file() else flags.config
    if flags.downstream is None or Path(f"./downstream/{flags.downstream}/config.yaml").is_file():
        return None
    if flags.downstream == "ctc":
        raise UsageError("-d ctc is two tasks: choose one with -c pr/superb (phonemes) or -c sf/superb (slot filling).")
    default = default_task_file(flags.downstream)
    if default is None:
        raise UsageError(
            f"-c is missing: name the task file of -d {flags.downstream}; s3prl's own is in its git repository, "
            f"s3prl/downstream/{flags.downstream}/."
        )
    return str(default)


def default_task_file(downstream: str) -> Path | None:
    """Return the task file of a task where ``-c`` is not given.

    A shipped preset, or the ``config.yaml`` in the task's folder: in an extension, or in an editable clone of s3prl.
    """
    from s3prl_ext import plugin

    if downstream in DEFAULT_PRESETS:
        return preset_path(DEFAULT_PRESETS[downstream])
    folders = [*plugin.added_task_folders, package_dir("s3prl") / "downstream"]
    return next((path for folder in folders if (path := folder / downstream / "config.yaml").is_file()), None)


def preset_path(name: str) -> Path:
    """Return the path of a shipped task file such as ``asr/ad_tuning``.

    Raises:
        UsageError: there is none of that name, and no such file either.
    """
    folder = shipped_dir("downstream_configs")
    path = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        presets = [str(p.relative_to(folder).with_suffix("")) for p in folder.glob("*/*.yaml")]
        raise unknown_name("task file (-c)", name, presets)
    return path


if __name__ == "__main__":
    main()
