"""The races over several rungs that a report shows: who was compared where, and with which score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ext.evaluation.result_records import ResultRecord, numbers
from s3prl_ext.metrics import factor, heading
from s3prl_ext.tables import NOTHING, Table
from s3prl_ext.tasks import task_of


def race_tables(records: Sequence[ResultRecord]) -> list[Table]:
    """Return a table for each run that has raced candidates over rungs; who is not in the next one has dropped out."""
    return [_table(record, record["race"]) for record in records if record["race"] and record.at("race.comparisons")]


def _table(record: ResultRecord, race: Mapping[str, Any]) -> Table:
    task = task_of(record["downstream"], record.at("config.downstream_expert")).name
    rows = [[str(one["step"]), *(_score(race, name, one) for name in race["entrants"])] for one in race["comparisons"]]
    return Table(
        f"{task}: race of {record.path.parent.name}, {heading(race['metric'], race['split'])}, seed {record['seed']}",
        ["step", *race["entrants"]],
        rows,
        [f"{race['chosen']} won; {race['steps_of_all_candidates']} optimizer steps of all candidates."],
    )


def _score(race: Mapping[str, Any], name: str, comparison: Mapping[str, Any]) -> str:
    if name not in comparison["compared"]:
        return NOTHING
    score = numbers(race["scores"][name][str(comparison["step"])])[race["metric"]]
    return "diverged" if math.isnan(score) else f"{factor(race['metric']) * score:.2f}"
