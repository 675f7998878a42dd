"""Choosing child networks of three densities: CPU seconds and peak memory, against percentiles of one array.

``python -m benchmarks.mask_selection`` draws 85,054,464 scores in the tensors of the 12 encoder layers of wav2vec 2.0
base and selects the masks of the densities 0.1, 0.01 and 0.001; ``--layers 24 --width 1024`` is the large model. The
baseline is the released way: one array of all scores by repeated appending, a percentile per density, a comparison. The
fair rival is one array by a single concatenation and one ``np.partition`` for all densities.
"""

from __future__ import annotations

import argparse
import gc
import resource
from time import process_time

import numpy as np
import torch

from benchmarks import measure
from s3prl_ext.child_tuning import masks

DENSITIES = (0.1, 0.01, 0.001)


def draw(layers: int, width: int = 768) -> dict[str, torch.Tensor]:
    """Return squared normal draws in the shapes of `layers` encoder layers."""
    d, inner = width, 4 * width
    layer = [(d, d)] * 4 + [(d,)] * 8 + [(inner, d), (inner,), (d, inner), (d,)]
    generator = torch.Generator().manual_seed(0)
    shapes = [(f"{i}.{j}", shape) for i in range(layers) for j, shape in enumerate(layer)]
    return {name: torch.randn(shape, generator=generator).square_() for name, shape in shapes}


def percentiles(scores: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Select as the released code does: append everything, take a percentile per density, compare."""
    everything = np.array([], dtype=np.float32)
    for score in scores.values():
        everything = np.append(everything, score.reshape(-1).numpy())
    thresholds = [np.percentile(everything, (1 - density) * 100) for density in DENSITIES]
    return [{name: score >= threshold for name, score in scores.items()} for threshold in thresholds]


def partition(scores: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Select by one partition of one array; ties at a threshold are all chosen."""
    everything = np.concatenate([score.reshape(-1).numpy() for score in scores.values()])
    places = [everything.size - masks.child_size(everything.size, density) for density in DENSITIES]
    everything.partition(places)
    return [{name: score >= float(everything[place]) for name, score in scores.items()} for place in places]


def peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Time both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12, a base model)")
    parser.add_argument("--width", type=int, default=768, help="width of the model (default 768)")
    parser.add_argument("--runs", type=int, default=3, help="how often each is timed (default 3)")
    flags = parser.parse_args()
    scores = draw(flags.layers, flags.width)
    gc.collect()
    before = peak_mb()
    chosen = masks.nested_top_k(scores, DENSITIES)
    peak = peak_mb() - before
    held = sum(t.numel() * t.element_size() for part in (chosen.indices, chosen.levels) for t in part.values()) / 2**20
    ways = {"ours": lambda: masks.nested_top_k(scores, DENSITIES), "partition": lambda: partition(scores),
            "baseline": lambda: percentiles(scores)}  # fmt: skip
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    before = peak_mb()
    for _ in range(flags.runs):
        for label, select in ways.items():
            start = process_time()
            select()
            seconds[label].append(process_time() - start)
    ours, rival, baseline = (float(np.median(seconds[label])) for label in ways)
    row = {
        "entries": sum(s.numel() for s in scores.values()), "ours_s": ours, "baseline_s": baseline,
        "baseline_over_ours": baseline / ours, "partition_over_ours": rival / ours, "masks_mb": held,
        "extra_mb": peak - held,
        "baseline_extra_mb": peak_mb() - before,
    }  # fmt: skip
    measure.report("mask_selection", {"three densities": row})


if __name__ == "__main__":
    main()
