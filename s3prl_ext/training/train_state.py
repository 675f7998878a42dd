"""One training run of a model: optimizer, scheduler, mixed precision and the integer step counter."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.errors import DataError
from s3prl_ext.training.checkpoint import Checkpoint, Extension
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.task_file import RunnerConfig

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 100  # consecutive steps without a finite gradient, or without enough memory, that end a run


class Diverged(DataError):
    """A run has gone :data:`MAX_BAD_STEPS` steps without a finite gradient."""


class TrainState:
    """Train the trainable parameters of a task's models, one optimizer step at a time.

    The order of operations is s3prl's: batch losses divided by the accumulation, clipping to
    ``runner.gradient_clipping``, optimizer, zeroing, scheduler.

    Args:
        models: upstream, featurizer, downstream.
        upstream_trains: record gradients through the upstream.
        parameters: everything that the optimizer steps, for clipping.
        optimizer: any torch optimizer over `parameters`.
        scheduler: learning rate schedule, or None.
        config: section ``runner``.
        child: the child network whose `values` are among `parameters`, or None.

    Attributes:
        before_step: called before each optimizer step with the number of those that are done.
        after_step: called with the number of each optimizer step when it is done.
    """

    def __init__(
        self,
        models: TaskModels,
        upstream_trains: bool,
        parameters: Sequence[nn.Parameter],
        optimizer: Optimizer,
        scheduler: Any,
        config: RunnerConfig,
        child: ChildNetwork | None = None,
    ) -> None:
        self.models = models
        self.upstream_trains = upstream_trains
        self.parameters = list(parameters)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.config = config
        self.child = child
        self.before_step: list[Callable[[int], None]] = []
        self.after_step: list[Callable[[int], None]] = []
        self.step = 0
        self.bad_steps = 0
        self._without_memory = 0
        self.records: dict[str, list] = defaultdict(list)
        self.batch_ids: list[int] = []
        self._device_type = torch.device(models.device).type
        self._amp_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, None: None}[config.amp]
        self.scaler = torch.amp.GradScaler(self._device_type, enabled=config.amp == "fp16")

    def train_step(self, batches: Iterable[tuple[int, Any]]) -> bool:
        """Do one optimizer step.

        Args:
            batches: ``gradient_accumulate_steps`` pairs of batch number in the epoch and batch.

        Returns:
            False where the step was given up because a batch did not fit into the device's memory.

        Raises:
            Diverged: 100 consecutive steps without a finite gradient.
        """
        for call in self.before_step:
            call(self.step)
        try:
            for batch_id, (wavs, *others) in batches:
                self._backward(wavs, others)
                self.batch_ids.append(batch_id)
        except torch.OutOfMemoryError:
            if dist.is_initialized():
                raise
            logger.warning("out of memory at step %d: the batch is skipped; lower the batch size", self.step + 1)
            self._zero_grad()
            torch.cuda.empty_cache()
            self._without_memory += 1
            if self._without_memory >= MAX_BAD_STEPS:
                raise DataError(
                    f"{MAX_BAD_STEPS} consecutive batches did not fit into the device's memory at step "
                    f"{self.step + 1}; lower the batch size, or raise runner.gradient_accumulate_steps with it."
                ) from None
            return False
        self._without_memory = 0
        self._update()
        self.step += 1
        for call in self.after_step:
            call(self.step)
        return True

    def _backward(self, wavs: Sequence[Any], others: Sequence[Any]) -> None:
        with torch.autocast(self._device_type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
            loss = self.models.loss(
                self.config.train_dataloader, wavs, others, self.records, with_upstream_grad=self.upstream_trains
            )
        self.scaler.scale(loss / self.config.gradient_accumulate_steps).backward()

    def _update(self) -> None:
        if self.child is not None:
            for gradient in self.child.dense_gradients() if dist.is_initialized() else ():
                _average_over_ranks(gradient)
            self.child.gather_gradients(self.step)
            for parameter in self.child.parameters():
                _average_over_ranks(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clipping)
        finite = bool(torch.isfinite(norm))
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif finite:  # an infinite norm would scale the infinite entry to NaN
            self.optimizer.step()
        self._count_bad_steps(finite)
        if self.child is not None:
            self.child.write_back()
        self._zero_grad()
        if self.scheduler is not None:
            self.scheduler.step()

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad()
        for module in (self.child, *self.models.modules()) if self.child is not None else ():
            module.zero_grad(set_to_none=True)

    def _count_bad_steps(self, finite: bool) -> None:
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if not finite:
            logger.warning("the gradient norm is not finite at step %d", self.step + 1)
        if self.bad_steps >= MAX_BAD_STEPS:
            raise Diverged(
                f"the gradient was not finite for {MAX_BAD_STEPS} consecutive steps, up to step {self.step + 1}; lower "
                "the learning rate, or switch mixed precision off."
            )

    def replace_parameters(self, before: Sequence[nn.Parameter], after: Sequence[nn.Parameter]) -> None:
        """Put other parameters in the place of some that stand together; the optimizer has them already."""
        old = {id(parameter) for parameter in before}
        place = next(i for i, parameter in enumerate(self.parameters) if id(parameter) in old)
        rest = [parameter for parameter in self.parameters if id(parameter) not in old]
        self.parameters = [*rest[:place], *after, *rest[place:]]

    def clear_records(self) -> None:
        """Forget the results and batch numbers collected since the last log."""
        self.records = defaultdict(list)
        self.batch_ids = []

    def checkpoint(self, extension: Extension) -> Checkpoint:
        """Return what a checkpoint holds of the optimization.

        Args:
            extension: to which the state of mixed precision is added.
        """
        extension = replace(extension, scaler=self.scaler.state_dict(), bad_steps=self.bad_steps)
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return Checkpoint(
            step=self.step, optimizer=self.optimizer.state_dict(), scheduler=scheduler, extension=extension
        )

    def resume(self, ckpt: Checkpoint) -> None:
        """Continue the steps of a checkpoint; optimizer and scheduler have their states already."""
        self.step, self.bad_steps = ckpt.step, ckpt.extension.bad_steps
        if ckpt.extension.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(ckpt.extension.scaler))


def _average_over_ranks(gradient: torch.Tensor | None) -> None:
    if dist.is_initialized() and gradient is not None:
        dist.all_reduce(gradient)
        gradient.div_(dist.get_world_size())
