"""One run per folder: a lock ends with its process, and unfinished files go only where nobody else may be writing them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3prl_ext import locks
from s3prl_ext.errors import UsageError
from s3prl_ext.writing import unfinished_folder

FORK = multiprocessing.get_context("fork")
PART = ".result.json.0123456789abcdef"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.05)


def _hold(holding: Any, path: Path, inside: Any) -> None:
    with holding(path):
        inside.send(os.getpid())
        inside.recv()


@contextmanager
def other_process(holding: Any, path: Path) -> Iterator[Any]:
    """Another process that holds `path`, until the body ends or kills it."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=_hold, args=(holding, path, there), daemon=True)
    process.start()
    assert here.poll(20) and here.recv() == process.pid
    try:
        yield process
    finally:
        if process.is_alive():
            here.send("end")
        process.join(10)


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path):
    with other_process(locks.one_run, tmp_path / "exp") as first, pytest.raises(UsageError) as refused:
        locks.hold(tmp_path / "exp")
    assert f"exp is in use by process {first.pid} on {socket.gethostname()}: wait" in str(refused.value)
    with locks.one_run(tmp_path / "exp"), locks.one_run(tmp_path / "exp"):  # the same process may
        assert (tmp_path / "exp" / locks.FOLDER_LOCK).is_file()
    assert not (tmp_path / "exp").exists(), "it was empty, and made for the lock alone"


def test_a_lock_ends_with_its_process(tmp_path):
    with other_process(locks.one_run, tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        assert (tmp_path / locks.FOLDER_LOCK).is_file()
        with locks.one_run(tmp_path):
            pass
    assert not list(tmp_path.iterdir())


def _sleep(waiting: Any) -> None:
    waiting.recv()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    here, there = FORK.Pipe()
    with locks.one_run(tmp_path):
        worker = FORK.Process(target=_sleep, args=(there,), daemon=True)
        worker.start()
    with other_process(locks.one_run, tmp_path):
        assert worker.is_alive()
    here.send("end")
    worker.join(10)


def _take_often(path: Path, count: int, results: Any) -> None:
    taken = 0
    while taken < count:
        try:
            with locks.one_writer(path):
                marker = path.with_name("inside")
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                marker.unlink()
                taken += 1
        except locks.InUse:
            pass
        except FileExistsError:
            results.put("two at once")
            return
    results.put("well")


def test_the_file_is_removed_without_letting_two_in(tmp_path):
    results = FORK.Queue()
    processes = [FORK.Process(target=_take_often, args=(tmp_path / "out", 150, results), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == ["well"] * 3
    for process in processes:
        process.join(10)
    assert not list(tmp_path.iterdir())


def test_parts_of_killed_commands_go_with_the_next(tmp_path):
    with other_process(unfinished_folder, tmp_path / "model") as first:
        (part,) = tmp_path.glob(".model.partial-*")
        (part / "weights").write_bytes(b"0" * 1000)
        with (
            pytest.raises(UsageError, match="model is being written by process"),
            unfinished_folder(tmp_path / "model"),
        ):
            pass
        assert (part / "weights").is_file(), "it still belongs to a living process"
        os.kill(first.pid, signal.SIGKILL)
        first.join()
    others = [tmp_path / ".model2.partial-1", tmp_path / ".model.partial-12-old"]
    for other in others:
        other.mkdir()
    with unfinished_folder(tmp_path / "model"):
        assert not part.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_unfinished_files_go_where_nobody_else_writes(tmp_path):
    (tmp_path / "race").mkdir()
    parts = [tmp_path / PART, tmp_path / "race" / ".tmpAb12_x"]
    kept = [tmp_path / ".notes", tmp_path / ".result.json.0123", tmp_path / "result.json", tmp_path / "race"]
    for path in [*parts, *kept[:3]]:
        path.touch()
    for other in (locks.evaluation, locks.one_run):
        with other_process(other, tmp_path):
            for part in parts:
                part.touch()
            with locks.evaluation(tmp_path):  # at the same time, but it clears nothing
                assert all(part.exists() for part in parts)
            locks.remove_unfinished(tmp_path, below=("race",))
            assert all(part.exists() for part in parts)
    with other_process(locks.evaluation, tmp_path), locks.one_run(tmp_path):  # a training beside an evaluation
        pass
    locks.remove_unfinished(tmp_path, below=("race",))
    assert sorted(tmp_path.rglob("*")) == sorted(kept)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/exp cannot be made \(Not a directory\): choose another one with -p"):
        locks.hold(tmp_path / "file" / "exp")
    with locks.one_run(tmp_path / "file"):
        pass  # the command says that it is a file


def test_where_no_lock_can_be_made_the_run_goes_on(tmp_path, monkeypatch, caplog):
    with locks.one_writer(tmp_path / "missing" / "out"), locks.one_writer(None):
        pass

    def without_locks(*_: Any) -> None:
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", without_locks)
    with locks.one_run(tmp_path):
        pass
    assert "has no locks" in caplog.text
