"""Three candidates of a race at once: memory, and the time from one to the next, against three whole models.

``python -m benchmarks.candidates`` builds a wav2vec 2.0 of base width in s3prl's code. Ours is one model and, for each
of three densities, what a candidate needs while another one trains: its entries, their values, its optimizer state (a
race keeps them in checkpoints on disk; here they are held in memory, so that both sides hold the same). The baseline is
the released way: a model, dense moments and masks for each candidate. Each way runs in a process of its own. A switch
takes one candidate off the model and puts another one on, optimizer included; next to it the time of a training step
with a batch of keyword spotting. Linux with glibc.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.mask_selection import DENSITIES
from benchmarks.optimizer_step import DenseMaskedAdamW
from benchmarks.training_step import build
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.models.hashing import state_sha256

WAYS = ("released", "ours")


def resident_mb() -> float:
    """Return the memory that this process holds now, in MB, without what it has freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * 4096 / 1e6


def seconds(function: Callable[[], Any]) -> float:
    """Return the CPU seconds that a call takes."""
    start = process_time()
    function()
    return process_time() - start


class Candidates:
    """The candidates of a race on one model, each put away as a checkpoint holds it."""

    def __init__(self, model: nn.Module, wavs: torch.Tensor) -> None:
        from s3prl_ext.training.tuned_upstream import TunedUpstream  # imports s3prl, which `build` has prepared

        self.model, self.wavs = model, wavs
        self.parameters = dict(eligible_parameters(model))
        self.tuned = TunedUpstream(model)
        sizes = {name: p.numel() for name, p in self.parameters.items()}
        self.kept: dict[float, dict[str, Any]] = {}
        for density in DENSITIES:
            self.put_on(masks.bernoulli(sizes, density, seed=0))
            self.child.values.grad = torch.full_like(self.child.values, 1e-3)
            self.optimizer.step()
            self.child.write_back()
            self.kept[density] = {"upstream": self.tuned.state(), "optimizer": self.optimizer.state_dict()}
            self.tuned.revert()

    def put_on(self, mask: masks.Mask) -> None:
        """Make a child network of the model's present weights, with an optimizer."""
        self.child = ChildNetwork(self.parameters, mask)
        self.tuned.track(mask)
        self.optimizer = ChildnetAdamW(self.child.parameters(), lr=1e-4)
        self.child.store_sorted(self.optimizer)

    def step(self) -> None:
        """Train one step towards a fixed loss."""
        self.model(self.wavs, mask=False, features_only=True)["x"].square().mean().backward()
        self.child.gather_gradients()
        self.optimizer.step()
        self.child.write_back()

    def switch(self, density: float) -> None:
        """Put the pre-trained weights back, then a candidate on."""
        self.tuned.revert()
        kept = self.kept[density]
        self.tuned.load(kept["upstream"], "benchmark")
        self.put_on(kept["upstream"].indices)
        self.optimizer.load_state_dict(kept["optimizer"])


def ours(model: nn.Module, wavs: torch.Tensor, runs: int) -> dict[str, Any]:
    """Hold three candidates on one model; the model must end bitwise as it began."""
    before = state_sha256(model.state_dict())
    candidates = Candidates(model, wavs)
    row: dict[str, Any] = {"held_mb": resident_mb()}
    times: dict[float, list[float]] = {density: [] for density in DENSITIES}
    for _ in range(runs + 1):
        for density in DENSITIES:
            times[density].append(seconds(partial(candidates.switch, density)))
    row["step_s"] = median(seconds(candidates.step) for _ in range(3))
    row |= {f"switch_s_{density:g}": median(values[1:]) for density, values in times.items()}
    candidates.tuned.revert()
    return row | {"base_is_bitwise_restored": state_sha256(model.state_dict()) == before}


def released(model: nn.Module) -> dict[str, float]:
    """Hold three models, each with dense moments and masks of all eligible weights."""
    candidates = []
    for density in DENSITIES:
        weights = [p.data for p in eligible_parameters(model).values()]
        kept = [torch.rand(w.shape) < density for w in weights]
        optimizer = DenseMaskedAdamW(weights, kept)
        for moments in (optimizer.first, optimizer.second):
            for moment in moments:
                moment.add_(1e-8)  # as after a step: every page is there
        candidates.append((model, optimizer))
        model = copy.deepcopy(model)
    return {"held_mb": resident_mb()}


def one_way(way: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one way; `held_mb` is without the interpreter and its libraries."""
    build(1, "s3prl")  # libraries are imported
    empty = resident_mb()
    model = build(flags.layers, "s3prl")
    nn.utils.remove_weight_norm(model.encoder.pos_conv[0])  # s3prl's models cannot be copied with it
    wavs = torch.randn(flags.batch, int(flags.seconds * 16000))
    row = ours(model, wavs, flags.runs) if way == "ours" else released(model)
    return row | {"held_mb": row["held_mb"] - empty}


def main() -> None:
    """Run both ways, each in a process of its own, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12)")
    parser.add_argument("--batch", type=int, default=32, help="clips per batch (default 32)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default 1)")
    parser.add_argument("--runs", type=int, default=5, help="switches timed (default 5)")
    parser.add_argument("--way", choices=WAYS, help="run one way only, and print its figures as JSON")
    flags = parser.parse_args()
    if flags.way:
        print(json.dumps(one_way(flags.way, flags)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.candidates", *sys.argv[1:], "--way", way]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[way] = json.loads(output.strip().splitlines()[-1])
    mine = found["ours"]
    rows = {
        "three candidates": {
            "ours_mb": mine["held_mb"], "released_mb": found["released"]["held_mb"],
            "ours_over_released": mine["held_mb"] / found["released"]["held_mb"],
        }
    }  # fmt: skip
    for density in DENSITIES:
        step, switch = mine["step_s"], mine[f"switch_s_{density:g}"]
        rows[f"switch to density {density:g}"] = {"switch_s": switch, "step_s": step, "switch_over_step": switch / step}
    measure.report("candidates", rows, base_is_bitwise_restored=mine["base_is_bitwise_restored"])


if __name__ == "__main__":
    main()
