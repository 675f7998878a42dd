"""SUPERB's line: all tasks of one upstream, one number each, of some two, and one for each set of a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from s3prl_ext.child_tuning.names import OF_THE_TASK
from s3prl_ext.evaluation.diarization_scoring import SuperbScore
from s3prl_ext.evaluation.merge_facts import MERGE
from s3prl_ext.evaluation.result_rows import Row, name_rows, part_of_a_split, rows_of
from s3prl_ext.evaluation.result_tables import number
from s3prl_ext.evaluation.scored_runs import CHECKPOINT, UPSTREAM, ScoredRun, main_metric_of, on_dev
from s3prl_ext.metrics import heading, metric, shown_unit
from s3prl_ext.tables import NOTHING, Table
from s3prl_ext.tasks import TASKS, known, named, reported_splits

# What makes a line: the model, its features and how it is tuned, not what a task file sets.
MODEL = (*UPSTREAM, "upstream_settings", "method", "race", *MERGE)
FEATURES = "features"
SEARCHED = "lr"  # end of the names of what is searched for each task: learning rates


class Column(NamedTuple):
    """A figure of SUPERB's line: task, set of it (empty where it has one alone) and metric."""

    task: str
    part: str
    metric: str

    @property
    def heading(self) -> str:
        """Its head, such as ``ASR WER (%) ↓``."""
        return " ".join(filter(None, (self.task.upper(), self.part, heading(self.metric))))


def superb_table(
    runs: Sequence[ScoredRun], diarization: Mapping[str, SuperbScore], split: str | None = None
) -> Table | None:
    """Return the table with a line for each model that two or more of SUPERB's tasks, or diarization, were scored with.

    None where there is no such model.

    Of several configurations of one model and task (a search of learning rates) the one that is best on dev counts.

    Args:
        runs: of all tasks and splits; those on dev choose.
        diarization: SUPERB's scores of diarization runs by the file that a run comes from.
        split: the one test split that is shown; None for that of each task.
    """
    shown = [task for task in known() if task in TASKS or any(run.task == task.name for run in runs)]
    columns = [Column(task.name, *column) for task in shown for column in task.columns()]
    splits = [name for name in reported_splits() if split in (None, name)]
    test = [run for run in runs if named(run.task).superb and run.split in splits]
    names_of = _model_facts(test)
    models = _models(test, names_of)
    lines = [
        found for found in models
        if len({(run.task, run.part) for run in found}) > 1 or any(str(run.source) in diarization for run in found)
    ]  # fmt: skip
    if not lines:
        return None
    names = name_rows(lines, (*names_of, FEATURES))
    notes = _without_line(models, lines, (*names_of, FEATURES))
    body, values = [], []
    for name, found in zip(names, lines, strict=True):
        cells, rows = [name], []
        for column in columns:
            row = _all_folds(_row(column, found, runs, notes, name), notes, name)
            figures = [number(row.mean, column.metric) if row else NOTHING]
            if column.task == "sd":
                figures = _diarization(row, diarization, notes, name)
            cells += figures
            if row is not None:
                rows.append(row)
                notes += filter(None, [part_of_a_split(row), named(row.task).superb_note])
                values.append(_value(name, row, figures) | {"set": column.part})
        body.append(cells)
        notes += _not_best_on_dev(name, rows) + _without_column(name, found, columns)
    head = ["upstream"]
    for column in columns:
        head += [column.heading] + (["SD DER (%) ↓, threshold of dev"] if column.task == "sd" else [])
    notes.append(
        "SD: thresholds 0.3 to 0.7, medians 1 and 11, no collar, overlapped speech scored, the lowest on test as "
        "SUPERB reports it; next to it the rate at the setting that is best on dev."
    )
    return Table(
        "SUPERB: all tasks of one upstream, test splits", head, body, tuple(dict.fromkeys(notes)), tuple(values)
    )


