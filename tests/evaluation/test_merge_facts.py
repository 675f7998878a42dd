"""Merges that a checkpoint tells apart are told apart in reports too, and nothing else of them is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.merge_facts import deviations, merge_facts
from s3prl_ext.evaluation.result_records import ResultRecord, problems
from s3prl_ext.evaluation.result_rows import rows_of
from s3prl_ext.evaluation.scored_runs import ScoredRun, runs_of
from s3prl_ext.evaluation.superb_row import MODEL
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support.result_files import content, merge

PAIRS = {"file": "pairs.tsv", "of": 20, "used": 10, "sha256": "4" * 64}
TARGET = {"name": "/models/whisper (decoder)", "attention_sha256": "1" * 64}


def record(
    value: float = 0.9, learnable: dict[str, Any] | None = None, more: Any = (), **source: Any
) -> dict[str, Any]:
    """Return the record of a merge of four layers with its target's hash."""
    return merge(value, **source) | {"target": TARGET, "learnable": learnable} | dict(more)


NOISE = {"kind": "source", "draw": 1, "seed": 0, "statistics": "tensor", "streams": "by kind", "sha256": "5" * 64}
LEARNT = {"granularity": "layer", "constraint": "raw", "layers": [0, 1, 2], "projections": ["q_proj", "k_proj"]}
HEADS = {"kind": "heads", "heads": 2, "by": "outputs", "split": "train", "pairs": PAIRS, "orders": [[0, 1], [1, 0]]}
WHOLE = {
    "aligned": record(
        more={"method": {"name": "ties", "density": 0.2, "seed": None}},
        align=HEADS,
        basis={"pairs": PAIRS, "special_tokens": True},
        base={"name": "/models/base", "attention_sha256": "3" * 64},
        projection={"from": [8, 8], "to": [4, 4], "heads": [4, 2], "orders": [[0, 1]], "paired": True},
    ),
    "regmean": record(more={"method": {"name": "regmean", "shrink": 0.9}}, moments={"pairs": PAIRS}),
    "noise": record(noise=NOISE),
    "learnable": record(0.0, learnable=LEARNT),
    "two sources": record(more={"sources": [merge(value)["sources"][0] for value in (0.5, 0.25)]}),
}


