"""What a study measured as one small file, and the table that is made of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from scipy import stats

from s3prl_ext.commands import report
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.studies import study_run
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
    for name in (
        "evidence",
        "methods",
        "tables",
        "runs",
        "figures",
        "races",
        "child_networks",
        "lambdas",
        "mam_tuning",
    ):
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
    record = json.loads(next((tmp_path / "again").glob("ks/u/full/lr=0.0001/seed=1/result.json")).read_text())
    assert record["args"]["upstream_ckpt"] == "/elsewhere/model" and record["args"]["seed"] == 1
    assert record["config"]["optimizer"]["lr"] == 0.0001 and record["config"]["tuning"] == {"method": "full"}
    assert report.main([str(tmp_path / "again"), "--out", str(tmp_path / "report")]) == 0, "runs are told apart"
    engine = Instant(score)
    Driver(study_of("/elsewhere/model"), tmp_path / "again", engine, lambda _: None).run()
    assert engine.started == [], "what has its result is not trained again"
    with pytest.raises(DataError, match="is there already"):
        evidence.main(["unpack", str(tmp_path / "ks.json"), str(tmp_path / "again")])
    with pytest.raises(DataError, match="contains no study"):
        evidence.packed(tmp_path)


def test_a_study_is_unpacked_with_the_task_file_that_ran(done, tmp_path, recipes, monkeypatch):
    """Otherwise a changed preset would be written as the settings behind numbers that another one gave."""
    evidence, _ = recipes
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    for path in done.rglob("result*.json"):  # as a run leaves it, on another machine and with its labels
        record = json.loads(path.read_text())
        expert = record["config"]["downstream_expert"]
        expert["datarc"] |= {"speech_commands_root": "data/v1", "speech_commands_test_root": "/data/test"}
        path.write_text(
            json.dumps(record | {"config": record["config"] | {"downstream_expert": expert | {"labels": ["yes"]}}})
        )
    content = json.loads(evidence.text_of(evidence.packed(done, ["MODEL"])))
    evidence.unpack(content, tmp_path / "same")
    assert "config_sha256" not in json.loads(next((tmp_path / "same").rglob("result.json")).read_text())

    read = study_run.load_yaml
    for key, value in (("num_workers", 7), ("eval_batch_size", 7)):

        def newer(path, key=key, value=value):
            config = read(path)
            config["downstream_expert"]["datarc"][key] = value
            return config

        monkeypatch.setattr(study_run, "load_yaml", newer)
        if key == "num_workers":
            evidence.unpack(content, tmp_path / "workers")  # changes no result
            continue
        with pytest.raises(
            DataError, match=r"result.*json: its plan gives another task file now than the one that ran"
        ):
            evidence.unpack(content, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for record in (content["common"], *content["results"].values()):
        record.pop("config_sha256", None)
    evidence.unpack(content, tmp_path / "earlier")  # a file without hashes


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
    table = methods.table([content], "ks")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["frozen, weighted sum"] == [
        "7", "0.001", "0.001", "70.00", "3", "65.00 ± 4.58", "-", "-", "96.30",
    ]  # fmt: skip
    for name, label in (("child, Fisher, P = 0.1", "child-0.1"), ("full fine-tuning", "full")):
        paired = stats.ttest_rel([100 * one for one in TEST[label]], [100 * one for one in TEST["weighted_sum"]])
        low, high = paired.confidence_interval(0.95)
        assert rows[name][7] == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    assert rows["full fine-tuning"][1:3] == ["0.0001", "0.0001"]
    assert table.notes == ["The chosen rate is at an end of the grid for full fine-tuning (0.0001)."]
    (tmp_path / "ks.json").write_text(evidence.text_of(content))
    assert methods.main([str(tmp_path / "ks.json")]) == 0
    assert (tmp_path / "methods_ks.png").read_bytes().startswith(b"\x89PNG")
    untested = content | {"results": {path: one for path, one in content["results"].items() if "-test" not in path}}
    (tmp_path / "ks.json").write_text(evidence.text_of(untested))
    with pytest.raises(DataError, match="the studies have no score of ks on test"):
        methods.main([str(tmp_path / "ks.json"), "--tasks", "ks"])
    with pytest.raises(UsageError, match="no file has a task 'sid'; they have ks"):
        methods.main([str(tmp_path / "ks.json"), "--tasks", "sid"])


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("data", {"sha256": "0" * 64, "files": 3, "bytes": 3, "covers": "all"}, "another corpus"),
        ("splits_sha256", "0" * 64, "other splits"),
        ("upstream_sha256", "0" * 64, "another upstream"),
    ],
)
def test_studies_of_one_table_measured_on_one_basis(recipes, key, value, said):
    """The differences between their rows would be differences of corpus or model."""
    _, methods = recipes
    races = importlib.import_module("races")
    heads, trained = (
        json.loads((RECIPES / "whisper" / name).read_text()) for name in ("heads.json", "methods_ks.json")
    )
    heads["results"] = {path: one for path, one in heads["results"].items() if path.startswith("ks/")}
    assert len(methods.table([heads, trained], "ks").rows) > 5
    for record in trained["results"].values():
        record[key] = value
    with pytest.raises(DataError, match=rf"ks/.* of study 2 was run on {said} than ks/.* of study 1"):
        methods.table([heads, trained], "ks")
    with pytest.raises(DataError, match=said):
        races.table([heads, trained])


@pytest.mark.parametrize("what", ["task", "head", "items", "unmerged", "columns"])
def test_sweeps_of_one_table_have_the_same_unmerged_score_corpus_and_columns(recipes, what):
    lambdas = importlib.import_module("lambdas")
    content = json.loads((RECIPES / "whisper/vctk_aligned.json").read_text())
    assert len(lambdas.aligned_table(content).rows) == len(content)
    other = content["match"]
    other |= {"columns": other["columns"][::-1]} if what == "columns" else {}
    other |= {"task": "ljspeech"} if what == "task" else {}
    if what not in ("columns", "task"):
        key = {"head": "window", "items": "dev", "unmerged": "dev"}[what]
        other[what] = other[what] | {key: [1.0, 0.5, 1.5] if what == "unmerged" else 7}
    with pytest.raises(DataError, match=f"the sweeps 'plain' and 'match' differ in '{what}'"):
        lambdas.aligned_table(content)


def test_a_model_that_diverged_is_shown_and_counted(done, tmp_path, recipes, monkeypatch):
    evidence, methods = recipes
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    tested = done / "ks/u/full/lr=0.0001/seed=1/result-test.json"
    content = json.loads(tested.read_text())
    content["metrics"]["test"]["acc"]["value"] = None  # what a file holds for NaN
    tested.write_text(json.dumps(content))
    for seed in (0, 1, 2, 9):
        for folder in done.glob(f"ks/u/child-0.1/lr=*/seed={seed}"):
            for path in folder.glob("result*.json"):
                path.unlink()
            (folder / "result-failed.json").write_text(json.dumps({"error": "diverged", "diverged": True}))
    table = methods.table([evidence.packed(done, ["MODEL"])], "ks")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["full fine-tuning"][5] == "NaN" and rows["full fine-tuning"][7] == "-"
    assert table.notes[-1] == "Every learning rate diverged: child, Fisher, P = 0.1."
    (tmp_path / "ks.json").write_text(evidence.text_of(evidence.packed(done, ["MODEL"])))
    assert methods.main([str(tmp_path / "ks.json")]) == 0
    assert (tmp_path / "methods_ks.png").read_bytes().startswith(b"\x89PNG")


def test_a_race_that_the_times_of_its_files_decide_is_not_packed(done, recipes):
    evidence, _ = recipes
    plan = json.loads((done / FILE).read_text())
    (done / FILE).write_text(json.dumps(plan | {"race": {"rungs": [2, 4], "eta": 2}, "scheduler": "asha"}))
    with pytest.raises(UsageError, match="which the times of its files decide: copy it"):
        evidence.packed(done)


@pytest.mark.parametrize("file", sorted((RECIPES / "whisper").glob("masks_*.json")), ids=lambda file: file.stem)
def test_the_masks_of_the_pictures_are_those_that_trained(file, recipes):
    child_networks = importlib.import_module("child_networks")
    (content,) = child_networks.read_masks([file])
    _, methods = recipes
    study = json.loads(file.with_name(file.name.replace("masks", "methods")).read_text())
    rows = {row.label: row for row in methods.rows_of([study], content["task"])}
    histogram, eligible = child_networks.histogram_of(content), sum(content["sizes"].values())
    assert histogram.total == eligible and content["edges"] == sorted(content["edges"]) and content["edges"][0] == 0
    for density, of_tensors in content["trained"].items():
        assert sum(of_tensors.values()) == rows[f"child-{density}"].trained[0] == round(float(density) * eligible)
        edge = histogram.threshold(float(density))
        above = sum(count for low, count in zip(content["edges"], content["counts"], strict=True) if low > edge)
        assert above < round(float(density) * eligible) <= above + content["counts"][content["edges"].index(edge)]
        shares = child_networks.shares_of(content, float(density)).by_layer()
        sizes = [
            sum(size for name, size in content["sizes"].items() if f"layers.{layer}." in name) for layer in range(6)
        ]
        inside = sum(count for name, count in of_tensors.items() if "layers." in name)
        assert sum(share * size for share, size in zip(shares, sizes, strict=True)) == pytest.approx(inside)


def test_child_networks_are_drawn_from_packed_studies(tmp_path, recipes):
    child_networks = importlib.import_module("child_networks")
    masks, study = RECIPES / "whisper/masks_ks.json", RECIPES / "whisper/methods_ks.json"
    panel = child_networks.panel_of(json.loads(study.read_text()))
    assert panel.cut == ("comparison", 40.0) and panel.y_label == "dev accuracy (%) ↑"
    assert [(one.label.split(",")[0], len(one.runs)) for one in panel.series] == [
        ("P = 0.1", 3), ("P = 0.01", 5), ("P = 0.001", 3),
    ]  # fmt: skip
    assert {step for one in panel.series for curve in one.runs for step in curve} == {40, 80, 120, 160, 200}
    for figure, file in (("fig2", masks), ("fig3", study), ("fig7", masks)):
        assert child_networks.main([figure, str(file), "--out", str(tmp_path / f"{figure}.png")]) == 0
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"methods_ks.json is not a file of masks"):
        child_networks.main(["fig2", str(study)])
    with pytest.raises(DataError, match=r"ks has the densities 0.1, 0.01, 0.001, not 0.5"):
        child_networks.main(["fig7", str(masks), "--density", "0.5"])
    with pytest.raises(UsageError, match="takes the folder of a study and the JSON file"):
        child_networks.main(["masks", str(study)])
    with pytest.raises(DataError, match="contains no trained child network"):
        child_networks.main(["masks", str(tmp_path), str(tmp_path / "masks.json")])
    assert not (tmp_path / "masks.json").exists()


AFTER_A_MERGE = {"unmerged": (0.6, 0.64, 0.7), "noise": (0.7, 0.6, 0.8), "learnt": (0.5, 0.9, 0.4)}  # by seed


def test_rows_of_fine_tuning_after_a_merge_are_its_upstreams(tmp_path, recipes, monkeypatch):
    evidence, _ = recipes
    tuned = importlib.import_module("mam_tuning")
    model = tmp_path / "model"

    def flags(name: str) -> dict[str, str]:
        merged = {"-u": "merged_attention", "-g": f"{tmp_path}/pair.yaml,,noise=source"}
        return {"-u": "whisper_local", "-k": str(model)} if name == "unmerged" else merged

    axes = {
        "task": (AxisPoint("ks", flags={"-d": "speech_commands", "-c": "ks/mini"}),),
        "upstream": tuple(AxisPoint(name, flags=flags(name)) for name in AFTER_A_MERGE),
        "method": (AxisPoint("full", {"tuning": {"method": "full"}}),),
        "tuning.lr": tuple(AxisPoint(f"{lr:g}", {"tuning.lr": lr}) for lr in (0.01, 0.001, 0.0001)),
    }
    study = Study(axes, (0, 1, 2), ("tuning.lr",), own_search_seeds=(9,))

    def score(job: Job) -> float:
        labels, seed = job.run.labels, job.run.seed
        if seed == 9:
            return {"0.01": 0.2, "0.001": 0.7, "0.0001": 0.6}[labels["tuning.lr"]]
        return AFTER_A_MERGE[labels["upstream"]][seed]

    Driver(study, tmp_path / "exp", Instant(score), lambda _: None).run()
    (tmp_path / "exp" / FILE).write_text(json.dumps(content_of(study)))
    for path in (tmp_path / "exp").rglob("result*.json"):
        record = json.loads(path.read_text()) | {
            "merge": {"sources": [{"name": f"noise of {model} (decoder) (draw 0)", "lambda": {"q_proj": [0.1, 0.1]}}]}
        }
        path.write_text(json.dumps(record))
        if "/learnt/" in str(path) and path.name == "result.json":
            last = 0.5 if "seed=9" in str(path) else 0.12 + 0.01 * int(path.parent.name[-1])
            course = {"names": ["a", "b"], "steps": [0, 1], "lambda": [[0.1, 0.1], [0.1, last]]}
            (path.parent / "lambda.json").write_text(json.dumps(course))
    monkeypatch.setenv("PAIR", f"{tmp_path}/pair.yaml")
    with pytest.raises(UsageError, match="contains the path .*model: name the variable"):
        evidence.packed(tmp_path / "exp", ["PAIR"])
    monkeypatch.setenv("MODEL", str(model))
    content = evidence.packed(tmp_path / "exp", ["MODEL", "PAIR"])
    assert str(tmp_path) not in json.dumps(content) and "${PAIR},,noise=source" in json.dumps(content)
    table = tuned.table(content)
    rows = {row[0].partition(" ")[0]: row[1:] for row in table.rows}
    assert list(rows) == ["FT:", "N(source)", "L-MAM"]
    assert rows["FT:"] == ["0.001", "70.00", "3", "64.67 ± 5.03", "-", "-", "8.52"]
    for name, label in (("N(source)", "noise"), ("L-MAM", "learnt")):
        paired = stats.ttest_rel([100 * x for x in AFTER_A_MERGE[label]], [100 * x for x in AFTER_A_MERGE["unmerged"]])
        low, high = paired.confidence_interval(0.95)
        assert rows[name][5] == f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    assert table.notes == ["The learnt λ of layers and scored runs lie between 0.1000 and 0.1400 at the end."]
    evidence.unpack(content, tmp_path / "again")
    again = json.loads(next((tmp_path / "again").rglob("learnt/full/*/seed=0/result.json")).read_text())
    assert evidence.LEARNT not in again
    monkeypatch.setenv("MODEL", str(model))
    packed = evidence.packed(tmp_path / "again", ["MODEL", "PAIR"])
    assert tuned.table(packed) == table, "the learnt values are kept where the study goes on elsewhere"
    axes = content["study"]["axes"] | {"upstream": content["study"]["axes"]["upstream"] | {"u": [{}, {}]}}
    with pytest.raises(DataError, match=r"not one of mam_tuning.sh: its upstreams are .*, u, which must be"):
        tuned.table(content | {"study": content["study"] | {"axes": axes}})
    for text in ("[]", '{"columns": []}'):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(DataError, match="other.json is not a packed study"):
            tuned.main([str(tmp_path / "other.json")])
