"""A whole training step of LoRA: CPU seconds and peak memory, against peft's on a model whose projections peft reaches.

``python -m benchmarks.lora`` builds transformers' wav2vec 2.0 of base width with random weights (``--layers`` encoder
layers, frozen conv extractor), puts rank 8 on the query and value projections, feeds random audio and trains towards a
fixed loss with torch's fused AdamW. Each way and round runs in a process of its own, in turn. Needs peft.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.training_step import build
from s3prl_ext import adapters

WAYS = ("ours", "ours_dense", "peft")


def with_lora(model: nn.Module, way: str) -> nn.Module:
    """Return the model with LoRA of rank 8 on query and value; ``ours_dense`` reads the updated matrices."""
    if way == "peft":
        import peft

        options = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        return peft.get_peft_model(model, peft.LoraConfig(**options)).train()
    adapters.insert(model, "lora", seed=0)
    if way == "ours_dense":
        for module in model.modules():
            if hasattr(module, "parametrizations") and isinstance(module, nn.Linear):
                del type(module).forward
    return model


def steps(way: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Train `flags.runs` steps after one, and return the median seconds and the memory on top of the model's."""
    model = with_lora(build(flags.layers, "transformers"), way)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    wavs = torch.randn(flags.batch, int(flags.seconds * 16000))
    seconds: list[float] = []

    def work() -> None:
        for _ in range(flags.runs + 1):
            start = process_time()
            model(wavs).last_hidden_state.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(process_time() - start)

    extra = measure.raised_mb(work)
    return {"seconds": median(seconds[1:]), "extra_mb": extra, "weights": sum(p.numel() for p in parameters)}


def main() -> None:
    """Run every way in processes of their own, `--rounds` times in turn, and print the ratios to peft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=12, help="encoder layers (default 12)")
    parser.add_argument("--batch", type=int, default=4, help="clips per batch (default 4)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a clip (default 1)")
    parser.add_argument("--runs", type=int, default=5, help="steps timed per process (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per way (default 3)")
    flags = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(flags.rounds):
        for way in WAYS:
            found[way].append(measure.forked(lambda way=way: steps(way, flags)))
    rows = {}
    for way, runs in found.items():
        pairs = list(zip(runs, found["peft"], strict=True))
        times, memory = ([a[key] / b[key] for a, b in pairs] for key in ("seconds", "extra_mb"))
        rows[way] = {
            "seconds": median(run["seconds"] for run in runs), "extra_mb": median(run["extra_mb"] for run in runs),
            "time_over_peft": median(times), "time_min": min(times), "time_max": max(times),
            "memory_over_peft": median(memory), "weights": runs[0]["weights"],
        }  # fmt: skip
    measure.report("lora", rows, settings=vars(flags))


if __name__ == "__main__":
    main()
