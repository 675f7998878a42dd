"""What a study measured as one small file, and the table that is made of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from scipy import stats

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.studies.config import FILE, AxisPoint, Study, content_of
from s3prl_ext.studies.driver import Driver
from s3prl_ext.studies.jobs import Job
from s3prl_ext.studies.outcome import tables_of
from tests.support.instant_engine import Instant

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TEST = {"weighted_sum": (0.61, 0.64, 0.7), "child-0.1": (0.8, 0.75, 0.76), "full": (0.5, 0.9, 0.4)}  # by seed


@pytest.fixture
def recipes(monkeypatch):
    """The scripts ``evidence`` and ``methods``."""
    for folder in ("shared", "ad_tuning", "whisper"):
        monkeypatch.syspath_prepend(str(RECIPES / folder))
    for name in ("evidence", "methods", "tables", "runs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("evidence"), importlib.import_module("methods")


def study_of(model: str) -> Study:
    axes = {
        "task": (AxisPoint("ks", flags={"-d": "speech_commands", "-c": "ks/mini"}),),
        "upstream": (AxisPoint("u", flags={"-u": "whisper_local", "-k": model}),),
        "method": tuple(AxisPoint(name, {"tuning": {"method": name.partition("-")[0]}}) for name in TEST),
        "lr": tuple(AxisPoint(f"{lr:g}", {"optimizer.lr": lr}) for lr in (0.01, 0.001, 0.0001)),
    }
    return Study(axes, (0, 1, 2), ("lr",), own_search_seeds=(9,))


def score(job: Job) -> float:
    labels, seed = job.run.labels, job.run.seed
    if seed == 9:
        return {"0.01": 0.2, "0.001": 0.7, "0.0001": 0.71 if labels["method"] == "full" else 0.6}[labels["lr"]]
    return TEST[labels["method"]][seed]


@pytest.fixture
def done(tmp_path) -> Path:
    folder = tmp_path / "exp"
    Driver(study_of(str(tmp_path / "model")), folder, Instant(score), lambda _: None).run()
    (folder / FILE).write_text(json.dumps(content_of(study_of(str(tmp_path / "model")))))
    return folder


def test_a_packed_study_has_every_number_and_no_path(done, tmp_path, recipes, monkeypatch):
    evidence, _ = recipes
    with pytest.raises(UsageError, match="contains the path .*model: name the variable"):
        evidence.packed(done)
    with pytest.raises(UsageError, match="variable MODEL is not set"):
        evidence.packed(done, ["MODEL"])
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    assert evidence.main(["pack", str(done), str(tmp_path / "ks.json"), "--variables", "MODEL"]) == 0
    text = (tmp_path / "ks.json").read_text()
    assert str(tmp_path) not in text and "${MODEL}" in text
    assert len(json.loads(text)["results"]) == 3 * (3 + 3 + 3)

    monkeypatch.setenv("MODEL", "/elsewhere/model")
    assert evidence.main(["unpack", str(tmp_path / "ks.json"), str(tmp_path / "again")]) == 0
    assert [table.rows for table in tables_of(tmp_path / "again")] == [table.rows for table in tables_of(done)]
    engine = Instant(score)
    Driver(study_of("/elsewhere/model"), tmp_path / "again", engine, lambda _: None).run()
    assert engine.started == [], "what has its result is not trained again"
    with pytest.raises(DataError, match="is there already"):
        evidence.main(["unpack", str(tmp_path / "ks.json"), str(tmp_path / "again")])
    with pytest.raises(DataError, match="contains no study"):
        evidence.packed(tmp_path)


def test_a_run_that_failed_is_kept_too(done, recipes, monkeypatch, tmp_path):
    evidence, _ = recipes
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    run = next(done.glob("ks/u/full/lr=0.01/seed=9"))
    (run / "result.json").rename(run / "result-failed.json")
    (run / "result-failed.json").write_text(json.dumps({"error": "diverged", "diverged": True}))
    content = evidence.packed(done, ["MODEL"])
    evidence.unpack(content, tmp_path / "again")
    assert json.loads(next((tmp_path / "again").rglob("result-failed.json")).read_text())["diverged"]


def test_the_table_of_methods_is_that_of_the_results(done, tmp_path, recipes, monkeypatch):
    evidence, methods = recipes
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    content = evidence.packed(done, ["MODEL"])
    table = methods.table(content, "ks")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["frozen, weighted sum"] == [
        "7", "0.001", "70.00", "3", "65.00 ± 4.58", "-", "-", "96.30",
    ]  # fmt: skip
    for name, label in (("child, Fisher, P = 0.1", "child-0.1"), ("full fine-tuning", "full")):
        paired = stats.ttest_rel([100 * one for one in TEST[label]], [100 * one for one in TEST["weighted_sum"]])
        low, high = paired.confidence_interval(0.95)
        assert rows[name][6] == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    assert rows["full fine-tuning"][1] == "0.0001"
    assert table.notes == ("The chosen rate is at an end of the grid for full fine-tuning (0.0001).",)
    (tmp_path / "ks.json").write_text(evidence.text_of(content))
    assert methods.main([str(tmp_path / "ks.json")]) == 0
    assert (tmp_path / "ks_ks.png").read_bytes().startswith(b"\x89PNG")
    untested = content | {"results": {path: one for path, one in content["results"].items() if "-test" not in path}}
    (tmp_path / "ks.json").write_text(evidence.text_of(untested))
    with pytest.raises(DataError, match="the study has no score of ks on test"):
        methods.main([str(tmp_path / "ks.json"), "--tasks", "ks"])
    with pytest.raises(UsageError, match="has no task 'sid'; it has ks"):
        methods.main([str(tmp_path / "ks.json"), "--tasks", "sid"])
