"""Tables of rows: metric with spread, change against a baseline, its interval, the paper's figure; tables of races."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.clusters import UTTERANCE, described
from s3prl_ext.evaluation.comparability import OF_MODEL, decisive, differences, told
from s3prl_ext.evaluation.result_records import ResultRecord, numbers
from s3prl_ext.evaluation.result_rows import Row, averaged_over, part_of_a_split
from s3prl_ext.evaluation.utterance_comparison import Difference, compare_rows
from s3prl_ext.metrics import NAMES, factor, heading, metric
from s3prl_ext.tables import NOTHING, Table
from s3prl_ext.tasks import task_of

logger = logging.getLogger(__name__)

SIGNIFICANT = "*"


@dataclass(frozen=True)
class Line:
    """A line of a table of results.

    Attributes:
        name: text of its first column.
        row: our runs; None where there is none.
        paper: the paper's figure as printed, in per cent.
        baseline: whether others are compared with it: all of them, or of several baselines those of the same model.
    """

    name: str
    row: Row | None
    paper: str | None = None
    baseline: bool = False


def number(value: float | None, name: str) -> str:
    """Return a value of a metric as text; ratios in per cent."""
    if value is None:
        return NOTHING
    if not isfinite(value):
        return "NaN" if isnan(value) else "inf"
    return f"{factor(name) * value:.2f}" if metric(name).unit in ("ratio", "%") else f"{value:.4g}"


def score(row: Row | None) -> str:
    """Return mean and spread of a row: ``9.25``, ``9.25 ± 0.12`` or ``9.25 [8.9, 9.6]``."""
    if row is None:
        return NOTHING
    text = number(row.mean, row.metric)
    if row.std is not None:
        return f"{text} ± {number(row.std, row.metric)}"
    if row.interval is not None:
        return f"{text} [{', '.join(number(end, row.metric) for end in row.interval)}]"
    return text


def relative_change(value: float, baseline: float) -> float | None:
    """Return the change in per cent of the baseline; None where that is not above 0 or a value is not finite."""
    if not isfinite(value) or not isfinite(baseline) or baseline <= 0:
        return None
    return 100.0 * (value - baseline) / baseline


def table_of_lines(
    title: str,
    name: str,
    lines: Sequence[Line],
    with_paper: bool,
    notes: Sequence[str] = (),
    across_models: bool = False,
) -> Table:
    """Return the table of one task and split.

    No change is shown of a line whose corpus, splits or model are others than its baseline's, and in what else it
    differs from its baseline is said.

    Args:
        title: what it shows, on which split.
        name: the metric.
        lines: its lines.
        with_paper: add the paper's figures and its change against the paper's baseline.
        notes: sentences below it.
        across_models: whether the baseline may be another model.
    """
    bases, unlike = _comparable([_base_of(line, lines) for line in lines], lines, OF_MODEL if across_models else ())
    paper_base = next((_figure(line) for line in lines if line.baseline and line.paper), None)
    found = list(notes)
    differences = [_difference(base, line, found) for base, line in zip(bases, lines, strict=True)]
    of = _called(name)
    unit = "dB" if _is_level(name) else "%"
    head = ["", "runs", heading(name), f"change ({unit})", f"difference in {of} (%), 95 % interval"]
    compared = any(differences)
    body, values = [], []
    for line, base, difference in zip(lines, bases, differences, strict=True):
        change = _change(line.row.mean, base.row.mean, name) if line.row and base and base.row else None
        cells = [line.name, str(len(line.row.runs)) if line.row else NOTHING, score(line.row), _signed(change)]
        cells += [_interval(difference)] if compared else []
        if with_paper:
            cells += [line.paper or NOTHING, _signed(_paper_change(line, paper_base))]
        body.append(cells)
        if line.row is not None:
            values.append(_values(line, base, change, difference, _paper_change(line, paper_base)))
    head = head[: 5 if compared else 4] + (["paper", "paper: change (%)"] if with_paper else [])
    found += unlike
    found += _explained(bases, compared, [line.row for line in lines if line.row], name, of)
    return Table(title, head, body, tuple(found), tuple(values))


def _base_of(line: Line, lines: Sequence[Line]) -> Line | None:
    """Return the line that a line is compared with: the only baseline, or of several the one of the same model."""
    bases = [other for other in lines if other.baseline and other.row is not None]
    if line in bases or line.row is None:
        return None
    if len(bases) > 1:
        bases = [base for base in bases if base.row and model_of(base.row) == model_of(line.row)]
    return bases[0] if len(bases) == 1 else None


def _comparable(
    bases: Sequence[Line | None], lines: Sequence[Line], free: Collection[str]
) -> tuple[list[Line | None], list[str]]:
    """Return the baselines without those that a line must not be compared with, and sentences on what differs."""
    kept: list[Line | None] = []
    refused: dict[tuple[str, str], list[str]] = {}
    noted: dict[tuple[str, str], list[str]] = {}
    for base, line in zip(bases, lines, strict=True):
        if base is None or base.row is None or line.row is None:
            kept.append(base)
            continue
        found = differences(base.row, line.row)
        others = decisive(found, free)
        kept.append(None if others else base)
        if others:
            refused.setdefault((base.name, " and ".join(others)), []).append(line.name)
        elif found:
            noted.setdefault((base.name, told(found)), []).append(line.name)
    sentences = [
        f"No change is shown of {'; '.join(names)}: the baseline {base} has another {others}."
        for (base, others), names in refused.items()
    ]
    sentences += [
        f"{'; '.join(names)}: differs from the baseline {base} in {text}, too." for (base, text), names in noted.items()
    ]
    return kept, sentences


def model_of(row: Row) -> tuple[object, ...]:
    """Return what rows of one unmerged model have in common; of sweeps only where it was scored alike."""
    return tuple(row.facts.get(name) for name in ("upstream", "upstream_ckpt", "unmerged"))


def _difference(base: Line | None, line: Line, notes: list[str]) -> Difference | None:
    if base is None or base.row is None or line.row is None:
        return None
    try:
        found = compare_rows(base.row, line.row)
        if found is None or found.metric == line.row.metric:
            return found and found.of_metric
        text = f"No interval of the difference: single utterances are counted in {_called(found.metric)} alone."
        notes += [text] if text not in notes else []
        return None
    except DataError as error:
        logger.warning("%s", error)
        notes.append(str(error))
        return None


def _called(name: str) -> str:
    return NAMES.get(name, name.replace("_", " "))


def _is_level(name: str) -> bool:
    """Return whether a metric is in dB, of which per cent say nothing."""
    return metric(name).unit == "dB"


def _change(value: float, baseline: float, name: str) -> float | None:
    """Return the change of a metric: in per cent of the baseline, of a level the difference in dB."""
    if _is_level(name):
        return value - baseline if isfinite(value) and isfinite(baseline) else None
    return relative_change(value, baseline)


def _figure(line: Line) -> float | None:
    return float(line.paper) if line.paper else None


def _paper_change(line: Line, base: float | None) -> float | None:
    value = _figure(line)
    return relative_change(value, base) if value is not None and base is not None and not line.baseline else None


def _signed(change: float | None) -> str:
    return NOTHING if change is None else f"{change:+z.2f}"


def _interval(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    p = "" if difference.p is None else f", p = {difference.p:.2g}"
    star = f" {SIGNIFICANT}" if difference.significant else ""
    return f"[{difference.low:+z.2f}, {difference.high:+z.2f}]{p}{star}"


def _values(
    line: Line, base: Line | None, change: float | None, difference: Difference | None, paper_change: float | None
) -> dict[str, object]:
    """Return a line for CSV: numbers in the unit that is shown, given in a column of its own."""
    row = line.row
    assert row is not None
    times, known = factor(row.metric), metric(row.metric)
    low, high = row.interval or (None, None)
    return {
        "row": line.name, "label": row.label, "task": row.task, "split": row.split, "metric": row.metric,
        "unit": "%" if known.unit == "ratio" else known.unit,
        "better": "higher" if known.higher_is_better else "lower",
        "runs": len(row.runs), "seeds": "; ".join(run.seed for run in row.runs),
        "mean": times * row.mean, "std": None if row.std is None else times * row.std,
        "low": None if low is None else times * low, "high": None if high is None else times * high,
        "baseline": base.name if base is not None else None,
        "change_percent": None if _is_level(row.metric) else change,
        "change_db": change if _is_level(row.metric) else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "p": difference.p if difference else None, "paper": line.paper, "paper_change_percent": paper_change,
        "files": "; ".join(dict.fromkeys(str(run.source) for run in row.runs)),
    }  # fmt: skip


def _explained(bases: Sequence[Line | None], compared: bool, rows: Sequence[Row], name: str, of: str) -> list[str]:
    """Return the sentences that a reader of the table needs."""
    found = []
    if any(row.std is not None for row in rows):
        found.append("± is the standard deviation over runs (seeds, draws of noise, folds).")
    if any(row.interval is not None for row in rows):
        drawn = {(run.intervals_over, run.drawn) for row in rows for run in row.runs if row.interval is not None}
        what = "; ".join(sorted("over utterances" if n is None else described(kind, n) for kind, n in drawn))
        found.append(f"[low, high] after a single run's value is its 95 % interval {what}.")
    names = list(dict.fromkeys(base.name for base in bases if base is not None))
    if names:
        of_model = " (of the same model)" if len(names) > 1 else ""
        kind = "differences from" if _is_level(name) else "relative to"
        found.append(f"Changes are {kind}: {'; '.join(names)}{of_model}. Below 0 is less {_called(name)}.")
    if not _is_level(name) and any(base.row.mean <= 0 for base in bases if base and base.row):
        found.append("There is no change in per cent of a baseline that is not above 0.")
    if compared:
        kinds = {run.intervals_over for row in rows for run in row.runs} - {UTTERANCE}
        over = f" over {', '.join(sorted(kinds))}s" if kinds else ""
        found.append(
            f"Difference: {of} minus the baseline's on the same utterances, paired bootstrap{over}; "
            f"{SIGNIFICANT} where it excludes 0; p of McNemar's exact test."
        )
    for row in rows:
        if part := part_of_a_split(row):
            found.append(part)
        if row.missing_folds:
            found.append(f"{row.label} is not the mean over all folds: {', '.join(row.missing_folds)} has no run.")
        averaged = averaged_over(row)
        if averaged:
            shown = "; ".join(f"{key}: {', '.join(str(v)[:24] for v in values)}" for key, values in averaged.items())
            found.append(f"{row.label} averages over runs that differ in more than the seed: {shown}.")
        if any(not isfinite(value) for value in row.values):
            found.append(f"{row.label}: a run has no finite {name}, so its mean is none either.")
    return found


def race_tables(records: Sequence[ResultRecord]) -> list[Table]:
    """Return a table for each run that has raced candidates over rungs; who is not in the next one has dropped out."""
    return [
        _race_table(record, record["race"]) for record in records if record["race"] and record.at("race.comparisons")
    ]


def _race_table(record: ResultRecord, race: Mapping[str, Any]) -> Table:
    task = task_of(record["downstream"], record.at("config.downstream_expert")).name
    rows = [
        [str(one["step"]), *(_race_score(race, name, one) for name in race["entrants"])] for one in race["comparisons"]
    ]
    return Table(
        f"{task}: race of {record.path.parent.name}, {heading(race['metric'], race['split'])}, seed {record['seed']}",
        ["step", *race["entrants"]],
        rows,
        [f"{race['chosen']} won; {race['steps_of_all_candidates']} optimizer steps of all candidates."],
    )


def _race_score(race: Mapping[str, Any], name: str, comparison: Mapping[str, Any]) -> str:
    if name not in comparison["compared"]:
        return NOTHING
    score = numbers(race["scores"][name][str(comparison["step"])])[race["metric"]]
    return "diverged" if isnan(score) else f"{factor(race['metric']) * score:.2f}"
