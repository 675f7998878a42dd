"""Adding one batch to the Fisher information of a base model: CPU seconds against the released way.

``python -m benchmarks.fisher``: gradients of 85,054,464 weights in the tensors of 12 encoder layers. The baseline is
the released code's: clip each tensor's gradient, square it, divide by the number of batches, and add the result to the
scores of each of the three candidates. Ours adds once, in place; with ``clip: tensor`` it clips as well.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks import measure
from benchmarks.mask_selection import draw
from s3prl_ext.child_tuning.fisher import FisherEstimate

BATCHES, CANDIDATES = 1000, 3


def compare(layers: int, clip: str, candidates: int, runs: int) -> dict[str, float]:
    """Return medians and ratios for one kind of clipping and number of score sets of the baseline."""
    weights = {name: torch.nn.Parameter(w) for name, w in draw(layers).items()}
    gradients = {name: w.detach() * 1e-3 for name, w in weights.items()}
    running = FisherEstimate(weights, clip)
    sets = [{name: torch.zeros_like(w) for name, w in gradients.items()} for _ in range(candidates)]

    def ours() -> None:
        for name, weight in weights.items():
            weight.grad = gradients[name]
        running.accumulate()

    def released() -> None:
        for name, weight in weights.items():
            weight.grad = gradients[name]
            torch.nn.utils.clip_grad_norm_(weight, 1.0)
            squares = (weight.grad**2) / BATCHES
            for scores in sets:
                scores[name] += squares
            weight.grad = None

    row = measure.alternate(ours, released, runs)
    return {"ours_s": row["ours_s"], "baseline_s": row["baseline_s"], "baseline_over_ours": 1 / row["ratio"]}


def main() -> None:
    """Time both kinds of clipping and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12, a base model)")
    parser.add_argument("--runs", type=int, default=7, help="batches timed (default 7)")
    flags = parser.parse_args()
    rows = {
        "no clipping": compare(flags.layers, "none", CANDIDATES, flags.runs),
        "clipping per tensor": compare(flags.layers, "tensor", CANDIDATES, flags.runs),
        "clipping, baseline for one": compare(flags.layers, "tensor", 1, flags.runs),
    }
    measure.report("fisher", rows, batches=BATCHES, candidates=CANDIDATES)


if __name__ == "__main__":
    main()
