"""A tuned task on disk and switching tasks: sizes against the whole upstream, milliseconds of CPU time for each switch.

``python -m benchmarks.delta_size``: a HuBERT of base size (94.4 M weights, 85.06 M of them eligible) with random
child networks of three densities, whose entries moved as far as Adam moves them in some hundred steps of 1e-4. The
baseline is the upstream's state dict, which a checkpoint of s3prl's ``-f`` holds. A switch takes one task off and puts
another one on.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import nn

import s3prl_ext
from benchmarks import measure
from benchmarks.mask_selection import DENSITIES
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.delta import Delta, difference
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.deltas import TaskSwitch
from s3prl_ext.models.hashing import state_sha256

UPDATE = 3e-3  # standard deviation of what training adds to an entry; the weights have 0.02


def base_model() -> nn.Module:
    """Return a HuBERT of base size with drawn weights."""
    s3prl_ext.install()
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    return HubertModel(HubertConfig()).requires_grad_(False)


@torch.no_grad()
def tuned(model: nn.Module, density: float, base_sha256: str, seed: int) -> Delta:
    """Return the delta of a random child network; the model stays as it is."""
    weights = eligible_parameters(model, None)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    indices = {name: i.long() for name, i in masks.bernoulli(sizes, density, seed).items() if i.numel()}
    generator = torch.Generator().manual_seed(seed)
    base = {name: weights[name].take(i) for name, i in indices.items()}
    moved = {name: value + UPDATE * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    return Delta(base_sha256, indices, difference(base, moved), {name: sizes[name] for name in indices})


def measured(model: nn.Module, density: float, base_sha256: str, whole_mb: float, runs: int) -> dict[str, float]:
    """Return the row of one density."""
    tasks = {f"task {seed}": tuned(model, density, base_sha256, seed) for seed in (1, 2)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        delta_files.save(tasks["task 1"], path)
        size = path.stat().st_size / 1e6
        start = process_time()
        delta_files.load(path)
        load_s = process_time() - start
    switch = TaskSwitch(model, tasks)
    times = []
    for turn in range(2 * runs + 2):
        start = process_time()
        switch.switch(f"task {turn % 2 + 1}")
        times.append(process_time() - start)
    switch.switch(None)
    return {
        "entries": len(tasks["task 1"]), "file_mb": size, "whole_over_file": whole_mb / size,
        "switch_ms": 1e3 * median(times[2:]), "load_ms": 1e3 * load_s,
    }  # fmt: skip


def large() -> Delta:
    """Return the delta of a random child network of density 0.1 in 24 layers, 1024 wide (302 M weights)."""
    generator = torch.Generator().manual_seed(0)
    sizes = {str(n): size for n, size in enumerate(24 * (4 * [1024 * 1024] + 2 * [4096 * 1024]))}
    indices, bits = {}, {}
    for name, size in sizes.items():
        indices[name] = (torch.rand(size, generator=generator) < 0.1).nonzero().squeeze(1).int()
        base = {name: 0.02 * torch.randn(len(indices[name]), generator=generator)}
        moved = {name: base[name] + UPDATE * torch.randn(len(indices[name]), generator=generator)}
        bits |= difference(base, moved)
    return Delta("", indices, bits, sizes)


def saved(delta: Delta) -> dict[str, float]:
    """Return what writing a delta takes, in a process of its own, and the size of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        row = measure.apart(lambda: delta_files.save(delta, path))
        return {"entries": len(delta), **row, "file_mb": path.stat().st_size / 1e6}


def main() -> None:
    """Measure the three densities and print them; the model must end bitwise as it began."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="how often each switch is timed (default 10)")
    parser.add_argument("--large", action="store_true", help="only write the delta of a large model")
    flags = parser.parse_args()
    if flags.large:
        measure.report("delta_size --large", {"save, density 0.1 of 302 M": saved(large())})
        return
    model = base_model()
    before = state_sha256(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "upstream.pt")
        whole_mb = (Path(folder) / "upstream.pt").stat().st_size / 1e6
    rows = {f"density {density:g}": measured(model, density, before, whole_mb, flags.runs) for density in DENSITIES}
    same = state_sha256(model.state_dict()) == before
    measure.report("delta_size", rows, whole_mb=whole_mb, base_is_bitwise_restored=same)


if __name__ == "__main__":
    main()
