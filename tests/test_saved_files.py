"""Files that released versions wrote still load, and give the values that they gave then (``tests/support/saved_files.py``)."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3prl_ext.attention.files import open_weights
from s3prl_ext.child_tuning import delta, mask_files
from s3prl_ext.errors import show_errors_as_sentences
from s3prl_ext.training import checkpoint
from tests.support import saved_files

SAVED = Path(__file__).parent / "fixtures" / "saved"
VALUES = json.loads((SAVED / "saved.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the saved files, and the corpus of tones in another place than then."""
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(SAVED, folder / "saved")
    saved_files.write_corpus(folder / "tones")
    return folder


@pytest.fixture
def saved(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The saved files, as the current folder."""
    monkeypatch.setenv("SPEECH_COMMANDS", str(copied / "tones"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(copied / "saved")
    yield copied / "saved"
    show_errors_as_sentences(False)


@pytest.mark.parametrize("weights", saved_files.WEIGHTS)
def test_checkpoints_and_deltas_score_what_they_scored(saved, weights):
    assert saved_files.scores(weights) == pytest.approx(VALUES["evaluate"][weights], rel=1e-4)


def test_the_head_of_an_export_scores_what_its_run_scored(saved, tmp_path):
    task = ["-u", "hubert_local", "-k", "export/hubert.pt", "-d", "speech_commands", "-c", "export/task.yaml"]
    saved_files.run("run", "-m", "evaluate", *task, "-i", "export/head.ckpt", "-t", "test", "-p", tmp_path / "check")
    rows = json.loads((tmp_path / "check" / "result-test.json").read_text())["metrics"]["test"]
    scored = {name: row["value"] for name, row in rows.items()}
    assert scored == pytest.approx(VALUES["evaluate"]["exp/child/delta.safetensors"], rel=1e-4)


@pytest.mark.parametrize("trained", [*saved_files.WEIGHTS, saved_files.EXPORT])
def test_they_say_the_same_of_a_clip(saved, tmp_path, trained):
    clip = next((saved.parent / "tones").glob("*test*/yes/*.wav"))
    answers = saved_files.answers(trained, clip, tmp_path / "answers.jsonl")
    assert answers == pytest.approx(VALUES["predict"][trained], abs=1e-4)


def test_result_files_and_sweeps_are_reported_alike(saved, tmp_path):
    assert saved_files.report(tmp_path / "report") == VALUES["report"]


@pytest.mark.parametrize("run", ["child", "full", "learnable"])
def test_training_resumes(saved, tmp_path, run):
    shutil.copytree(saved / "exp" / run, tmp_path / run)
    last = saved_files.STEPS + 2
    saved_files.run("run", "-m", "train", "-e", tmp_path / run, "-o", f"config.runner.total_steps={last}")
    assert checkpoint.load(tmp_path / run / f"states-{last}.ckpt")["Step"] == last


@pytest.mark.parametrize("changed", ["exp/child/delta.safetensors", "exp/child/dev-best.ckpt"])
def test_a_plain_model_made_of_them_is_the_one_made_then(saved, tmp_path, changed):
    saved_files.run("export", "--delta", changed, "--out", tmp_path / "out")
    then, now = (open_weights(folder / "hubert.pt") for folder in (saved / saved_files.EXPORT, tmp_path / "out"))
    assert set(then.keys()) == set(now.keys()) and all(then[name].equal(now[name]) for name in then)


def test_masks_choose_what_the_delta_changes(saved):
    masks, _, _ = mask_files.load(saved / "exp" / "child" / saved_files.MASKS)
    changed = delta.load(saved / "exp" / "child" / saved_files.DELTA).indices
    assert masks.densities == (0.05,) and set(changed) <= set(masks.indices)
    assert all(set(changed[name].tolist()) <= set(masks.indices[name].tolist()) for name in changed)


def test_the_record_of_a_race_names_its_winner(saved):
    record = json.loads(Path("exp/race/race/race.json").read_text())
    assert record["chosen"] == json.loads(Path("exp/race/result.json").read_text())["candidate"]
    assert delta.load(Path("exp/race/delta.safetensors")).info["candidate"] == record["chosen"]


def test_every_kind_of_file_is_there():
    """What a later version adds must not replace what is here: these files cannot be made again."""
    assert set(VALUES["evaluate"]) == set(saved_files.WEIGHTS)
    assert VALUES["versions"]["s3prl_ext"] == "0.1.0"
