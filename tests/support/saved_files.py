"""Files of every kind that a version writes, tiny, with the values that it reads from them: ``tests/fixtures/saved``.

``python -m tests.support.saved_files FOLDER`` trains, merges, sweeps and exports with the version at hand, on a corpus of tones,
and writes what it made and ``saved.json``: versions, commit, and the scores of every artefact. Later versions must read
the same from it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s3prl_ext import cli
from s3prl_ext.corpora.audio import SAMPLE_RATE, write_audio
from s3prl_ext.mini_superb.ks import KEYWORDS, TEST_FOLDER, TRAIN_FOLDER, speaker_id
from tests.support import factories

STEPS = 12
TASK = ["-d", "speech_commands", "-c", "ks/mini"]
SETTINGS = "config.runner.total_steps=12,,config.runner.eval_step=6,,config.runner.save_step=12"
SETTINGS += ",,config.optimizer.lr=0.02,,config.downstream_expert.modelrc.projector_dim=8"
FISHER = {"mask": "fisher", "fisher": {"max_batches": 1}}
MERGE = "target: {upstream: hubert_local, ckpt: hubert.pt}\nsource: {model: bert}\nlambda: 0.2\n"

# name of a run -> its upstream (a merge file, or nothing for the plain model) and its section `tuning`
RUNS: dict[str, tuple[str | None, dict[str, Any] | None]] = {
    "head": (None, None),
    "weighted_sum": (None, {"method": "weighted_sum"}),
    "child": (None, {"method": "child", **FISHER, "density": 0.05}),
    "race": (None, {"method": "child", **FISHER, "density": [0.05, 0.1]}),
    "full": (None, {"method": "full"}),
    "lora": (None, {"method": "lora", "rank": 2}),
    "houlsby": (None, {"method": "houlsby", "bottleneck": 2}),
    "merged": ("merged.yaml", {"method": "child", **FISHER, "density": 0.05}),
    "learnable": ("learnable.yaml", {"method": "full"}),
}
BEST, LAST, DELTA, MASKS = "dev-best.ckpt", f"states-{STEPS}.ckpt", "delta.safetensors", "masks.safetensors"
KEPT = {  # of each run; one that tunes all weights keeps its last checkpoint only, to stay small
    "head": (BEST,),
    "weighted_sum": (DELTA,),
    "child": (BEST, LAST, DELTA, MASKS),
    "race": (BEST, DELTA, "race/race.json"),
    "full": (LAST,),
    "lora": (BEST, DELTA),
    "houlsby": (BEST, DELTA),
    "merged": (BEST, DELTA),
    "learnable": (LAST, "lambda.json"),
}
EXPORT, SWEEP = "export", "sweep"
WEIGHTS = [f"exp/{name}/{file}" for name, files in KEPT.items() for file in files if file in (BEST, LAST, DELTA)]


def write_corpus(folder: Path) -> Path:
    """Write Speech Commands as tones of 0.3 s: a keyword is a chord; return a clip of the test split."""
    words = (*KEYWORDS, "bed", "bird")
    for number, word in enumerate(words):
        for split, takes in (("train", 2), ("dev", 1), ("test", 1)):
            for take in range(takes):
                part, name = TRAIN_FOLDER if split != "test" else TEST_FOLDER, word
                if split == "test" and word not in KEYWORDS:
                    name = "_unknown_"
                path = folder / part / name / f"{speaker_id(f'{word}/{take}', split)}_nohash_{number}.wav"
                write_audio(path, _tone(number, 0.3, take + 3 * len(split)))
    write_audio(folder / TRAIN_FOLDER / "_background_noise_" / "hum.wav", _tone(20, 1.5, 1))
    write_audio(folder / TEST_FOLDER / "_silence_" / "hum.wav", _tone(20, 0.3, 2))
    return next((folder / TEST_FOLDER / "yes").glob("*.wav"))


def _tone(number: int, seconds: float, take: int) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    base = 150.0 * 1.25**number if number < 12 else 60.0
    parts = (np.sin(2 * np.pi * base * k * (1 + 0.01 * take) * time) / k for k in (1, 2, 3))
    return (0.2 * sum(parts)).astype(np.float32)


def run(*flags: object) -> None:
    """Run ``s3prl-ext`` in the current folder."""
    assert cli.main([str(flag) for flag in flags]) == 0, flags


def upstream(merge: str | None) -> list[str]:
    """Return the flags of a run's upstream."""
    return ["-u", "merged_attention", "-g", merge] if merge else ["-u", "hubert_local", "-k", "hubert.pt"]


