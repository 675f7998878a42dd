"""A finished sweep read again: complete or refused by name, whatever is damaged."""

from __future__ import annotations

import json

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_rows import described, part_of_a_split, rows_of, without_duplicates
from s3prl_ext.sweeps.grid import Group
from s3prl_ext.sweeps.stored import read_sweep
from tests.support.result_files import damaged
from tests.support.sweep_files import GROUPS, write_sweep


def test_whatever_is_damaged_is_named_or_does_no_harm(tmp_path):
    path = write_sweep(tmp_path / "sweep", groups=GROUPS[1:2])
    whole = json.loads(path.read_text())
    whole["results"] = dict(list(whole["results"].items())[:4])
    refused = 0
    for _, broken in damaged(whole, values=(None, 5, "x", [])):
        path.write_text(json.dumps(broken))
        try:
            sweep = read_sweep(path)
            assert all(run.values for run in sweep.runs()) and sweep.title
        except DataError as error:
            refused += str(path) in str(error)
    assert refused > 100


def test_the_number_of_utterances_where_it_is_known(tmp_path):
    path = write_sweep(tmp_path / "sweep")
    assert read_sweep(path).items("dev") is None
    content = json.loads(path.read_text())
    for result in content["results"].values():
        result["items"] = 120
    path.write_text(json.dumps(content))
    assert read_sweep(path).items("test") == 120


def test_the_files_of_an_arm_are_where_its_result_says_else_where_its_name_says(tmp_path):
    path = write_sweep(tmp_path / "sweep", groups=GROUPS[:1])
    content = json.loads(path.read_text())
    for result in content["results"].values():
        if result["arm"]["lambda"] == 0.05:
            result["folder"] = "as_it_was_called"
    path.write_text(json.dumps(content))
    for name in ("as_it_was_called", "all_lambda_0.05", "all_lambda_0.1"):
        (path.parent / "arms" / name).mkdir(parents=True)
    found = {run.facts["lambda"]: run.utterances and run.utterances.name for run in read_sweep(path).runs()}
    assert found == {0.0: None, 0.05: "as_it_was_called", 0.1: "all_lambda_0.1"}


OTHERWISE = [
    ({"method": {"name": "slerp", "density": None, "seed": None}}, "slerp"),
    ({"biases": True}, "biases"),
    ({"align": {"kind": "heads", "heads": 2}}, "align heads"),
    ({"basis": {"pairs": {"sha256": "4" * 64}, "special_tokens": True}}, "align basis"),
    ({"projections": ["q_proj"]}, "only q"),
    ({"layer_map": [0, 2, 2, 3]}, "layer_map 2 in 1"),
]
AS_EVER = {
    "projections": ["q_proj", "k_proj", "v_proj"],
    "layer_map": [0, 1, 2, 3],
    "biases": False,
    "noise": {"seed": 0, "statistics": "tensor", "streams": "by kind"},
}


@pytest.mark.parametrize(("merged", "words"), [({}, None), *OTHERWISE], ids=lambda value: str(value)[:20])
def test_title_and_rows_say_what_of_the_merge_is_not_as_usual(merged, words, tmp_path):
    sweep = read_sweep(write_sweep(tmp_path / "sweep", **AS_EVER | merged))
    assert sweep.title == "bert into hubert: ljspeech" + (f" ({words})" if words else "")
    labels = [described([run]) for run in sweep.runs() if run.split == "dev"]
    also = f" {words}" if words else ""
    expected = ["λ 0", f"λ 0.05{also}", f"λ 0.1{also}", f"λ 0.05 layers 0-1{also}", f"λ 0.1 layers 0-1{also}"]
    noise = [f"λ {value} noise target{also}" for value in ("0.05", "0.05", "0.1", "0.1")]
    assert labels == [f"hubert, {merge}, frozen" for merge in (*expected, *noise)]


def test_the_unmerged_target_of_several_sweeps_is_one_run_where_it_scored_alike(tmp_path):
    """What is merged into it decides nothing of its score."""
    runs = [
        run
        for number, merged in enumerate((AS_EVER, AS_EVER | {"method": {"name": "slerp"}}, AS_EVER | {"biases": True}))
        for run in read_sweep(write_sweep(tmp_path / str(number), GROUPS[:1], **merged)).runs()
    ]
    kept, notes = without_duplicates(runs)
    assert len(kept) == len(runs) - 4 and all("its hubert, λ 0, frozen is left out" in note for note in notes)
    assert len({run.facts["unmerged"] for run in kept}) == 1 and len({run.key() for run in kept}) == 1 + 3 * 2
    worse = write_sweep(
        tmp_path / "worse", GROUPS[:1], score=lambda arm, split: 20.0 + arm.lambda_, **AS_EVER, head="b"
    )
    assert {run.facts["unmerged"] for run in read_sweep(worse).runs()}.isdisjoint(run.facts["unmerged"] for run in kept)


def test_groups_of_one_name_keep_the_lambda_that_was_chosen_for_each(tmp_path):
    """A sweep of 0.1.0, which let an arm have the name of a set of layers."""
    groups = (Group("all", (0, 1), "none", (0.05, 0.1), 1), Group("all", (0,), "none", (0.2, 0.3), 1))
    runs = read_sweep(write_sweep(tmp_path / "sweep", groups)).runs()
    chosen = {run.facts["lambda"] for run in runs if run.facts["chosen"] and run.split == "dev"}
    assert chosen == {0.0, 0.05, 0.2}


def test_a_sweep_over_a_part_of_each_split_says_so(tmp_path):
    for number, (share, said) in enumerate(((1.0, None), (0.1, "runner.evaluate_ratio 0.1"))):
        runs = read_sweep(write_sweep(tmp_path / str(number), GROUPS[:1], **{"share of each split": share})).runs()
        parts = {part_of_a_split(row) for row in rows_of([run for run in runs if run.split == "test"], "wer")}
        assert all(part is None if said is None else said in part for part in parts)
    corpus = {"corpus": {"name": "common_voice", "path": "/cv/es/clips", "ratio": 0.5, "offset": 1}}
    runs = read_sweep(write_sweep(tmp_path / "ood", GROUPS[:1], **{"task": "ctc", "task file": corpus})).runs()
    (part,) = {part_of_a_split(row).partition(": ")[2] for row in rows_of([runs[0]], "wer")}
    assert part.endswith("corpus.ratio 0.5, corpus.offset 1.")
