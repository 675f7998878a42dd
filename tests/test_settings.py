"""Settings read from mappings: every problem at once, one wording for each rule, strings for numbers, null for a default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.settings import (
    as_number,
    check_fields,
    choice,
    count,
    layers,
    load,
    name,
    names,
    number,
    numbers,
    path,
    switch,
    unknown_keys,
)

TABLE = {"acc": 1}


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, count()]
    loose: Any = None


@dataclass(frozen=True)
class Example:
    rate: Annotated[float, number(above=0)] = 1.0
    share: Annotated[float, number(above=0, most=1)] = 0.5
    keep: Annotated[int | None, count(0)] = None
    mask: Annotated[str, choice("fisher", "random")] = "fisher"
    metric: Annotated[str | None, choice(TABLE)] = None
    redraw: Annotated[bool, switch()] = False
    inner: Inner = Inner(3)

    def conflicts(self, where: str) -> Iterator[str]:
        if self.redraw and self.mask == "fisher":
            yield f"{where}.redraw needs mask random."


def test_values_get_their_types_and_null_is_the_default():
    given = {"rate": "1e-4", "keep": "2", "share": None, "inner": {"size": 4.0, "loose": [1]}}
    assert load(Example, given, "here") == Example(rate=1e-4, keep=2, inner=Inner(4, [1]))
    assert type(load(Example, given, "here").inner.size) is int


def test_all_problems_are_in_one_error():
    wrong = {"rat": 1, "share": 2, "mask": "randon", "redraw": "yes", "inner": {"siz": 1}, "keep": -1, "rate": 0}
    with pytest.raises(UsageError) as caught:
        load(Example, wrong, "here")
    assert str(caught.value) == (
        "here: unknown key 'rat'; did you mean 'rate'? Known: inner, keep, mask, metric, rate, redraw, share. "
        "here.rate must be above 0, got 0. here.share must be in (0, 1], got 2. "
        "here.keep must be a whole number of at least 0, got -1. "
        "here: unknown mask 'randon'; did you mean 'random'? Known: fisher, random. "
        "here.redraw must be true or false, got 'yes'. "
        "here.inner: unknown key 'siz'; did you mean 'size'? Known: loose, size. here.inner.size is missing."
    )


def test_problems_are_gathered_for_a_caller_who_has_others():
    problems = ["before."]
    assert load(Example, {"share": 3, "keep": 1}, "here", problems=problems) == Example(keep=1)
    assert problems == ["before.", "here.share must be in (0, 1], got 3."]
    assert load(Inner, "x", "there", example="{size: 1}", problems=problems).size is None
    assert problems[2:] == ["there must be a mapping such as {size: 1}, got 'x'.", "there.size is missing."]


def test_what_does_not_go_together_is_said_when_all_else_is_right():
    with pytest.raises(UsageError, match=r"^here.redraw needs mask random.$"):
        load(Example, {"redraw": True}, "here")
    with pytest.raises(UsageError) as caught:
        load(Example, {"redraw": True, "rate": -1}, "here")
    assert "redraw" not in str(caught.value)


def test_a_table_may_still_grow(monkeypatch):
    with pytest.raises(UsageError, match="unknown metric 'wer'"):
        load(Example, {"metric": "wer"}, "here")
    monkeypatch.setitem(TABLE, "wer", 2)
    assert load(Example, {"metric": "wer"}, "here").metric == "wer"


def test_an_instance_made_by_hand_is_checked_too():
    @dataclass(frozen=True)
    class Options:
        rank: Annotated[int, count()] = 8

        def __post_init__(self) -> None:
            check_fields(self, "lora")

    Options.__annotations__["rank"] = Annotated[int, count()]
    assert Options("4").rank == 4
    with pytest.raises(UsageError, match=r"lora.rank must be a whole number of at least 1, got 0.5"):
        Options(0.5)


@pytest.mark.parametrize(
    ("check", "right", "as_", "wrong", "sentence"),
    [
        (number(), "1e-5", 1e-5, "ten", "x must be a number, got 'ten'."),
        (number(), 3, 3.0, float("nan"), "x must be a finite number, got nan."),
        (number(least=0), 0, 0.0, -1, "x must be at least 0, got -1."),
        (number(least=0, most=1), 1, 1.0, 1.5, "x must be in [0, 1], got 1.5."),
        (number(most=1), -3, -3.0, 2, "x must be at most 1, got 2."),
        (count(), 2.0, 2, True, "x must be a whole number of at least 1, got True."),
        (count(3), 3, 3, 2, "x must be a whole number of at least 3, got 2."),
        (count(0, 4), "4", 4, 5, "x must be a whole number from 0 to 4, got 5."),
        (choice("a"), "a", "a", ["a"], "x must be one of a, got ['a']."),
        (switch(), True, True, 1, "x must be true or false, got 1."),
        (name(), "dev", "dev", "", "x must be a name, got ''."),
        (names("[q, k]"), "q", ("q",), 3, "x must be a list of names such as [q, k], got 3."),
        (names(), ["b", "a", "b"], ("b", "a"), [], "x is empty: name at least 1, or leave the key out."),
        (names(least=0), [], (), [1], "x must be a list of names, got [1]."),
        (numbers(above=0), "1e-2", (0.01,), [1, 0], "x must be above 0, got 0."),
        (numbers(), [1, 2], (1.0, 2.0), [], "x is empty: give at least one number."),
        (layers(), "0-2,5", (0, 1, 2, 5), [], "x names no layer: write all, 8-11, 0-3,8 or a list."),
        (layers(), "all", None, "9-3", "x: '9-3' is neither a layer index nor a range"),
        (path(), "a/b", Path("a/b"), 3, "x must be a path, got 3."),
    ],
)
def test_checks(check, right, as_, wrong, sentence):
    found = check(right, "x")
    assert found == as_ and type(found) is type(as_)
    with pytest.raises(UsageError) as caught:
        check(wrong, "x")
    assert str(caught.value).startswith(sentence)


def test_unknown_keys_name_the_nearest():
    (complaint,) = unknown_keys({"lamda": 1, "layers": 2}, ["lambda", "layers"], "my.yaml")
    assert complaint == "my.yaml: unknown key 'lamda'; did you mean 'lambda'? Known: lambda, layers."


@pytest.mark.parametrize("value", [True, None, "ten", [1]])
def test_what_is_not_a_number(value):
    with pytest.raises(UsageError, match="lr must be a number"):
        as_number(value, "lr")
