"""Values of ``-o``: what they mean, and what s3prl is told."""

from __future__ import annotations

from argparse import Namespace

import pytest
from s3prl.utility import helper

from s3prl_ext.errors import UsageError
from s3prl_ext.overrides import as_literal, check_kind, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("True", True),
        ("TRUE", True),
        ("null", None),
        ("None", None),
        ("1e-3", 0.001),
        ("1_000", 1000),
        ("-.5", -0.5),
        ("[dev]", ["dev"]),
        ("[dev, 'test']", ["dev", "test"]),
        ("['dev', 'test']", ["dev", "test"]),
        ("(1, 2)", (1, 2)),
        ("{lr: 1e-3, amsgrad: false, of: [x, '5', null]}", {"lr": 0.001, "amsgrad": False, "of": ["x", "5", None]}),
        ("AdamW", "AdamW"),
        ("max", "max"),  # a name of Python
        ("torch", "torch"),  # one of the module that evaluates
        ("'no'", "no"),
        ("2024-01-31", "2024-01-31"),
        ("1:30", "1:30"),
        ("0777", "0777"),
        ("~/corpora", "~/corpora"),
        ("~", "~"),
        ("/data/take #1 of: all", "/data/take #1 of: all"),
        (r"C:\data\x", r"C:\data\x"),
        ("it's", "it's"),
        ("", ""),
        ("[2024-01-31, 1:30]", ["2024-01-31", "1:30"]),
    ],
)
def test_values(text, value):
    """They mean a Python literal, else what YAML's words, lists and mappings say; s3prl sets the same."""
    found = parse_value(text, "args.x")
    assert found == value and type(found) is type(value)
    args = Namespace()
    helper.override(f"args.x={as_literal(text, 'args.x')}", args, {})
    assert args.x == value and type(args.x) is type(value)
    assert as_literal(as_literal(text, "args.x"), "args.x") == as_literal(text, "args.x")


@pytest.mark.parametrize(
    "text", ["[dev", "{a: 1, a: 2}", "[*x]", "[" * 5000, "[!!python/name:os.getcwd '']", "[dev, 1e999]"]
)
def test_lists_that_cannot_be_read(text):
    with pytest.raises(UsageError, match=r"-o config.x: '.*' is not readable: a list is \[a, b\]"):
        parse_value(text, "config.x")


@pytest.mark.parametrize(("text", "meant"), [("no", "false"), ("Off", "false"), ("yes", "true"), ("[on]", "true")])
def test_words_that_yaml_takes_for_true_or_false(text, meant):
    with pytest.raises(UsageError, match=f"-o config.x: .* may mean {meant} or a text: write {meant}"):
        parse_value(text, "config.x")


@pytest.mark.parametrize(
    ("value", "before", "message"),
    [
        ("fasle", True, "true or false, got 'fasle'"),
        ("5e", 5, "a number, got '5e'"),
        ("dev", ["dev", "test"], r"a list such as \[a, b\], got 'dev'"),
        ("x", {"a": 1}, "a mapping"),
    ],
)
def test_text_in_place_of_another_kind(value, before, message):
    with pytest.raises(UsageError, match=f"-o config.a must be {message}"):
        check_kind(value, before, "config.a")
    with pytest.raises(UsageError, match=r"-o config.a.b must be"):
        check_kind({"b": value, "c": 1}, {"b": before}, "config.a")
    check_kind(value, "text", "config.a")
    check_kind(value, None, "config.a")
