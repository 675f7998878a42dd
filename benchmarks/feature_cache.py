"""A training step of a head on a frozen upstream, features from the cache against computed ones.

And of a child network.

``python -m benchmarks.feature_cache``: HuBERT of base size with random weights, weighted sum of its 13 hidden states,
4 clips of 1 s, mean pooling and a linear head, AdamW. CPU time of a step once the clips are in the cache, which is what
epochs from the second one take. Then a step of a child network of density 0.01 of the same model, with the output of
the extractor from the cache against a computed one, and the forward pass that an arm of a sweep takes. The files are in
the system's cache of files, as they are on a machine with memory for them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.delta_size import base_model
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.training.batching.clip_store import DTYPES
from s3prl_ext.training.batching.extractor_cache import ExtractorCache, extractor_of
from s3prl_ext.training.batching.feature_cache import FeatureCache
from s3prl_ext.training.forward import TaskModels

CLIPS = 4


class Upstream(nn.Module):
    """A model of transformers as s3prl sees it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, wavs: list[torch.Tensor]) -> dict[str, Any]:
        """Return the hidden states of clips of one length."""
        return {"hidden_states": self.model(torch.stack(wavs), output_hidden_states=True).hidden_states}

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples in a frame."""
        return 320


def step_of(models: TaskModels, wavs: list[Any]) -> Any:
    """Return a training step on the same clips."""
    head = nn.Linear(768, 12)
    optimizer = torch.optim.AdamW([*head.parameters(), *models.featurizer.parameters()], lr=1e-4)

    def step() -> None:
        features = torch.stack([clip.mean(dim=0) for clip in models.features(wavs)])
        nn.functional.cross_entropy(head(features), torch.arange(len(wavs))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def child_step() -> Any:
    """Return a training step of a child network of density 0.01 on 4 clips of 1 s, and the model."""
    model = base_model().train().requires_grad_(False)
    model.feature_extractor._freeze_parameters()
    weights = dict(eligible_parameters(model))
    child = ChildNetwork(weights, masks.bernoulli({name: w.numel() for name, w in weights.items()}, 0.01, seed=0))
    optimizer = ChildnetAdamW(child.parameters(), lr=1e-4)
    wavs = torch.randn(CLIPS, 16000, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(wavs).last_hidden_state.square().mean().backward()
        child.gather_gradients()
        optimizer.step()
        child.write_back()

    return step, model


def arm() -> Any:
    """Return the forward pass of the same clips in an arm of a sweep, which nothing trains, and the model."""
    model = base_model().eval()
    wavs = torch.randn(CLIPS, 16000, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def forward() -> None:
        model(wavs)

    return forward, model


def extractor_row(made: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Return the row of the extractor's cache, for what `made` returns with its model."""
    (cached, model), (plain, _) = made(), made()
    with tempfile.TemporaryDirectory() as folder:
        ExtractorCache(extractor_of(model), Path(folder)).attach()
        row = measure.alternate(cached, plain, runs)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / CLIPS
    return row | {"times": 1 / row["ratio"], "mb_per_clip": size / 1e6}


def main() -> None:
    """Measure both precisions and print the ratios."""
    from s3prl.upstream.interfaces import Featurizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="pairs of steps (default 5)")
    flags = parser.parse_args()
    upstream = Upstream(base_model())
    featurizer = Featurizer(upstream, upstream_device="cpu")
    wavs = [torch.randn(16000, generator=torch.Generator().manual_seed(n)).numpy() for n in range(CLIPS)]
    plain = TaskModels(upstream, featurizer, nn.Identity(), "cpu")
    rows = {}
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            cached = TaskModels(upstream, featurizer, nn.Identity(), "cpu")
            cached.cache = FeatureCache(upstream, featurizer, {}, Path(folder), dtype)
            row = measure.alternate(step_of(cached, wavs), step_of(plain, wavs), flags.runs)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / CLIPS
            rows[f"weighted sum, {dtype}"] = row | {"times": 1 / row["ratio"], "mb_per_clip": size / 1e6}
    rows["child network, extractor"] = extractor_row(child_step, max(flags.runs, 5))
    rows["arm of a sweep, extractor"] = extractor_row(arm, max(flags.runs, 5))
    measure.report("feature_cache", rows)


if __name__ == "__main__":
    main()
