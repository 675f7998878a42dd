"""Trackers: what a run logs reaches them, once resumed too; one that is missing or fails never ends a training."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from s3prl_ext import tracking
from s3prl_ext.errors import UsageError
from s3prl_ext.run_flags import canonical


class Writer:
    """Stands in for TensorBoard's."""

    def __init__(self, folder: str = "") -> None:
        self.scalars: list = []

    def add_scalar(self, tag, value, global_step=None):
        self.scalars.append((tag, value, global_step))

    def close(self):
        self.scalars.append("closed")


class Service:
    """Stands in for a tracker; remembers what every session was told."""

    sessions: ClassVar[list] = []
    fails_at: ClassVar[str] = ""

    def __init__(self, folder, project, name, known, settings) -> None:
        self.id, self.logged, self.name, self.project, self.settings = known or "id1", [], name, project, settings
        self._maybe_fail("open")
        Service.sessions.append(self)

    def _maybe_fail(self, what):
        if Service.fails_at == what:
            raise ConnectionError("the service is away")

    def log(self, values, step):
        self._maybe_fail("log")
        self.logged.append((step, dict(values)))

    def close(self):
        self._maybe_fail("close")
        self.logged.append("closed")


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(Service, "sessions", [])
    monkeypatch.setattr(Service, "fails_at", "")
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Service)
    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    return Service


def opened(folder: Path, track: str | None = "wandb"):
    return tracking.open_writer(folder, argparse.Namespace(track=track, seed=3), {"optimizer": {"lr": 0.1}})


def log(writer) -> None:
    for step in (1, 2):
        writer.add_scalar("ks/train-acc", 0.5, global_step=step)
        writer.add_scalar("ks/train-loss", 2.0, global_step=step)
    writer.close()


def test_scalars_go_to_both_a_call_for_each_step(service, tmp_path):
    log(writer := opened(tmp_path, "wandb:exp"))
    row = {"ks/train-acc": 0.5, "ks/train-loss": 2.0}
    assert service.sessions[0].logged == [(1, row), (2, row), "closed"] and len(writer.scalars) == 5
    assert service.sessions[0].settings == {"args.track": "wandb:exp", "args.seed": 3, "config.optimizer.lr": 0.1}
    log(opened(tmp_path))
    assert [one.id for one in service.sessions] == ["id1", "id1"], "it goes on with the run of the tracker"
    assert json.loads((tmp_path / "tracker.json").read_text()) == {"wandb": "id1"}


def test_a_study_names_its_runs():
    assert tracking.run_name(Path("/a/exp/study/ks/fbank/seed=0"), "study") == "ks/fbank/seed=0"
    assert tracking.run_name(Path("/a/exp/ks"), "") == "exp/ks" == tracking.run_name(Path("/a/exp/ks"), "ks")


def test_without_a_tracker_the_writer_is_tensorboards(service, tmp_path):
    assert type(opened(tmp_path, None)) is type(opened(tmp_path, "tensorboard")) is Writer
    assert not service.sessions and not (tmp_path / "tracker.json").exists()


@pytest.mark.parametrize("when", ["open", "log", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(when, service, tmp_path, caplog):
    service.fails_at = when
    with caplog.at_level(logging.WARNING):
        log(writer := opened(tmp_path))
    assert [record.message for record in caplog.records] == [
        "the tracker fails and is left out from here on, TensorBoard's files go on: the service is away"
    ]
    assert writer.scalars[-1] == "closed" and len(writer.scalars) == 5


def test_scores_of_an_evaluation_join_the_run_that_is_known(service, tmp_path):
    args = argparse.Namespace(track="wandb")
    tracking.log_scores(tmp_path, args, {"test/acc": 0.5}, 2)
    assert not service.sessions, "there is none"
    log(opened(tmp_path))
    tracking.log_scores(tmp_path, args, {"test/acc": 0.5}, 2)
    assert service.sessions[1].id == "id1" and service.sessions[1].logged == [(2, {"test/acc": 0.5}), "closed"]


def test_the_flag_becomes_an_option_that_s3prl_can_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__spec__="found"))
    assert canonical(["-m", "train", "--track", "wandb", "-a"]) == [
        "-m",
        "train",
        "-a",
        "-o",
        "args.track='wandb'",
    ]
    for flags in (["--track=wandb:x", "-o", "config.a=1"], ["-o", "config.a=1", "--track", "wandb:x"]):
        assert canonical(flags) == ["-o", "config.a=1,,args.track='wandb:x'"]
    assert canonical(["-o", "config.a=1"]) == ["-o", "config.a=1"]


@pytest.mark.parametrize(
    ("track", "sentence"),
    [
        ("wandbb", "--track: unknown tracker 'wandbb'; did you mean 'wandb'"),
        ("", "--track: unknown tracker ''"),
        ("tensorboard:a=b", "quotes, '=', ',,' and backslashes cannot be passed on"),
        ("mlflow", r"--track mlflow needs the package 'mlflow': pip install 's3prl_ext\[mlflow\]'"),
    ],
)
def test_what_cannot_be_tracked_is_one_sentence(track, sentence, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=sentence):
        canonical(["--track", track])


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log(opened(tmp_path))
    first = json.loads((tmp_path / "tracker.json").read_text())
    log(opened(tmp_path))
    assert json.loads((tmp_path / "tracker.json").read_text()) == first
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{first['wandb']}"))) == 2


def test_mlflow_in_a_local_store(tmp_path, monkeypatch):
    package = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        log(opened(tmp_path, "mlflow:study"))
    client = package.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "tracker.json").read_text())["mlflow"]
    assert run.data.params["config.optimizer.lr"] == "0.1" and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "ks/train-acc")] == [
        (1, 0.5),
        (2, 0.5),
    ] * 2
