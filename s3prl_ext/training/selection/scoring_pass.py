"""A pass over the training split that scores weights: resumable, models and random states left as found."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.reading import check_archive
from s3prl_ext.training import checkpoint
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.pass_facts import SETTINGS
from s3prl_ext.training.statistics import hold_statistics

logger = logging.getLogger(__name__)

SAVE_SECONDS = 600.0
OPAQUE = {
    "order": "the utterances in another order, as an earlier version read them",
    "weights": "other weights of the upstream or of the head",
    "corpus": "other files in the corpus",
    SETTINGS: "other settings of the upstream or of its preprocessing",
    "structure": "another structure of the upstream or of the head",
    "eligible": "other eligible weights",
}  # what is neither a number nor a name, in words


class ScoringPass:
    """What passes have in common: ``fisher.partial``, in which an interrupted pass is kept, and their messages.

    Args:
        choice: what the scores are for; its facts identify the pass on resume.
        key: settings of the pass, which identify it too.

    Attributes:
        what: what the pass is called.
        unit: what it counts.
        advice: what to do where a batch does not fit into the device's memory.
        total: how many units it takes.
    """

    what = "pass"
    unit = "batches"
    advice = "lower the batch size"
    total: int

    def __init__(self, choice: Choice, key: Section) -> None:
        self.models, self.parameters, self.split = choice.models, choice.parameters, choice.split
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        # Ranks cannot agree on a graceful stop, so with several of them a stopped pass starts over.
        self.partial = choice.folder.fisher if choice.folder is not None and self.ranks == 1 else None
        facts = choice.facts
        if facts is None and self.partial is not None:
            facts = {"weights": state_sha256(self.parameters)}
        self.key = dict(key) | _as_stored(facts or {})

    @property
    def done(self) -> int:
        """How many units are done."""
        raise NotImplementedError

    def state(self) -> Record:
        """Return what goes on from here needs, as a file can hold it."""
        raise NotImplementedError

    def finish(self) -> None:
        """Remove ``fisher.partial``; call it once the mask is safe."""
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def stop(self) -> NoReturn:
        """Save what is done and raise StoppedByUser."""
        done = f"{self.done} of {self.total} {self.unit}"
        if self.save():
            raise StoppedByUser(
                f"interrupted in the {self.what}: {done} are saved in {self.partial}; rerun with -a to resume."
            )
        raise StoppedByUser(f"interrupted in the {self.what} after {done}; nothing was saved, -a restarts the pass.")

    @contextmanager
    def enough_memory(self) -> Iterator[None]:
        """Turn the error of a device without enough memory into one that says what to do; keep what was done before."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"batch {self.done + 1} of {self.total} of the {self.what} did not fit into the device's memory; "
                f"{self.advice}.{self._kept()}"
            ) from error

    def _kept(self) -> str:
        """Save what can be saved, and return a sentence about it."""
        if self.save():
            return f" What was done before is kept in {self.partial}: resume with -a."
        if self.partial is None:
            return ""
        if self.partial.is_file():  # the batch was added in part, so that the present sums are lost
            return f" What was saved before in {self.partial} is kept: resume with -a."
        return f" Nothing was saved in {self.partial}: -a starts the pass over."

    def save(self) -> bool:
        """Save the state of the pass, if there is a folder for it and at least one unit was done."""
        if self.partial is None or self.done == 0:
            return False
        checkpoint.save({"key": self.key, **self.state()}, self.partial)
        return True

    def load(self) -> Record | None:
        """Return what :meth:`save` has saved of this pass; None where there is nothing.

        Raises:
            DataError: it cannot be read.
            UsageError: it belongs to another pass.
        """
        if self.partial is None or not self.partial.is_file():
            return None
        try:
            check_archive(self.partial)
            saved: Record = torch.load(self.partial, map_location="cpu", weights_only=True)
            key = {"mask": "fisher", **saved["key"]}  # an earlier version had no other pass
        except Exception as error:
            raise DataError(
                f"{self.partial} is not readable (truncated or corrupt); delete it to start over."
            ) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise UsageError(
                    f"{self.partial} belongs to a {self.what} with {_difference(name, key.get(name), value)}; use the "
                    "same settings, or delete it to start over."
                )
        return saved

    def say_resumed(self) -> None:
        """Log how far the pass is."""
        logger.info("going on with the %s after %d of %d %s", self.what, self.done, self.total, self.unit)


def _as_stored(facts: Section) -> Record:
    """Return facts as they come back from a file."""
    stored: Record = json.loads(json.dumps(facts, default=str))
    return stored


def _difference(name: str, before: Any, now: Any) -> str:
    if before is None and name not in ("order", "corpus", "training split"):
        return f"no record of its {name}, made by an earlier version"
    if name in OPAQUE:
        return OPAQUE[name]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        changed = [key for key in now if before.get(key) != now[key]]
        return ", ".join(f"{name}.{key} {before.get(key)} instead of {now[key]}" for key in changed)
    return f"{name} {before} instead of {now}"


@contextmanager
def left_as_found(models: TaskModels, warmed: bool) -> Iterator[None]:
    """Put back train flags, buffers, and where the head is `warmed` the head's weights; drop all gradients."""
    heads = models.modules()[1:]
    buffers = [(b, b.clone()) for top in models.modules() for b in top.buffers()]
    weights = [copy.deepcopy(head.state_dict()) for head in heads] if warmed else []
    with modes_kept(models.modules()):
        try:
            yield
        finally:
            for head, state in zip(heads, weights):
                head.load_state_dict(state)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for top in models.modules():
                top.zero_grad(set_to_none=True)


@contextmanager
def train_mode(models: TaskModels) -> Iterator[None]:
    """Train mode with dropout and SpecAugment; the upstream's running statistics stay, as in training a child network.

    :func:`left_as_found` puts the flags back.
    """
    for module in models.modules():
        module.train()
    hold_statistics(models.upstream)
    yield


@contextmanager
def evaluation_mode(models: TaskModels) -> Iterator[None]:
    """Dropout off everywhere; recurrent layers stay in train mode without dropout (cuDNN needs it for backward)."""
    modules = [m for top in models.modules() for m in top.modules()]
    dropouts = [(m, m.dropout) for m in modules if isinstance(m, nn.RNNBase)]
    try:
        for module in modules:
            module.training = isinstance(module, nn.RNNBase)
        for module, _ in dropouts:
            module.dropout = 0.0
        yield
    finally:
        for module, dropout in dropouts:
            module.dropout = dropout
