"""One optimizer step of child networks of a base model: CPU seconds and optimizer memory, against the released way.

``python -m benchmarks.optimizer_step``: 85,054,464 weights in the tensors of 12 encoder layers with dense gradients.
Ours gathers the chosen gradients, does ChildnetAdamW's step on the flat vector and scatters the result. The baseline is
the released optimizer: every tensor's gradient times its mask, then AdamW over all entries. Next to them torch's own
fused AdamW over all entries. Entries drawn from all weights alike are the worst case, because they lie in almost every
line of the processor's cache; the last row spreads them over the layers as Fisher masks are spread on keyword spotting.
The floor is what must be moved, at the speed at which the fused step moves its 28 bytes a weight: each line that holds
an entry once of the gradients and twice of the weights, each entry's value, index and moments.
"""

from __future__ import annotations

import argparse
import math
from statistics import median
from time import process_time

import torch

from benchmarks import measure
from benchmarks.mask_selection import DENSITIES, draw
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW


class DenseMaskedAdamW:
    """The released optimizer's step: masked gradients, moments of every entry, eps before the bias correction."""

    def __init__(self, weights: list[torch.Tensor], kept: list[torch.Tensor]) -> None:
        self.weights, self.kept, self.steps = weights, kept, 0
        self.first = [torch.zeros_like(w) for w in weights]
        self.second = [torch.zeros_like(w) for w in weights]

    def step(self, gradients: list[torch.Tensor]) -> None:
        """Do one step with lr 1e-4."""
        self.steps += 1
        size = 1e-4 * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for weight, gradient, kept, first, second in zip(self.weights, gradients, self.kept, self.first, self.second):
            gradient = gradient * kept
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            weight.addcdiv_(first, second.sqrt().add_(1e-7), value=-size)

    def bytes(self) -> int:
        """Return the size of moments and masks."""
        return sum(t.numel() * t.element_size() for part in (self.first, self.second, self.kept) for t in part)


LINE = 64  # bytes in a line of the cache
OWN = 28  # bytes of an entry: its index, and value and both moments twice
DENSE = 28  # bytes of a weight in a dense step: gradient, and weight and both moments twice


def least_bytes(mask: masks.Mask) -> int:
    """Return how many bytes a step of a child network must move."""
    lines = sum(len(torch.unique(entries.long() * 4 // LINE)) for entries in mask.values())
    return 3 * LINE * lines + OWN * sum(len(entries) for entries in mask.values())


# Share of each sixth of the layers, from below, in Fisher masks of density 0.1 on keyword spotting (recipes/ad_tuning).
FISHER_SHARES = (0.51, 0.21, 0.13, 0.10, 0.05, 0.0)


def by_layer(weights: dict[str, torch.nn.Parameter], layers: int, density: float) -> masks.Mask:
    """Draw a mask of a density of all weights whose entries are spread over the layers like those of Fisher masks."""
    mask: masks.Mask = {}
    for part, share in enumerate(FISHER_SHARES):
        sizes = {name: w.numel() for name, w in weights.items() if int(name.split(".")[0]) * 6 // layers == part}
        if share:
            mask |= masks.bernoulli(sizes, density * share * len(FISHER_SHARES), seed=part)
    return {name: mask[name] for name in weights if name in mask}


def compare(layers: int, density: float, runs: int, spread: bool = False) -> dict[str, float]:
    """Return the row of one density; the three ways take turns on weights of their own size."""
    weights = {name: torch.nn.Parameter(w) for name, w in draw(layers).items()}
    gradients = {name: torch.randn_like(w) * 1e-3 for name, w in weights.items()}
    mask = (
        by_layer(weights, layers, density)
        if spread
        else masks.bernoulli({name: w.numel() for name, w in weights.items()}, density, seed=0)
    )
    child = ChildNetwork(weights, mask, sparse_gradients=False)
    optimizer = ChildnetAdamW(child.parameters(), lr=1e-4)
    kept = [torch.zeros(w.shape, dtype=torch.bool) for w in weights.values()]
    for name, flags in zip(weights, kept):
        flags.view(-1)[mask.get(name, torch.zeros(0)).long()] = True
    plain = [w.detach().clone() for w in weights.values()]
    dense = DenseMaskedAdamW(plain, kept)
    whole = [torch.nn.Parameter(w) for w in plain]
    fused = torch.optim.AdamW(whole, lr=1e-4, fused=True)

    def ours() -> None:
        for name, weight in weights.items():
            weight.grad = gradients[name]
        child.gather_gradients()
        optimizer.step()
        child.write_back()

    def released() -> None:
        dense.step(list(gradients.values()))

    def torch_fused() -> None:
        for weight, gradient in zip(whole, gradients.values()):
            weight.grad = gradient
        fused.step()

    seconds: dict[str, list[float]] = {"ours": [], "released": [], "fused": []}
    for turn in range(runs + 1):
        for label, step in (("ours", ours), ("released", released), ("fused", torch_fused)):
            start = process_time()
            step()
            if turn:
                seconds[label].append(process_time() - start)
    times = {label: median(values) for label, values in seconds.items()}
    floor = times["fused"] * least_bytes(mask) / (DENSE * sum(w.numel() for w in weights.values()))
    own = [child.values, *child._indices, *(v for s in optimizer.state.values() for k, v in s.items() if k != "step")]
    return {
        "entries": len(child), "ours_s": times["ours"], "released_over_ours": times["released"] / times["ours"],
        "fused_dense_over_ours": times["fused"] / times["ours"],
        "floor_s": floor, "ours_over_floor": times["ours"] / floor,
        "bytes_per_entry": sum(t.numel() * t.element_size() for t in own) / len(child),
        "released_state_mb": dense.bytes() / 1e6,
    }  # fmt: skip


def main() -> None:
    """Time the three densities and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12, a base model)")
    parser.add_argument("--runs", type=int, default=7, help="steps timed (default 7)")
    flags = parser.parse_args()
    torch.manual_seed(0)
    rows = {f"density {density:g}": compare(flags.layers, density, flags.runs) for density in DENSITIES}
    rows["density 0.1, spread as Fisher masks"] = compare(flags.layers, 0.1, flags.runs, spread=True)
    measure.report("optimizer_step", rows)


if __name__ == "__main__":
    main()
