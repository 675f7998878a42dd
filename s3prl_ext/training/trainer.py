"""The loop around a trial: batches, log, evaluation, checkpoints, Ctrl-C, the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tensorboardX import SummaryWriter

from s3prl_ext import tasks
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import StoppedByUser
from s3prl_ext.evaluation.result_records import NO_METRICS
from s3prl_ext.progress import bar, printing
from s3prl_ext.run_folder import RunFolder, states_name, step_of
from s3prl_ext.training import best_scores, checkpoint, distributed, resume
from s3prl_ext.training.batching.batches import TrainingBatches
from s3prl_ext.training.batching.ranks import open_training
from s3prl_ext.training.checkpoint import Checkpoint, Extension
from s3prl_ext.training.distributed import Interrupted, StopRequest
from s3prl_ext.training.forward import unwrapped
from s3prl_ext.training.results.evaluation import Scores, evaluate
from s3prl_ext.training.train_state import Diverged, TrainState

logger = logging.getLogger(__name__)


class Trainer:
    """Run a trial to its last step.

    Every rank counts the same steps and leaves the loop together; rank 0 logs, evaluates and saves. Evaluation and
    saving happen at their steps and at the last step as well.

    Args:
        trial: what is trained; its step may be above 0.
        total_steps: optimizer steps at which the run ends.
        folder: for checkpoints.
        seed: seed of every evaluation, and of the order of batches that are divided among several processes.
        states: makes the checkpoint of an epoch, with what the loop adds of its own.
        writer: TensorBoard writer on rank 0, None on the others.
        resumed: the checkpoint that the run continues; empty for a new one.
        on_best: called with the name of the best checkpoint on dev, where it was just saved, and the metrics by split.
        on_the_way: returns the density of a child network that is not the one of the task file yet: what is scored
            then is never the best, and its rows of the history hold it as ``density``. None of every other.
        resume_from: folder to name in the hint how to resume; None = `folder`.
        label: what the progress bar is called.

    Attributes:
        history: one row ``{"step": ..., "split": ..., "items": ..., "intervals": ..., metric: value, ...}`` per
            evaluation, also of earlier sessions; items and intervals as in :class:`Scores`. With `on_the_way` also
            ``density``.
    """

    def __init__(
        self,
        trial: TrainState,
        total_steps: int,
        folder: RunFolder,
        seed: int,
        states: Callable[[int, Extension], Checkpoint],
        writer: SummaryWriter | None,
        resumed: Checkpoint,
        on_best: Callable[[str, Mapping[str, Mapping[str, float]]], None] | None = None,
        on_the_way: Callable[[], float | None] = lambda: None,
        resume_from: str | Path | None = None,
        label: str = "train",
    ) -> None:
        self.state = trial
        self.config = trial.config
        self.total_steps = total_steps
        self.folder = folder
        self.seed = seed
        self.states = states
        self.writer = writer
        self.label = label
        self._on_best = on_best
        self._on_the_way = on_the_way
        self._resume_from = resume_from or folder.path
        self._end = total_steps
        self._saved: int | None = None  # step of the newest states-N.ckpt of this session
        self._stop = StopRequest(enabled=False)
        self.history: list[Record] = [dict(row) for row in resumed.extension.history]
        self._evaluation_due = resumed.extension.evaluation_due
        positions = resumed.extension.positions or [None]
        position = positions[distributed.rank() if len(positions) == distributed.world_size() else distributed.LEADER]
        self.batches = TrainingBatches(
            self._make_loader, position, epoch=resumed.epoch, group=self.config.group_by_length
        )

    @property
    def last_rows(self) -> dict[str, Record]:
        """The newest row of the history at the present step, by split."""
        return {row["split"]: row for row in self.history if row["step"] == self.state.step}

    @property
    def last_metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of the present step, by split; empty where it has not been scored."""
        return {split: _metrics(row) for split, row in self.last_rows.items()}

    def run(self, until: int | None = None) -> None:
        """Train until `total_steps`; on Ctrl-C or SIGTERM save the current step and raise StoppedByUser.

        Args:
            until: stop at this step before the end and save ``states-N.ckpt``; nothing else is different.
        """
        self._end = self.total_steps if until is None else min(until, self.total_steps)
        if until is not None and until > self.total_steps and distributed.is_leader():
            logger.warning("args.until=%d has no effect: the run ends at step %d before", until, self.total_steps)
        if distributed.is_leader():
            resume.set_aside_later(self.folder, self.state.step)
        if self.state.step >= self.total_steps:
            logger.info("nothing to train: the checkpoint is at step %d of %d", self.state.step, self.total_steps)
        with StopRequest() as self._stop:
            try:
                self._train_to_the_end()
            except Interrupted:
                self._save_interrupted()
            except Diverged as error:
                sound = self._last_sound()
                kept = f"{sound} is from before them and kept" if sound else "no checkpoint is from before them"
                raise Diverged(f"{str(error).removesuffix('.')}; {kept}.") from error
            if self._end < self.total_steps:
                if self._saved != self.state.step:
                    self._save([states_name(self.state.step)])
                self._stop_if_requested()

    def _last_sound(self) -> Path | None:
        """Return the newest ``states-N.ckpt`` that was saved after a step with a finite gradient."""
        found = reversed(self.folder.numbered())
        return next((path for path in found if not Checkpoint.read(path, mmap=True).extension.bad_steps), None)

    def score(self, split: str) -> dict[str, float]:
        """Return the metrics of a split at the present step, without an effect on what is saved as best.

        Every rank gets those of rank 0.
        """
        done = [row for row in self.history if row["step"] == self.state.step and row["split"] == split]
        with StopRequest() as self._stop:
            try:
                found = distributed.from_leader(lambda: _metrics(done[-1]) if done else self._score(split))
            except Interrupted:
                self._save_interrupted()
            self._stop_if_requested()
        return found

    def _stop_if_requested(self) -> None:
        """Handle a stop request that came after the last check."""
        if distributed.any_of(self._stop.requested):
            self._save_interrupted()

    def _score(self, split: str) -> dict[str, float]:
        with self._best_scores_kept(always=True):
            return self._evaluate(split).metrics

    def _train_to_the_end(self) -> None:
        leader = distributed.is_leader()
        progress = bar(total=self._end, initial=self.state.step, desc=self.label, disable=not leader)
        batches = iter(self.batches)
        with progress:
            ended = self.state.step >= self.total_steps
            unscored = ended and self.config.eval_dataloaders and not self.last_rows  # of a total_steps made shorter
            if self._evaluation_due or unscored:
                self._evaluate_and_save()
                self._evaluation_due = False  # not due any more either where a new total_steps moved the end
            while self.state.step < self._end:
                if distributed.any_of(self._stop.requested):
                    raise Interrupted
                if not self.state.train_step(self._one_step_of(batches)):
                    continue
                progress.update(1)
                if leader:
                    self._log_if_due()
                else:
                    self.state.clear_records()
                self._evaluate_and_save()

    def _one_step_of(self, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        for number in range(self.config.gradient_accumulate_steps):
            with self._stop.or_lost_worker(within_step=number > 0):
                batch = next(batches)
            yield self.batches.taken - 1, batch

    def _make_loader(self, epoch: int) -> Any:
        """Return the training DataLoader of an epoch."""
        return open_training(self.state.models.downstream, self.config.train_dataloader, epoch, self.seed)

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step >= self.total_steps

    def _log_if_due(self) -> None:
        if not self._due(self.config.log_step) or not self.state.batch_ids:
            return
        try:
            with printing():
                self.state.models.downstream.log_records(
                    self.config.train_dataloader,
                    records=self.state.records,
                    logger=self.writer,
                    global_step=self.state.step,
                    batch_ids=self.state.batch_ids,
                    total_batch_num=self.batches.batches_per_epoch,
                )
        except ZeroDivisionError:  # SF divides by the number of slots in the window
            logger.warning("step %d: no training metrics, the logged batches contain nothing to count", self.state.step)
        self.state.clear_records()

    def _evaluate_and_save(self) -> None:
        """Do what is due at this step; an interrupted evaluation has no effect and is due again on resume."""
        names: list[str] = []
        if self._due(self.config.eval_step):
            self._evaluation_due = True
            names += distributed.from_leader(self._evaluate_splits)
            self._evaluation_due = False
        if self._due(self.config.save_step):
            names.append(states_name(self.state.step))
        self._save(names)

    def _evaluate_splits(self) -> list[str]:
        """Score every evaluation split; return the names under which the task wants this model saved."""
        density = self._on_the_way()
        with self._best_scores_kept(always=density is not None):
            found = {split: self._evaluate(split) for split in self.config.eval_dataloaders}
        for split, scores in found.items():
            row = {"step": self.state.step, "split": split, "items": scores.items, "intervals": scores.intervals}
            row |= {} if density is None else {"density": density}
            self.history.append(row | scores.metrics)
        if density is not None:
            logger.info(
                "step %d: a density of %.4g, not yet that of the task file: not kept as the best",
                self.state.step,
                density,
            )
            return []
        return [name for scores in found.values() for name in scores.save_names]

    @contextmanager
    def _best_scores_kept(self, always: bool = False) -> Iterator[None]:
        """Put the task's memory of its best score back where an evaluation is interrupted, or `always`.

        A new one goes to the device of the old one: s3prl's tasks make it on the CPU, from where NCCL cannot share it.
        """
        expert = unwrapped(self.state.models.downstream)
        before = best_scores.remembered(expert)
        put_back = True
        try:
            yield
            put_back = always
        finally:
            if put_back:
                best_scores.put_back(expert, before)
            for name, value in best_scores.buffers(expert).items():
                setattr(expert, name, value.to(before[name].device) if name in before else value)

    def _evaluate(self, split: str) -> Scores:
        step, ratio = self.state.step, self.config.evaluate_ratio
        with self._stop.or_lost_worker():
            return evaluate(self.state.models, split, self.seed, ratio, self.writer, step, self._stop.check)

    def _save(self, names: list[str]) -> None:
        """Write the present state under each name, ``states-N.ckpt`` last: with it everything of its step is there."""
        if not names:
            return
        positions = distributed.gather(self.batches.position())
        if states_name(self.state.step) in names:
            self._saved = self.state.step
        if not distributed.is_leader():
            return
        extension = Extension(positions=positions, evaluation_due=self._evaluation_due, history=self.history)
        states = self.states(self.batches.epoch, extension).stored()
        for name in sorted(names, key=lambda name: step_of(Path(name)) is not None):
            path = self.folder.path / name
            checkpoint.save(states, path)
            if step_of(path) is not None:
                sound = self._last_sound() if self.state.bad_steps else None
                self.folder.remove_older(path, self.config.max_keep, sound)
            elif self._on_best is not None and self._is_best(name):
                self._on_best(name, self.last_metrics)
        logger.info("step %d: saved %s", self.state.step, ", ".join(str(self.folder.path / name) for name in names))

    def _is_best(self, name: str) -> bool:
        """Return whether this is the checkpoint that dev chooses; tasks may keep the best ones of other splits too."""
        return tasks.is_best(self.state.models.task, name, self.config.eval_dataloaders)

    def _save_interrupted(self) -> NoReturn:
        if self.state.step > 0:
            self._save([states_name(self.state.step)])
            hint = f"step {self.state.step} is saved; resume with -a, or with -m train -e {self._resume_from}"
        else:
            hint = "no step completed yet; rerun with -a"
        if not distributed.is_leader():
            raise StoppedByUser("interrupted together with rank 0.")
        raise StoppedByUser(f"interrupted: {hint}.")


def _metrics(row: Section) -> dict[str, float]:
    """Return the metrics in a row of a history."""
    return {key: value for key, value in row.items() if key not in NO_METRICS}
