"""The schema of result files: what is accepted, what is refused, and what a run's facts are."""

from __future__ import annotations

import json

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.merge_facts import name_layers
from s3prl_ext.evaluation.result_records import KEYS, problems, read_record
from s3prl_ext.evaluation.scored_runs import runs_of
from tests.support.result_files import content, damaged, merge, write


def test_a_complete_record_has_no_problem():
    assert problems(content({"wer": 5.0, "cer": 1.0})) == []


@pytest.mark.parametrize("key", sorted(KEYS))
def test_each_missing_key_is_named(key):
    broken = content({"wer": 5.0})
    del broken[key]
    assert any(f"'{key}'" in problem for problem in problems(broken))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "1"}, "'1' as 'seed'"),
        ({"seed": True}, "True as 'seed'"),
        ({"schema": 4}, "reads up to 3: update"),
        ({"schema": "2"}, "schema '2'"),
        ({"metrics": {"test": {"wer": 5.0}}}, "5.0 as 'wer' of 'test'"),
        ({"metrics": {"test": {"wer": {"value": "5", "unit": "%", "higher_is_better": False}}}}, "as 'wer' of 'test'"),
        ({"metrics": {"test": 5}}, "as metrics of 'test'"),
        ({"intervals": None}, "'intervals'"),
        ({"intervals": {"test": 5}}, "5 as intervals of 'test'"),
        ({"intervals": {"test": {"wer": [4.0]}}}, "[4.0] as interval of 'wer' of 'test'"),
        ({"intervals": {"test": {"wer": [6.0, 4.0]}}}, "[6.0, 4.0] as interval of 'wer'"),
        ({"items": {"test": "5"}}, "'5' as items of 'test'"),
    ],
)
def test_wrong_values_are_named(change, said):
    assert any(said in problem for problem in problems(content({"wer": 5.0}) | change))


def test_a_failure_needs_an_error_and_no_outcome():
    failed = content({"wer": 5.0}, error="the disk is full.", metrics={}, step=None)
    for key in ("merge", "intervals", "items", "splits_sha256", "seconds_per_step"):
        del failed[key]
    assert problems(failed) == []


def test_schema_1_is_read_with_none_for_what_came_later(tmp_path):
    old = content({"wer": 5.0, "wer_low": 4.0, "wer_high": 6.5}, schema=1)
    for key in ("date", "data", "machine", "peak_memory", "commit", "error", "seconds_per_step", "intervals", "items"):
        del old[key]
    del old["splits_sha256"]
    record = read_record(write(tmp_path, old))
    assert record["commit"] is None and record["data"] is None
    assert runs_of(record)[0].intervals["wer"] == [4.0, 6.5]


def test_schema_2_is_read_without_the_number_of_items(tmp_path):
    old = content({"acc": 0.5}, downstream="speech_commands", schema=2)
    del old["items"]
    record = read_record(write(tmp_path, old))
    assert record["items"] is None and record["commit"] == "c" * 40


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "corrupt: not JSON"), ("[1]", "holds a list in place of a mapping"), ("{}", "has no 'schema'")],
)
def test_damaged_files_are_refused_by_name(tmp_path, text, said):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=said) as error:
        read_record(path)
    assert str(path) in str(error.value)


def test_whatever_is_damaged_is_named_or_does_no_harm(tmp_path):
    noise = {"kind": "target", "draw": 2, "seed": 0, "statistics": "tensor", "sha256": "e" * 64}
    whole = content(
        {"acc": 0.5}, downstream="speech_commands", merge=merge(0.1, noise=noise), tuning={"method": "full"}
    )
    whole["intervals"] = {"test": {"acc": [0.4, 0.6]}}
    path = tmp_path / "result.json"
    refused = 0
    for _, broken in damaged(whole):
        path.write_text(json.dumps(broken))
        try:
            [run.key() for run in runs_of(read_record(path))]
        except DataError as error:
            refused += str(path) in str(error)
    assert refused > 150


def test_facts_name_task_method_and_merge(tmp_path):
    pr = content({"per": 0.1}, downstream="ctc", tuning={"method": "child", "density": 0.01})
    pr["config"]["downstream_expert"] = {"corpus": {"name": "libriphone", "path": "/a/libri"}}
    pr["merge"] = merge(0.25, layers=(1, 2))
    (run,) = runs_of(read_record(write(tmp_path, pr)))
    assert run.task == "pr" and run.seed == "1"
    expected = {"method": "child", "tuning.density": 0.01, "lambda": 0.25, "layers": "1-2", "noise": "none"}
    assert {name: run.facts[name] for name in expected} == expected
    assert run.facts["source"] == "bert" and run.facts["downstream_expert.corpus.path"] == "libri"


def test_the_draw_of_a_noise_control_is_a_repetition(tmp_path):
    noise = {"kind": "target", "draw": 2, "seed": 0, "statistics": "tensor", "sha256": "e" * 64}
    runs = [
        runs_of(
            read_record(write(tmp_path / str(d), content({"wer": 5.0}, merge=merge(0.1, noise=noise | {"draw": d}))))
        )
        for d in (2, 3)
    ]
    assert [run.seed for (run,) in runs] == ["1, draw 2", "1, draw 3"]
    assert runs[0][0].key() == runs[1][0].key() and runs[0][0].facts["noise"] == "target"


def test_runs_are_the_same_in_another_folder_and_with_other_workers(tmp_path):
    here, there = content({"wer": 5.0}), content({"wer": 5.0})
    here["config"]["downstream_expert"] = {"datarc": {"path": "/here/LJSpeech-1.1", "num_workers": 4}}
    there["config"]["downstream_expert"] = {"datarc": {"path": "/there/LJSpeech-1.1", "num_workers": 0}}
    keys = [runs_of(read_record(write(tmp_path / n, c)))[0].key() for n, c in (("a", here), ("b", there))]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("layers", "name"), [([], "none"), ([0, 1, 2, 3], "all"), ([1, 2], "1-2"), ([0, 3], "0,3"), ([2], "2")]
)
def test_layers_have_names(layers, name):
    assert name_layers(layers, 4) == name


def test_json_round_trip_keeps_nan(tmp_path):
    diverged = content({"wer": float("nan")})
    assert "NaN" in json.dumps(diverged) and problems(json.loads(json.dumps(diverged))) == []
