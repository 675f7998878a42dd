"""Checks of an experiment before it is built: its folder, its checkpoint, its upstream, its flags."""

from __future__ import annotations

import re
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.errors import DataError, ExtError, UsageError, unknown_name
from s3prl_ext.training import checkpoint, tuned_upstream
from s3prl_ext.training.config import TuningConfig
from s3prl_ext.training.early_stop import candidates
from s3prl_ext.training.methods import resolve_tuning
from s3prl_ext.training.optimizers import OWN

SETTINGS_FILES = r"(args|config)_[0-9-]+\.yaml|frame_shift"  # what s3prl writes before anything is built
RESULT_FILES = (
    "*.ckpt", "result*.json", "log.log", "events.out.tfevents.*", "masks.safetensors", "fisher.partial", "race",
    "race.png", "delta.safetensors", "lambda.json", "lambda.png", "predictions-*.jsonl", "transcripts-*.jsonl",
    "splits.json", "head.json",
)  # fmt: skip  # what a run leaves in its folder
FEATURE_FLAGS = ("-s", "--upstream_feature_selection", "-l", "--upstream_layer_selection")


def check_folder(args: Namespace) -> None:
    """Raise UsageError where a new training run would overwrite checkpoints and ``args.overwrite`` is not set."""
    if args.mode == "train" and not args.past_exp and not getattr(args, "overwrite", False):
        checkpoint.refuse_overwriting(args.expdir)


def clear_folder(args: Namespace) -> None:
    """Remove checkpoints and results of the experiment that ``args.overwrite`` replaces; call it once all is built."""
    if args.past_exp or not getattr(args, "overwrite", False):
        return
    for pattern in RESULT_FILES:
        for old in Path(args.expdir).glob(pattern):
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def remove_empty_folder(expdir: str) -> None:
    """Remove the folder of an experiment that did not come to be: it holds only s3prl's copies of its settings."""
    written = list(Path(expdir).iterdir())
    if written and all(re.fullmatch(SETTINGS_FILES, path.name) for path in written):
        for path in written:
            path.unlink()
        Path(expdir).rmdir()


def check_origin(states: Mapping[str, Any], args: Namespace) -> None:
    """Raise DataError where a checkpoint (``-i``) was made with another upstream or task than `args` name."""
    stored = states.get("Args")
    for name, flag in (("upstream", "-u"), ("downstream", "-d")):
        before, now = getattr(stored, name, None), getattr(args, name)
        if before is not None and before != now:
            raise DataError(
                f"{args.init_ckpt} was trained with {flag} {before}, not with {flag} {now}; "
                f"repeat {flag} {before} or choose another checkpoint."
            )


def check_tuning(states: Mapping[str, Any], tuning: TuningConfig | None, path: str | None) -> None:
    """Raise UsageError where a checkpoint's changes to the upstream were made under other settings than the present.

    Learning rates may change: they are the optimizer's, and a resumed run takes them from the checkpoint.
    """
    if tuned_upstream.KEY not in states:
        return
    section = states["Config"].get("tuning")
    name = states[checkpoint.EXTENSION_KEY].get("candidate")
    made = candidates(section) if section else []
    stored = next((resolve_tuning(states["Config"], c.tuning) for c in made if name is None or c.name == name), None)
    if stored is None or tuning is None or replace(stored, rates=tuning.rates) != tuning:
        raise UsageError(
            f"{path} holds an upstream tuned with {_shown(stored)}, but now it is {_shown(tuning)}; go on with the same "
            "section, or start a new experiment."
        )


def _shown(tuning: TuningConfig | None) -> str:
    if tuning is None:
        return "(no section)"
    given = {key: value for key, value in asdict(tuning).items() if value is not None}
    return "{" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"


def check_optimization(config: Mapping[str, Any]) -> None:
    """Raise UsageError where s3prl and torch have no optimizer or scheduler of the name in a task file."""
    from s3prl import optimizers, schedulers

    for section, module in (("optimizer", optimizers), ("scheduler", schedulers)):
        if not config.get(section):
            continue
        name = str(config[section].get("name"))
        known = [key.removeprefix("get_") for key in vars(module) if key.startswith("get_")]
        known += OWN if section == "optimizer" else []
        if name not in known:
            raise unknown_name(f"{section}.name", name, known)
    name = config["optimizer"].get("torch_optim_name")
    known = [key for key, value in vars(torch.optim).items() if isinstance(value, type)]
    if config["optimizer"]["name"] == "TorchOptim" and name not in known:
        raise unknown_name("optimizer.torch_optim_name", str(name), known)


def features_given(args: Namespace) -> bool:
    """Return whether the user chose the features with ``-s`` or ``-l``."""
    on_command_line = any(a == f or a.startswith(f + "=") for a in sys.argv[1:] for f in FEATURE_FLAGS)
    return (
        on_command_line
        or args.upstream_feature_selection != "hidden_states"
        or args.upstream_layer_selection is not None
    )


def upstream_problem(args: Namespace, error: Exception) -> ExtError | None:
    """Return the sentence for an upstream that s3prl could not build, or None where only its own error tells more."""
    name, ckpt = args.upstream, args.upstream_ckpt
    if isinstance(error, OSError) and error.filename is None:
        return DataError(
            f"the upstream '{name}' could not be downloaded or read ({' '.join(str(error).split())[:160]} ...); check the "
            "network, or give a local model: -u hubert_local -k FILE, -u hf_hubert_custom -k FOLDER and the like."
        )
    if ckpt is None:
        return UsageError(f"-u {name} cannot be built without a model: name its checkpoint or folder with -k.")
    if not Path(ckpt).exists() and "://" not in ckpt:
        return UsageError(f"-k {ckpt}: no such file or folder.")
    return None


def known_tasks() -> list[str]:
    """Return the names for ``-d``: every folder of s3prl's downstream package that has an expert."""
    import s3prl.downstream

    return sorted(path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py"))
