"""The dense phase of a lottery: train all eligible weights for a few steps, keep how far each went, rewind everything.

The k weights that moved farthest become the child network, which starts from the pre-trained values (Lottery Ticket
Sparse Fine-Tuning, Ansell et al., ACL 2022, arXiv:2110.07560; the rewinding is Frankle & Carbin's, arXiv:1803.03635).
Head and featurizer train along, because a gradient through a random head says little, and are rewound too: all
candidates of a race start from the same head.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import asdict

import torch
import torch.distributed as dist

from s3prl_ext import randomness
from s3prl_ext.configs import Record
from s3prl_ext.errors import DataError
from s3prl_ext.progress import bar
from s3prl_ext.training.batching.batches import TrainingBatches
from s3prl_ext.training.distributed import Interrupted, StopRequest
from s3prl_ext.training.selection import scoring_pass
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import ORDER, UtteranceBatches
from s3prl_ext.training.selection.scoring_pass import ScoringPass, left_as_found, train_mode


class LotteryPass(ScoringPass):
    """Score weights by how far a short dense training moves them.

    On top of the model it holds what dense training holds (gradients, Adam's two moments) and one copy of the eligible
    weights. Ranks do the same steps on the same batches, and rank 0's scores count.

    Args:
        choice: its models are not yet trained, and its parameters require grad; the caller seeds everything random.
    """

    what = "dense phase of the lottery"
    unit = "steps"

    def __init__(self, choice: Choice) -> None:
        self.config, self.total = choice.tuning.lottery, choice.tuning.lottery.steps
        self._steps = 0
        self._utterances = UtteranceBatches(choice.models.downstream, choice.split)
        heads = [p for module in choice.models.modules()[1:] for p in module.parameters() if p.requires_grad]
        self._groups: list[Record] = [
            {"params": list(choice.parameters.values()), "lr": self.config.lr},
            {"params": heads, "lr": self.config.head_lr},
        ]
        key = {
            "mask": "lottery",
            "order": ORDER,
            "lottery": asdict(self.config),
            "training split": choice.split,
            "seed": choice.seed,
        }
        super().__init__(choice, key)

    @torch.no_grad()
    def scores(self) -> dict[str, torch.Tensor]:
        """Return |change| by name (float32, shapes of the parameters), equal on all ranks; every weight is as it was.

        Raises:
            DataError: a loss is not finite, a batch does not fit into the device's memory, or ``fisher.partial`` cannot
                be read.
            UsageError: ``fisher.partial`` belongs to another pass.
            StoppedByUser: Ctrl-C or SIGTERM; what was done is saved.
        """
        before = {name: p.detach().clone() for name, p in self.parameters.items()}
        moved: dict[str, torch.Tensor] = {}
        try:
            with left_as_found(self.models, warmed=True), StopRequest(enabled=self.ranks == 1) as stop:
                with train_mode(self.models), torch.enable_grad():
                    self._train(stop)
                del self._optimizer
                for name, parameter in self.parameters.items():
                    moved[name] = (parameter.detach().float() - before[name].float()).abs_()
                    parameter.copy_(before.pop(name))
        finally:
            for name, value in before.items():
                self.parameters[name].copy_(value)
        for score in moved.values() if self.ranks > 1 else ():
            dist.broadcast(score, 0)
        return moved

    def _train(self, stop: StopRequest) -> None:
        self._optimizer = torch.optim.Adam(self._groups)
        self._batches = self._resumed()
        weights = [p for group in self._groups for p in group["params"]]
        batches, last_save = iter(self._batches), time.monotonic()
        with bar(total=self.total, initial=self._steps, desc="dense phase", disable=self.rank > 0) as progress:
            while self._steps < self.total:
                if stop.requested:
                    self.stop()
                if time.monotonic() - last_save > scoring_pass.SAVE_SECONDS:
                    self.save()
                    last_save = time.monotonic()
                try:
                    with stop.or_lost_worker():
                        wavs, *others = next(batches)
                except Interrupted:
                    self.stop()
                with self.enough_memory():
                    loss = self.models.loss(self.split, wavs, others, defaultdict(list), with_upstream_grad=True)
                    self._check(loss)
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, self.config.max_norm)
                self._optimizer.step()
                self._optimizer.zero_grad()
                self._steps += 1
                progress.update(1)
        if stop.requested:  # in the last step
            self.stop()

    def _check(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss of step {self._steps} of the dense phase is {loss.item()}: lower tuning.lottery.lr, or "
                "check the training data."
            )

    # -- fisher.partial --------------------------------------------------------------------------------------------

    @property
    def done(self) -> int:
        """How many steps are done."""
        return self._steps

    def state(self) -> Record:
        """Return weights, heads, the optimizer's state and the position in the batches."""
        return {
            "steps": self._steps,
            "weights": {name: p.detach() for name, p in self.parameters.items()},
            "heads": [module.state_dict() for module in self.models.modules()[1:]],
            "optimizer": self._optimizer.state_dict(),
            "position": self._batches.position(),
            "random": randomness.get_state(),
        }

    def _resumed(self) -> TrainingBatches:
        """Return the batches, from where an interrupted phase stands, with its weights in the models."""
        saved = self.load()
        if saved is None:
            return TrainingBatches(lambda _: self._utterances.shuffled())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved["weights"][name])
        for module, state in zip(self.models.modules()[1:], saved["heads"]):
            module.load_state_dict(state)
        self._optimizer.load_state_dict(saved["optimizer"])
        self._steps = saved["steps"]
        randomness.set_state(saved["random"])
        self.say_resumed()
        return TrainingBatches(lambda _: self._utterances.shuffled(), saved["position"])
