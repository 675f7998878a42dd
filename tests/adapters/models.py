"""Tiny upstreams of every architecture, and clips for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext.upstreams.beats.expert import UpstreamExpert as BeatsExpert
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.speech_models import speech_model
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert as WhisperExpert
from tests.support import factories

LARGE = {"layer_norm_first": True, "extractor_mode": "layer_norm", "conv_bias": True}


def _s3prl(family: str, **options: Any) -> Callable[[Path], nn.Module]:
    def build(folder: Path) -> nn.Module:
        import importlib

        ckpt = getattr(factories, f"{family}_local_ckpt")(folder / f"{family}.pt", **options)
        return importlib.import_module(f"s3prl.upstream.{family}.expert").UpstreamExpert(str(ckpt))

    return build


def _transformers(writer: str, **options: Any) -> Callable[[Path], nn.Module]:
    return lambda folder: speech_model(getattr(factories, f"{writer}_folder")(folder / writer, **options))


def _of_family(family: str) -> Callable[[Path], nn.Module]:
    return lambda folder: speech_model(factories.SPEECH_FAMILIES[family](folder / family))


def _merged(folder: Path) -> nn.Module:
    """Return s3prl's HuBERT with the attention of a BERT merged in (MAM)."""
    target, source = factories.hubert_local_ckpt(folder / "hubert.pt"), factories.bert_folder(folder / "bert")
    config = {
        "target": {"upstream": "hubert_local", "ckpt": str(target)},
        "sources": [{"model": str(source), "lambda": 0.2}],
    }
    (folder / "merge.yaml").write_text(json.dumps(config))
    return merged_attention(None, str(folder / "merge.yaml"))


MODELS: dict[str, Callable[[Path], nn.Module]] = {
    "s3prl-hubert": _s3prl("hubert"),
    "transformers-hubert": _transformers("hubert"),
    "s3prl-wavlm": _s3prl("wavlm"),
    "transformers-wavlm": _transformers("wavlm"),
    "s3prl-wav2vec2": _s3prl("wav2vec2"),
    "transformers-wav2vec2": _transformers("wav2vec2"),
    "transformers-data2vec": _transformers("data2vec_audio"),
    "s3prl-hubert-large": _s3prl("hubert", **LARGE),
    "s3prl-wavlm-large": _s3prl("wavlm", **LARGE),
    "transformers-hubert-large": _transformers("hubert", stable_norm=True),
    "transformers-wavlm-large": _transformers("wavlm", stable_norm=True),
    "s3prl-wav2vec2-large": _s3prl("wav2vec2", **LARGE),
    "transformers-wav2vec2-large": _transformers("wav2vec2", stable_norm=True),
    "merged": _merged,
    "whisper": lambda folder: WhisperExpert(factories.whisper_folder(folder / "whisper")),
    **{f"transformers-{family}": _of_family(family) for family in factories.SPEECH_FAMILIES},
    "beats": lambda folder: BeatsExpert(factories.beats_ckpt(folder / "beats.pt")),
}
WITHOUT_BLOCKS = (
    "beats",
    "whisper",
    "transformers-w2v-bert",
    "transformers-ast",
    "transformers-moonshine",
)  # cnn_adapter and chapter do not fit
WITHOUT_PREFIX = ("transformers-sew", "transformers-sew-d", "transformers-ast", "transformers-moonshine")
MAIN = ("s3prl-hubert", "transformers-hubert", "s3prl-wavlm", "transformers-wavlm")


def build(name: str, folder: Path) -> nn.Module:
    """Return a tiny upstream in evaluation mode, frozen; same name, same weights."""
    return MODELS[name](folder).eval().requires_grad_(False)


def clips(*lengths: int, seed: int = 0) -> list[Tensor]:
    """Return noise of the given lengths in samples, quieter than full scale."""
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths or (8000, 6000)]


def states(model: nn.Module, wavs: list[Tensor]) -> list[Tensor]:
    """Return the hidden states [batch, frames, width] of every layer, and the last one behind the encoder's norm."""
    output = model(wavs)
    return [*output["hidden_states"], output["last_hidden_state"]]


def train(model: nn.Module, parameters: dict[str, nn.Parameter], steps: int = 2) -> list[set[str]]:
    """Train with AdamW on all hidden states; return for each step the names that got a gradient other than zero."""
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.1)
    reached = []
    targets: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        found = states(model, clips())
        if not targets:
            generator = torch.Generator().manual_seed(1)
            targets = [torch.randn(state.shape, generator=generator) for state in found]
        errors = [(state - target).square().mean() for state, target in zip(found, targets, strict=True)]
        torch.stack(errors).mean().backward()
        reached.append({n for n, p in parameters.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)})
        optimizer.step()
    return reached
