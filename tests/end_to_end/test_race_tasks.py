"""A race of two densities on each of the ten tasks, through the command line; the winner is the better one by its metric."""

from __future__ import annotations

import json
import math

import pytest

from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint

pytestmark = pytest.mark.slow
# task -> metric of the comparison and whether more of it is better
JUDGED_BY = {
    "ks": ("acc", True), "ic": ("acc", True), "sid": ("acc", True), "asr": ("wer", False), "pr": ("per", False),
    "sf": ("slot_type_f1", True), "sd": ("der", False), "ljspeech": ("wer", False), "vctk": ("wer", False),
    "esc50": ("error", False), "er": ("acc", True), "asv": ("EER", False), "ood": ("wer", False), "se": ("pesq", True),
    "ss": ("si_sdr", True),
}  # fmt: skip
RACE = (
    "config.tuning={'method':'child','density':[0.05,0.01],'fisher':{'max_batches':2}},,config.early_stop={'ratio':0.5},,"
    "config.runner.total_steps=4,,config.optimizer.lr=0.01"
)
WHOLE = ("asv",)  # tasks that need a whole split for their metric


@pytest.mark.parametrize("task", TRAINED)
def test_a_race_on_every_task(corpora, upstreams, succeed, tmp_path, task, monkeypatch):
    monkeypatch.setattr("s3prl_ext.progress.LOG_SECONDS", 0.0)  # every frame of a bar is a line
    flags = ["-d", TRAINED[task].task.downstream, "-c", f"{task}/mini", "-p", tmp_path / "exp", "-o"]
    flags += [RACE if task in WHOLE else f"{RACE},,config.runner.evaluate_ratio=0.3"]
    outcome = succeed("-m", "train", *upstreams["hubert_local"], *flags)
    assert "race density=0.05 (1/2)" in outcome.err and "race density=0.01 (2/2)" in outcome.err

    record = json.loads((tmp_path / "exp" / "race" / "race.json").read_text())
    metric, higher = JUDGED_BY[task]
    assert record["metric"] == metric and record["cut"] == 2 and record["steps_of_all_candidates"] == 2 * 2 + 2
    scores = {name: rows["2"][metric] for name, rows in record["scores"].items()}
    assert set(scores) == {"density=0.05", "density=0.01"} and all(map(math.isfinite, scores.values()))
    best = max(scores.values()) if higher else min(scores.values())
    equal = [name for name, score in scores.items() if score == best]
    assert record["chosen"] == equal[-1], "of equal ones the smaller density"

    states = checkpoint.load(tmp_path / "exp" / "states-4.ckpt")
    assert states["S3prlExt"]["candidate"] == record["chosen"] and states["UpstreamDelta"]["indices"]
    result = json.loads((tmp_path / "exp" / "result.json").read_text())
    assert result["step"] == 4 and result["candidate"] == record["chosen"]
    assert (tmp_path / "exp" / "delta.safetensors").is_file() == bool(RunFolder(tmp_path / "exp").best())
