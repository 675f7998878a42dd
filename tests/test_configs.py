"""Configuration files: variables, unknown keys, numbers, unreadable YAML."""

from __future__ import annotations

import pytest

from s3prl_ext.configs import Variables, as_number, check_keys, expand_variables, load_yaml
from s3prl_ext.errors import UsageError, unknown_name


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


def test_unknown_keys_name_the_nearest():
    (complaint,) = check_keys({"lamda": 1, "layers": 2}, ["lambda", "layers"], "my.yaml")
    assert "my.yaml: unknown key 'lamda'; did you mean 'lambda'? Known: lambda, layers." == complaint


@pytest.mark.parametrize(("value", "number"), [("1e-5", 1e-5), (3, 3.0), (0.5, 0.5)])
def test_numeric_strings_count_as_numbers(value, number):
    assert as_number(value, "lr") == number


@pytest.mark.parametrize("value", [True, None, "ten", [1]])
def test_what_is_no_number(value):
    with pytest.raises(UsageError, match="lr must be a number"):
        as_number(value, "lr")


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
