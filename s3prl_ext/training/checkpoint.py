"""Checkpoint files: s3prl's keys and names, written to a temporary file and renamed, read with clear errors."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, is_disk_full, is_lost_worker
from s3prl_ext.merging.learnable import is_whole
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.randomness import RandomState
from s3prl_ext.reading import check_archive, is_archive
from s3prl_ext.run_folder import DELTA_SUFFIX
from s3prl_ext.tasks.record import LABELS
from s3prl_ext.training import last_hidden_state, upstream_settings
from s3prl_ext.training.batching.batches import Position
from s3prl_ext.training.batching.corpus_hash import CorpusHash
from s3prl_ext.training.racing.candidates import chosen_tuning
from s3prl_ext.training.run_spec import FEATURES
from s3prl_ext.upstreams.merged_attention.record import UNKNOWN, MergeRecord
from s3prl_ext.writing import written

EXTENSION_KEY = "S3prlExt"  # holds what s3prl's own checkpoints lack; s3prl ignores it
CHANGES_KEY = "UpstreamDelta"  # in place of s3prl's Upstream, where few of its weights changed
CHANGES = ("base_sha256", "indices", "values", "added")  # what is stored under CHANGES_KEY
ARGUMENTS_KEY = "Arguments"  # in the head of an export, in place of s3prl's Args: those of a RunSpec as plain values
FEATURES_KEY = "Features"  # the same in earlier exports: those of run_spec.FEATURES
TASK_PARTS = ("Featurizer", "Downstream")

StateDict = Section


@dataclass(frozen=True)
class Extension:
    """What a checkpoint of this package holds beyond s3prl's keys; None where it says nothing.

    Attributes:
        upstream_sha256: hash of the untouched upstream.
        untuned_sha256: hash of the upstream that a head does not belong to: the one before what is written next to it
            (an adapter, a task vector) is added. What others add has other last bits, so their hash is not known.
        upstream_settings: its settings, see :func:`s3prl_ext.training.upstream_settings.stated_settings`.
        data: hash of the corpus.
        splits_rule: what the hash of its division was made by, see
            :data:`s3prl_ext.training.batching.corpus_hash.SPLITS_RULE`.
        merge: record of a merged upstream, or :data:`s3prl_ext.upstreams.merged_attention.record.UNKNOWN`.
        last_hidden_state: see :mod:`s3prl_ext.training.last_hidden_state`.
        candidate: name of the candidate of a race.
        history: one row per evaluation, see :class:`s3prl_ext.training.trainer.Trainer`.
        evaluation_due: the evaluation of this step was interrupted.
        positions: of each rank in its training batches.
        scaler: state of the gradient scaler (fp16).
        bad_steps: steps without a finite gradient right before this one.
        usage: what the run has cost, see :class:`s3prl_ext.training.results.provenance.ResourceUsage`.
        lambda_curve: course of a learnable lambda: steps [n], values [n, lambdas].
        race_start: random states at the start of a race.
        members: of a child network that is chosen again during training, which of the entries that have trained train
            now: see :meth:`s3prl_ext.child_tuning.changing_network.ChangingChildNetwork.members_in`.
        density: of a child network of ``tuning.gradual``, that it was chosen with.
        merged_tasks: method and tasks of a delta that ``merge --deltas`` wrote.
        best_scores: those that the task keeps outside its state dict, see :mod:`s3prl_ext.training.best_scores`.
        changed_settings: see :func:`s3prl_ext.training.resume.changed_settings`.
        begins_with: name and hash of the checkpoint whose weights (``-i``) the training began with.
    """

    upstream_sha256: str | None = None
    untuned_sha256: str | None = None
    upstream_settings: Section | None = None
    data: CorpusHash | None = None
    splits_rule: int | None = None
    merge: MergeRecord | str | None = None
    last_hidden_state: str | None = None
    candidate: str | None = None
    history: Sequence[Section] = ()
    evaluation_due: bool = False
    positions: Sequence[Position | None] = ()
    scaler: StateDict | None = None
    bad_steps: int = 0
    usage: Section | None = None
    lambda_curve: Mapping[str, Tensor] | None = None
    race_start: RandomState | None = None
    members: Mapping[str, Tensor] | None = None
    density: float | None = None
    merged_tasks: Section | None = None
    best_scores: Section | None = None
    changed_settings: Sequence[Section] = ()
    begins_with: str | None = None

    @classmethod
    def from_stored(cls, stored: Section) -> Extension:
        """Read the values under :data:`EXTENSION_KEY`; names of later versions are left out."""
        names = {field.name for field in fields(cls)}
        values = {_FIELDS.get(key, key): value for key, value in stored.items()}
        values.setdefault("positions", [values["position"]] if values.get("position") is not None else ())
        return cls(**{name: value for name, value in values.items() if name in names})

    def stored(self) -> Record:
        """Return the values as a file holds them."""
        names = {field: key for key, field in _FIELDS.items()}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        positions = values.pop("positions")
        values |= {"position": positions[0] if positions else None}
        values |= {"positions": list(positions)} if len(positions) > 1 else {}
        values["changed_settings"] = list(self.changed_settings) or None
        return {names.get(name, name): value for name, value in values.items() if value is not None}


_FIELDS = {"spent": "usage", "lambda": "lambda_curve"}  # key in files -> attribute


def labels_in(config: Section | None) -> dict[str, list[str]]:
    """Return what the outputs of a head stand for, in their order, by kind, as its task wrote it into its task file."""
    stored = ((config or {}).get("downstream_expert") or {}).get(LABELS)
    kinds = stored.items() if isinstance(stored, Mapping) else ()  # a task of an extension may mean something else
    return {kind: list(names) for kind, names in kinds if isinstance(names, (list, tuple))}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of s3prl or of this package, or a delta, read once; without a file there is nothing to resume.

    Attributes:
        path: the file.
        step: optimizer steps done; 0 for a delta, from which no training is resumed.
        epoch: epochs done.
        args: the arguments of ``run_downstream.py``; of a delta, and of the head of an export, those that identify
            upstream, task and features.
        config: the task file.
        optimizer: state of the optimizer.
        scheduler: state of the learning rate schedule.
        weights: state dicts of ``Upstream`` (as a whole, or lambda alone), ``Featurizer`` and ``Downstream``.
        changes: what changed in the upstream, where that is a small part.
        processes: how many trained it; 0 without torchrun.
        extension: what only this package stores; empty in other checkpoints.
        is_ours: whether this package wrote it.
        weights_step: optimizer steps behind the weights.
    """

    path: Path | None = None
    step: int = 0
    epoch: int = 0
    args: Namespace | None = None
    config: Record | None = None
    optimizer: StateDict | None = None
    scheduler: StateDict | None = None
    weights: Mapping[str, StateDict] = field(default_factory=dict)
    changes: Delta | None = None
    processes: int = 0
    extension: Extension = field(default_factory=Extension)
    is_ours: bool = False
    weights_step: int = 0

    def __bool__(self) -> bool:
        """Return whether there is a file."""
        return self.path is not None

    @classmethod
    def read(cls, path: str | os.PathLike, mmap: bool = False) -> Checkpoint:
        """Read a checkpoint or delta; see :func:`load`."""
        path = Path(path)
        return (
            cls.from_delta(path, delta_files.load(path))
            if path.suffix == DELTA_SUFFIX
            else cls.of(path, load(path, mmap))
        )

    @classmethod
    def of(cls, path: Path, states: Section) -> Checkpoint:
        """Return what the keys of a checkpoint say."""
        ours = states.get(EXTENSION_KEY)
        alone = {last_hidden_state.KEY: states.get(last_hidden_state.KEY)}  # the head of an earlier export
        arguments = states.get(ARGUMENTS_KEY, states.get(FEATURES_KEY))
        return cls(
            path,
            step=states.get("Step") or 0,
            epoch=states.get("Epoch") or 0,
            args=states.get("Args") if arguments is None else Namespace(**arguments),
            config=states.get("Config"),
            optimizer=states.get("Optimizer") or None,
            scheduler=states.get("Scheduler") or None,
            weights={part: states[part] for part in ("Upstream", *TASK_PARTS) if states.get(part)},
            changes=Delta(**states[CHANGES_KEY]) if CHANGES_KEY in states else None,
            processes=states.get("WorldSize", 0),
            extension=Extension.from_stored(alone if ours is None else ours),
            is_ours=ours is not None,
            weights_step=states.get("Step") or 0,
        )

    @classmethod
    def from_delta(cls, path: Path, delta: Delta) -> Checkpoint:
        """Return a delta as the checkpoint of its step, without how far it was trained."""
        info = delta.info
        return cls(
            path,
            args=Namespace(**{name: info.get(name) for name in ("downstream", *FEATURES)}),
            config=info.get("config") or {},
            weights=delta.task,
            changes=delta if delta.indices or delta.added else None,
            processes=info.get("processes") or 0,
            extension=Extension(
                upstream_sha256=delta.base_sha256,
                upstream_settings=info.get(upstream_settings.KEY),
                data=info.get("data"),
                splits_rule=info.get("splits_rule"),
                candidate=info.get("candidate"),
                merge=info.get("merge", UNKNOWN),
                last_hidden_state=info.get(last_hidden_state.KEY),
                merged_tasks=info.get("merged_tasks"),
                changed_settings=info.get("changed_settings") or (),
                begins_with=info.get("begins_with"),
                members={name: every.to(torch.int16) for name, every in delta.members.items()} or None,
            ),
            is_ours=True,
            weights_step=info.get("step") or 0,
        )

    @property
    def weights_sha256(self) -> str | None:
        """SHA-256 of its weights, by which it is known wherever it lies; None without any."""
        parts: dict[str, StateDict] = dict(self.weights)
        if self.changes is not None:
            parts |= {name: getattr(self.changes, name) for name in ("indices", "values", "bits", "added")}
        state = {f"{part}.{name}": value for part, weights in parts.items() for name, value in weights.items()}
        state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return state_sha256(state) if state else None

    @property
    def labels(self) -> dict[str, list[str]]:
        """What the outputs of the head stand for, in their order, by kind; empty where it does not say."""
        return labels_in(self.config)

    def weights_alone(self) -> Checkpoint:
        """Return what a new training begins with: weights and what they belong to, nothing of how they were trained.

        Of the winner of a race the task file has its own section ``tuning``.

        Raises:
            DataError: its section makes no candidate of its name.
        """
        known, config = self.extension, self.config
        if config and known.candidate is not None:
            config = {**config, "tuning": chosen_tuning(config.get("tuning"), known.candidate)}
        belonging = Extension(
            upstream_sha256=known.upstream_sha256, upstream_settings=known.upstream_settings, merge=known.merge,
            last_hidden_state=known.last_hidden_state, members=known.members, merged_tasks=known.merged_tasks,
        )  # fmt: skip
        return replace(
            self, step=0, epoch=0, config=config, optimizer=None, scheduler=None, processes=0, extension=belonging
        )

    def stored(self) -> Record:
        """Return the keys of s3prl and ours as a file holds them."""
        changes = None if self.changes is None else {name: getattr(self.changes, name) for name in CHANGES}
        states = {
            "Step": self.step, "Epoch": self.epoch, "Args": self.args, "Config": self.config,
            "Optimizer": self.optimizer,
            "Scheduler": self.scheduler, CHANGES_KEY: changes,
            "WorldSize": self.processes or None, EXTENSION_KEY: self.extension.stored(),
        }  # fmt: skip
        return {key: value for key, value in states.items() if value is not None} | dict(self.weights)

    @property
    def arguments(self) -> Record:
        """The arguments by name; empty where there are none."""
        return {} if self.args is None else vars(self.args)

    @property
    def upstream(self) -> StateDict | None:
        """State dict of the upstream, where it is stored as a whole (or lambda alone)."""
        return self.weights.get("Upstream")

    @property
    def holds_upstream(self) -> bool:
        """Whether it holds the upstream as a whole; else the untouched one, of the same hash, is part of the model."""
        return is_whole(self.upstream)

    @property
    def task(self) -> dict[str, StateDict]:
        """State dicts of ``Featurizer`` and ``Downstream``, as far as they trained."""
        return {part: self.weights[part] for part in TASK_PARTS if part in self.weights}


