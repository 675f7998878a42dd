"""The flags of ``run_downstream`` as this package reads them before s3prl does, and the task file that they name."""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from s3prl_ext import tracking
from s3prl_ext.configs import package_dir, shipped_dir
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.overrides import as_literal, check_kind, parse_value
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import of_downstream

MODES = ("train", "evaluate", "inference")
SWITCH_FLAGS = (("-f", "--upstream_trainable"), ("-a", "--auto_resume"), ("-r", "--upstream_refresh"),
                ("--upstream_feature_normalize",), ("--verbose",), ("--disable_cudnn",))  # fmt: skip
SWITCHES = (*(names[-1].removeprefix("--") for names in SWITCH_FLAGS), "overwrite", "untrained_head")  # true or false
WHOLE_NUMBERS = ("seed", "local_rank", "upstream_layer_selection", "until")


class Unparsable(Exception):
    """The command line is wrong in a way that s3prl's own parser explains."""


class _QuietParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Unparsable(message)


@functools.cache
def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags that matter here; others are left to s3prl's."""
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
        "--upstream_revision", "--hf_hub_org", "--cache_dir",
    ):  # fmt: skip
        parser.add_argument(long)
    for names in SWITCH_FLAGS:
        parser.add_argument(*names, action="store_true")
    return parser


def _one_folder(path: str) -> None:
    if not path or Path(path).is_file():
        raise UsageError(f"--fisher_scores {path} is not a folder: name one, which is made where it is missing.")


OWN_FLAGS: dict[str, Callable[[str], None]] = {"--track": tracking.check, "--fisher_scores": _one_folder}
"""Flags that s3prl does not have, with the checks of their values; they are arguments of the run, ``args.track``."""


def can_be_passed_on(value: str) -> bool:
    """Return whether ``-o`` can hold a value."""
    return not set(value) & set("'\"=\\") and ",," not in value


def canonical(argv: Sequence[str]) -> list[str]:
    """Return the flags as s3prl is to read them: each in full, and one ``-o`` with the options of all of them.

    ``--local-rank`` (torch.distributed.launch) is spelt ``--local_rank``; ``-o A -o B`` becomes ``-o A,,B``, of which
    argparse would take the last; the flags of :data:`OWN_FLAGS` become options such as ``args.track='wandb'``.

    Raises:
        UsageError: a flag is abbreviated, or a value cannot be passed on.
        Unparsable: what s3prl's own parser explains.
    """
    argv = [arg.replace("--local-rank", "--local_rank", 1) if arg.startswith("--local-rank") else arg for arg in argv]
    _refuse_abbreviations(argv)
    reader = _QuietParser(add_help=False, allow_abbrev=False)
    reader.add_argument("-o", "--override", action="append", default=[])
    for name in OWN_FLAGS:
        reader.add_argument(name, nargs="?", const="")
    found, others = reader.parse_known_args(list(argv))
    if argv.count("-o") == len(found.override) <= 1 and all(vars(found)[name[2:]] is None for name in OWN_FLAGS):
        return argv
    options = [text for text in found.override if text.strip().lower() not in ("none", "")]
    for name, check in OWN_FLAGS.items():
        value = getattr(found, name.removeprefix("--"))
        if value is None:
            continue
        if not can_be_passed_on(value):
            raise UsageError(f"{name} {value}: quotes, '=', ',,' and backslashes cannot be passed on.")
        check(value)
        options.append(f"args.{name.removeprefix('--')}='{value}'")
    return [*others, "-o", ",,".join(options)] if options else others


def _refuse_abbreviations(argv: Sequence[str]) -> None:
    """Raise UsageError for flags that argparse would complete or take apart, and that no check here would see."""
    actions = parser()._option_string_actions
    switches = [name[1] for name, action in actions.items() if len(name) == 2 and action.nargs == 0]
    for word in argv:
        name = word.partition("=")[0]
        meant = [known for known in (*actions, *OWN_FLAGS) if known.startswith(name)]
        if name.startswith("--") and len(name) > 2 and meant and name not in meant:
            raise UsageError(f"{name} is short for {' or '.join(meant)}: write the flag in full.")
        if re.fullmatch(rf"-[{''.join(switches)}][a-z].*", word):
            raise UsageError(f"{word} is several flags in one: write each by itself, {word[:2]} -{word[2:]}.")


def overrides_of(override: str | None) -> dict[str, Any]:
    """Return the options of ``-o``: dotted key -> value, see :func:`s3prl_ext.overrides.parse_value`.

    Raises:
        UsageError: an option is not of the form config.KEY=VALUE or args.KEY=VALUE, its value cannot be read, or it is
            a text where an argument is a switch or a number.
    """
    options = {key: parse_value(value, key) for key, value in _options(override).items()}
    for key, value in options.items():
        first, _, name = key.partition(".")
        if first == "args":
            check_kind(value, False if name in SWITCHES else 0 if name in WHOLE_NUMBERS else None, key)
    return options


