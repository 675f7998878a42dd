"""Cross-validation: one row for all folds, and SUPERB's figure only where none is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.result_rows import rows_of, without_duplicates
from s3prl_ext.evaluation.scored_runs import ScoredRun, runs_of
from s3prl_ext.evaluation.superb_row import superb_table
from s3prl_ext.tasks.er import FOLDS
from tests.support.result_files import content


def run(task: str, value: float, fold: str | None = None, split: str = "test", **facts) -> ScoredRun:
    seed = f"1, {fold}" if fold else "1"
    source = Path(f"{task}-{fold}")
    metric = {"sd": "der", "qbe": "mtwv"}.get(task, "acc")
    return ScoredRun(
        task, split, {metric: value}, {}, seed, {"upstream": "x"} | facts, "evaluate", 1, source, None, fold=fold
    )


FIVE = [run("er", value, fold) for value, fold in zip((0.5, 0.6, 0.7, 0.6, 0.65), FOLDS, strict=True)]


def cell(runs: list[ScoredRun], column: str) -> str:
    table = superb_table(runs, {})
    assert table is not None
    return dict(zip(table.head, table.rows[0], strict=True))[column], " ".join(table.notes)


def test_five_folds_are_one_row_and_their_mean():
    kept, notes = without_duplicates(FIVE)
    (row,) = rows_of(kept, "acc")
    assert len(row.runs) == 5 and not notes and not row.missing_folds and row.mean == pytest.approx(0.61)
    assert row.std == pytest.approx(0.0742, abs=1e-4)
    assert cell([run("ks", 0.9), *FIVE], "ER accuracy (%) ↑")[0] == "61.00"


def test_a_fold_with_more_runs_counts_no_more_than_the_others():
    more = [*FIVE, *(replace(FIVE[0], seed=f"{n}, {FOLDS[0]}", values={"acc": v}) for n, v in ((2, 0.9), (3, 1.0)))]
    (row,) = rows_of(more, "acc")
    means = (0.8, 0.6, 0.7, 0.6, 0.65)
    assert row.mean == pytest.approx(sum(means) / 5) and row.std == pytest.approx(np.std(means, ddof=1))


def test_seeds_of_one_fold_alone_have_their_own_deviation():
    runs = [replace(FIVE[0], seed=f"{n}, {FOLDS[0]}", values={"acc": value}) for n, value in enumerate((0.8, 1.2, 0.4))]
    (row,) = rows_of(runs, "acc")
    assert row.mean == pytest.approx(0.8) and row.std == pytest.approx(0.4)


def test_superb_has_no_figure_while_a_fold_is_missing():
    shown, notes = cell([run("ks", 0.9), *FIVE[:3]], "ER accuracy (%) ↑")
    assert shown == "-" and "er has no run of fold4, fold5" in notes


def test_two_evaluations_of_one_fold_are_duplicates():
    kept, notes = without_duplicates([*FIVE, replace(FIVE[0], source=Path("again"))])
    assert len(kept) == 5 and "it repeats er-fold1" in notes[0]


def test_of_several_layers_the_best_on_dev_is_superbs_figure():
    layers = [run("qbe", value, split=split, features=f"hidden_states/{layer}") for layer, split, value in (
        (3, "dev", 0.2), (3, "test", 0.9), (6, "dev", 0.4), (6, "test", 0.3))]  # fmt: skip
    shown, notes = cell([run("ks", 0.9), *layers], "QBE MTWV (%) ↑")
    assert shown == "30.00" and "the best on dev of 2 configurations" in notes


@pytest.mark.parametrize("written", [True, False])
def test_folds_of_the_flag_are_one_row_as_those_of_the_task_file_are(tmp_path, written):
    """``-v foldN``: s3prl-ext writes the fold into the task file of the result, stock s3prl does not."""
    runs = []
    for fold in FOLDS:
        record = content({"acc": 0.6}, downstream="emotion")
        record["args"]["downstream_variant"] = fold
        if written:
            record["config"]["downstream_expert"] = {"datarc": {"test_fold": fold}}
        (tmp_path / f"{fold}.json").write_text(json.dumps(record))
        runs += runs_of(read_record(tmp_path / f"{fold}.json"))
    assert [run.fold for run in runs] == list(FOLDS) and len({run.key() for run in runs}) == 1
    record = content({"acc": 0.6}, downstream="asr")  # another task: the variant says what was run
    record["args"]["downstream_variant"] = "fold1"
    (tmp_path / "asr.json").write_text(json.dumps(record))
    (other,) = runs_of(read_record(tmp_path / "asr.json"))
    assert other.facts["variant"] == "fold1" and other.fold is None
