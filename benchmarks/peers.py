"""A whole training step of child networks and LoRA: CPU seconds and peak memory, against peft's SHiRA and LoRA.

``python -m benchmarks.peers`` builds transformers' wav2vec 2.0 of base width with random weights (``--layers`` encoder
layers, frozen conv extractor), a model whose projections peft reaches, feeds random audio and trains towards a fixed
loss with fused AdamW. Child networks of density 0.01 compare with SHiRA of rank 4 on all six linear maps of a layer
(0.8 % of their weights); LoRA of rank 8 is on query and value, and ``lora_dense`` is ours where a model reads the
matrices and never calls the projections. Each way and round runs in a process of its own, in turn. Needs peft.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.training_step import build
from s3prl_ext import adapters
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW

Way = tuple[nn.Module, Iterable[nn.Parameter], Callable[[], None]]  # model, what trains, an optimizer step

LINEARS = ["q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense"]
PEER = {"child": "peft_shira", "lora": "peft_lora", "lora_dense": "peft_lora"}
WAYS = ("full", "child", "peft_shira", "lora", "lora_dense", "peft_lora")


def child(model: nn.Module) -> Way:
    """Return a child network of density 0.01, entries drawn."""
    weights = dict(eligible_parameters(model))
    model.requires_grad_(False)
    network = ChildNetwork(weights, masks.bernoulli({name: w.numel() for name, w in weights.items()}, 0.01, seed=0))
    optimizer = ChildnetAdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        network.gather_gradients()
        optimizer.step()
        network.write_back()

    return model, [network.values], step


def dense(model: nn.Module) -> Way:
    """Return the weights of a model that require a gradient, with fused AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return model, parameters, step


def prepared(way: str, model: nn.Module) -> Way:
    """Return a model made ready for one of :data:`WAYS`."""
    if way == "child":
        return child(model)
    if way.startswith("peft"):
        import peft

        options = {"lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
                   "shira": lambda: peft.ShiraConfig(r=4, target_modules=LINEARS)}  # fmt: skip
        return dense(peft.get_peft_model(model, options[way.removeprefix("peft_")]()).train())
    if way.startswith("lora"):
        adapters.insert(model, "lora", seed=0)
    if way == "lora_dense":
        for module in model.modules():
            if hasattr(module, "parametrizations") and isinstance(module, nn.Linear):
                del type(module).forward
    return dense(model)


def steps(way: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Train `flags.runs` steps after one, and return the median seconds and the memory on top of the model's."""
    model, parameters, step = prepared(way, build(flags.layers, "transformers"))
    wavs = torch.randn(flags.batch, int(flags.seconds * 16000))
    seconds: list[float] = []

    def work() -> None:
        for _ in range(flags.runs + 1):
            start = process_time()
            model(wavs).last_hidden_state.square().mean().backward()
            step()
            seconds.append(process_time() - start)

    extra = measure.raised_mb(work)
    return {"seconds": median(seconds[1:]), "extra_mb": extra, "weights": sum(p.numel() for p in parameters)}


def main() -> None:
    """Run every way in its own process, `--rounds` times in turn, and print ratios to full fine-tuning and to peft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12)")
    parser.add_argument("--batch", type=int, default=4, help="clips per batch (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default 1)")
    parser.add_argument("--runs", type=int, default=5, help="steps timed per process (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per way (default 3)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="full and some others (default: all)")
    flags = parser.parse_args()
    ways = [way for way in WAYS if way == "full" or way in flags.ways]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(flags.rounds):
        for way in ways:
            found[way].append(measure.forked(lambda way=way: steps(way, flags)))
    rows = {}
    for way, runs in found.items():
        seconds, memory = (median(run[key] for run in runs) for key in ("seconds", "extra_mb"))
        rows[way] = {"seconds": seconds, "extra_mb": memory, "weights": runs[0]["weights"]}
        for other in ("full", PEER.get(way, "full")):
            if other not in found:
                continue
            pairs = list(zip(runs, found[other], strict=True))
            times = [a["seconds"] / b["seconds"] for a, b in pairs]
            rows[way][f"time_over_{other}"] = median(times)
            rows[way][f"memory_over_{other}"] = median(a["extra_mb"] / b["extra_mb"] for a, b in pairs)
        rows[way] |= {"time_min": min(times), "time_max": max(times)}
    measure.report("peers", rows, settings=vars(flags))


if __name__ == "__main__":
    main()
