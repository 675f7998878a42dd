"""The model on disk behind an upstream, and how to load it: without merging, without anything of a task."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model
from s3prl_ext.errors import DataError, ExtError, UsageError, unknown_name
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.merged_attention.config import OWN_UPSTREAM, is_merged, read_config
from s3prl_ext.upstreams.merged_attention.models import TRANSFORMERS_UPSTREAMS
from s3prl_ext.upstreams.merged_attention.record import with_remedy
from s3prl_ext.upstreams.speech_models import speech_model

BUILDERS = ("_UpstreamExpert", "UpstreamExpert")  # what the hub entries of s3prl call with the checkpoint's path


def build(spec: RunSpec) -> nn.Module:
    """Load the upstream of a run on the CPU; the global random state is left as it was.

    Args:
        spec: of the run; without ``upstream``, a transformers folder behind a merge.

    Raises:
        UsageError: there is no such upstream.
        DataError: it cannot be loaded.
    """
    name, ckpt = spec.upstream, spec.upstream_ckpt
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(
            spec.seed or 0
        )  # of weights that the file lacks: the mask embedding of some fine-tuned models
        if name is None:
            return speech_model(Path(str(ckpt)))
        hub = _hub(name)
        try:
            return getattr(hub, name)(ckpt=ckpt, model_config=spec.upstream_model_config, refresh=False)
        except ExtError:
            raise
        except Exception as error:  # s3prl's own: KeyError, ValueError, AssertionError, RuntimeError, OSError
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"the upstream {name} cannot load {ckpt or 'its model'} ({reason}): name the upstream with -u and its "
                "model with -k."
            ) from error


def build_untuned(spec: RunSpec) -> nn.Module:
    """Build the untuned upstream that a task was tuned from, on the CPU; a merge is part of it.

    Args:
        spec: of its run.

    Raises:
        UsageError: there is no such upstream.
        DataError: its model is missing or cannot be loaded.
    """
    _check_ckpt(spec)
    try:
        return build(spec)
    except ExtError as error:
        raise with_remedy(error, str(spec.upstream), "this task") from error


def plain_upstream(spec: RunSpec) -> RunSpec:
    """Return how to load the file or folder behind the upstream of a task; of a merged one the target's.

    Raises:
        UsageError: the upstream has no file.
        DataError: the file is missing.
    """
    name, ckpt = str(spec.upstream), spec.upstream_ckpt
    _check_ckpt(spec)
    if is_merged(name):
        try:
            target = read_config(spec.upstream_model_config, ckpt, None if name == OWN_UPSTREAM else name).target
        except ExtError as error:
            raise with_remedy(error, name, "this task") from error
        if target.model or (target.upstream in TRANSFORMERS_UPSTREAMS and target.ckpt):
            return _loading(spec, find_model(str(target.model or target.ckpt)), None, None)
        return _loading(spec, *checkpoint_of(str(target.upstream), target.ckpt), None)
    if name in TRANSFORMERS_UPSTREAMS and ckpt:
        return _loading(spec, find_model(ckpt), name, spec.upstream_model_config)
    try:
        path, loader = checkpoint_of(name, ckpt)
    except UsageError as error:
        raise UsageError(
            f"the upstream {name} has no checkpoint file that could hold tuned weights: name one with -k, and with -u "
            "the upstream that loads it."
        ) from error
    return _loading(spec, path, loader, spec.upstream_model_config)


def upstream_of_file(spec: RunSpec, path: Path) -> RunSpec:
    """Return how to load `path`, a copy of the model that a task was tuned from or of the tuned one.

    Raises:
        UsageError: the kind of upstream cannot be told.
        DataError: there is no such file or folder.
    """
    if not path.exists():
        raise DataError(f"no such model folder or checkpoint file: {path}.")
    name = str(spec.upstream)
    if not is_merged(name):
        return _loading(spec, path, loader_of(name, spec.upstream_ckpt), spec.upstream_model_config)
    if path.is_dir():
        return _loading(spec, path, None, None)
    preset = None if name == OWN_UPSTREAM else name
    target = read_config(spec.upstream_model_config, spec.upstream_ckpt, preset).target
    return _loading(spec, path, loader_of(str(target.upstream), target.ckpt), None)


def _loading(spec: RunSpec, path: Path, name: str | None, model_config: str | None) -> RunSpec:
    return replace(spec, upstream=name, upstream_ckpt=str(path), upstream_model_config=model_config)


def loader_of(name: str, ckpt: str | None) -> str:
    """Return the upstream that loads a file as `name` loads its own: ``hubert_base`` -> ``hubert_local``.

    Args:
        name: upstream of s3prl's hub.
        ckpt: its ``-k``; with one it loads files itself.

    Raises:
        UsageError: there is no such upstream, or it has no counterpart that loads files.
    """
    entry = getattr(_hub(name), name)
    if ckpt is not None:
        return name
    local = [n for n in vars(sys.modules[entry.__module__]) if n.endswith("_local") and n in _hub(name).options()]
    if not local:
        raise UsageError(f"the upstream {name} has no counterpart that loads a file: name one with -u.")
    return local[0]


def _hub(name: str) -> Any:
    """Return s3prl's hub, which has an upstream of this name.

    Raises:
        UsageError: it has not.
    """
    import s3prl.hub

    if name not in s3prl.hub.options():
        raise unknown_name("upstream (-u)", name, s3prl.hub.options())
    return s3prl.hub


def _check_ckpt(spec: RunSpec) -> None:
    ckpt, name = spec.upstream_ckpt, str(spec.upstream)
    if name in TRANSFORMERS_UPSTREAMS and ckpt:
        find_model(ckpt)  # a hub id is downloaded
    elif hub.is_file_reference(ckpt):
        find_model(str(ckpt))
    elif ckpt and "://" not in ckpt and not is_merged(name) and not Path(ckpt).exists():
        raise DataError(f"the model {ckpt} that the task was tuned from does not exist: name it with -k.")
    _hub(name)


def checkpoint_of(upstream: str, ckpt: str | None = None) -> tuple[Path, str]:
    """Return the checkpoint file of an upstream, and the name of the upstream that loads such a file with ``-k``.

    s3prl downloads the released models when their entry is called; the file is taken from there.

    Args:
        upstream: name on ``s3prl.hub``, such as ``hubert_base`` or ``hubert_local``.
        ckpt: its ``-k``, where it needs one.

    Raises:
        UsageError: no upstream of that name, or one without a single checkpoint file.
        DataError: the checkpoint is missing or could not be downloaded.
    """
    import s3prl.hub

    if upstream not in s3prl.hub.options():
        raise unknown_name("target.upstream", upstream, s3prl.hub.options())
    if hub.is_file_reference(ckpt):
        return find_model(str(ckpt)), upstream
    if ckpt is not None and "://" not in ckpt:
        if not Path(ckpt).is_file():
            raise DataError(f"target.ckpt: no such checkpoint file: {ckpt}.")
        return Path(ckpt), upstream
    entry = getattr(s3prl.hub, upstream)
    module = sys.modules[entry.__module__]
    builders = [name for name in BUILDERS if callable(getattr(module, name, None))]
    local = [name for name in vars(module) if name.endswith("_local") and name in s3prl.hub.options()]
    path = _path_given_to(module, builders[0], entry, ckpt, upstream) if builders and local else Path()
    if path.suffix in ("", ".yaml"):  # features without weights are built from a YAML file
        raise UsageError(f"target.upstream {upstream} has no checkpoint file of its own: set target.ckpt or -k.")
    return path, local[0]


def _path_given_to(module: Any, builder: str, entry: Any, ckpt: str | None, upstream: str) -> Path:
    """Call a hub entry with a stand-in for the class that it builds, and return the path that it hands over."""
    original = getattr(module, builder)
    setattr(module, builder, lambda ckpt, *args, **kwargs: ckpt)
    try:
        path = entry(ckpt=ckpt) if ckpt is not None else entry()
    except (OSError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(
            f"the checkpoint of {upstream} could not be downloaded ({reason}): check the network, or give a local "
            "file, as target: {upstream: hubert_local, ckpt: FILE} and the like."
        ) from error
    finally:
        setattr(module, builder, original)
    return Path(path)
