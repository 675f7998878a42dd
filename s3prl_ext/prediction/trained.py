"""What was trained, from whatever holds it: a run's folder, a checkpoint, a delta, an exported folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_ext.configs import load_yaml
from s3prl_ext.deltas.folders import file_of, missing
from s3prl_ext.deltas.model_card import HEAD_FILE, TASK_FILE
from s3prl_ext.deltas.plain_upstream import build_tuned_from
from s3prl_ext.deltas.switch import TaskSwitch
from s3prl_ext.deltas.tuned_task import TunedTask, load_whole
from s3prl_ext.errors import DataError
from s3prl_ext.reading import EXPORT_FILE, check_model, is_archive, parse_json
from s3prl_ext.training import checkpoint, tuned_upstream
from s3prl_ext.upstreams.merged_attention.record import UNKNOWN, check_merge_record
from s3prl_ext.upstreams.speech_models import upstream_name


@dataclass(frozen=True)
class Trained:
    """A task as it was trained.

    Attributes:
        task: its weights, and what it is.
        upstream_sha256: hash of the untuned upstream, where the file says it.
        merge: record of a merged upstream, None of one that is not merged; see :func:`check_merge_record`.
    """

    task: TunedTask
    upstream_sha256: str | None = None
    merge: dict[str, Any] | str | None = field(default=None, repr=False)

    @property
    def info(self) -> Mapping[str, Any]:
        """What it is: upstream, task, features, configuration."""
        return self.task.info

    @property
    def name(self) -> str:
        """The file it was read from."""
        return str(self.task.path)

    def upstream(self) -> nn.Module:
        """Build the tuned upstream on the CPU.

        Raises:
            DataError: its model is missing, or another one than the task was trained on.
        """
        model = build_tuned_from(self.info)
        check_merge_record(self.merge, getattr(model, "merge_record", None))
        self.task.check_features(model)
        if "Upstream" in self.task.checkpoint:
            load_whole(model, self.task.checkpoint["Upstream"], self.task.path)
        elif self.task.delta is not None or tuned_upstream.KEY in self.task.checkpoint:
            TaskSwitch(model, {"task": self.task}).switch("task")
        elif self.upstream_sha256 is not None:
            tuned_upstream.TunedUpstream(model).check_base(self.upstream_sha256, self.name)
        return model

    def weights(self, part: str) -> Mapping[str, torch.Tensor]:
        """Return the state dict of ``Featurizer`` or ``Downstream``; one without weights is not in a delta."""
        return self.task.task.get(part, {})


def read(path: str | Path) -> Trained:
    """Read what was trained.

    Args:
        path: a run's folder (its best checkpoint, else the latest, else its delta), a checkpoint, a delta, or a folder
            of ``s3prl-ext export``.

    Raises:
        DataError: there is nothing of that kind.
    """
    path = Path(path)
    if path.is_dir() and (path / EXPORT_FILE).is_file():
        return _exported(path)
    file = file_of(path) if path.is_dir() else path
    if not file.exists():
        raise DataError(missing(path))
    if file.suffix == ".ckpt":
        extension = _extension(file)
        return Trained(TunedTask.read(file), extension.get("upstream_sha256"), extension.get("merge"))
    task = TunedTask.read(file)
    return Trained(task, merge=task.info.get("merge", UNKNOWN))


def _extension(path: Path) -> Mapping[str, Any]:
    states = checkpoint.load(path, mmap=is_archive(path))
    return states.get(checkpoint.EXTENSION_KEY) or {}


def _exported(folder: Path) -> Trained:
    """Read a folder of ``s3prl-ext export``, whose upstream is a plain model with the tuned weights."""
    try:
        record = parse_json((folder / EXPORT_FILE).read_text(encoding="utf-8"))
        words = shlex.split(record["model"]["upstream"])
        flags = dict(zip(words[::2], words[1::2], strict=True))
        record["info"] | {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / EXPORT_FILE} is damaged ({type(error).__name__}: {error}): export again."
        ) from error
    if "-u" not in flags:
        raise DataError(f"s3prl has no upstream that loads the model in {folder}: give the run it was exported from.")
    ckpt = folder if flags["-k"] == "." else folder / flags["-k"]
    merged = ckpt.is_dir() and record["model"].get("merge") is not None  # its features were the target's
    info = record["info"] | {
        "upstream": upstream_name(ckpt) if merged else flags["-u"],
        "upstream_ckpt": str(ckpt),
        "upstream_model_config": None if merged else flags.get("-g"),
        "config": load_yaml(folder / TASK_FILE),
        "tuning": None,
    }
    check_model(ckpt)
    parts = checkpoint.load(folder / HEAD_FILE)
    return Trained(TunedTask(folder / HEAD_FILE, info, parts), record["model"].get("tuned_sha256"))
