"""Setting the weights of the arms of a sweep in place, against building merged matrices anew for each arm.

``python -m benchmarks.lambda_sweep``: attention of HuBERT-large's and BERT-large's size (24 layers, 1024 wide), one
pair in memory. Ours is :class:`s3prl_ext.sweeps.weights.ArmWeights`. The others compute ``lambda * source + (1 -
lambda) * target`` out of place and load the result into the model, or into a copy of the target that each arm begins
with.
"""

from __future__ import annotations

import argparse
import copy
from itertools import cycle

import torch
from torch import nn

from benchmarks import measure
from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.sweeps.grid import Arm
from s3prl_ext.sweeps.weights import ArmWeights

LAMBDAS = (0.05, 0.10, 0.15, 0.20, 0.25)


def attention_only(layers: int, width: int) -> nn.Module:
    """Return a module with the query, key and value projections of a HuBERT and nothing else."""
    names = [f"encoder.layers.{layer}.attention.{name}" for layer in range(layers) for name in PROJECTIONS]
    model = nn.Module()
    for name in names:
        place = model
        *parents, last = name.split(".")
        for part in parents:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        place.add_module(last, nn.Linear(width, width))
    return model


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=15, help="arms of each side (default 15)")
    flags = parser.parse_args()
    model, other = (attention_only(flags.layers, flags.width) for _ in range(2))
    source = extract(other.state_dict())
    weights = ArmWeights(extract(model.state_dict()), source, list(range(flags.layers)), PROJECTIONS)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    theirs = other.state_dict()
    values, rival_values = cycle(LAMBDAS), cycle(LAMBDAS)
    layers = tuple(range(flags.layers))

    def ours() -> None:
        weights.apply(Arm(layers, "none", 0, next(values)))

    def out_of_place(into: nn.Module) -> None:
        lambda_ = next(rival_values)
        state = dict(original)
        for name, tensor in original.items():
            if name.endswith("_proj.weight"):
                state[name] = lambda_ * theirs[name] + (1 - lambda_) * tensor
        into.load_state_dict(state)

    rows = {
        "against out of place": measure.alternate(ours, lambda: out_of_place(model), flags.runs),
        "against a copy for each arm": measure.alternate(ours, lambda: out_of_place(copy.deepcopy(model)), flags.runs),
    }
    ours()
    merged = extract(model.state_dict())[Slot(0, "q_proj")].clone()
    weights.restore()
    exact = all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    changed = not torch.equal(merged, original["encoder.layers.0.attention.q_proj.weight"])
    for row in rows.values():
        row |= {"times_faster": 1.0 / row["ratio"], "restored_bitwise": exact and changed}
    facts = {"layers": flags.layers, "width": flags.width, "threads": torch.get_num_threads()}
    measure.report("lambda_sweep", rows, **facts)


if __name__ == "__main__":
    main()