def with_literals(argv: Sequence[str], override: str | None) -> list[str]:
    """Return the flags with the values of ``-o`` as Python literals: s3prl takes ``false`` for a text, which is true.

    Raises:
        UsageError: as :func:`overrides_of`.
    """
    written = literals(override)
    if override is None or written == override:
        return list(argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--override")
    return [*parser.parse_known_args(list(argv))[1], "-o", written]


def literals(override: str | None) -> str:
    """Return the text of ``-o`` with its values as Python literals."""
    options = _options(override)
    return ",,".join(f"{key}={as_literal(value, key)}" for key, value in options.items()) if options else "none"


def _options(override: str | None) -> dict[str, str]:
    """Return the options of ``-o`` as written, in the order in which s3prl sets them."""
    options: dict[str, str] = {}
    for option in [] if override is None or override.lower() == "none" else override.split(",,"):
        key, *values = option.strip().split("=")
        first, dot, _ = key.strip().partition(".")
        if len(values) != 1 or not dot or first not in ("args", "config"):
            raise UsageError(
                f"-o: '{option.strip()}' must read config.KEY=VALUE or args.KEY=VALUE, with one '='; "
                "several are separated by ',,'."
            )
        options.pop(key.strip(), None)
        options[key.strip()] = values[0].strip()
    return options


def with_arguments(flags: argparse.Namespace, overrides: Mapping[str, Any]) -> argparse.Namespace:
    """Return flags as they are after ``-o args.NAME=VALUE``: the texts of a command line, None or switches."""
    given = copy.copy(flags)
    for key, value in overrides.items():
        first, _, name = key.partition(".")
        if first == "args":
            setattr(given, name, value if value is None or name in SWITCHES else str(value))
    return given


def expdir(flags: argparse.Namespace) -> str:
    """Return the folder of the experiment: ``-p``, or what ``-n`` stands for."""
    return flags.expdir or f"result/downstream/{flags.expname}"


def is_new(flags: argparse.Namespace) -> bool:
    """Return whether the command starts an experiment, rather than resuming one with -e or -a."""
    return flags.past_exp is None and not (flags.auto_resume and RunFolder(expdir(flags)).numbered())


def overridden(config: Mapping[str, Any], flags: argparse.Namespace) -> dict[str, Any]:
    """Return a task file with the options of -o."""
    from s3prl.utility.helper import override

    changed = copy.deepcopy(dict(config))
    if overrides_of(flags.override):
        with contextlib.redirect_stderr(io.StringIO()):
            override(literals(flags.override), argparse.Namespace(), changed)
    return changed


def task_file(flags: argparse.Namespace) -> str | None:
    """Return the path of the task file of a new experiment."""
    return None if flags.past_exp is not None else named_task_file(flags)


def named_task_file(flags: argparse.Namespace) -> str | None:
    """Return the path of the task file: as given, from the shipped presets, or the task's default; else s3prl's."""
    if flags.config is not None:
        return str(preset_path(flags.config)) if not Path(flags.config).is_file() else flags.config
    if flags.downstream is None or Path(f"./downstream/{flags.downstream}/config.yaml").is_file():
        return None
    shipped = [task for task in of_downstream(flags.downstream) if task.preset]
    if len(shipped) > 1:
        choice = " or ".join(f"-c {task.preset} ({task.variables[task.variable]})" for task in shipped)
        raise UsageError(f"-d {flags.downstream} is {len(shipped)} tasks: choose one with {choice}.")
    default = default_task_file(flags.downstream)
    if default is None:
        raise UsageError(
            f"-c is missing: name the task file of -d {flags.downstream}; s3prl's own is in its git repository, "
            f"s3prl/downstream/{flags.downstream}/."
        )
    return str(default)


def default_task_file(downstream: str) -> Path | None:
    """Return the task file of a task where ``-c`` is not given.

    The shipped preset of its record, or the ``config.yaml`` in the task's folder: in an extension, or in an editable
    clone of s3prl.
    """
    from s3prl_ext import plugin

    shipped = [task.preset for task in of_downstream(downstream) if task.preset]
    if len(shipped) == 1:
        return preset_path(shipped[0])
    folders = [*plugin.added_task_folders, package_dir("s3prl") / "downstream"]
    return next((path for folder in folders if (path := folder / downstream / "config.yaml").is_file()), None)


def preset_path(name: str) -> Path:
    """Return the path of a shipped task file such as ``asr/ad_tuning``.

    Raises:
        UsageError: there is none of that name, and no such file either.
    """
    folder = shipped_dir("downstream_configs")
    path = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file() and (Path(name).is_absolute() or name.startswith(".")):
        raise UsageError(f"no such task file (-c): {name}; give a file, or a shipped one such as ks/superb.")
    if not path.is_file():
        presets = [str(p.relative_to(folder).with_suffix("")) for p in folder.glob("*/*.yaml")]
        raise unknown_name("task file (-c)", name, presets)
    return path
