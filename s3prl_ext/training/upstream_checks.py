"""Flags about the upstream that s3prl would drop or replace without a word (``-k``, ``-g``, ``-s``, ``-l``).

s3prl hands ``-k`` and ``-g`` to every upstream, and most of its own do not read them.
"""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from s3prl_ext import hub as model_hub
from s3prl_ext.configs import Section, value_at
from s3prl_ext.errors import DataError, ExtError, UsageError, is_out_of_memory, unknown_name
from s3prl_ext.merging.names import OWN_UPSTREAM
from s3prl_ext.model_settings import model_config
from s3prl_ext.overrides import split_options
from s3prl_ext.tasks import Task
from s3prl_ext.training.run_spec import FEATURES, arguments_in_override
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.merged_attention.config import check_config, is_merged, paths_of, read_raw

logger = logging.getLogger(__name__)

WITH_CHECKPOINT = ("_local", "_custom", "_url", "_gdriveid")  # how s3prl ends the names of entries that read -k
READS_ALL = ("customized_upstream",)  # s3prl's example for your own models
FEATURE_FLAGS = ("-s", "--upstream_feature_selection", "-l", "--upstream_layer_selection")
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin")  # suffixes of files, which no model of the hub has in its name
WITHOUT_OPTIONS = ("hf_speech_custom",)  # of ours


def check_upstream_flags(args: Namespace) -> None:
    """Raise UsageError where an upstream would not read the ``-k`` or ``-g`` given, or a needed ``-k`` is missing.

    What the upstreams of extensions read is not known, so they may be given both.

    Args:
        args: with `upstream`, `upstream_ckpt` and `upstream_model_config`; the upstream is known to s3prl's hub.
    """
    name = args.upstream
    if args.upstream_ckpt is None and needs_checkpoint(name):
        raise without_checkpoint(name)
    if args.upstream_ckpt is not None and not reads_checkpoint(name):
        raise UsageError(f"-u {name} does not read -k {args.upstream_ckpt}: {_other_entry(name)}")
    if args.upstream_model_config is not None and not reads_options(name):
        raise UsageError(
            f"-u {name} does not read -g {args.upstream_model_config}: leave it out. Merges read it (-u "
            f"{OWN_UPSTREAM} -g FILE), and {', '.join(with_options())}."
        )


def check_models(args: Namespace, variables: bool = True) -> list[str]:
    """Check the configuration of a merge without loading a model; return a sentence for each path that is not here.

    What may be the name of a model on the hub is not looked for, nor is the ``-k`` of upstreams of other kinds.

    Args:
        args: with `upstream`, `upstream_ckpt` and `upstream_model_config`, as :func:`check_upstream_flags` takes them.
        variables: whether those of the merge must be set.

    Raises:
        UsageError: the configuration is wrong.
    """
    ckpt, options = args.upstream_ckpt, args.upstream_model_config
    if not is_merged(args.upstream):
        is_path = ckpt is not None and args.upstream.endswith(WITH_CHECKPOINT)
        return [_not_here("-k", ckpt)] if is_path and _is_missing(ckpt) else []
    file, _ = split_options(options)
    if file is not None and not Path(file).is_file():
        return [_not_here("-g", file)]
    raw, name = read_raw(options, ckpt, None if args.upstream == OWN_UPSTREAM else args.upstream)
    check_config(raw, name, variables)
    return [_not_here(f"{name}: {place}", path) for place, path in paths_of(raw) if _is_missing(path)]


def _is_missing(path: str) -> bool:
    """Return whether a path can only be one of this machine, and there is nothing there."""
    if "://" in path or Path(path).expanduser().exists():
        return False
    return (Path(path).suffix in WEIGHTS and ":" not in path) or model_hub.parse(path) is None


def _not_here(place: str, path: str) -> str:
    return f"{place} {path}: no such file or folder here"


def check_features(offered: Section, args: Namespace) -> None:
    """Raise UsageError where an upstream does not return the features that ``-s`` and ``-l`` name.

    Args:
        offered: what the upstream returns for an input.
        args: with `upstream`, `upstream_feature_selection` and `upstream_layer_selection`.
    """
    name, layer = args.upstream_feature_selection, args.upstream_layer_selection
    if name not in offered:
        known = [key for key in offered if not key.startswith("_")]
        raise unknown_name("features (-s)", name, known, where=f"-u {args.upstream}")
    if layer is None:
        return
    features = list(offered[name].values()) if isinstance(offered[name], dict) else offered[name]
    if not isinstance(features, (list, tuple)):
        raise UsageError(f"-l {layer} has no effect on -s {name}, which is not a list of layers: drop one of the two.")
    if not -len(features) <= layer < len(features):
        raise UsageError(
            f"-l {layer} is out of range: -u {args.upstream} returns {len(features)} hidden states, 0 (the input of "
            f"the first block) to {len(features) - 1}."
        )


