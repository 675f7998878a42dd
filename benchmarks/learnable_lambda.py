"""A training step with a learnable lambda against plain fine-tuning: CPU seconds.

``python -m benchmarks.learnable_lambda`` trains a HuBERT, 768 wide, on random audio with AdamW. Compared with plain
fine-tuning of the same model are our parametrization and the one that autograd makes of lambda * a + (1 - lambda) * b.
The goal is at most 2 % of a step. Differences that small drown in the noise of a shared machine, so the merge is also
measured by itself: the parametrized weights of one step, forward and backward, as a share of the plain step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import s3prl_ext
from benchmarks import measure
from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.attention.weights import extract
from s3prl_ext.merging.learnable import LearnableSource, make_learnable
from s3prl_ext.merging.learnable_config import LearnableConfig

SAMPLE_RATE = 16000


class NaiveInterpolation(nn.Module):
    """The textbook expression, left to autograd."""

    def __init__(self, source: Tensor, weight: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("source", source)
        self.weight = weight

    def forward(self, target: Tensor) -> Tensor:
        """Return the merged matrix."""
        return self.weight * self.source + (1 - self.weight) * target


def hubert(layers: int, width: int, kind: str) -> nn.Module:
    """Return a HuBERT with random weights in training mode, its front end frozen.

    Args:
        kind: ``plain``, ``ours`` or ``naive``.
    """
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=4 * width,
        layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HubertModel(config).train()
    model.feature_extractor._freeze_parameters()
    source = {slot: torch.randn_like(t) * 0.02 for slot, t in extract(model.state_dict()).items() if t.dim() == 2}
    if kind == "ours":
        first = {p: [0.1] * layers for p in PROJECTIONS}
        make_learnable(model, [LearnableSource(source, first, range(layers))], LearnableConfig())
    if kind == "naive":
        for index, layer in enumerate(model.encoder.layers):
            weight = nn.Parameter(torch.tensor(0.1))
            for slot, matrix in source.items():
                if slot.layer == index:
                    module = getattr(layer.attention, slot.projection)
                    parametrize.register_parametrization(
                        module, "weight", NaiveInterpolation(matrix, weight), unsafe=True
                    )
    return model


def step_of(model: nn.Module, clips: int, seconds: float) -> Callable[[], None]:
    """Return a function that does one step of training."""
    wavs = torch.randn(clips, int(SAMPLE_RATE * seconds), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        model(wavs).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def merges_of(model: nn.Module) -> Callable[[], None]:
    """Return a function that computes every merged weight of `model` and its backward, and nothing else."""
    modules = [m for m in model.modules() if parametrize.is_parametrized(m, "weight")]
    modules = [m for m in modules if hasattr(m.parametrizations["weight"][0], "source")]
    gradients = [torch.randn_like(m.parametrizations["weight"].original) for m in modules]
    parameters = list(model.parameters())

    def merge() -> None:
        for module, gradient in zip(modules, gradients, strict=True):
            module.weight.backward(gradient)
        for parameter in parameters:
            parameter.grad = None

    return merge


def seconds_of(function: Callable[[], None], runs: int) -> float:
    """Return the median CPU time of a function."""
    times = []
    for _ in range(runs + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return sorted(times[1:])[runs // 2]


def compare(kind: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Time steps with `kind` and plain ones in turn, and the merge alone."""
    plain, merged = (hubert(flags.layers, flags.width, which) for which in ("plain", kind))
    steps = [step_of(model, flags.clips, flags.seconds) for model in (merged, plain)]
    row = measure.alternate(*steps, flags.runs)
    alone = seconds_of(merges_of(merged), 5 * flags.runs)
    return row | {"merge_alone_ms": 1000 * alone, "merge_share": alone / row["baseline_s"]}


def main() -> None:
    """Run both comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4, help="encoder layers (default 4; base models have 12)")
    parser.add_argument("--width", type=int, default=768, help="width (default 768, as in base models)")
    parser.add_argument("--clips", type=int, default=4, help="clips in a batch (default 4)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a clip (default 2)")
    parser.add_argument("--runs", type=int, default=5, help="pairs of steps (default 5)")
    flags = parser.parse_args()
    s3prl_ext.install()
    rows = {
        name: compare(kind, flags) for name, kind in {"learnable lambda": "ours", "naive expression": "naive"}.items()
    }
    measure.report("learnable_lambda", rows, settings=vars(flags), threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