def _models(runs: Sequence[ScoredRun], names_of: Sequence[str]) -> list[list[ScoredRun]]:
    """Return the runs of each model and kind of features, which those of tasks that train nothing join."""
    models: dict[Any, list[ScoredRun]] = {}
    untrained: dict[Any, list[ScoredRun]] = {}  # what a layer is searched for, such as query by example
    for run in runs:
        if named(run.task).trains:
            models.setdefault(run.key((*names_of, FEATURES)), []).append(run)
        else:
            untrained.setdefault(run.key(names_of), []).append(run)
    for found in models.values():
        found += untrained.get(found[0].key(names_of), [])
    trained = {found[0].key(names_of) for found in models.values()}
    return [*models.values(), *(found for key, found in untrained.items() if key not in trained)]


def _model_facts(runs: Sequence[ScoredRun]) -> tuple[str, ...]:
    """Return the names of the facts that make a line, without the features."""
    tuning = {name for run in runs for name, _ in run.key(("tuning",))}
    of_a_task = {name for name in tuning if name.endswith(SEARCHED) or name.rpartition(".")[2] in OF_THE_TASK}
    return (*MODEL, *sorted(tuning - of_a_task))


def _without_line(
    models: Iterable[list[ScoredRun]], lines: Sequence[list[ScoredRun]], names: Sequence[str]
) -> list[str]:
    """Return a sentence for each model that one task alone was scored with, so that it has no line."""
    left = [found for found in models if not any(found is line for line in lines)]
    labels = name_rows([*lines, *left], names)[len(lines) :]
    return [
        f"{_of_task(found[0])} has no line, because it is the only task of {label}: a line is of one upstream, one "
        "kind of features and one section tuning."
        for label, found in zip(labels, left, strict=True)
    ]


def _without_column(model: str, found: Sequence[ScoredRun], columns: Sequence[Column]) -> list[str]:
    """Return a sentence for each run of a line that no column shows: of another set than SUPERB's, or metric."""
    shown = {(column.task, column.part, column.metric) for column in columns}
    return [
        f"{model}: {run.source} ({_of_task(run)}, {', '.join(run.values)}) has no column."
        for run in found
        if not any((run.task, run.part, metric) in shown for metric in run.values)
    ]


def _of_task(run: ScoredRun) -> str:
    """Return task and set of a run."""
    return f"{run.task} {run.part}".rstrip()


def _not_best_on_dev(model: str, rows: Sequence[Row]) -> list[str]:
    """Return a sentence where not all tasks of a line were scored with the checkpoint that is best on dev."""
    tasks: dict[str, list[str]] = {}
    for row in (row for row in rows if named(row.task).trains and named(row.task).chosen_on_test is None):
        for checkpoint in {run.facts.get(CHECKPOINT, "not known") for run in row.runs}:
            tasks.setdefault(checkpoint, []).append(_of_task(row.runs[0]))
    if tasks.keys() <= {"best"} or tasks.keys() == {"not known"}:
        return []
    shown = "; ".join(f"{checkpoint}: {', '.join(dict.fromkeys(of))}" for checkpoint, of in sorted(tasks.items()))
    return [
        f"{model}: SUPERB's figures are of the checkpoint that is best on dev, and here not all are ({shown}): "
        "evaluate it of each task."
    ]


def _best_on_test(rows: Sequence[Row], notes: list[str], model: str) -> list[Row]:
    """Return the rows with the checkpoint of each training that is best on test; the notes say which these are."""
    runs = sorted((run for row in rows for run in row.runs), key=lambda run: run.step)
    best: dict[Any, ScoredRun] = {}
    for run in runs:
        first = best.setdefault((run.trained_key, run.seed), run)
        if metric(rows[0].metric).better(run.values[rows[0].metric], first.values[rows[0].metric]):
            best[run.trained_key, run.seed] = run
    names = {name for run in runs for name in run.facts} - {CHECKPOINT}
    for row in (found := rows_of(list(best.values()), rows[0].metric, sorted(names))):
        among = [run for run in runs if any(run.trained_key == one.trained_key for one in row.runs)]
        scored, chosen = (
            list(dict.fromkeys(run.facts.get(CHECKPOINT, "not known") for run in some)) for some in (among, row.runs)
        )
        if len(scored) > 1:
            notes.append(
                f"{model}: {row.task} is of {', '.join(chosen)}, the best on test of {', '.join(scored)}: SUPERB's own "
                f"rule, over {named(row.task).chosen_on_test}."
            )
        elif scored != ["best"]:
            notes.append(
                f"{model}: {row.task} is of one checkpoint alone ({scored[0]}), and SUPERB's figure is the best on "
                f"test of {named(row.task).chosen_on_test}: evaluate these."
            )
    return found


