"""Racing candidates on one model: each starts from the same point, trains in its own folder, and is put away again."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from s3prl_ext import randomness, tracking
from s3prl_ext.child_tuning.names import PASS_MASKS
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.plots import STYLES, Curve, plot_curves
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.merging.learnable import loadable_state
from s3prl_ext.metrics import factor, heading
from s3prl_ext.randomness import RandomState
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import RunFolder, states_name
from s3prl_ext.training import best_scores, checkpoint, distributed
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.forward import unwrapped
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.racing.candidates import Candidate, shares_masks
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from s3prl_ext.training.racing.race import Race, judged_by
from s3prl_ext.training.results.evaluation import evaluate
from s3prl_ext.training.results.task_output import quietly_into, write_into
from s3prl_ext.training.run import Experiment, Run
from s3prl_ext.training.selection.fisher_batches import open_batches
from s3prl_ext.training.train_state import Diverged
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.training.upstream_settings import check_settings

logger = logging.getLogger(__name__)


class CandidateRuns:
    """The candidates of a race as runs of one experiment, one after another on the same models.

    Between two candidates the upstream is put back to its pre-trained weights by the few entries that changed, head
    and featurizer to their first values, and the random states to those of the start.

    Args:
        experiment: models and settings; the models are as before the first step.
        start: random states of the start; None = the present ones.
        section: makes the section ``tuning`` of a candidate.
        prepare: makes the upstream ready for a section ``tuning``.
    """

    def __init__(
        self,
        experiment: Experiment,
        start: RandomState | None,
        section: Callable[[Candidate], TuningConfig],
        prepare: Callable[[TuningConfig], None],
    ) -> None:
        self.experiment = experiment
        self.start = randomness.get_state() if start is None else start
        self._section = section
        self._prepare = prepare
        self._heads = [
            {name: value.detach().cpu().clone() for name, value in unwrapped(entry.model).state_dict().items()}
            for entry in experiment.entries[1:]
        ]
        self._best_scores = best_scores.attributes(self._expert)

    def enter(self, config: EarlyStopConfig, candidates: Sequence[Candidate]) -> None:
        """Enter candidates for a race and check that it can be run; nothing is written.

        Raises:
            UsageError: the task does not report the metric of the comparison, or a rung is not below the end.
            DataError: the split of the comparison, or what a pass for the masks reads, is empty.
        """
        config.check_length(self.experiment.total_steps)
        self._config, self._candidates = config, list(candidates)
        self._split = self._choosing_split()
        self._reported = distributed.from_leader(lambda: self._metrics_of_the_task(config.metric))
        self._announced = self._passes()

    def _choosing_split(self) -> str:
        """Return the split of the comparison; warn where it is the task's test.

        The one that is named, else the task's dev where it is scored, else the first that is.
        """
        task, scored = self.experiment.models.task, self.experiment.runner_config.eval_dataloaders
        split = self._config.split or (task.dev if task.dev in scored else scored[0])
        if split == task.test and distributed.is_leader():
            logger.warning(
                "the candidates are compared on %s, the split that is reported, so that its score is too good: add %s "
                "to runner.eval_dataloaders, or name another split as early_stop.split", split, task.dev,
            )  # fmt: skip
        return split

    def race(self) -> Candidate:
        """Run the race of those that were entered; return its winner, whose files are still in its own folder."""
        if distributed.is_leader():
            self._save_start(self._folder)
        race = Race(
            self._config, self._candidates, self.experiment.total_steps, self._folder,
            self.experiment.models.task, self._advance, self._split, self._announced,
        )  # fmt: skip
        distributed.barrier()  # before a score of this race is written, every rank has read those of an earlier session
        winner = race.choose()
        distributed.barrier()
        return winner

    def _metrics_of_the_task(self, wanted: str | None) -> list[str]:
        """Return the names of the metrics that the task reports, `wanted` among them; one batch is enough to know."""
        experiment = self.experiment
        with (
            tempfile.TemporaryDirectory() as elsewhere,
            quietly_into(self._expert, experiment.models.task, Path(elsewhere)),
        ):
            reported = evaluate(experiment.models, self._split, experiment.args.seed, ratio=1e-9).metrics
        judged_by(wanted, experiment.models.task, list(reported))
        return list(reported)

    def _passes(self) -> str:
        """Say what the passes that choose masks take; nothing where there are none."""
        scored = [c for c in self._candidates if METHODS[self._section(c).method].has_mask]
        scored = [c for c in scored if not self._section(c).trains_all and self._section(c).mask in PASS_MASKS]
        choices = [self._section(c) for c in scored if self._alike(c, scored)[0] is c]
        batches = [self._batches(tuning) for tuning in choices if tuning.has_pass]
        steps = [tuning.lottery.steps for tuning in choices if tuning.mask == "lottery"]
        said = []
        if batches:
            number = "a Fisher pass" if len(batches) == 1 else f"{len(batches)} Fisher passes"
            said.append(f"{number} of {' + '.join(map(str, batches))} batches")
        if steps:
            said.append(f"a dense phase of {' + '.join(map(str, steps))} steps")
        return " and ".join(said)

    def _batches(self, tuning: TuningConfig) -> int:
        """Return how many batches a Fisher pass takes."""
        experiment = self.experiment
        with randomness.preserved():
            downstream, seed = unwrapped(experiment.models.downstream), experiment.args.seed
            return len(open_batches(downstream, experiment.runner_config.train_dataloader, tuning.fisher, seed))

    @property
    def _expert(self) -> nn.Module:
        """The task, whose files go to the folder of the candidate that trains."""
        return unwrapped(self.experiment.entries[2].model)

    @property
    def _folder(self) -> RunFolder:
        """The folder of the experiment."""
        return RunFolder(self.experiment.args.expdir)

    def _save_start(self, folder: RunFolder) -> None:
        """Write ``states-0.ckpt``, from which an interrupted race is resumed."""
        if folder.numbered():
            return
        experiment = self.experiment
        entries = zip(experiment.entries[1:], self._heads)
        start = Checkpoint(
            args=experiment.args,
            config=experiment.variables.restored(experiment.config),
            weights={entry.name: head for entry, head in entries if entry.trainable},
            processes=distributed.world_size() if distributed.active() else 0,
            extension=replace(experiment.shared_facts, race_start=self.start),
        )
        checkpoint.save(start.stored(), folder.path / states_name(0))

    def _advance(self, candidate: Candidate, folder: RunFolder, step: int, label: str) -> dict[str, float]:
        """Train a candidate from its latest checkpoint up to a step; return its metrics there.

        Every metric of a candidate that diverged is NaN.
        """
        self._reset()
        write_into(self._expert, self.experiment.models.task, folder.path)
        tuning = self._section(candidate)
        self._share_masks(candidate)
        self._prepare(tuning)
        latest = folder.latest()
        resumed = Checkpoint() if latest is None else Checkpoint.read(latest)
        if not METHODS[tuning.method].has_mask or tuning.trains_all:
            self.experiment.tuned.remember_trainable()  # a child network remembers its own entries
        if resumed:
            self._load(resumed)
        experiment = self.experiment
        leader = distributed.is_leader()
        writer = tracking.open_writer(folder.path, experiment.args, experiment.config) if leader else None
        try:
            run = Run(self.experiment, tuning, folder, resumed, writer, candidate.name, label)
            run.trainer.run(until=step)
            return run.trainer.score(self._split)
        except Diverged as error:
            logger.warning("%s is out of the race: %s", candidate.name, error)
            return dict.fromkeys(self._reported, math.nan)
        finally:
            if writer is not None:
                writer.close()

    def _alike(self, candidate: Candidate, among: Sequence[Candidate] = ()) -> list[Candidate]:
        """Return the candidates, all or some of them, whose masks come from the same choice as this one's."""
        return [other for other in among or self._candidates if shares_masks(other.tuning, candidate.tuning)]

    def _mask_folder(self, candidate: Candidate) -> RunFolder:
        """Return the folder of a candidate's masks.

        The experiment's, or where there are several choices of their own.
        """
        first = self._alike(candidate)[0]
        child = [one for one in self._candidates if METHODS[self._section(one).method].has_mask]
        alone = all(shares_masks(one.tuning, first.tuning) for one in child)
        return self._folder if alone else self._folder.candidate(first.name)

    def _share_masks(self, candidate: Candidate) -> None:
        # where all eligible weights train there is no choice
        alike = [other for other in self._alike(candidate) if not self._section(other).trains_all]
        self.experiment.densities = tuple(sorted({self._section(c).first_density for c in alike}, reverse=True))
        self.experiment.masks = self._mask_folder(candidate)
        self.experiment.masks.path.mkdir(parents=True, exist_ok=True)
        self.experiment.masks_in_use = any(self._folder.candidate(c.name).numbered() for c in alike)

    def _reset(self) -> None:
        experiment = self.experiment
        experiment.tuned.revert()
        experiment.tuned.check_untouched()
        for entry, head in zip(experiment.entries[1:], self._heads):
            unwrapped(entry.model).load_state_dict(head)
        best_scores.put_back(self._expert, self._best_scores)
        randomness.set_state(self.start)

    def _load(self, ckpt: Checkpoint) -> None:
        experiment = self.experiment
        if not ckpt.holds_upstream:
            experiment.tuned.check_base(ckpt.extension.upstream_sha256, str(ckpt.path))
        check_settings(ckpt.extension.upstream_settings, experiment.tuned.settings, str(ckpt.path))
        if ckpt.changes is not None:
            experiment.tuned.load(ckpt.changes, str(ckpt.path))
        elif ckpt.upstream:
            module = unwrapped(experiment.entries[0].model)
            checkpoint.load_into(module, loadable_state(module, ckpt.upstream), "upstream", ckpt.path)
        for entry in experiment.entries[1:]:
            if entry.name in ckpt.weights:
                checkpoint.load_into(unwrapped(entry.model), ckpt.weights[entry.name], entry.name.lower(), ckpt.path)

    # -- the winner ------------------------------------------------------------------------------------------------

    def promote(self, winner: Candidate) -> Checkpoint:
        """Make the winner's run the experiment's: copy its files, reset the models, and return its checkpoint.

        The last thing written is its ``states-N.ckpt``, so an interruption before that repeats the copying alone.
        """
        folder, latest = self._folder, self._folder.candidate(winner.name).numbered()[-1].name
        if distributed.is_leader():
            folder.adopt(
                folder.candidate(winner.name), self.experiment.runner_config.max_keep, self._mask_folder(winner).masks
            )
        distributed.barrier()
        write_into(self._expert, self.experiment.models.task, folder.path)
        self._reset()
        self._prepare(self._section(winner))
        ckpt = Checkpoint.read(folder.path / latest)
        self._load(ckpt)
        return ckpt