def check_frame(task: Task, expert: Section, samples: int) -> None:
    """Raise UsageError where a frame of the upstream stands for more samples than a task's spectra can cover.

    Args:
        task: its record.
        expert: section ``downstream_expert``.
        samples: per frame of the upstream.
    """
    window = value_at(expert, task.frame_below) if task.frame_below else None
    if isinstance(window, int) and samples >= window:
        raise UsageError(
            f"-d {task.downstream} makes a spectrum for each frame of the upstream, one in {samples} samples, which "
            f"its window of {window} (downstream_expert.{task.frame_below}) does not cover: use an upstream with "
            "shorter frames, such as 20 ms."
        )


def check_single_clips(task: Task, expert: Section) -> None:
    """Check the batch size of evaluations of a task that scores clip by clip.

    Args:
        task: its record.
        expert: section ``downstream_expert``.

    Raises:
        UsageError: it is above 1 and the task cannot do that; where its scores merely change, that is logged.
    """
    size = value_at(expert, task.single_clips.key) if task.single_clips else None
    if task.single_clips is None or not isinstance(size, int) or size == 1:
        return
    key = task.single_clips.key
    if task.single_clips.otherwise is None:
        raise UsageError(
            f"{key.rpartition('.')[2]} must be 1, got {size}: -d {task.downstream} scores one clip at a time; "
            f"give -o config.downstream_expert.{key}=1."
        )
    logger.warning("downstream_expert.%s is %d: %s; take 1 to compare with other runs", key, size,
                   task.single_clips.otherwise)  # fmt: skip


def check_choosing_split(task: Task, expert: Section) -> None:
    """Refuse several splits whose best checkpoints a task would keep by one best score for all of them.

    A good score on test would keep the better models on dev from being saved.

    Args:
        task: its record.
        expert: section ``downstream_expert``.

    Raises:
        UsageError: more than one split is listed.
    """
    splits = expert.get(task.kept_on) if task.kept_on else None
    if isinstance(splits, (list, tuple)) and len(set(splits)) > 1:
        raise UsageError(
            f"downstream_expert.{task.kept_on} lists {' and '.join(map(str, splits))}, but -d {task.downstream} has "
            f"one best score for all of them, so that one split would decide what the best checkpoint of another is: "
            f"list {task.dev} alone."
        )


def is_upstream(name: str) -> bool:
    """Return whether a name of the hub is an upstream, and not a class or function that one of its files imports."""
    module = str(getattr(_entry(name), "__module__", ""))
    return module.endswith(".hubconf") or module == "s3prl_ext.plugin"


def reads_checkpoint(name: str) -> bool:
    """Return whether an upstream of the hub reads the checkpoint of ``-k``."""
    if not is_stock(name) or name in READS_ALL:
        return True
    return name.endswith(WITH_CHECKPOINT) and name != "baseline_local"


def without_checkpoint(name: str) -> UsageError:
    """Return the error for an upstream that needs ``-k`` and has none."""
    return UsageError(f"-u {name} cannot be built without a model: name its checkpoint or folder with -k.")


def needs_checkpoint(name: str) -> bool:
    """Return whether an upstream of s3prl cannot be built without ``-k``; ours say so themselves."""
    return is_stock(name) and reads_checkpoint(name) and name not in READS_ALL


def reads_options(name: str) -> bool:
    """Return whether an upstream of the hub reads the file or the options of ``-g``."""
    if not is_stock(name):
        return name not in WITHOUT_OPTIONS
    return name in (*READS_ALL, "baseline_local") or "model_config" in inspect.signature(_entry(name)).parameters


def with_options() -> list[str]:
    """Return the upstreams of the hub that read ``-g``, without merges."""
    from s3prl import hub

    return [name for name in sorted(hub.options()) if is_upstream(name) and reads_options(name) and not is_merged(name)]


def is_stock(name: str) -> bool:
    """Return whether an upstream of the hub is s3prl's own."""
    return _entry(name).__module__.startswith("s3prl.")


def _entry(name: str) -> Callable[..., Any]:
    from s3prl import hub

    return getattr(hub, name)


