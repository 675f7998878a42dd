"""The Runner that s3prl's ``run_downstream.py`` gets: trains, evaluates, runs inference."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from s3prl.downstream.runner import ModelEntry
from s3prl.downstream.runner import Runner as StockRunner

from s3prl_ext import locks, randomness, tracking
from s3prl_ext.child_tuning import masks
from s3prl_ext.configs import Record
from s3prl_ext.errors import UsageError, one_sentence_errors
from s3prl_ext.evaluation.diarization_scoring import predictions_sha256
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import distributed, last_hidden_state, upstream_settings
from s3prl_ext.training.batching.clip_store import announce
from s3prl_ext.training.batching.corpus_hash import CorpusHash
from s3prl_ext.training.batching.ranks import open_training
from s3prl_ext.training.builder import RunBuilder
from s3prl_ext.training.forward import unwrapped
from s3prl_ext.training.learnable_lambda import prepare_head_lambda
from s3prl_ext.training.methods import resolve_tuning
from s3prl_ext.training.racing.candidate_runs import CandidateRuns, draw, ended_at, read_record
from s3prl_ext.training.results import result_file
from s3prl_ext.training.results.evaluation import check_splits, checked_loader, evaluate
from s3prl_ext.training.results.provenance import ResourceUsage
from s3prl_ext.training.results.same_evaluation import WEIGHTS
from s3prl_ext.training.run import Experiment, Run
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.task_file import never_chosen_again
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)


class Runner(RunBuilder, StockRunner):
    """s3prl's Runner with our training loop; same constructor, modes, files and checkpoint keys."""

    # -- training --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to ``runner.total_steps``, evaluating and saving on the way and at the end."""
        leader, folder = distributed.is_leader(), RunFolder(self.args.expdir)
        with (
            one_sentence_errors(),
            locks.one_run(folder.path, active=leader),
            folder.removed_if_nothing_trained(active=leader),
        ):
            try:
                # a run that does not begin leaves the experiment that it would have replaced as it was
                with self._failures_recorded(active=leader and not self.replaces):
                    experiment, candidates = self._checked(folder)
                with self._failures_recorded(active=leader):
                    if leader:
                        if self.replaces:
                            folder.clear()
                        folder.remove_parts()
                    distributed.barrier()  # nobody takes masks from a folder that is being cleared
                    self._train(folder, experiment, candidates)
            finally:
                if dist.is_initialized():
                    dist.destroy_process_group()

    @contextmanager
    def _failures_recorded(self, active: bool) -> Iterator[None]:
        with (
            result_file.failures_recorded(self.args, self.config, active=active, corpus=self.corpus),
            distributed.lost_ranks_named(),
        ):
            yield

    def _checked(self, folder: RunFolder) -> tuple[Experiment, CandidateRuns | None]:
        """Return what trains, and for a race its candidates, once the data and the section ``early_stop`` fit them.

        Nothing is written before, nor is anything of an experiment that this one replaces removed.
        """
        spent = ResourceUsage(folder, self.resumed)
        check_splits(self.models.unwrapped(), self._splits())
        if self.candidate is not None and not self.replaces:
            read_record(folder)  # a corrupt one is reported before anything is trained
        self.announce_cache([self.runner_config.train_dataloader, *self._splits()])
        self._warn_of_a_part(self.runner_config.eval_dataloaders)
        self.total_steps = self.runner_config.total_steps or self._steps_of_epochs(self.runner_config.epochs)
        self._check_choices()
        experiment = self._experiment(spent)
        return experiment, self._candidate_runs(experiment) if self.racing else None

    def _train(self, folder: RunFolder, experiment: Experiment, candidates: CandidateRuns | None) -> None:
        """Train the experiment, after the race of its candidates where there are several; write what it measured."""
        if candidates is not None:
            self._race(candidates)
        leader, writer = distributed.is_leader(), None
        try:
            writer = tracking.open_writer(folder.path, self.args, self.config) if leader else None
            name = self.candidate.name if self.candidate else None
            run = Run(experiment, self.tuning, folder, self.resumed, writer, name)
            self.child = run.child
            first_step, loop_started = run.state.step, time.monotonic()
            if self.until is not None and run.state.step > self.until:
                raise UsageError(
                    f"{folder.path} is at step {run.state.step} already, past args.until={self.until}, and cannot "
                    "be scored there any more: train it again in another folder, or delete this one first."
                )
            run.trainer.run(self.until)
            if run.state.step < self.total_steps:
                self._stop(run, experiment.spent)
            elif leader:
                per_step = (time.monotonic() - loop_started) / max(1, run.state.step - first_step)
                self._finish(run, first_step, experiment.spent, per_step)
        finally:
            if writer is not None:
                writer.close()

    def _splits(self) -> list[str]:
        """Return the splits that must not be empty: those that are scored, and before a race that of training."""
        splits = [self.runner_config.train_dataloader] if self.racing else []
        splits += self.runner_config.eval_dataloaders
        if self.early_stop is not None and self.early_stop.split not in (None, *splits):
            splits.append(str(self.early_stop.split))
        return splits

    def _stop(self, run: Run, spent: ResourceUsage) -> None:
        """Score a run where it stops on the way (``args.until``), without an effect on how it goes on."""
        scores = {split: run.trainer.score(split) for split in self.runner_config.eval_dataloaders}
        if distributed.is_leader():
            result_file.write_stop(
                self.args, self.config, scores, run.state.step, spent.seconds, self.corpus,
                **self._upstream_facts(), **self._changed(),
            )  # fmt: skip

    def announce_cache(self, splits: Sequence[str]) -> None:
        """Say before the start how much room the files of some splits take, which the task must have."""
        if self.clip_store is None or not distributed.is_leader():
            return
        with randomness.preserved():
            loaders = (checked_loader(self.models.unwrapped(), split) for split in dict.fromkeys(splits))
            announce(self.clip_store, loaders, padded=self.runner_config.cache == "extractor")

    def _finish(self, run: Run, first_step: int, spent: ResourceUsage, seconds_per_step: float) -> None:
        """Write what the run measured; nothing where that was done already."""
        folder = RunFolder(self.args.expdir)
        if run.trainer.history and not folder.best():
            logger.warning(
                "no best checkpoint%s: none of the %d evaluations %s; use %s/states-%d.ckpt, which has the last step",
                "" if self.upstream.trainable and not self.tuned.is_small else " and no delta.safetensors",
                len(run.trainer.history),
                "is better than the best before the step from which the run went on, whose checkpoint is gone"
                if folder.was_left()
                else "beat the initial score (accuracy 0, word error rate 100 %)",
                self.args.expdir, run.state.step,
            )  # fmt: skip
        record = read_record(folder) if self.candidate else None
        if record is not None:
            planned, record = record, ended_at(record, run.state.step)
            if record != planned:
                write_json(folder.race_record, record)
            draw(folder, record, run.trainer.history, self.args.downstream)
        scored = len(run.trainer.history) > len(self.resumed.extension.history)
        if scored or run.state.step > first_step or result_file.step_of(folder.result()) != run.state.step:
            per_step = round(seconds_per_step, 4) if run.state.step > first_step else None
            rows = run.trainer.last_rows
            self._write_result(
                run.trainer.last_metrics, run.state.step, spent.seconds, peak_memory=spent.peak_memory,
                intervals={split: row.get("intervals") or {} for split, row in rows.items()},
                items={split: row.get("items") for split, row in rows.items()},
                history=run.trainer.history, race=record, seconds_per_step=per_step,
                kept=[path.name for path in folder.best()],
            )  # fmt: skip

    def _experiment(self, spent: ResourceUsage | None = None) -> Experiment:
        """Return what the runs of this experiment share."""
        data = self.data
        if data is not None:
            splits = self._own_splits_sha256 or result_file.splits_sha256(self.args, self.corpus)
            data = CorpusHash(**data, splits_sha256=splits)
        return Experiment(
            self.args, self.config, self._variables, self.runner_config, self.total_steps, self.all_entries, self.tuned,
            spent or ResourceUsage(RunFolder(self.args.expdir), self.resumed), data=data, cache=self.cache,
            changed_settings=self.changed_settings, begins_with=self.begins_with,
        )  # fmt: skip

    def _candidate_runs(self, experiment: Experiment) -> CandidateRuns:
        """Return the candidates of a race, ready to run it."""
        assert self.early_stop is not None
        runs = CandidateRuns(
            experiment,
            self.resumed.extension.race_start,
            lambda c: resolve_tuning(self.config, c.tuning),
            self._prepare_candidate,
        )
        runs.enter(self.early_stop, self.task_file.candidates)
        return runs

    def _race(self, runs: CandidateRuns) -> None:
        """Race the candidates; the models and the checkpoint are then those of the winner."""
        winner = runs.race()
        self.resumed = runs.promote(winner)
        self.candidate = winner
        self.tuning = resolve_tuning(self.config, winner.tuning)

    def _prepare_candidate(self, tuning: TuningConfig) -> None:
        """Make the upstream, which is as it was built, ready for a candidate."""
        module = self.tuned.model
        trainable = self._ready(module, tuning)
        prepare_head_lambda(unwrapped(self.downstream.model), tuning)
        self.upstream = self._entry(module, "Upstream", trainable, self.upstream.interfaces, tuning)
        self.all_entries[0] = self.upstream

    def _check_choices(self) -> None:
        """Check when child networks are chosen again, now that the steps are known, also those before a resume."""
        tunings = self.task_file.tunings if self.racing else [self.tuning] if self.tuning is not None else []
        if self.runner_config.total_steps is None and distributed.is_leader():
            for remark in never_chosen_again(tunings, self.total_steps):
                logger.warning("%s", remark)
        for tuning in tunings:
            earlier = self._earlier_lengths() if tuning.last_choice(self.total_steps) < self.resumed.step else []
            tuning.check_length(self.total_steps, earlier)

    def _earlier_lengths(self) -> list[int]:
        """Return the lengths that this run had before it was resumed with another one."""
        changed = [row["settings"] for row in self.changed_settings]
        steps = [length for row in changed for length in row.get("runner.total_steps", ()) if length]
        epochs = [length for row in changed for length in row.get("runner.epochs", ()) if length]
        return [*map(int, steps), *map(self._steps_of_epochs, epochs)]

    def _steps_of_epochs(self, epochs: float | None) -> int:
        batches = len(open_training(self.downstream.model, self.runner_config.train_dataloader)) * (epochs or 0)
        return max(1, int(batches // self.runner_config.gradient_accumulate_steps))

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
        """Score one split; without arguments the split of ``-t``, whose metrics are written to ``result.json``."""
        with one_sentence_errors(), ExitStack() as stack:
            from_command_line = split is None
            split = split or self._evaluate_split()
            started = time.monotonic()
            writes = from_command_line and distributed.is_leader()
            if from_command_line:
                self.announce_cache([split])
                self._warn_of_a_part([split])
            stack.enter_context(locks.evaluation(self.args.expdir, active=writes))
            with result_file.failures_recorded(self.args, self.config, split, writes, self.corpus):
                scores = evaluate(
                    self.models, split, self.args.seed, self.runner_config.evaluate_ratio, logger, global_step
                )
            if from_command_line:
                self._write_result(
                    {split: scores.metrics}, self.resumed.weights_step, time.monotonic() - started,
                    intervals={split: scores.intervals}, items={split: scores.items},
                )  # fmt: skip
                if writes:
                    named = {f"{split}/{metric}": value for metric, value in scores.metrics.items()}
                    tracking.log_scores(Path(self.args.expdir), self.args, named, self.resumed.weights_step)
            return scores.save_names

    def _warn_of_a_part(self, splits: Sequence[str]) -> None:
        """Say that scores are not those of whole splits."""
        ratio = self.runner_config.evaluate_ratio
        if splits and ratio < 1 and distributed.is_leader():
            logger.warning(
                "runner.evaluate_ratio is %g: only that share of the batches of '%s' is scored; -o "
                "config.runner.evaluate_ratio=1 scores all", ratio, "', '".join(splits),
            )  # fmt: skip

    def _write_result(self, metrics: dict[str, dict[str, float]], step: int, seconds: float, **more: Any) -> None:
        counts = {entry.name: self._trainable(entry) for entry in self.all_entries}
        facts: Record = {
            "candidate": self.candidate.name if self.candidate else None,
            **self._upstream_facts(),
            "begins_with": self.begins_with,
            "processes": self._processes(),
            "predictions_sha256": predictions_sha256(Path(self.args.expdir))
            if self._wrote_predictions(metrics)
            else None,
            "task": getattr(unwrapped(self.downstream.model), "facts", None),
            last_hidden_state.KEY: last_hidden_state.result_of(unwrapped(self.upstream.model), RunSpec.of(self.args)),
        }
        facts |= self._changed()
        if self.args.mode == "evaluate":
            facts[WEIGHTS] = self.resumed.weights_sha256
        if self.resumed.extension.merged_tasks:
            facts["merged_tasks"] = self.resumed.extension.merged_tasks
        result_file.write(
            self.args, self.config, metrics, step, seconds, counts, self.merge_record, corpus=self.corpus, **facts,
            **more
        )  # fmt: skip

    def _upstream_facts(self) -> Record:
        """Return by what the untouched upstream is known in files with scores."""
        return {"upstream_sha256": self.tuned.base_sha256, upstream_settings.KEY: self.tuned.settings or None}

    def _changed(self) -> Record:
        """Return the entry of a result file that says with which other settings the run was resumed, if it was."""
        return {"changed_settings": self.changed_settings} if self.changed_settings else {}

    def _processes(self) -> int | None:
        """Return how many processes trained what is scored; None where that is not known or nothing was trained."""
        if self.args.mode == "train":
            return distributed.world_size()
        return self.resumed.processes or (1 if self.resumed.is_ours and self.resumed.step else None)

    def _wrote_predictions(self, splits: Collection[str]) -> bool:
        """Tell whether this evaluation wrote a file for each recording; diarization does so for test alone."""
        asked = getattr(unwrapped(self.downstream.model), "save_predictions", False)
        return bool(asked) and self.args.mode == "evaluate" and "test" in splits and distributed.is_leader()

    def _trainable(self, entry: ModelEntry) -> int:
        if entry.name == "Upstream" and self.tuned.indices:
            return masks.count(self.tuned.indices)
        return sum(p.numel() for p in entry.model.parameters() if p.requires_grad) if entry.trainable else 0

    def _evaluate_split(self) -> str:
        """Return the split of ``-t``; its default ``test`` means ``test-clean`` where only that exists (ASR)."""
        split = self.args.evaluate_split
        datarc = self.config["downstream_expert"].get("datarc", {})
        reported = self.models.task.test
        return reported if split == "test" and "test" not in datarc and reported in datarc else split

    def inference(self) -> None:
        """Run the task's inference on the audio file given by ``-t``."""
        with one_sentence_errors():
            if not Path(self.args.evaluate_split).is_file():
                raise UsageError(f"no such audio file: {self.args.evaluate_split} (-t names the file to transcribe).")
            if not hasattr(self.downstream.model, "inference"):
                raise UsageError(f"the task '{self.args.downstream}' has no inference in s3prl.")
            super().inference()