def train(name: str, folder: Path) -> None:
    """Train a run of :data:`RUNS` into a folder."""
    merge, tuning = RUNS[name]
    options = SETTINGS + (f",,config.tuning={tuning}" if tuning else "")
    if name == "race":
        options += ",,config.early_stop={'ratio':0.5}"
    run("run", "-m", "train", *upstream(merge), *TASK, "-p", folder, "-o", options)


def make() -> None:
    """Write everything into the current folder, in which ``SPEECH_COMMANDS`` points to the corpus."""
    factories.hubert_local_ckpt("hubert.pt", width=8)
    factories.bert_folder("bert", width=8)
    Path("merged.yaml").write_text(MERGE)
    Path("learnable.yaml").write_text(MERGE + "learnable: true\n")
    for name in RUNS:
        train(name, Path("all", name))
        for kept in (*KEPT[name], "result.json"):
            target = Path("exp", name, kept)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path("all", name, kept), target)
    run("export", "--delta", "exp/child", "--out", EXPORT)
    run("sweep", "-g", "merged.yaml", "-e", f"exp/head/{BEST}", "--lambda", "0.1,0.3", "-p", "swept")
    Path(SWEEP).mkdir()
    shutil.copy("swept/sweep.json", SWEEP)
    shutil.rmtree("all")
    shutil.rmtree("swept")


def scores(artefact: str) -> dict[str, float]:
    """Return the metrics of the test split of a checkpoint or delta, as ``-m evaluate`` counts them."""
    run("run", "-m", "evaluate", "-e", artefact, "-t", "test")
    written = Path(artefact).parent / "result-test.json"
    rows = json.loads(written.read_text())["metrics"]["test"]
    written.unlink()
    return {name: row["value"] for name, row in rows.items()}


def answers(trained: str, clip: Path, out: Path) -> dict[str, float]:
    """Return the labels with their probabilities that ``predict`` gives for a clip."""
    run("predict", trained, clip, "--top", 12, "--out", out)
    return {one["label"]: one["probability"] for one in json.loads(out.read_text())["top"]}


def report(out: Path) -> list[list[str]]:
    """Return what ``report`` makes of the runs and the sweep: file, split, metric, mean and interval, in per cent."""
    run("report", "exp", SWEEP, "--out", out)
    with open(out / "report.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return sorted(
        [row["files"], row["split"], row["metric"], *(_short(row[key]) for key in ("mean", "low", "high"))]
        for row in rows
    )


def _short(number: str) -> str:
    return f"{float(number):.3f}"


def read_all(clip: Path, out: Path) -> dict[str, Any]:
    """Return what is read from the files in the current folder."""
    out.mkdir(parents=True)
    return {
        "evaluate": {name: scores(name) for name in WEIGHTS},
        "predict": {
            name: answers(name, clip, out / (name.replace("/", "_") + ".jsonl")) for name in (*WEIGHTS, EXPORT)
        },
        "report": report(out / "report"),
    }


def main(target: Path) -> None:
    """Make everything in a temporary folder and move it to `target`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = write_corpus(folder / "corpus")
        os.environ["SPEECH_COMMANDS"] = str(folder / "corpus")
        (folder / "saved").mkdir()
        os.chdir(folder / "saved")
        make()
        shutil.copytree(".", target, dirs_exist_ok=True)
        versions = {package: version(package) for package in ("s3prl_ext", "s3prl", "torch", "transformers")}
        commit = json.loads(Path("exp/child/result.json").read_text())["commit"]
        values = {"versions": versions, "commit": commit} | read_all(clip, folder / "read")
        (target / "saved.json").write_text(json.dumps(values, indent=1) + "\n")
        os.chdir("/")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
