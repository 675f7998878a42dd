"""Rows: what is averaged, what is a duplicate, names, spread."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.result_rows import averaged_over, rows_of, without_duplicates
from s3prl_ext.evaluation.result_tables import Line, table_of_lines
from s3prl_ext.evaluation.scored_runs import ScoredRun, has_effect, runs_of
from s3prl_ext.papers.tables import Cell, paper_table
from tests.support.result_files import content, merge


def run(value: float, path: str = "a/result-test.json", metric: str = "wer", **changes) -> ScoredRun:
    return runs_of(ResultRecord(Path(path), content({metric: value}, **changes)))[0]


def test_seeds_are_averaged_and_nothing_else():
    other = content({"wer": 9.0}, seed=1)
    other["config"]["optimizer"]["lr"] = 0.1
    runs = [run(4.0, seed=1), run(5.0, "b", seed=2), *runs_of(ResultRecord(Path("c"), other))]
    first, second = rows_of(runs, "wer")
    assert first.values == [4.0, 5.0] and first.mean == 4.5 and first.std == pytest.approx(stdev([4, 5]))
    assert second.values == [9.0] and second.std is None
    assert first.label == "hubert, lr 0.001" and second.label == "hubert, lr 0.1"


def test_group_by_averages_over_more_and_says_so():
    other = content({"wer": 6.0}, seed=2)
    other["config"]["optimizer"]["lr"] = 0.1
    (row,) = rows_of([run(4.0), *runs_of(ResultRecord(Path("c"), other))], "wer", ["upstream", "method"])
    assert row.mean == 5.0 and averaged_over(row) == {"optimizer.lr": [0.001, 0.1]}


def test_names_of_a_heads_outputs_are_no_setting():
    """Checkpoints keep them since some version; they follow from the corpus, whose hash is compared."""
    later = content({"per": 0.2}, downstream="ctc", seed=2)
    later["config"]["downstream_expert"] = {"labels": {"tokens": ["A", "B"]}}
    runs = [run(0.1, metric="per", downstream="ctc", seed=1), *runs_of(ResultRecord(Path("b"), later))]
    (row,) = rows_of(runs, "per")
    assert len(row.runs) == 2 and "labels" not in str(row.facts)


def test_other_data_are_never_averaged():
    data = {"sha256": "e" * 64, "files": 1, "bytes": 1, "covers": "all"}
    rows = rows_of([run(4.0, seed=1), run(8.0, "b", seed=2, data=data)], "wer")
    assert [row.mean for row in rows] == [4.0, 8.0]
    assert [row.label for row in rows] == ["hubert, data dddddddd", "hubert, data eeeeeeee"]


def test_normalised_features_are_other_features():
    other = content({"wer": 8.0}, seed=2)
    other["args"]["upstream_feature_normalize"] = True
    rows = rows_of([run(4.0, seed=1), *runs_of(ResultRecord(Path("b"), other))], "wer")
    assert [row.mean for row in rows] == [4.0, 8.0]


@pytest.mark.parametrize(
    ("downstream", "section", "key"),
    [("diarization", "loaderrc", "eval_batchsize"), ("sv_voxceleb1", "datarc", "eval_batch_size")],
)
def test_other_batches_of_an_evaluation_are_another_row(downstream, section, key):
    def scored(seed: int, size: int | None) -> list[ScoredRun]:
        result = content({"der": float(seed)}, downstream=downstream, seed=seed)
        result["config"]["downstream_expert"] = {section: {} if size is None else {key: size}}
        return runs_of(ResultRecord(Path(str(seed)), result))

    def rows(*sizes: int | None) -> int:
        return len(rows_of([run for seed, size in enumerate(sizes) for run in scored(seed, size)], "der"))

    assert (rows(1, 1, 1), rows(None, None), rows(1, 4)) == (1, 1, 2)


def test_the_same_result_twice_counts_once_and_is_named():
    runs, notes = without_duplicates([run(4.0), run(4.0, "copy/result-test.json")])
    assert len(runs) == 1 and "copy/result-test.json: left out, it repeats a/result-test.json" in notes[0]


def test_an_arm_that_several_sweeps_share_counts_once_and_is_named():
    arms = [replace(run(9.25, f"{name}/sweep.json", merge=merge(0.0)), mode="sweep") for name in "ab"]
    runs, notes = without_duplicates(arms)
    assert len(runs) == 1 and notes == [
        "b/sweep.json: its hubert, λ 0 is left out, it repeats a/sweep.json (same configuration, seed and split)."
    ]


def test_contradicting_results_are_refused():
    with pytest.raises(DataError, match=r"a/result-test.json and b/r.json have the same .* seed 1 .* wer 4.0 .* 5.0"):
        without_duplicates([run(4.0), run(5.0, "b/r.json")])


def test_what_the_task_file_would_train_does_not_count_where_nothing_was_trained():
    full = {"tuning": {"method": "full"}, "merge": merge(0.1)}
    untrained, trained = run(9.0, step=0, **full), run(8.0, "b", **full)
    assert untrained.facts["method"] == "frozen" and trained.facts["method"] == "full"
    assert run(9.0, step=0, args={"init_ckpt": "head.ckpt"}, **full).facts["method"] == "full"
    assert paper_table("mam.table1").match("ljspeech", untrained.facts) == Cell("ljspeech", "0.10", "Source")
    assert paper_table("mam.table5").match("ljspeech", untrained.facts) == Cell("ljspeech", "MAM")
    assert rows_of([untrained], "wer")[0].label == "hubert, λ 0.1, frozen"


def test_an_evaluation_counts_before_the_end_of_training():
    train = run(5.0, "a/result.json", mode="train")
    runs, notes = without_duplicates([train, run(4.0)])
    assert [one.values["wer"] for one in runs] == [4.0] and "a/result.json: its test is left out" in notes[0]


def test_other_seeds_splits_and_merges_are_no_duplicates():
    runs = [run(4.0), run(4.0, seed=2), run(4.0, split="dev"), run(4.0, merge=merge(0.1)), run(4.0, merge=merge(0.2))]
    assert without_duplicates(runs) == (runs, [])


def test_nan_stays_in_the_mean():
    (row,) = rows_of([run(4.0), run(float("nan"), seed=2)], "wer")
    assert row.mean != row.mean and row.std is None


def learnt(section):
    return merge(0.1) | {"learnable": section | {"layers": [0, 1, 2, 3]}}


def two_sources(*lambdas):
    both = [merge(value)["sources"][0] for value in lambdas]
    return merge(0.0) | {"sources": both}


def test_learnable_merges_under_other_constraints_are_other_rows():
    kinds = [{"granularity": "layer", "constraint": constraint} for constraint in ("raw", "clamp", "sigmoid")]
    runs = [run(4.0 + n, f"{n}/result-test.json", merge=learnt(kind)) for n, kind in enumerate(kinds)]
    assert len({one.key() for one in runs}) == 3 and without_duplicates(runs)[0] == runs


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"merge": merge(0.0)}, "hubert, λ 0"),
        ({"merge": merge(0.25, (1, 2))}, "hubert, λ 0.25 layers 1-2"),
        ({"merge": learnt({"granularity": "layer", "constraint": "raw"})}, "hubert, learnable λ from 0.1"),
        (
            {"merge": learnt({"granularity": "head", "constraint": "clamp"})},
            "hubert, learnable λ (head, clamp) from 0.1",
        ),
        ({"merge": two_sources(0.1, 0.2)}, "hubert, λ 0.1; 0.2"),
        ({"merge": two_sources(0.1, 0.0)}, "hubert, λ 0.1; 0"),
        ({"merge": two_sources(0.0, 0.0)}, "hubert, λ 0"),
        ({"tuning": {"method": "child", "mask": "random", "density": 0.1}}, "hubert, child random P 0.1"),
        ({"tuning": {"method": "weighted_sum"}}, "hubert, weighted_sum"),
        ({"args": {"upstream_feature_selection": "last_hidden_state"}}, "hubert, frozen"),
        ({"args": {"upstream_feature_selection": "hidden_states", "upstream_layer_selection": -1}}, "hubert, frozen"),
        ({"args": {"upstream_feature_selection": "hidden_states"}}, "hubert"),
        ({"candidate": "density_0.1"}, "hubert, race"),
        ({"args": {"upstream_trainable": True, "upstream_ckpt": "/models/x.pt"}}, "hubert x.pt, full"),
    ],
)
def test_labels(changes, label):
    assert rows_of([run(4.0, **changes)], "wer")[0].label == label


def test_scores_of_a_part_of_a_split_are_named_below_tables():
    part = content({"wer": 4.0})
    part["config"]["runner"]["evaluate_ratio"] = 0.1
    (few,) = rows_of(runs_of(ResultRecord(Path("a"), part)), "wer")
    (whole,) = rows_of([run(5.0, "b")], "wer")
    table = table_of_lines("title", "wer", [Line("few", few), Line("whole", whole)], with_paper=False)
    assert [note for note in table.notes if "part of test" in note] == [
        "hubert: scored on a part of test, runner.evaluate_ratio 0.1."
    ]


def test_how_a_task_reads_its_clips_is_no_setting_of_the_model():
    for key in ("downstream_expert.max_workers", "downstream_expert.datarc.pre_load", "runner.cache_folder"):
        assert not has_effect(key)
    assert has_effect("downstream_expert.datarc.batch_size")
