"""A trained task: where it was read from, what it is, and its weights.

To build, to tune or to switch on an upstream.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.configs import Section, load_yaml
from s3prl_ext.deltas import peft_format
from s3prl_ext.deltas.model_card import HEAD_FILE, TASK_FILE
from s3prl_ext.deltas.plain_upstream import build_untuned, is_merged, loader_of
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.learnable import find_lambda, is_whole, loadable_state
from s3prl_ext.merging.learnable import fold as fold_lambda
from s3prl_ext.reading import EXPORT_FILE, check_model, parse_json
from s3prl_ext.run_folder import CHECKPOINT_SUFFIX, RunFolder, missing
from s3prl_ext.tasks import Task, task_of
from s3prl_ext.training import last_hidden_state, upstream_settings
from s3prl_ext.training.checkpoint import TASK_PARTS, Checkpoint, StateDict, load
from s3prl_ext.training.methods import prepare_base
from s3prl_ext.training.racing.candidates import chosen_tuning
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.merged_attention.record import UNKNOWN, MergeRecord, check_merge_record, rounding_hint

WITHOUT_HEAD = (
    "{} holds an adapter without the head of a task: write its model with s3prl-ext apply, or switch to it with "
    "s3prl_ext.deltas.TaskSwitch."
)


@dataclass(frozen=True)
class TrainedTask:
    """What a run trained.

    Attributes:
        path: the file it was read from.
        info: what it is: the values of its :class:`RunSpec`, tuning, configuration, step, metrics.
        delta: what changed in the upstream, as far as that is a small part of it, and the weights of featurizer and
            head.
        upstream: state dict of the upstream, where it was tuned as a whole (or its lambda alone).
        merge: record of a merged upstream, None of one that is not merged; see :func:`check_merge_record`.
    """

    path: Path
    info: Mapping[str, Any]
    delta: Delta
    upstream: StateDict | None = None
    merge: MergeRecord | str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str], prefer_delta: bool = True) -> TrainedTask:
        """Read what was trained from a delta, a checkpoint, the folder of a run, or a LoRA in peft's format.

        Args:
            path: the file or folder.
            prefer_delta: of a folder read the delta rather than the best checkpoint.

        Raises:
            DataError: it is missing, corrupt, or something else.
        """
        path = Path(path)
        if peft_format.is_adapter(path):
            adapter = peft_format.read_adapter(path)
            return cls(path, adapter.info, adapter, merge=UNKNOWN)
        return cls.read_run(path, prefer_delta)

    @classmethod
    def read_run(cls, path: Path, prefer_delta: bool = True) -> TrainedTask:
        """Read what a run of this package or of s3prl trained: all that :meth:`read` takes but a LoRA of peft."""
        if path.is_dir():
            path = RunFolder(path).representative(prefer_delta)
        if not path.exists():
            raise DataError(missing(path))
        if path.suffix == CHECKPOINT_SUFFIX:
            return cls._of_checkpoint(path, Checkpoint.read(path))
        found = delta_files.load(path)
        if not found.info.get("upstream"):
            raise DataError(f"{path} does not say which upstream it belongs to: write it again with its info.")
        info = {**found.info, "tuning": chosen_tuning(found.info.get("tuning"), found.info.get("candidate"))}
        return cls(path, info, replace(found, info=info), merge=info.get("merge", UNKNOWN))

    @classmethod
    def _of_checkpoint(cls, path: Path, ckpt: Checkpoint) -> TrainedTask:
        spec = RunSpec.of(ckpt.args)
        if ckpt.config is None or not spec.upstream:
            raise DataError(f"{path} does not say which upstream and task it belongs to: it lacks Args or Config.")
        stored = ckpt.extension
        about = spec.stored() | {
            "tuning": chosen_tuning(ckpt.config.get("tuning"), stored.candidate),
            "config": ckpt.config,
            "step": ckpt.step,
            "candidate": stored.candidate,
            "density": stored.density,
            "data": stored.data,
            "splits_rule": stored.splits_rule,
            last_hidden_state.KEY: stored.last_hidden_state,
            upstream_settings.KEY: stored.upstream_settings,
            "checkpoint": path.name,
            "metrics": {},
        }
        changes = Delta(stored.upstream_sha256 or "") if ckpt.changes is None else ckpt.changes
        return cls(path, about, replace(changes, task=ckpt.task, info=about), ckpt.upstream, stored.merge)

    @classmethod
    def read_export(cls, folder: Path) -> TrainedTask:
        """Read a folder of ``s3prl-ext export``, whose upstream is a plain model with the tuned weights.

        Raises:
            DataError: it is corrupt, or s3prl cannot load its model.
        """
        try:
            record = parse_json((folder / EXPORT_FILE).read_text(encoding="utf-8"))
            words = shlex.split(record["model"]["upstream"])
            flags = dict(zip(words[::2], words[1::2], strict=True))
            record["info"] | {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / EXPORT_FILE} is corrupt ({type(error).__name__}: {error}): export again."
            ) from error
        if "-u" not in flags:
            raise DataError(
                f"s3prl has no upstream that loads the model in {folder}: give the run it was exported from."
            )
        ckpt = folder if flags["-k"] == "." else folder / flags["-k"]
        merged = ckpt.is_dir() and record["model"].get("merge") is not None  # its features were the target's
        ours = "whisper_custom" if flags["-u"] == SPEECH_UPSTREAMS["whisper"] else "hf_speech_custom"
        info = record["info"] | {
            "upstream": ours if merged else flags["-u"],
            "upstream_ckpt": str(ckpt),
            "upstream_model_config": None if merged else flags.get("-g"),
            "config": load_yaml(folder / TASK_FILE),
            "tuning": None,
        }
        check_model(ckpt)
        states = load(folder / HEAD_FILE)
        task = {part: states[part] for part in TASK_PARTS if part in states}
        return cls(folder / HEAD_FILE, info, Delta(record["model"].get("tuned_sha256") or "", task=task, info=info))

    @classmethod
    def untrained(
        cls, path: Path, info: Mapping[str, Any], upstream_sha256: str | None, merge: MergeRecord | None
    ) -> TrainedTask:
        """Return a task that needs no training: an upstream and a task file, without weights."""
        return cls(path, info, Delta(upstream_sha256 or "", info=info), merge=merge)

    @property
    def spec(self) -> RunSpec:
        """The arguments that identify its run."""
        return RunSpec.of(self.info)

    @property
    def record(self) -> Task:
        """What is known of its task."""
        config = self.info.get("config")
        expert = config.get("downstream_expert") if isinstance(config, Mapping) else None
        return task_of(str(self.spec.downstream), expert)

    @property
    def expert(self) -> Mapping[str, Any]:
        """Section ``downstream_expert`` of its task file."""
        return (self.info.get("config") or {}).get("downstream_expert") or {}

    @property
    def method(self) -> str | None:
        """The tuning method, or None where the task file had no section ``tuning``."""
        return (self.info.get("tuning") or {}).get("method")

    @property
    def holds_upstream(self) -> bool:
        """Whether it holds the upstream as a whole; else the untuned one, of the same hash, is part of the model."""
        return is_whole(self.upstream)

    def check_head(self) -> None:
        """Raise DataError where there is no head of a task, as in an adapter of peft."""
        if "Downstream" not in self.delta.task:
            raise DataError(WITHOUT_HEAD.format(self.path))

    def check_features(self, model: nn.Module) -> None:
        """Warn where the task may have been trained on another last hidden state than `model` gives."""
        record = self.info.get(last_hidden_state.KEY)
        last_hidden_state.warn_where_unknown(record, model, self.spec, self.path)

    def tuned_from(self, upstream: str | None, ckpt: str | None, model_config: str | None) -> TrainedTask:
        """Return the task with another ``-u``, ``-k`` or ``-g`` of its upstream; None leaves what the file says.

        Another ``-u`` takes no ``-g`` of the one before; a released model such as ``hubert_base`` with a ``-k`` becomes
        the upstream that loads files of its kind.
        """
        given = {"upstream": upstream, "upstream_ckpt": ckpt, "upstream_model_config": model_config}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if upstream is not None:
            changes["upstream_model_config"] = model_config
        elif ckpt is not None and not is_merged(self.info["upstream"]):
            changes["upstream"] = loader_of(self.info["upstream"], self.info.get("upstream_ckpt"))
        return replace(self, info={**self.info, **changes})

    def counts(self) -> tuple[int | None, int]:
        """Return how many weights of the upstream trained (None: not a chosen few), and how many were added."""
        if self.holds_upstream:
            return None, 0
        if self.upstream:  # lambda alone
            return sum(tensor.numel() for tensor in self.upstream.values()), 0
        return len(self.delta), sum(tensor.numel() for tensor in self.delta.added.values())

    # -- the upstream ----------------------------------------------------------------------------------------------

    def build(self) -> nn.Module:
        """Build the tuned upstream on the CPU, with its adapter.

        Raises:
            DataError: its model is missing, or another one than the task was trained on.
        """
        model = self.build_untuned()
        check_merge_record(self.merge, getattr(model, "merge_record", None))
        self.check_features(model)
        if self.upstream:
            if self.holds_upstream:
                self._check_settings(model)  # all weights are its own
            else:
                self.check_upstream(model)
            load_whole(model, self.upstream, self.path)
            return model
        delta = self.over(model)
        delta.toggle(model.state_dict())
        if delta.added:
            adapters.insert_trained(model, self.info.get("tuning"), delta.added, str(self.path))
        return model

    def build_untuned(self) -> nn.Module:
        """Build the upstream that the task was tuned from, on the CPU; rounded where its base was.

        Raises:
            UsageError: there is no such upstream.
            DataError: its model is missing or cannot be loaded; that it is the right one, :meth:`check_upstream` says.
        """
        model = build_untuned(self.spec)
        prepare_base(model, self.tuning)
        return model

    @property
    def tuning(self) -> Section:
        """The section ``tuning`` that it was trained with; empty where there was none."""
        return self.info.get("tuning") or {}

    @property
    def is_rounded(self) -> bool:
        """Whether it was tuned on a base whose weights were rounded to bfloat16."""
        return self.tuning.get("base_dtype") == "bfloat16"

    def over(self, model: nn.Module) -> Delta:
        """Return the delta over the untuned upstream; an empty one where it was frozen.

        Raises:
            DataError: `model` is another upstream, or the checkpoint holds a whole one.
        """
        if self.upstream:
            raise DataError(f"{self.path} holds a whole upstream, no delta: write it as a model with s3prl-ext export.")
        self.check_upstream(model)
        return self.delta.over(model.state_dict(), str(self.path))

    def check_upstream(self, model: nn.Module) -> None:
        """Raise DataError where `model` is not the untuned upstream of the task: its settings or weights are others."""
        self._check_settings(model)
        try:
            self.delta.check_base(model.state_dict(), str(self.path))
        except DataError as error:
            raise DataError(f"{error}{rounding_hint(self.merge)}") from error

    def _check_settings(self, model: nn.Module) -> None:
        upstream_settings.check_settings(
            self.info.get(upstream_settings.KEY), upstream_settings.stated_settings(model), str(self.path)
        )

    def tune(self, model: nn.Module) -> dict[str, float]:
        """Make the untuned upstream the tuned one with plain weights only; an adapter or learnt lambda is folded.

        Returns:
            The learnt lambdas by name, empty where none are.

        Raises:
            DataError: `model` is another upstream than the one that was tuned.
            UsageError: the adapter cannot be folded.
        """
        if self.upstream:
            self.check_upstream(model)
            load_whole(model, self.upstream, self.path)
        else:
            check_foldable(self)
            delta = self.over(model)
            delta.toggle(model.state_dict())
            if delta.added:
                adapters.insert_trained(model, self.info.get("tuning"), delta.added, str(self.path))
                adapters.fold(model)
        shared = find_lambda(model)
        if shared is None:
            return {}
        fold_lambda(model)
        return dict(zip(shared.names(), shared.current().tolist(), strict=True))


def check_foldable(task: TrainedTask) -> None:
    """Raise UsageError where the task's method puts modules into the upstream that no plain model has."""
    method = task.method
    if method in adapters.ADAPTERS and not adapters.can_fold(method):
        raise UsageError(
            f"{task.path}: {method} puts modules of its own into the upstream, which no plain model has: evaluate it "
            "with s3prl-ext run -m evaluate -e, or use the delta with s3prl_ext.deltas.TaskSwitch."
        )


@torch.no_grad()
def load_whole(model: nn.Module, state: StateDict, where: Path) -> None:
    """Load all weights of a tuned upstream.

    Raises:
        DataError: they do not fit.
    """
    state = loadable_state(model, state)
    wrong = [
        name for name, tensor in model.state_dict().items() if getattr(state.get(name), "shape", ()) != tensor.shape
    ]
    if wrong or len(state) != len(model.state_dict()):
        named = ", ".join(wrong[:3]) or "more tensors than the upstream has"
        raise DataError(f"{where} does not fit this upstream ({named}): give the -u, -k and -g it was trained with.")
    model.load_state_dict(state)