def _all_folds(row: Row | None, notes: list[str], model: str) -> Row | None:
    """Return a row, or None where folds of its task's cross-validation are missing.

    SUPERB's figure is the mean over all.
    """
    if row is None or not row.missing_folds:
        return row
    notes.append(
        f"{model}: {row.task} has no run of {', '.join(row.missing_folds)}, and SUPERB's figure is the mean over all."
    )
    return None


def _diarization(row: Row | None, found: Mapping[str, SuperbScore], notes: list[str], model: str) -> list[str]:
    """Return the two numbers of diarization: the lowest, and at the setting chosen on dev."""
    if row is None:
        return [NOTHING, NOTHING]
    scores = [found[str(run.source)] for run in row.runs if str(run.source) in found]
    if len(scores) < len(row.runs):
        notes.append(
            f"{model}: the DER is s3prl's mean over frames; it has no predictions to be scored as SUPERB does."
        )
        return [number(row.mean, row.metric), NOTHING]
    settings = ", ".join(f"{score.setting.threshold} and {score.setting.median}" for score in scores)
    notes.append(f"{model}: diarization is best at threshold and median {settings}.")
    chosen = [score.dev_chosen.der for score in scores if score.dev_chosen is not None]
    if chosen and len(chosen) == len(scores):
        dev = ", ".join(f"{s.dev_setting.threshold} and {s.dev_setting.median}" for s in scores if s.dev_setting)
        notes.append(f"{model}: dev chooses threshold and median {dev}.")
        return [number(fmean(score.rate.der for score in scores), "der"), number(fmean(chosen), "der")]
    return [number(fmean(score.rate.der for score in scores), "der"), NOTHING]


def _value(name: str, row: Row, shown: Sequence[str]) -> dict[str, object]:
    return {
        "row": name, "label": row.label, "task": row.task, "split": row.split, "metric": row.metric,
        "unit": shown_unit(row.metric),
        "better": "higher" if metric(row.metric).higher_is_better else "lower", "runs": len(row.runs),
        "mean": float(shown[0]), "at_dev_threshold": shown[1] if len(shown) > 1 else None,
        "files": "; ".join(str(run.source) for run in row.runs),
    }  # fmt: skip


def _row(
    column: Column, found: Sequence[ScoredRun], every: Sequence[ScoredRun], notes: list[str], model: str
) -> Row | None:
    """Return the row of a task; of several configurations the one that is best on dev, or None where dev is missing.

    Of a task whose checkpoint SUPERB chooses on test, that is done before, where dev is missing.
    """
    task, part, name = column
    rows = rows_of([run for run in found if run.task == task and run.part == part], name)
    if not rows:
        return None
    judged = main_metric_of([run for row in rows for run in row.runs]) or name
    on_dev = [_on_dev(row, judged, every) for row in rows]
    if named(task).chosen_on_test and None in on_dev:
        rows = _best_on_test(rows, notes, model)
        on_dev = [_on_dev(row, judged, every) for row in rows]
    if len(rows) < 2:
        return rows[0]
    if any(score is None for score in on_dev):
        labels = "; ".join(row.label for row in rows)
        note = f"{model}: {len(rows)} configurations of {task} ({labels}), and no score on dev"
        notes.append(f"{note} of each to choose by: evaluate dev too, or give one of them.")
        return None
    best = 0
    for number_, score in enumerate(on_dev):
        if score is not None and metric(judged).better(score, on_dev[best] or 0.0):
            best = number_
    notes.append(f"{model}: {task} is {rows[best].label}, the best on dev of {len(rows)} configurations.")
    return rows[best]


def _on_dev(row: Row, judged: str, every: Sequence[ScoredRun]) -> float | None:
    """Return the mean of a metric on dev over the very models of a row, or None where one has none.

    See :func:`~s3prl_ext.evaluation.scored_runs.on_dev`.
    """
    found = [on_dev(run, judged, every) for run in row.runs]
    known_ = [score for score in found if score is not None]
    return fmean(known_) if len(known_) == len(found) else None
