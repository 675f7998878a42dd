"""Configuration files: variables, unknown keys, numbers, unreadable YAML."""

from __future__ import annotations

import pytest

from s3prl_ext.configs import Variables, expand_variables, load_yaml
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.reading import parse_json


def test_variables_are_expanded_with_defaults_and_nesting(monkeypatch):
    monkeypatch.setenv("ROOT", "/corpora")
    monkeypatch.delenv("LENGTHS", raising=False)
    config = {"a": {"b": "${ROOT}/x", "c": ["${LENGTHS:-${ROOT}/len}", 3]}, "d": "plain"}
    expected = {"a": {"b": "/corpora/x", "c": ["/corpora/len", 3]}, "d": "plain"}
    assert expand_variables(config) == expected
    assert config["a"]["b"] == "${ROOT}/x", "the input is left unchanged"
    monkeypatch.setenv("LENGTHS", "/lengths")
    assert expand_variables(config)["a"]["c"][0] == "/lengths"


def test_unset_variable_names_itself_and_the_override(monkeypatch):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(UsageError, match=r"needs the environment variable NOWHERE.*-o \"config\.data\.root="):
        expand_variables({"data": {"root": "${NOWHERE}/x"}})


def test_variables_are_restored_for_storage(monkeypatch):
    monkeypatch.setenv("ROOT", "/corpora")
    variables = Variables({"data": {"root": "${ROOT}/x", "lr": 1}, "files": ["${ROOT}/a", "b"]})
    config = variables.expanded
    config["data"]["frame_shift"] = 320  # s3prl's tasks add keys
    config["data"]["lr"] = 2
    assert variables.restored(config) == {
        "data": {"root": "${ROOT}/x", "lr": 2, "frame_shift": 320},
        "files": ["${ROOT}/a", "b"],
    }
    config["data"]["root"] = "/elsewhere"
    assert variables.restored(config)["data"]["root"] == "/elsewhere"


def test_unreadable_yaml(tmp_path):
    with pytest.raises(UsageError, match="no such configuration file"):
        load_yaml(tmp_path / "none.yaml")
    for content, message in (
        (b"a: [1", "not readable as YAML"),
        (b"- 1\n", "must hold a mapping"),
        (b"\xff\xfe\x00", "YAML"),
    ):
        (tmp_path / "x.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            load_yaml(tmp_path / "x.yaml")


def test_unknown_names_list_the_known_or_the_closest():
    few = str(unknown_name("task", "asrr", ["asr", "sid"]))
    assert few == "unknown task 'asrr'; did you mean 'asr'? Known: asr, sid."
    many = str(unknown_name("upstream", "hubbert", ["hubert", *(f"name{i}" for i in range(100))]))
    assert "did you mean 'hubert'?" in many and "101 names" in many and "name50" not in many


@pytest.mark.parametrize(
    ("variables", "path"),
    [({"A": "${A}"}, "A -> A"), ({"A": "${A}/sub"}, "A -> A"), ({"A": "${B}/x", "B": "${A}"}, "A -> B -> A")],
)
def test_a_variable_that_stands_for_itself_is_refused(monkeypatch, variables, path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"config.root: the environment variable A refers to itself .{path}."):
        expand_variables({"root": "${A}/x"})


def test_variables_may_name_others_twice(monkeypatch):
    monkeypatch.setenv("A", "${B}/${B}")
    monkeypatch.setenv("B", "b")
    assert expand_variables("${A} ${B}") == "b/b b"


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert expand_variables("${EMPTY:-/default}") == "/default"
    with pytest.raises(UsageError, match="needs the environment variable EMPTY, which is empty"):
        expand_variables({"root": "${EMPTY}/x"})


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("runner: {a: 1}\noptimizer: {}\nrunner: {a: 2}\n", 3, "runner"),
        ("lambda: 0.1\nsource:\n  model: x\n  model: y\n", 4, "model"),
        ("a: {b: 1, c: [{d: 1, d: 2}]}\n", 1, "d"),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text, line, key):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=f"x.yaml, line {line}: the key '{key}' is there twice, first in line"):
        load_yaml(tmp_path / "x.yaml")


def test_merge_keys_and_aliases_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}\nlists: {x: *base, y: *base}\n")
    content = load_yaml(tmp_path / "x.yaml")
    assert content["mine"] == {"a": 1, "b": 3} and content["lists"]["y"] == {"a": 1, "b": 2}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [1, *a]\n", "more than 100,000 values"),
        ("a: &a {b: *a}\n", "more than 100,000 values"),
        ("a: " + "[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("a: " + "{b: " * 3_000 + "1" + "}" * 3_000, "nested too deeply"),
    ],
    ids=["aliases", "endless list", "endless mapping", "deep list", "deep mapping"],
)
def test_bombs_are_refused_at_once(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_yaml(tmp_path / "x.yaml")


def test_a_nested_config_of_another_origin_is_refused():
    inner: list = ["x"]
    for _ in range(12):
        inner = [inner] * 9
    with pytest.raises(UsageError, match="more than 100,000 values"):
        expand_variables({"a": inner})


@pytest.mark.parametrize("text", ["[" * 100_000, b"[" * 100_000])
def test_json_nested_too_deeply_is_no_json(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


def test_a_file_read_again_is_as_it_was_whatever_was_done_to_the_first_one(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("runner: &steps {total_steps: 3}\nother: [1, {b: 2}]\nsame: *steps\n")
    first = load_yaml(path)
    first["runner"]["total_steps"], first["other"][1]["b"] = 4, 5
    assert load_yaml(path) == {"runner": {"total_steps": 3}, "other": [1, {"b": 2}], "same": {"total_steps": 3}}
    path.write_text("runner: {total_steps: 6}\n")
    assert load_yaml(path) == {"runner": {"total_steps": 6}}
