"""Score the arms of a sweep one after another on one set of models; choose on dev, report on test."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext import randomness
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.metrics import METRICS, Metric, metric
from s3prl_ext.progress import bar
from s3prl_ext.sweeps.fingerprint import data_sha256
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group, arm_folders, arm_name, arms_in_order, printed_by
from s3prl_ext.sweeps.selection import choose_lambda, summarize
from s3prl_ext.sweeps.store import PLOT, TABLE, Store
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.tasks import Task
from s3prl_ext.training.distributed import Interrupted, StopRequest
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.results.evaluation import Scores, check_splits, evaluate, open_split
from s3prl_ext.training.results.task_output import quietly_into

logger = logging.getLogger(__name__)


@dataclass
class Sweep:
    """A sweep over merges of one target.

    Attributes:
        task: how the task is judged.
        models: upstream, featurizer and downstream; the upstream is the unmerged target before and after.
        weights: sets the upstream to an arm.
        groups: what is compared.
        store: results so far.
        folder: gets what the task writes for each arm, such as transcripts.
        dev: split that chooses lambda.
        test: split that is reported; None to leave it out.
        seed: of every evaluation.
        ratio: share of a split's batches that is scored.
        metric_name: metric that is compared; None takes the task's main one.
        test_all: score every arm on test.
        anew: remove results of an earlier sweep, its table and picture, and what its arms have written, before the
            first is scored.
        part: this process scores only every N-th arm on dev, of (number, N); None for all.
        others: lets other processes score the arms on dev, and takes their results into the store; it calls its
            argument now and then, which ends it after Ctrl-C. None for none.
        paper: corpus of the MAM paper: arms for which it prints a figure are scored on test too; None for none.
    """

    task: Task
    models: TaskModels
    weights: ArmWeights
    groups: Sequence[Group]
    store: Store
    folder: Path
    dev: str
    test: str | None
    seed: int
    ratio: float = 1.0
    metric_name: str | None = None
    test_all: bool = False
    anew: bool = False
    paper: str | None = None
    part: tuple[int, int] | None = None
    others: Callable[[Callable[[], None]], None] | None = None

    def run(self) -> list[dict[str, Any]]:
        """Score what is missing and return the summary, one row per group; the model gets its own weights back.

        Raises:
            UsageError: lambda would be chosen on the split that is reported, the task lacks a split or the metric, or
                the data are others than those of earlier results; all of these before anything is scored.
            StoppedByUser: Ctrl-C or SIGTERM; everything scored so far is kept.
        """
        if self.metric_name is not None:
            metric(self.metric_name)
        self._check_choice()
        check_splits(self.models, self.splits)
        self._check_metric()
        for split in self.splits:
            self.store.check_data(split, self._data_sha256(split))
        if self.anew:
            if self.folder.is_dir():
                shutil.rmtree(self.folder)
            for name in (TABLE, PLOT):
                (self.store.path.parent / name).unlink(missing_ok=True)
            self.store.write()  # without the earlier results, even where nothing is scored after this
        try:
            with StopRequest() as stop:
                self._score([BASELINE], self.dev, stop)
                self._choose_metric(list((self.store.get(BASELINE, self.dev) or {"metrics": ()})["metrics"]))
                if self.others is not None:
                    self.others(stop.check)
                number, of = self.part or (0, 1)
                self._score(arms_in_order(self.groups)[number::of], self.dev, stop)
                if self.test and self.part is None:
                    self._score(self._arms_for_test(), self.test, stop)
        except Interrupted:
            kept = f"{len(self.store.content['results'])} results are kept in {self.store.path}"
            if self.others is not None:  # those of the processes are in files of their own
                kept = f"what was scored is kept in {self.store.path.parent}"
            again = "again without --overwrite" if self.anew else "again"
            raise StoppedByUser(f"stopped: {kept}; give the same command {again} to go on.") from None
        finally:
            self.weights.restore()
        if self.part is not None:
            return []
        rows = summarize(self.groups, self.dev, self.test, self.metric, self.lookup)
        name = str(self.metric_name)
        facts = {"name": name, "unit": self.metric.unit, "higher_is_better": self.metric.higher_is_better}
        self.store.write(metric=facts, dev=self.dev, test=self.test, summary=rows)
        return rows

    def missing_on_dev(self) -> list[Arm]:
        """Return the arms that have no result on dev yet, in the order in which they are scored."""
        return [arm for arm in arms_in_order(self.groups) if self.store.get(arm, self.dev) is None]

    @property
    def splits(self) -> list[str]:
        """The splits that are scored."""
        return [self.dev, *([self.test] if self.test else [])]

    @property
    def metric(self) -> Metric:
        """Direction and unit of the metric that is compared."""
        return metric(str(self.metric_name))

    def lookup(self, arm: Arm, split: str) -> tuple[float, tuple[float, float] | None] | None:
        """Return the value of the metric of an arm on a split with its interval, or None where it was not scored."""
        result = self.store.get(arm if arm.lambda_ else BASELINE, split)
        if result is None:
            return None
        name = str(self.metric_name)
        bounds = result["intervals"].get(name)
        return numbers(result["metrics"])[name], (bounds[0], bounds[1]) if bounds else None

    def _check_choice(self) -> None:
        """Refuse to choose lambda on the split that is reported; warn where it is the one that the task reports."""
        if self.dev == self.test:
            raise UsageError(
                f"lambda is chosen on the split '{self.dev}' and would be reported on it too: name another one with "
                "--dev or --test, or leave the report out with --test none."
            )
        if self.dev == self.task.test:
            logger.warning(
                "lambda is chosen on %s, the split that the task reports, so that the scores of the chosen arms there "
                "are too good: choose on %s with --dev", self.dev, self.task.dev,
            )  # fmt: skip

    def _check_metric(self) -> None:
        """Refuse a metric that the task does not report; one batch is enough to know."""
        if self.metric_name is None or self.store.get(BASELINE, self.dev) is not None:
            return
        with (
            tempfile.TemporaryDirectory() as elsewhere,
            quietly_into(self.models.downstream, self.task, Path(elsewhere)),
        ):
            try:
                reported = evaluate(self.models, self.dev, self.seed, ratio=1e-9).metrics
            except DataError:  # nothing to count in this batch (SF: no slot)
                return
        self._choose_metric(list(reported))

    def _choose_metric(self, names: Sequence[str]) -> None:
        """Take the task's main metric unless one was asked for, which must be among those that it reports."""
        reported = [name for name in names if name in METRICS]
        if self.metric_name is None:
            self.metric_name = self.task.main_metric(reported)
        if self.metric_name not in reported:
            asked = f"the metric '{self.metric_name}'" if self.metric_name else "a metric of known direction"
            raise UsageError(f"the task does not report {asked}: choose with --metric among {', '.join(reported)}.")

    def _arms_for_test(self) -> list[Arm]:
        if self.test_all:
            return arms_in_order(self.groups)
        chosen = {(group, choose_lambda(group, self.dev, self.metric, self.lookup)) for group in self.groups}
        wanted = {arm for group, lambda_ in chosen for arm in group.arms(lambda_)} | {BASELINE}
        wanted |= {arm for group, lambda_ in printed_by(self.paper, self.groups) for arm in group.arms(lambda_)}
        return [arm for arm in arms_in_order(self.groups) if arm in wanted]

    def _score(self, arms: Sequence[Arm], split: str, stop: StopRequest) -> None:
        """Score the arms that have no result yet; each result is stored at once."""
        missing = [arm for arm in arms if self.store.get(arm, split) is None]
        folders = arm_folders(self.groups, self.store.folders)
        progress = bar(missing, desc=split, unit="arm", disable=not missing)
        for arm in progress:
            stop.check()
            progress.set_description(f"{split}: {self.name(arm)}")
            self.weights.check_in([self.models.upstream, self.models.downstream])
            self.weights.apply(arm)
            started = time.monotonic()
            with (
                stop.or_lost_worker(),
                quietly_into(self.models.downstream, self.task, self.folder / folders[arm]),
            ):
                scores = evaluate(self.models, split, self.seed, self.ratio, check_stop=stop.check)
            seconds = round(time.monotonic() - started, 3)
            self.store.add(arm, split, _result(scores) | {"folder": folders[arm], "seconds": seconds})

    def name(self, arm: Arm) -> str:
        """Return what to call an arm, such as ``12-19 noise source draw 2 lambda 0.1``."""
        return arm_name(arm, self.groups)

    def _data_sha256(self, split: str) -> str:
        with randomness.preserved(self.seed):
            loader = open_split(self.models.downstream, split)
            return data_sha256(bar(loader, desc=f"reading {split}", leave=False))


def _result(scores: Scores) -> dict[str, Any]:
    metrics = {name: value for name, value in scores.metrics.items() if not name.endswith(("_low", "_high"))}
    intervals = {name: list(both) for name, both in scores.intervals.items()}
    return {"metrics": metrics, "intervals": intervals, "items": scores.items}
