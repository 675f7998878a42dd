"""Features of an upstream that does not train, kept on disk (``runner.cache: features``).

A clip passes the upstream alone, so that its features depend on no other clip of its batch, and are those of a batch of
one without a cache, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.configs import Record
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.training.batching.clip_store import ClipStore


class FeatureCache:
    """The features of one upstream.

    Args:
        upstream: frozen; it is called in evaluation mode.
        featurizer: s3prl's, which chooses among what the upstream returns.
        facts: plain values that decide about features too, such as ``-g``.
        folder: where the folders of all upstreams are.
        dtype: ``float32``, or ``float16`` in half the room.
        device: where the upstream is.

    Attributes:
        store: the files, named by the samples of the clips.

    Raises:
        UsageError: the upstream gives other features each time.
    """

    def __init__(
        self,
        upstream: nn.Module,
        featurizer: Any,
        facts: Record,
        folder: Path,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        self.upstream, self.featurizer, self.device = upstream, featurizer, device
        facts = {**facts, "selection": [featurizer.feature_selection, featurizer.layer_selection]}
        self.store = ClipStore(upstream, self._computed, facts, folder, dtype, device, "features")

    def hidden(self, wavs: Sequence[Tensor]) -> tuple[Record, list[int]]:
        """Return what the featurizer takes from an upstream, padded, and the frames of each clip.

        Args:
            wavs: one-dimensional, 16 kHz.
        """
        self.store.check_model()
        clips = [self.store.get(wav).to(self.device) for wav in wavs]  # [frames, width] or [layers, frames, width]
        name = self.featurizer.feature_selection
        if clips[0].dim() == 2:
            chosen: Any = pad_sequence(clips, batch_first=True)
        else:
            chosen = [pad_sequence(list(layer), batch_first=True) for layer in zip(*clips, strict=True)]
        return {name: chosen}, [clip.shape[-2] for clip in clips]

    @torch.no_grad()
    def _computed(self, wav: Tensor) -> Tensor:
        """Return what the featurizer reads of one clip, on the CPU."""
        with modes_kept([self.upstream]):
            self.upstream.eval()
            chosen = self.featurizer._select_feature(self.upstream([wav]))
        if isinstance(chosen, (list, tuple)):
            return torch.stack([layer[0] for layer in chosen]).cpu()
        return chosen[0].cpu().contiguous()