def changed(value: Any, before: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Yield each place of a record with another value of the same type, or of a section without it."""
    if isinstance(value, (dict, list)) and value:
        for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
            yield from changed(inside, (*before, key))
        return
    others = {bool: not value, int: 3, float: 0.125, str: f"x{value}", type(None): None}
    yield before, others[type(value)]


def with_value(whole: Any, place: tuple, value: Any) -> Any:
    result = inside = copy.deepcopy(whole)
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return result


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_checkpoint_is_refused_for_is_a_fact(name):
    whole = WHOLE[name]
    assert problems(content({"wer": 5.0}, merge=whole)) == []
    refused = 0
    for place, value in changed(whole):
        other = with_value(whole, place, value)
        if {"draw", "sha256"} & set(place[3:]) and "noise" in place:
            assert merge_facts(other) == merge_facts(whole), place
            continue
        try:
            check_merge_record(whole, other)
        except DataError:
            refused += 1
            assert merge_facts(other) != merge_facts(whole), place
        else:
            named = {key: text for key, text in merge_facts(other).items() if key != "source"}
            assert named == {key: text for key, text in merge_facts(whole).items() if key != "source"}, place
    assert refused >= 14


def scored(value: float, what: dict[str, Any], seed: int = 1, **changes: Any) -> ScoredRun:
    path = Path(f"{value}/result-test.json")
    return runs_of(ResultRecord(path, content({"wer": value}, merge=what, seed=seed, **changes)))[0]


@pytest.mark.parametrize(
    ("what", "label"),
    [
        (record(), "hubert, λ 0.9"),
        (record(more={"method": {"name": "slerp", "density": None, "seed": None}}), "hubert, λ 0.9 slerp"),
        (record(more={"method": {"name": "ties", "density": 0.2}}), "hubert, λ 0.9 ties (density 0.2)"),
        (record(more={"biases": True}), "hubert, λ 0.9 biases"),
        (record(align={"kind": "heads", "heads": 2, "orders": [[1, 0]]}), "hubert, λ 0.9 align heads"),
        (record(basis={"pairs": PAIRS, "special_tokens": True}, align=HEADS), "hubert, λ 0.9 align heads+basis"),
        (record(layer_map=[0, 2, 2, 3]), "hubert, λ 0.9 layer_map 2 in 1"),
        (
            record(**{"lambda": {"q_proj": [0.9] * 4, "k_proj": [0.0] * 4, "v_proj": [0.0] * 4}}),
            "hubert, λ 0.9 only q",
        ),
        (
            record(**{"lambda": {p: [0.9, 0.9, 0.2, 0.2] for p in ("q_proj", "k_proj", "v_proj")}}),
            "hubert, λ 0.9 in 0-1, 0.2 in 2-3",
        ),
        (
            record(**{"lambda": {p: [0.2, 0.2, 0.9, 0.9] for p in ("q_proj", "k_proj", "v_proj")}}),
            "hubert, λ 0.2 in 0-1, 0.9 in 2-3",
        ),
        (
            record(**{"lambda": {"q_proj": [0.9] * 4, "k_proj": [0.9] * 4, "v_proj": [0.2] * 4}}),
            "hubert, λ 0.9 in all q+k, 0.2 in all v",
        ),
        (record(learnable=LEARNT | {"layers": [0, 1, 2, 3]}), "hubert, learnable λ from 0.9"),
    ],
)
def test_a_row_says_what_of_its_merge_is_not_as_usual(what, label):
    usual = scored(4.0, record())
    run = scored(5.0, what, seed=2)
    assert rows_of([run], "wer")[0].label == label
    if label != "hubert, λ 0.9":  # neither one row of two seeds, nor one of SUPERB's line
        assert len(rows_of([usual, run], "wer")) == 2 and usual.key(MODEL) != run.key(MODEL)
        assert bool(deviations(run.facts)) == ("learnable" not in label)


def test_learnable_merges_that_begin_alike_are_told_apart():
    runs = [
        scored(n, record(learnable=LEARNT, layers=(0, 1, 2), more=more), seed=n)
        for n, more in enumerate(({}, {"method": {"name": "slerp"}}))
    ]
    labels = [row.label for row in rows_of(runs, "wer")]
    assert labels == ["hubert, learnable λ from 0.9 layers 0-2", "hubert, learnable λ from 0.9 layers 0-2 slerp"]


def test_draws_of_a_noise_control_are_one_row_though_each_is_another_upstream():
    runs = [scored(4.0 + d, record(noise=NOISE | {"draw": d}), upstream_sha256=str(d) * 64) for d in range(3)]
    (row,) = rows_of(runs, "wer")
    assert row.mean == 5.0 and [run.seed for run in runs] == ["1, draw 0", "1, draw 1", "1, draw 2"]
    other = scored(9.0, record(noise=NOISE | {"statistics": "global"}))
    assert len(rows_of([*runs, other], "wer")) == 2


def test_what_is_not_merged_does_not_count():
    """Lambda 0 is the target itself, whatever is not merged into it, and however."""
    nothing = [record(0.0), record(0.0, more={"method": {"name": "slerp"}, "biases": True}), record(0.0, noise=NOISE)]
    nothing.append(record(0.0, name="/models/other", attention_sha256="9" * 64, layer_map=[3, 2, 1, 0]))
    assert len({str(merge_facts(one)) for one in nothing}) == 1
    assert merge_facts(record(0.0) | {"target": TARGET | {"attention_sha256": "2" * 64}}) != merge_facts(nothing[0])
