"""Choosing a child network of a base model: CPU seconds and peak memory, against sorting out a percentile.

``python -m benchmarks.mask_selection`` draws 85,057,024 scores in the tensors of wav2vec 2.0 base and selects the
masks of the densities 0.1, 0.01 and 0.001. The baseline is the released way: one array of all scores, a percentile per
density, and a comparison.
"""

from __future__ import annotations

import argparse
import resource
from time import process_time

import numpy as np
import torch

from benchmarks import measure
from s3prl_ext.child_tuning import masks

DENSITIES = (0.1, 0.01, 0.001)
LAYER = [(768, 768)] * 4 + [(768,)] * 8 + [(3072, 768), (3072,), (768, 3072), (768,)]


def draw(layers: int) -> dict[str, torch.Tensor]:
    """Return squared normal draws in the shapes of `layers` base encoder layers."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(f"{layer}.{i}", shape) for layer in range(layers) for i, shape in enumerate(LAYER)]
    return {name: torch.randn(shape, generator=generator).square_() for name, shape in shapes}


def percentiles(scores: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Select as the released code does: append everything, take a percentile per density, compare."""
    everything = np.array([], dtype=np.float32)
    for score in scores.values():
        everything = np.append(everything, score.reshape(-1).numpy())
    thresholds = [np.percentile(everything, (1 - density) * 100) for density in DENSITIES]
    return [{name: score >= threshold for name, score in scores.items()} for threshold in thresholds]


def main() -> None:
    """Time both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12, a base model)")
    flags = parser.parse_args()
    scores = draw(flags.layers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = process_time()
    chosen = [masks.top_k(scores, density) for density in DENSITIES]
    ours = process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    held = sum(i.numel() * i.element_size() for mask in chosen for i in mask.values()) / 2**20
    start = process_time()
    percentiles(scores)
    baseline = process_time() - start
    row = {
        "entries": sum(s.numel() for s in scores.values()), "ours_s": ours, "baseline_s": baseline,
        "baseline_over_ours": baseline / ours, "peak_increase_mb": peak, "masks_held_mb": held,
    }  # fmt: skip
    measure.report("mask_selection", {"three densities": row})


if __name__ == "__main__":
    main()
