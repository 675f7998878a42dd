"""The measurements of reliability start, and one trial of each ends as wanted; what they would find is found."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from reliability import __main__ as reliability
from reliability import bitflips, shared
from reliability.commands import tree_differences


@pytest.fixture(scope="module")
def work(tmp_path_factory, mini_superb):
    folder = tmp_path_factory.mktemp("reliability")
    (folder / "mini").symlink_to(mini_superb)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", reliability.SHARES)
def test_one_trial_of_each(work, name, capsys):
    assert reliability.main([name, "--trials", "1", "--work", str(work)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{name}: ")


@pytest.mark.slow
def test_a_figure_that_is_not_wanted_is_exit_code_1(work, monkeypatch, capsys):
    monkeypatch.setattr(bitflips, "measure", lambda place: shared.Figure(f"{place.trials} bits, 1 silent", 1))
    assert reliability.main(["bitflips", "--minutes", "1", "--trials", "3", "--work", str(work)]) == 1
    assert capsys.readouterr().out == "bitflips: 3 bits, 1 silent\n"


def test_an_unknown_name_is_a_sentence(capsys):
    with pytest.raises(SystemExit):
        reliability.main(["kil"])
    assert "unknown: kil; there are bitflips, hostile, two_runs, full_disk, kill" in capsys.readouterr().err


def test_one_bit_makes_a_difference():
    value = torch.tensor([0.0, float("nan")])
    assert shared.same({"a": [value, float("nan")]}, {"a": [value.clone(), float("nan")]})
    assert not shared.same({"a": [value]}, {"a": [torch.tensor([-0.0, float("nan")])]})
    assert not shared.same({"a": 1}, {"a": 1, "b": 1})


def test_trees_differ_by_a_byte_or_a_file_but_not_by_their_own_names(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "env.sh").write_text(f"export X={tmp_path / name}/x\n")
    assert tree_differences(tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "a" / "more").touch()
    assert tree_differences(tmp_path / "a", tmp_path / "b") == ["more differs"]


def test_hidden_files_and_generic_sentences_are_found(tmp_path):
    (tmp_path / ".lock").touch()
    assert shared.hidden(tmp_path) == [".lock"]

    class Ended:
        output = "s3prl-ext: ValueError: x (S3PRL_EXT_DEBUG=1 shows where).\n"

    assert "S3PRL_EXT_DEBUG" in shared.sentence_problem(Ended(), 1)
    assert shared.sentence_problem(Ended(), None) == "it did not end"
    Ended.output = "s3prl-ext: no such checkpoint: x.\n"
    assert not shared.sentence_problem(Ended(), 1)


def test_the_folder_is_not_installed():
    settings = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["tool"]
    assert settings["setuptools"]["packages"]["find"]["include"] == ["s3prl_ext", "s3prl_ext.*"]
