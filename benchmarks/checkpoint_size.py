"""Saving a run: a checkpoint of a child network of density 0.1 of a large model, against stock s3prl's with ``-f``.

``python -m benchmarks.checkpoint_size``: 302 M weights in the tensors of 24 encoder layers, 1024 wide, AdamW. Ours
holds the chosen entries, their indices and moments; s3prl's holds the whole upstream and the moments of every weight.
CPU time of writing each, written to a temporary folder (5 GB).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.mask_selection import draw
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.training import checkpoint


def ours(weights: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Return what changes in a checkpoint of a child network after a step."""
    mask = masks.bernoulli({name: w.numel() for name, w in weights.items()}, 0.1, seed=0)
    network = ChildNetwork(weights, mask, sparse_gradients=False)
    optimizer = ChildnetAdamW(network.parameters())
    network.values.grad = torch.full_like(network.values, 1e-3)
    optimizer.step()
    values = dict(zip(mask, network.values.detach().split([i.numel() for i in mask.values()]), strict=True))
    delta = {"indices": mask, "values": {name: value.clone() for name, value in values.items()}}
    return {"UpstreamDelta": delta, "Optimizer": optimizer.state_dict()}


def stock(weights: dict[str, nn.Parameter]) -> dict[str, Any]:
    """Return the same of s3prl's."""
    optimizer = torch.optim.AdamW(weights.values(), fused=True)
    for weight in weights.values():
        weight.grad = torch.full_like(weight, 1e-3)
    optimizer.step()
    return {"Upstream": {name: w.detach() for name, w in weights.items()}, "Optimizer": optimizer.state_dict()}


def row(content: dict[str, Any], save: Any) -> dict[str, float]:
    """Return CPU seconds and size of one file."""
    with tempfile.TemporaryDirectory() as folder:
        start = process_time()
        save(content, Path(folder) / "states.ckpt")
        return {"cpu_s": process_time() - start, "mb": (Path(folder) / "states.ckpt").stat().st_size / 1e6}


def main() -> None:
    """Save both and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24, help="encoder layers (default 24)")
    parser.add_argument("--width", type=int, default=1024, help="width of the model (default 1024)")
    flags = parser.parse_args()
    weights = {name: nn.Parameter(w) for name, w in draw(flags.layers, flags.width).items()}
    rows = {
        "child network, density 0.1": row(ours(weights), checkpoint.save),
        "stock, -f": row(stock(weights), torch.save),
    }
    measure.report("checkpoint_size", rows)


if __name__ == "__main__":
    main()
