"""Tuned upstreams made by hand: a tiny model, a few entries or an adapter changed, and the delta of it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.training.checkpoint import CHANGES_KEY, Checkpoint
from s3prl_ext.training.tuned_upstream import TunedUpstream
from tests.support import factories

CONFIG = {
    "runner": {"total_steps": 7},
    "optimizer": {"name": "Adam"},
    "downstream_expert": {"datarc": {"root": "${X}"}},
}
HEAD = {"Featurizer": {"weights": torch.tensor([0.5, -0.5])}, "Downstream": {"model.weight": torch.ones(3, 2)}}

# upstream, or upstream:family -> what writes a tiny model for its -k
MODELS: dict[str, Any] = {
    "hubert_local": factories.hubert_local_ckpt,
    "wav2vec2_local": factories.wav2vec2_local_ckpt,
    "wavlm_local": factories.wavlm_local_ckpt,
    "beats_local": factories.beats_ckpt,
    "hf_hubert_custom": factories.hubert_folder,
    "hf_wav2vec2_custom": factories.wav2vec2_folder,
    **{f"hf_speech_custom:{family}": writer for family, writer in factories.SPEECH_FAMILIES.items()},
}


def write_model(upstream: str, folder: Path, **options: Any) -> Path:
    """Write a tiny model for the -k of an upstream."""
    name = "model" if upstream.startswith("hf_") else "model.pt"
    return MODELS[upstream](folder / name, **options)


def build(upstream: str, ckpt: Path | None, model_config: str | None = None) -> nn.Module:
    """Build an upstream as s3prl's runner does."""
    from s3prl import hub

    return getattr(hub, upstream.partition(":")[0])(
        ckpt=str(ckpt) if ckpt else None, model_config=model_config, refresh=False
    ).eval()


def about(upstream: str, ckpt: Path | None, tuning: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the info of a delta."""
    info = {
        "upstream": upstream.partition(":")[0], "upstream_ckpt": str(ckpt) if ckpt else None, "upstream_model_config": None,
        "downstream": "speech_commands", "downstream_variant": None, "upstream_feature_selection": "hidden_states",
        "upstream_layer_selection": None, "tuning": tuning, "config": CONFIG | {"tuning": tuning}, "step": 7,
        "checkpoint": "dev-best.ckpt", "metrics": {"dev": {"acc": 0.75, "loss": 0.5}}, "seed": 1337,
    }  # fmt: skip
    return info | changes


@torch.no_grad()
def tune(model: nn.Module, density: float = 0.05, seed: int = 0) -> TunedUpstream:
    """Change a share of the eligible weights, as training a child network does."""
    tuned = TunedUpstream(model)
    generator = torch.Generator().manual_seed(seed)
    weights = eligible_parameters(model, None)
    mask = {}
    for name, weight in weights.items():
        chosen = torch.rand(weight.numel(), generator=generator) < density
        mask[name] = chosen.nonzero().flatten().to(torch.int32)
    tuned.track(mask)
    for name, indices in mask.items():
        weights[name].view(-1)[indices.long()] += 0.1 * torch.randn(len(indices), generator=generator)
    return tuned


@torch.no_grad()
def tune_adapter(model: nn.Module, tuning: dict[str, Any], seed: int = 0) -> TunedUpstream:
    """Insert an adapter with weights unlike those at its start."""
    tuned = TunedUpstream(model)
    method = tuning["method"]
    options = adapters.parse_options(method, {key: value for key, value in tuning.items() if key != "method"})
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapters.insert(model, method, options).values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tuned


def save_delta(tuned: TunedUpstream, info: dict[str, Any], path: Path) -> Path:
    """Write the delta of a tuned upstream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    delta_files.save(tuned.delta(HEAD, info), path)
    return path


def save_checkpoint(changes: dict[str, Any], info: dict[str, Any], path: Path) -> Path:
    """Write a checkpoint as a run does, with `changes` under UpstreamDelta or Upstream."""
    keys = ("upstream", "upstream_ckpt", "upstream_model_config", "downstream", "downstream_variant", "seed",
            "upstream_feature_selection", "upstream_layer_selection")  # fmt: skip
    config = {key: value for key, value in info["config"].items() if info["tuning"] or key != "tuning"}
    states = {"Args": Namespace(**{key: info[key] for key in keys}), "Config": config, "Step": 7}
    torch.save(HEAD | states | changes, path)
    return path


def delta_state(tuned: TunedUpstream) -> dict[str, Any]:
    """Return what a small checkpoint holds of the upstream."""
    return {
        CHANGES_KEY: Checkpoint(changes=tuned.state()).stored()[CHANGES_KEY],
        "S3prlExt": {"upstream_sha256": tuned.base_sha256},
    }


def features(model: nn.Module) -> list[torch.Tensor]:
    """Return all hidden states of a fixed clip."""
    wavs = [torch.randn(9000, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        return list(model.eval()(wavs)["hidden_states"])


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Return whether two lists of tensors agree bit by bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
