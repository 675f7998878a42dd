from __future__ import annotations

from pathlib import Path

from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.result_tables import race_tables

RACE = {
    "entrants": ["lr=1", "lr=2", "lr=3"], "rungs": [2, 4], "eta": 2, "split": "dev", "metric": "acc", "chosen": "lr=2",
    "steps_of_all_candidates": 12,
    "comparisons": [
        {"step": 2, "compared": ["lr=1", "lr=2", "lr=3"], "best": ["lr=1", "lr=2"]},
        {"step": 4, "compared": ["lr=1", "lr=2"], "best": ["lr=2"]},
    ],
    "scores": {
        "lr=1": {"2": {"acc": 0.5}, "4": {"acc": 0.25}}, "lr=2": {"2": {"acc": 0.5}, "4": {"acc": 0.5}}, "lr=3": {"2": {"acc": None}},
    },
}  # fmt: skip


def record(race: dict | None) -> ResultRecord:
    content = {"downstream": "speech_commands", "config": {}, "seed": 7, "race": race}
    return ResultRecord(Path("exp/my_race/result.json"), content)


def test_each_rung_is_a_row_and_who_dropped_out_has_no_score():
    one_comparison = {key: value for key, value in RACE.items() if key != "comparisons"}
    [table] = race_tables([record(None), record(one_comparison), record(RACE)])
    assert table.title == "ks: race of my_race, dev accuracy (%) ↑, seed 7"
    assert table.rows == [["2", "50.00", "50.00", "diverged"], ["4", "25.00", "50.00", "-"]]
    assert table.notes == ["lr=2 won; 12 optimizer steps of all candidates."]