def load(path: str | os.PathLike, mmap: bool = False) -> Record:
    """Read a checkpoint of s3prl or of this package onto the CPU as it is, without executing pickled code.

    Args:
        path: the file.
        mmap: read a tensor only when it is used; the file must not change meanwhile.

    Raises:
        DataError: the file is missing, truncated, corrupt, not a checkpoint, or holds unknown classes.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such checkpoint: {path}.")
    archive = is_archive(path)
    if not archive and not _is_legacy(path):
        raise DataError(
            f"{path} is truncated or not a checkpoint ({path.stat().st_size:,} bytes): take an earlier one."
        )
    check_archive(path)
    try:
        torch.serialization.add_safe_globals([Namespace, *_schedules()])  # s3prl stores such objects
        states = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and archive)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{path} is not a readable checkpoint (truncated, corrupt or another format): {first_line[:200]}"
        ) from error
    if not isinstance(states, dict) or not ({"Downstream", "Featurizer", "Step"} & set(states)):
        raise DataError(
            f"{path} is not an s3prl downstream checkpoint: it has neither Downstream, Featurizer nor Step."
        )
    return states


def _is_legacy(path: Path) -> bool:
    """Return whether a file is a plain pickle, as torch before 1.6 wrote."""
    with path.open("rb") as file:
        return file.read(2) == b"\x80\x02"


def _schedules() -> list[type]:
    """Return the schedule classes of which s3prl's ``*_with_schedule`` optimizers keep an object in their state."""
    from s3prl import optimizers

    kinds = [value for value in vars(optimizers).values() if isinstance(value, type)]
    return [kind for kind in kinds if issubclass(kind, optimizers._LRSchedule)]


def load_into(module: nn.Module | Optimizer, state: StateDict, what: str, path: str | os.PathLike | None) -> None:
    """Load a state dict of a checkpoint into a model or optimizer.

    Raises:
        DataError: it does not fit; the message names the file and `what`.
    """
    try:
        module.load_state_dict(state)  # type: ignore[arg-type]
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        other = (
            "other learning rates in the section tuning" if what == "optimizer" else "another upstream, task or size"
        )
        raise DataError(f"{path} does not fit this {what} ({other}?): {reason}") from error


def save(states: Section, path: str | os.PathLike) -> None:
    """Write `states`, flushed to disk before the file takes its name.

    Raises:
        DataError: the folder cannot be written or the disk is full; no partial file is left, older files stay.
    """
    try:
        with written(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(states), file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        if is_lost_worker(error):  # torch says so wherever the run just is
            raise
        code = getattr(error, "errno", None)
        full = is_disk_full(error) or (code is None and "write" in str(error))
        cause = "the disk is full" if full else os.strerror(code) if code else str(error).splitlines()[0]
        raise DataError(
            f"cannot write the checkpoint {path}: {cause}; earlier checkpoints are untouched, "
            "free some space and resume with -a."
        ) from error
