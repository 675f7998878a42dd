"""Whisper base's encoder: clips at their own length against padded to 30 s, and child networks against full tuning.

``python -m benchmarks.whisper`` trains the encoder, with random weights of the base size, on random audio towards a
fixed loss. First all of its blocks with one clip of 1, 5, 15 and 30 s, cut and padded; then, on 8 clips of 1 s, child
networks of three densities against all eligible weights with fused AdamW. Each way runs in a process of its own, in
turn, so that its peak memory is its own; what it takes on top of libraries, model and audio is given separately.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import torch

import s3prl_ext
from benchmarks import measure
from benchmarks.training_step import peak_mb
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW

SECONDS = (1, 5, 15, 30)
DENSITIES = (0.1, 0.01, 0.001)
CLIPS = 8  # of 1 s, for child networks
# name -> clips, seconds, padded, density (1: all eligible weights)
WAYS = {f"{s} s {form}": (1, s, form == "padded", 1.0) for s in SECONDS for form in ("cut", "padded")}
WAYS |= {"full": (CLIPS, 1, False, 1.0)} | {f"child {d:g}": (CLIPS, 1, False, d) for d in DENSITIES}


def write_model(folder: Path) -> None:
    """Write a Whisper whose encoder has the size of the base model, and random weights."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    config = WhisperConfig(d_model=512, encoder_layers=6, decoder_layers=1, **heads)
    WhisperModel(config).save_pretrained(folder)


def stepper(parameters: dict[str, torch.nn.Parameter], density: float) -> Callable[[], None]:
    """Return what follows a backward pass: the optimizer's step on a child network, or on all weights at density 1."""
    if density == 1:
        full = torch.optim.AdamW(parameters.values(), lr=1e-4, fused=True)

        def dense() -> None:
            full.step()
            full.zero_grad()

        return dense
    child = ChildNetwork(
        parameters, masks.bernoulli({name: p.numel() for name, p in parameters.items()}, density, seed=0)
    )
    sparse = ChildnetAdamW(child.parameters(), lr=1e-4)

    def chosen() -> None:
        child.gather_gradients()
        sparse.step()
        child.write_back()

    return chosen


def resident_mb() -> float:
    """Return the resident memory of this process now, in MB: loading a model has a peak of its own."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def one_way(way: str, folder: Path, runs: int) -> dict[str, float]:
    """Train `runs` steps one way; return the median and least CPU seconds of a step and peak memory in MB."""
    from s3prl_ext.upstreams.whisper.expert import UpstreamExpert

    clips, seconds, padded, density = WAYS[way]
    model = UpstreamExpert(folder, padded=padded).train()
    wavs = [torch.randn(seconds * 16000) for _ in range(clips)]
    parameters = dict(eligible_parameters(model))
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    before = resident_mb()
    step = stepper(parameters, density)
    found = []
    for _ in range(runs + 1):
        start = process_time()
        model(wavs)["last_hidden_state"].square().mean().backward()
        step()
        found.append(process_time() - start)
    return {
        "seconds": median(found[1:]), "least": min(found[1:]), "peak_mb": peak_mb(),
        "beside_model_mb": peak_mb() - before,
    }  # fmt: skip


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return medians over the processes of each way, and its ratios to the padded form or to full tuning."""
    middle = {way: {key: median(run[key] for run in runs) for key in runs[0]} for way, runs in found.items()}
    rows = {}
    for way, row in middle.items():
        baseline = way.replace("cut", "padded") if way.endswith(("cut", "padded")) else "full"
        pairs = zip(found[way], found[baseline], strict=True)
        ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
        rows[way] = row | {
            "ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "memory_ratio": row["peak_mb"] / middle[baseline]["peak_mb"],
            "beside_ratio": row["beside_model_mb"] / middle[baseline]["beside_model_mb"],
        }  # fmt: skip
    return rows


def main() -> None:
    """Run every way in a process of its own, `--rounds` times in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="steps timed per process (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per way (default 3)")
    parser.add_argument("--way", choices=WAYS, help="run one way only, and print its figures as JSON")
    parser.add_argument("--model", type=Path, help="folder of the model (default: made for the run)")
    flags = parser.parse_args()
    s3prl_ext.install()
    if flags.way:
        print(json.dumps(one_way(flags.way, flags.model, flags.runs)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.model or Path(temporary)
        if not flags.model:
            write_model(folder)
        for _ in range(flags.rounds):
            for way in WAYS:
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.whisper", "--way", way]
                command += ["--model", str(folder), "--runs", str(flags.runs)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[way].append(json.loads(output.strip().splitlines()[-1]))
    measure.report("whisper", compared(found), settings={"runs": flags.runs, "rounds": flags.rounds, "clips": CLIPS})


if __name__ == "__main__":
    main()
