"""The Fisher pass over the training split: each utterance once, resumable, models and random states left as found."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict

import torch
import torch.distributed as dist

from s3prl_ext import randomness
from s3prl_ext.child_tuning.fisher import FisherEstimate
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError
from s3prl_ext.progress import bar
from s3prl_ext.training.distributed import Interrupted, StopRequest
from s3prl_ext.training.selection import scoring_pass
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import ORDER, UtteranceBatches, open_batches
from s3prl_ext.training.selection.scoring_pass import ScoringPass, evaluation_mode, left_as_found, train_mode


class FisherPass(ScoringPass):
    """Estimate how much the upstream's eligible weights matter for a task.

    Fisher information or connection sensitivity.

    Args:
        choice: its models are not yet trained; its seed draws the utterances of a limited pass, the caller seeds all
            else.
    """

    what = "Fisher pass"

    def __init__(self, choice: Choice) -> None:
        self.config, self.mask = choice.tuning.fisher, choice.tuning.mask
        self.batches = open_batches(choice.models.downstream, choice.split, self.config, choice.seed)
        self.total = len(self.batches)
        if self.total == 0:
            raise DataError("the Fisher pass got no batch: the training split is empty.")
        squared = self.mask == "fisher"
        self.estimate = FisherEstimate(choice.parameters, self.config.clip, self.config.max_norm, squared)
        self.advice += ", or set tuning.fisher to {granularity: sample}, which reads single utterances"
        if self.config.granularity == "sample":
            self.advice = "it is a single utterance: leave out the longest ones, or take a device with more memory"
        key = {
            "mask": self.mask,
            "order": ORDER,
            "fisher": self.config.stored(),
            "training split": choice.split,
            "batches": self.total,
            "seed": choice.seed,
        }
        super().__init__(choice, key)

    def scores(self) -> dict[str, torch.Tensor]:
        """Return the scores by name (float32, shapes of the parameters), equal on all ranks.

        With g the gradient of a batch's loss and means over batches: mean(g^2) (``fisher``), or |w * mean(g)|
        (``snip``), by how much the loss changes to first order where weight w is taken away.

        Raises:
            DataError: a loss is not finite, a batch does not fit into the device's memory, or ``fisher.partial`` cannot
                be read.
            UsageError: ``fisher.partial`` belongs to another pass.
            StoppedByUser: Ctrl-C or SIGTERM; what was done is saved.
        """
        with left_as_found(self.models, warmed=self.config.warm_head > 0):
            saved = self._resume()
            with StopRequest(enabled=self.ranks == 1) as stop:
                try:
                    with stop.or_lost_worker():
                        if saved is None and self.config.warm_head:
                            self._warm_head(stop)
                        with evaluation_mode(self.models) if self.config.mode == "eval" else train_mode(self.models):
                            self._run(stop, saved)
                except Interrupted:
                    self.stop()
        for score in self.estimate.scores.values():
            if self.ranks > 1:
                dist.all_reduce(score)
            score.div_(self.total)
        if self.mask == "snip":
            for name, score in self.estimate.scores.items():
                score.mul_(self.parameters[name].detach().float()).abs_()
        return self.estimate.scores

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
                    self.stop()
                if time.monotonic() - last_save > scoring_pass.SAVE_SECONDS:
                    self.save()
                    last_save = time.monotonic()
                records: dict[str, list] = defaultdict(list)
                with self.enough_memory():
                    loss = self.models.loss(self.split, wavs, others, records, with_upstream_grad=True)
                    self.estimate.differentiate(loss / self.config.loss_divisor)
                self.estimate.accumulate()
                progress.update(1)
                self._random = randomness.get_state()
        if stop.requested:  # in the last batch
            self.stop()

    # -- fisher.partial --------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """How many batches are done."""
        return self.estimate.batches

    def save(self) -> bool:
        """Save the state of the pass, unless a batch has been added in part: then what was saved before it stays."""
        return not self.estimate.torn and super().save()

    def state(self) -> Record:
        """Return sums, random states and the warmed head."""
        heads = [m.state_dict() for m in self.models.modules()[1:]] if self.config.warm_head else []
        return {"start": self._start, "random": self._random, "heads": heads, **self.estimate.state_dict()}

    def _resume(self) -> Record | None:
        saved = self.load()
        if saved is None:
            return None
        self.estimate.load_state_dict(saved)
        for module, state in zip(self.models.modules()[1:], saved["heads"]):
            module.load_state_dict(state)
        self._random = saved["random"]
        self.say_resumed()
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
                self.stop()
            with self.enough_memory():
                self.models.loss(self.split, wavs, others, records=defaultdict(list)).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
