"""Each task trains, resumes and evaluates through the command line.

The default suite holds a set of runs in which every task is tuned in each way that trains the upstream and resumed in
each way, and every other pair of (upstream, tuning, resume) occurs; the marker `slow` brings the full product.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from s3prl_ext.child_tuning.eligible import eligible_names
from s3prl_ext.mini_superb import TRAINED
from tests.support.experiments import tuned_upstream

DENSITY = 0.01
CHILD = f"config.tuning={{'method':'child','mask':'fisher','density':{DENSITY},'fisher':{{'max_batches':2}}}}"
# task -> dev split, test split, metric that SUPERB reports or s3prl selects by
SCORES = {
    "ks": ("dev", "test", "acc"),
    "ic": ("dev", "test", "acc"),
    "sid": ("dev", "test", "acc"),
    "asr": ("dev-clean", "test-clean", "wer"),
    "pr": ("dev", "test", "per"),
    "sf": ("dev", "test", "slot_type_f1"),
    "sd": ("dev", "test", "der"),
    "er": ("dev", "test", "acc"),
    "ood": ("dev", "test", "wer"),
    "se": ("dev", "test", "pesq"),
    "ss": ("dev", "test", "si_sdr"),
    "asv": ("dev", "test", "EER"),
    "esc50": ("dev", "test", "error"),
    "ljspeech": ("dev", "test", "wer"),
    "vctk": ("dev", "test", "wer"),
}
WHOLE = ("asv",)  # tasks that need a whole split for their metric
OWN_TUNING = ("ljspeech", "vctk")  # tasks whose task file has a section `tuning`, which -f would contradict


class Run(NamedTuple):
    """One combination of what varies."""

    upstream: str
    tuning: str
    resume: str
    task: str


def full_product() -> list[Run]:
    """Return every combination that exists: log-mel features have no weights to tune."""
    upstreams, tunings = ("fbank", "hubert_local", "hf_hubert_custom"), ("frozen", "-f", "child")
    runs = itertools.starmap(Run, itertools.product(upstreams, tunings, ("-e", "-a"), TRAINED))
    return [run for run in runs if run.upstream != "fbank" or run.tuning == "frozen"]


def pairs(run: Run) -> set[frozenset]:
    """Return the pairs of values that a run brings together and that matter: no task knows what its upstream is."""
    found = {frozenset(pair) for pair in itertools.combinations(run, 2)}
    return found - {frozenset((run.task, value)) for value in (run.upstream, "frozen")}


def pairwise(runs: list[Run]) -> list[Run]:
    """Choose few of `runs` so that every pair of values that occurs in them still occurs, greedily."""
    open_pairs = set().union(*map(pairs, runs))
    chosen = []
    while open_pairs:
        chosen.append(max(runs, key=lambda run: len(pairs(run) & open_pairs)))
        open_pairs -= pairs(chosen[-1])
    return chosen


PAIRWISE = pairwise(full_product())
REST = [run for run in full_product() if run not in PAIRWISE]


def test_default_set_covers_every_pair():
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, full_product()))
    assert len(full_product()) == 7 * 2 * len(TRAINED) and len(PAIRWISE) < 4 * len(TRAINED)


@pytest.mark.parametrize("run", [*PAIRWISE, *(pytest.param(run, marks=pytest.mark.slow) for run in REST)], ids="-".join)
def test_train_resume_evaluate(run, corpora, upstreams, base_weights, succeed, tmp_path):
    exp = tmp_path / "exp"
    tuning = ["-f"] if run.tuning == "-f" and run.task not in OWN_TUNING else []
    override = f"config.runner.evaluate_ratio={1 if run.task in WHOLE else 0.3}" + (
        f",,{CHILD}" if run.tuning == "child" else ""
    )
    if run.tuning == "-f" and run.task in OWN_TUNING:
        override += ",,config.tuning={'method':'full'}"
    start = ["-m", "train", *upstreams[run.upstream], "-d", TRAINED[run.task].task.downstream, "-c", f"{run.task}/mini"]
    start += ["-p", exp, *tuning, "-o"]

    succeed(*start, f"{override},,config.runner.total_steps=2")
    first = check_trained(exp, run, step=2)

    if run.resume == "-a":
        succeed(*start[:-1], "-a", "-o", f"{override},,config.runner.total_steps=4")
    else:
        succeed("-m", "train", "-e", exp, "-o", "config.runner.total_steps=4")
    last = check_trained(exp, run, step=4)
    check_weights(run, first, last, base_weights)
    check_evaluation(exp, run, succeed)


def check_trained(exp: Path, run: Run, step: int) -> dict:
    """Check result and checkpoint of a training of `step` steps in all; return the checkpoint."""
    dev, _, metric = SCORES[run.task]
    result = json.loads((exp / "result.json").read_text())
    assert result["mode"] == "train" and result["step"] == step
    assert math.isfinite(result["metrics"][dev][metric]["value"])
    assert [path.name for path in exp.glob("states-*.ckpt")] == [f"states-{step}.ckpt"], "max_keep is 1"
    states = torch.load(exp / f"states-{step}.ckpt", weights_only=True)
    assert states["Step"] == step
    counts = {float(state["step"]) for state in states["Optimizer"]["state"].values()}
    assert counts == {step}, "a resumed optimizer goes on counting where it stopped"
    assert ("Upstream" in states) == (run.tuning == "-f") and ("UpstreamDelta" in states) == (run.tuning == "child")
    assert (result["trainable"]["Upstream"] > 0) == (run.tuning != "frozen")
    return states


def check_weights(run: Run, first: dict, last: dict, base_weights) -> None:
    """Check which weights of the upstream moved between the pre-trained model, the first and the second stop."""
    head = first["Downstream"]
    assert any(not torch.equal(head[n], last["Downstream"][n]) for n in head), "the task's head trains after resuming"
    if run.tuning == "frozen":
        return
    base, mask = base_weights(run.upstream), last.get("UpstreamDelta", {}).get("indices")
    before, after = tuned_upstream(first, base), tuned_upstream(last, base)
    assert set(base) == set(after)
    moved = {n: torch.nonzero((base[n] != after[n]).flatten()).flatten().tolist() for n in base}
    assert any(not torch.equal(before[n], after[n]) for n in base)
    if run.tuning == "-f":
        assert mask is None and sum(map(len, moved.values())) > 0.1 * sum(w.numel() for w in base.values())
        return
    eligible = eligible_names(list(base))
    size = round(DENSITY * sum(base[n].numel() for n in eligible))
    assert sum(len(entries) for entries in mask.values()) == size
    assert all(torch.equal(mask[n], first["UpstreamDelta"]["indices"][n]) for n in mask), "the mask is chosen once"
    for name, entries in moved.items():
        assert set(entries) <= set(mask.get(name, torch.zeros(0)).tolist()), name
    assert sum(map(len, moved.values())) > 0.8 * size, "nearly every chosen weight moves under Adam"


def check_evaluation(exp: Path, run: Run, succeed) -> None:
    """Evaluate the last and the best checkpoint; the last scores on dev exactly what training reported."""
    dev, test, metric = SCORES[run.task]
    trained = json.loads((exp / "result.json").read_text())
    succeed("-m", "evaluate", "-e", exp)
    result = json.loads((exp / f"result-{test}.json").read_text())
    assert result["step"] == 4 and math.isfinite(result["metrics"][test][metric]["value"])
    succeed("-m", "evaluate", "-t", dev, "-e", exp / "states-4.ckpt")
    again = json.loads((exp / f"result-{dev}.json").read_text())
    assert again["metrics"][dev] == trained["metrics"][dev]
    for best in [path for path in exp.glob("*.ckpt") if "best" in path.name]:
        succeed("-m", "evaluate", "-t", dev, "-e", best)
        scored = json.loads((exp / f"result-{dev}.json").read_text())
        assert scored["step"] == torch.load(best, weights_only=True)["Step"]