def read_record(folder: RunFolder) -> Record | None:
    """Return what ``race/race.json`` holds, or None where there was no race.

    Raises:
        DataError: it is corrupt.
    """
    path = folder.race_record
    if not path.is_file():
        return None
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        for rows in record["scores"].values():
            [(int(step), row[record["metric"]]) for step, row in rows.items()]
        [record[key] + "" for key in ("chosen", "split", "metric")]
        [int(record["cut"]), len(record["entrants"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is corrupt ({type(error).__name__}: {str(error)[:80]}): restore it from a copy, or delete it; the "
            "run then continues without the record of its race."
        ) from error
    return record


def ended_at(record: Record, step: int) -> Record:
    """Return the record of a finished race with the steps that all candidates took when its winner is at `step`.

    A run that is lengthened or shortened afterwards trains the winner to another step than the race was planned for.
    """
    spent = sum(max(map(int, rows), default=0) for rows in record["scores"].values())
    return {**record, "steps_of_all_candidates": spent + max(0, step - record["cut"])}


def curves_of(folder: RunFolder, record: Section, history: Sequence[Section]) -> list[Curve]:
    """Return one curve per candidate: its scores in the race and all its other evaluations on the same split.

    Args:
        folder: of the experiment.
        record: see :meth:`s3prl_ext.training.racing.Race.record`.
        history: evaluations of the winner, see :class:`s3prl_ext.training.trainer.Trainer`.
    """
    curves, metric = [], record["metric"]
    for name, scores in record["scores"].items():
        values = {int(step): numbers(row)[metric] for step, row in scores.items()}
        rows: list[Section] = list(history) if name == record["chosen"] else []
        latest = folder.candidate(name).latest()
        if latest is not None:
            rows += Checkpoint.read(latest, mmap=True).extension.history
        values |= {row["step"]: row[metric] for row in rows if row["split"] == record["split"] and metric in row}
        steps = sorted(values)
        label = name + (" (chosen)" if name == record["chosen"] else "")
        curves.append(Curve(label, steps, [values[step] for step in steps]))
    return curves


def draw(folder: RunFolder, record: Section, history: Sequence[Section], task: str) -> None:
    """Draw the candidates' curves with the steps of the comparisons into ``race.png`` (as in AD-TUNING, Fig. 3)."""
    if len(record["entrants"]) > len(STYLES):
        logger.warning("%d candidates are too many for one picture; see race.json", len(record["entrants"]))
        return
    times = factor(record["metric"])
    curves = [
        Curve(one.label, one.steps, [times * value for value in one.values])
        for one in curves_of(folder, record, history)
    ]
    steps = [one["step"] for one in record.get("comparisons", [])] or [record["cut"]]
    rule = f"successive halving, η {record['eta']:g}" if "rungs" in record else "AD-TUNING"
    plot_curves(
        curves,
        folder.race_picture,
        f"{task}: race of {len(curves)} candidates ({rule}), one seed",
        f"{record['split']} {heading(record['metric'])}",
        cut=(f"comparison at step {', '.join(map(str, steps))}", *steps),
    )
