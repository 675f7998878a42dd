"""Find the checkpoint file behind an upstream of s3prl's hub, without building the model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model
from s3prl_ext.errors import DataError, UsageError, unknown_name

BUILDERS = ("_UpstreamExpert", "UpstreamExpert")  # what the hub entries of s3prl call with the checkpoint's path


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
