"""The output of a frozen convolutional extractor, kept on disk (``runner.cache: extractor``).

The extractor is a quarter of a training step, and it never trains: whatever trains behind it, child networks, adapters
or the whole encoder, in one run or in the candidates of a race, reads the same output. A clip is kept as its batch pads
it, because padding changes the output: the group norm of base models takes its mean over all samples, padding included.
So a file serves a clip that comes padded to the same length again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import UsageError
from s3prl_ext.training.batching.clip_store import ClipStore


class ExtractorCache:
    """Stands in the place of an extractor's ``forward`` and computes each padded clip by itself, once.

    Args:
        extractor: padded waveforms [batch, samples] -> [batch, channels, frames]; none of its weights trains.
        folder: where the folders of all extractors are.
        dtype: ``float32``, or ``float16`` in half the room.
        device: where the extractor is.

    Attributes:
        store: the files, named by the samples of the padded clips.

    Raises:
        UsageError: the extractor gives another output each time.
    """

    def __init__(
        self, extractor: nn.Module, folder: Path, dtype: str = "float32", device: str | torch.device = "cpu"
    ) -> None:
        self._forward = extractor.forward
        facts = {"extractor": f"{type(extractor).__module__}.{type(extractor).__name__}"}
        self.store = ClipStore(extractor, self._computed, facts, folder, dtype, device, "extractor outputs")

    def attach(self) -> None:
        """Let the extractor answer from the files."""
        cast(Any, self.store.model).forward = self

    def __call__(self, wavs: Tensor) -> Tensor:
        """Return the output for a batch [batch, channels, frames], which no gradient passes."""
        self.store.check_model()
        return torch.stack([self.store.get(wav) for wav in wavs]).to(wavs.device)

    @torch.no_grad()
    def _computed(self, wav: Tensor) -> Tensor:
        return cast(Tensor, self._forward(wav[None]))[0].cpu().contiguous()


def extractor_of(upstream: nn.Module) -> nn.Module:
    """Return the convolutional extractor of an upstream.

    Raises:
        UsageError: there is none, or its output depends on chance or on the other clips of a batch.
    """
    try:
        found = find_encoder(upstream)
    except UsageError:
        found = None
    if found is None or not found.architecture.blocks:
        raise UsageError(
            "runner.cache: extractor is for upstreams with a convolutional extractor on the waveform (HuBERT, wav2vec "
            "2.0, WavLM and similar ones): leave runner.cache out."
        )
    extractor = upstream.get_submodule(f"{found.prefix}{found.architecture.blocks.rpartition('.')[0]}")
    for name, module in extractor.named_modules():
        if isinstance(module, _BatchNorm) or (isinstance(module, nn.Dropout) and module.p > 0):
            raise UsageError(
                f"runner.cache: extractor needs an extractor without dropout and batch norm, and this one has {name}: "
                "leave runner.cache out."
            )
    return extractor


def check_frozen(upstream: nn.Module) -> None:
    """Raise UsageError where a part of the extractor trains."""
    trains = [name for name, parameter in extractor_of(upstream).named_parameters() if parameter.requires_grad]
    if trains:
        raise UsageError(
            f"runner.cache: extractor needs an extractor that does not train, and its {trains[0]} does (by "
            "cnn_adapter, chapter, tuning.eligible, or -f without a section tuning): leave runner.cache out."
        )
