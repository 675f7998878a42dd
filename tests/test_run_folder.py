"""Which files of a run's folder stand for the run, are replaced, adopted and removed."""

from __future__ import annotations

import pytest

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.run_folder import RunFolder, missing, states_name, step_of

STATES = ["states-2.ckpt", "states-10.ckpt"]
RESULTS = ["result.json", "result-test-failed.json", "log.log", "masks.safetensors", "fisher.partial", "race.png",
           "delta.safetensors", "lambda.json", "dev_predict.txt", "transcripts-dev.jsonl", "test-hyp.ark"]  # fmt: skip
KEPT = ["args_2026-01-02-03-04-05.yaml", "notes.txt"]


def folder(path, *names):
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_text(name)
    return RunFolder(path)


def names(run):
    return sorted(path.name for path in run.path.iterdir())


def test_numbers_are_compared_as_numbers(tmp_path):
    run = folder(tmp_path / "exp", *STATES, "states-best.ckpt", "dev-best.ckpt")
    assert [path.name for path in run.numbered()] == STATES and run.latest().name == "states-10.ckpt"
    assert [path.name for path in run.best()] == ["dev-best.ckpt"]
    assert [step_of(run.path / name) for name in (states_name(7), "dev-best.ckpt", "states-7.txt")] == [7, None, None]
    assert RunFolder(tmp_path / "nothing").latest() is None


def test_what_stands_for_a_run(tmp_path):
    run = folder(tmp_path / "exp", *STATES, "dev-best.ckpt", "delta.safetensors")
    assert run.representative().name == "dev-best.ckpt"
    assert run.representative(prefer_delta=True).name == "delta.safetensors"
    run.delta.unlink()
    assert missing(run.delta).endswith("dev-best.ckpt.")
    with pytest.raises(DataError, match="contains no checkpoint and no delta.safetensors"):
        folder(tmp_path / "empty").representative()
    with pytest.raises(DataError, match="is the folder of a sweep"):
        folder(tmp_path / "sweep", "sweep.json").representative()


def test_overwriting_removes_results_and_nothing_else(tmp_path):
    run = folder(tmp_path / "exp", *STATES, *RESULTS, *KEPT)
    folder(run.path / "race" / "a", "states-1.ckpt")
    with pytest.raises(UsageError, match="already holds an experiment"):
        run.refuse_overwriting()
    run.clear()
    assert names(run) == sorted(KEPT)
    run.refuse_overwriting()


def test_an_experiment_adopts_the_winner_of_its_race(tmp_path):
    run = folder(tmp_path / "exp", "states-0.ckpt", "result.json")
    winner = folder(run.candidate("a").path, "states-4.ckpt", "dev-best.ckpt", "delta.safetensors", "log.log",
                    "dev_predict.txt", "masks.safetensors")  # fmt: skip
    assert [one.path for one in run.candidates()] == [winner.path]
    run.adopt(winner, keep=1)
    assert names(run) == ["delta.safetensors", "dev-best.ckpt", "dev_predict.txt", "log.log", "race", "result.json",
                          "states-4.ckpt"]  # fmt: skip


def test_a_folder_is_removed_where_nothing_was_trained(tmp_path):
    for kept in ("states-1.ckpt", "notes.txt"):
        run = folder(tmp_path / kept, KEPT[0], kept)
        with pytest.raises(ValueError, match="failed"), run.removed_if_nothing_trained():
            raise ValueError("failed")
        assert kept in names(run)
    run = folder(tmp_path / "settings", KEPT[0])
    with pytest.raises(ValueError, match="failed"), run.removed_if_nothing_trained():
        raise ValueError("failed")
    assert not run.path.exists()


@pytest.mark.parametrize("name", ["delta.safetensors", "result-test.json", "race/race.json", "at-2.json", "race.png"])
def test_what_a_run_has_come_to_is_not_trained_over(tmp_path, name):
    run = folder(tmp_path / "exp")
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text(name)
    found = name.split("/")[0]
    with pytest.raises(UsageError, match=rf"an experiment \({found}\): it has no checkpoint to resume, so choose"):
        run.refuse_overwriting()


def test_what_a_run_leaves_before_its_first_checkpoint_is_taken_up(tmp_path):
    left = ("masks.safetensors", "fisher.partial", "lambda.json", "log.log", "tracker.json", "result-failed.json",
            "events.out.tfevents.1", "dev-hyp.ark")  # fmt: skip
    run = folder(tmp_path / "exp", *left)
    (run.path / "race").mkdir()
    run.refuse_overwriting()
