"""The Fisher pass over the training split: each utterance once, resumable, models and random states left as found."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from s3prl_ext import randomness
from s3prl_ext.child_tuning.fisher import FisherEstimate
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.progress import bar
from s3prl_ext.reading import check_archive
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.training.distributed import StopRequest
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.selection.fisher_batches import ORDER, UtteranceBatches, open_batches
from s3prl_ext.training.statistics import hold_statistics
from s3prl_ext.training.tuning_config import FisherConfig

logger = logging.getLogger(__name__)

SAVE_SECONDS = 600.0
OPAQUE = {
    "order": "the utterances in another order, as an earlier version read them",
    "weights": "other weights of the upstream or of the head",
    "corpus": "other files in the corpus",
    "structure": "another structure of the upstream or of the head",
    "eligible": "other eligible weights",
}  # what is neither a number nor a name, in words


class FisherPass:
    """Estimate how much the upstream's eligible weights matter for a task: Fisher information or connection sensitivity.

    Args:
        models: upstream, featurizer and downstream, not yet trained, without wrappers for several devices.
        parameters: eligible parameters of the upstream by name.
        config: section ``tuning.fisher``.
        split: name of the training split.
        seed: seed of the run: draws the utterances of a limited pass; the caller seeds all else.
        folder: for ``fisher.partial``, or None: then an interrupted pass starts over.
        facts: what the scores depend on, which identifies the pass on resume, see
            :func:`s3prl_ext.training.selection.pass_facts.facts_of`; None: the eligible weights alone.
        mask: ``fisher`` or ``snip``, what the scores are for.
    """

    def __init__(
        self,
        models: TaskModels,
        parameters: Mapping[str, nn.Parameter],
        config: FisherConfig,
        split: str,
        seed: int,
        folder: RunFolder | None = None,
        facts: Section | None = None,
        mask: str = "fisher",
    ) -> None:
        self.models = models
        self.parameters, self.mask = parameters, mask
        self.config = config
        self.split = split
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.batches = open_batches(models.downstream, split, config, seed)
        self.total = len(self.batches)
        if self.total == 0:
            raise DataError("the Fisher pass got no batch: the training split is empty.")
        self.estimate = FisherEstimate(parameters, config.clip, config.max_norm, squared=mask == "fisher")
        # Ranks cannot agree on a graceful stop, so with several of them a stopped pass starts over.
        self.partial = folder.fisher if folder is not None and self.ranks == 1 else None
        self.key = {
            "order": ORDER,
            "fisher": asdict(config),
            "training split": split,
            "batches": self.total,
            "seed": seed,
            "mask": mask,
        }
        if facts is None and self.partial is not None:
            facts = {"weights": state_sha256(parameters)}
        self.key |= _as_stored(facts or {})

    def scores(self) -> dict[str, torch.Tensor]:
        """Return the scores by name (float32, shapes of the parameters), equal on all ranks.

        With g the gradient of a batch's loss and means over batches: mean(g^2) (``fisher``), or |w * mean(g)| (``snip``), by
        how much the loss changes to first order where weight w is taken away.

        Raises:
            DataError: a loss is not finite, a batch does not fit into the device's memory, or ``fisher.partial`` cannot be
                read.
            UsageError: ``fisher.partial`` belongs to another pass.
            StoppedByUser: Ctrl-C or SIGTERM; what was done is saved.
        """
        with _left_as_found(self.models, warmed=self.config.warm_head > 0):
            saved = self._load()
            with StopRequest(enabled=self.ranks == 1) as stop:
                if saved is None and self.config.warm_head:
                    self._warm_head(stop)
                with _evaluation_mode(self.models) if self.config.mode == "eval" else _train_mode(self.models):
                    self._run(stop, saved)
        for score in self.estimate.scores.values():
            if self.ranks > 1:
                dist.all_reduce(score)
            score.div_(self.total)
        if self.mask == "snip":
            for name, score in self.estimate.scores.items():
                score.mul_(self.parameters[name].detach().float()).abs_()
        return self.estimate.scores

    def finish(self) -> None:
        """Remove ``fisher.partial``; call it once the mask is safe."""
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def _run(self, stop: StopRequest, saved: Section | None) -> None:
        mine, done = range(self.rank, self.total, self.ranks), self.estimate.batches
        if saved is not None:  # the order of the task's own loader follows from it
            randomness.set_state(saved["start"])
        self._start = randomness.get_state()
        batches = self.batches.batches(self.rank, self.ranks, done)
        if saved is not None:
            randomness.set_state(saved["random"])
        progress = bar(total=len(mine), initial=done, desc="Fisher information", disable=self.rank > 0)
        last_save = time.monotonic()
        with progress:
            for wavs, *others in batches:
                if stop.requested:
                    self._stop()
                if time.monotonic() - last_save > SAVE_SECONDS:
                    self._save()
                    last_save = time.monotonic()
                records: dict[str, list] = defaultdict(list)
                with self._enough_memory():
                    loss = self.models.loss(self.split, wavs, others, records, with_upstream_grad=True)
                    self.estimate.differentiate(loss / self.config.loss_divisor)
                self.estimate.accumulate()
                progress.update(1)
                self._random = randomness.get_state()
        if stop.requested:  # in the last batch
            self._stop()

    def _stop(self) -> None:
        done = f"{self.estimate.batches} of {self.total} batches"
        if self._save():
            raise StoppedByUser(
                f"interrupted in the Fisher pass: {done} are saved in {self.partial}; rerun with -a to resume."
            )
        raise StoppedByUser(f"interrupted in the Fisher pass after {done}; nothing was saved, -a restarts the pass.")

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Turn the error of a device without enough memory into one that says what to do; keep what was done before."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            advice = (
                "lower the batch size, or set tuning.fisher to {granularity: sample}, which reads single utterances"
            )
            if self.config.granularity == "sample":
                advice = "it is a single utterance: leave out the longest ones, or take a device with more memory"
            kept = f" The batches before it are kept in {self.partial}: resume with -a." if self._save() else ""
            raise DataError(
                f"batch {self.estimate.batches + 1} of {self.total} of the Fisher pass did not fit into the device's "
                f"memory; {advice}.{kept}"
            ) from error

    # -- fisher.partial --------------------------------------------------------------------------------------------

    def _save(self) -> bool:
        """Save the state of the pass, if there is a folder for it and at least one batch was done."""
        if self.partial is None or self.estimate.batches == 0:
            return False
        heads = [m.state_dict() for m in self.models.modules()[1:]] if self.config.warm_head else []
        content = {"key": self.key, "start": self._start, "random": self._random, "heads": heads}
        content |= self.estimate.state_dict()
        checkpoint.save(content, self.partial)
        return True

    def _load(self) -> Record | None:
        if self.partial is None or not self.partial.is_file():
            return None
        try:
            check_archive(self.partial)
            saved = torch.load(self.partial, map_location="cpu", weights_only=True)
            key = {"mask": "fisher", **saved["key"]}  # an earlier version had no other pass
        except Exception as error:
            raise DataError(
                f"{self.partial} is not readable (truncated or corrupt); delete it to start over."
            ) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise UsageError(
                    f"{self.partial} belongs to a Fisher pass with {_difference(name, key.get(name), value)}; use the "
                    "same settings, or delete it to start over."
                )
        self.estimate.load_state_dict(saved)
        for module, state in zip(self.models.modules()[1:], saved["heads"]):
            module.load_state_dict(state)
        self._random = saved["random"]
        logger.info("going on with the Fisher pass after %d of %d batches", self.estimate.batches, self.total)
        return saved

    # -- the head before the pass ----------------------------------------------------------------------------------

    def _warm_head(self, stop: StopRequest) -> None:
        """Train featurizer and downstream on the frozen upstream, on the same batches in every rank."""
        upstream, *heads = self.models.modules()
        upstream.eval()
        for module in heads:
            module.train()
        parameters = [p for module in heads for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.config.warm_lr)
        batches = self.batches if isinstance(self.batches, UtteranceBatches) else None
        endless = (batches or UtteranceBatches(self.models.downstream, self.split)).endless()
        steps = itertools.islice(endless, self.config.warm_head)
        for wavs, *others in bar(
            steps, desc="head before the Fisher pass", total=self.config.warm_head, disable=self.rank > 0
        ):
            if stop.requested:
                self._stop()
            with self._enough_memory():
                self.models.loss(self.split, wavs, others, records=defaultdict(list)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def _as_stored(facts: Section) -> Record:
    """Return facts as they come back from a file."""
    stored: Record = json.loads(json.dumps(facts, default=str))
    return stored


def _difference(name: str, before: Any, now: Any) -> str:
    if before is None and name not in ("corpus", "training split"):
        return f"no record of its {name}, made by an earlier version"
    if name in OPAQUE:
        return OPAQUE[name]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        changed = [key for key in now if before.get(key) != now[key]]
        return ", ".join(f"{name}.{key} {before.get(key)} instead of {now[key]}" for key in changed)
    return f"{name} {before} instead of {now}"


@contextmanager
def _left_as_found(models: TaskModels, warmed: bool) -> Iterator[None]:
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
def _train_mode(models: TaskModels) -> Iterator[None]:
    """Train mode with dropout and SpecAugment; the upstream's running statistics stay, as in training a child network.

    :func:`_left_as_found` puts the flags back.
    """
    for module in models.modules():
        module.train()
    hold_statistics(models.upstream)
    yield


@contextmanager
def _evaluation_mode(models: TaskModels) -> Iterator[None]:
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