def _other_entry(name: str) -> str:
    """Return what to do instead: the entry of the same family that loads a file, where there is one."""
    from s3prl import hub

    mine = vars(sys.modules[_entry(name).__module__])
    family = [key for key in mine if key.endswith(("_local", "_custom")) and getattr(hub, key, None) is mine[key]]
    family = [key for key in family if reads_checkpoint(key)]
    if not family:
        return "it has no checkpoint of yours to load, leave -k out."
    best = max(family, key=lambda key: (len(os.path.commonprefix([key, name])), key.endswith("_local")))  # noqa: RUF071
    return f"it loads a model of its own. For a file of yours: -u {best} -k FILE; else leave -k out."


def features_given(args: Namespace) -> bool:
    """Return whether the user chose the features with ``-s``, ``-l`` or ``-o``."""
    on_command_line = any(a == f or a.startswith(f + "=") for a in sys.argv[1:] for f in FEATURE_FLAGS)
    return (
        on_command_line
        or bool(arguments_in_override(args) & set(FEATURES))
        or args.upstream_feature_selection != "hidden_states"
        or args.upstream_layer_selection is not None
    )


def upstream_of_flags(flags: Namespace) -> nn.Module:
    """Return the upstream that ``-u``, ``-k`` and ``-g`` name.

    Args:
        flags: with `upstream`, `upstream_ckpt` and `upstream_model_config`.

    Raises:
        UsageError: it is unknown, or a flag does not fit it.
        DataError: its model cannot be loaded.
    """
    from s3prl import hub

    if not hasattr(hub, flags.upstream):
        raise unknown_name("upstream", flags.upstream, hub.options())
    check_upstream_flags(flags)
    try:
        return getattr(hub, flags.upstream)(
            ckpt=flags.upstream_ckpt, model_config=flags.upstream_model_config, refresh=False
        )
    except ExtError:
        raise
    except Exception as error:  # s3prl's own: KeyError, ValueError, AssertionError, RuntimeError, OSError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise upstream_problem(flags, error) or DataError(
            f"-u {flags.upstream} cannot load -k {flags.upstream_ckpt} ({reason}): give a model of its kind."
        ) from error


def upstream_problem(args: Namespace, error: Exception) -> ExtError | None:
    """Return the sentence for an upstream that s3prl could not build, or None where only its own error tells more."""
    name, ckpt = args.upstream, args.upstream_ckpt
    if isinstance(error, OSError) and error.filename is None:
        return DataError(
            f"the upstream '{name}' could not be downloaded or read ({' '.join(str(error).split())[:160]} ...); check "
            "the network, or give a local model: -u hubert_local -k FILE, -u hf_hubert_custom -k FOLDER and the like."
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
    kind = model_config(Path(ckpt)).get("model_type", "")  # of transformers
    reads_folders = (*SPEECH_UPSTREAMS.values(), "whisper_custom", OWN_UPSTREAM)
    if kind in SPEECH_UPSTREAMS and name not in reads_folders:
        why = f"it is a transformers model of type {kind}, for -u {SPEECH_UPSTREAMS[kind]}"
    elif Path(ckpt).is_dir():
        why = "it may be of another kind, or its config.json corrupt"
    else:
        why = (
            "it is a file of another kind than this upstream's; a transformers model is a folder, for -u "
            "hf_hubert_custom and the like"
        )
    return DataError(f"-u {name} cannot load -k {ckpt} ({reason}): {why}.")


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
            f"-u {args.upstream} with -k {args.upstream_ckpt} fails at one second of audio ({reason}): the model's "
            "settings do not fit each other, get its config.json again."
        ) from error


def _not_converted(name: str, ckpt: str | None, error: Exception) -> DataError | None:
    """Return the sentence for a checkpoint as fairseq writes it, or None where the error is about something else."""
    lacks = re.search(r"required key: (\w+) is missing", str(error))
    if lacks is None and not isinstance(error, pickle.UnpicklingError):
        return None
    family = re.sub(r"_(local|custom|url)$", "", name)
    return DataError(
        f"-k {ckpt} is not a converted checkpoint for -u {name}: it "
        f"{f'lacks {lacks[1]}' if lacks else 'contains pickled objects of another library'}: convert one of fairseq "
        f"with `python -m s3prl.upstream.{family}.convert` (needs fairseq), or load the model's transformers folder "
        "with -u hf_hubert_custom or -u hf_wav2vec2_custom."
    )
