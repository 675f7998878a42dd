"""Speech models as encoders: frames of all blocks from audio files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio
from s3prl_ext.upstreams.hf_speech.ast import AstModel
from s3prl_ext.upstreams.hf_speech.w2v_bert import W2vBertModel
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, INPUTS, Tap
from s3prl_ext.upstreams.valid_frames import frames_of
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert as WhisperExpert
from s3prl_ext.upstreams.windows import number_of_states


class SpeechEncoder:
    """An upstream of s3prl or of ours; its items are audio files.

    Args:
        upstream: a module that maps a list of waveforms, as s3prl's upstreams do, in evaluation mode.
        batch_size: clips in one pass. With more than one, shorter clips are padded and their padding is left out of
            the result, but the group norm of base-size models and the convolutions of data2vec-audio and
            wav2vec2-conformer still read it, and s3prl's own models attend to a frame of it more or less. A model
            whose number of frames is not known runs clip by clip.
        point: as for :class:`s3prl_ext.upstreams.layer_similarity.block_outputs.Tap`.

    Attributes:
        window: frames in a window of a model that reads long clips in windows one after the other, None of another.
        pads: whether attention reads more than a clip's own states: those of an AST, and of a Whisper with
            ``window=30``, are padded to a fixed length.
    """

    def __init__(self, upstream: nn.Module, name: str, batch_size: int = 1, point: str = BLOCKS):
        self.upstream, self.name = upstream, name
        self.tap = Tap(upstream, name, point=point)
        self.window: int | None = upstream.positions if isinstance(upstream, WhisperExpert) else None
        self.pads = isinstance(upstream, AstModel) or (isinstance(upstream, WhisperExpert) and upstream.padded)
        probe = [torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))] * 2  # two clips of 1 s
        states = self._run(probe)
        self.batch_axis = 0 if states[0].shape[0] == len(probe) else 1
        frames = states[0].shape[1 - self.batch_axis]
        known = frames_of(upstream, SAMPLE_RATE)
        # s3prl's models pad to an even number of frames
        self.counts_frames = known is not None and frames - 1 <= known <= frames
        self.batch_size = batch_size if self.counts_frames else 1

    def states(self, items: Sequence[Path]) -> list[Tensor]:
        """Return the outputs of all blocks for each file, [layers, frames, width]."""
        wavs = [torch.from_numpy(read_audio(item)) for item in items]
        if self.window is not None:
            return [self._in_windows(wav.split(self.window * DOWNSAMPLE_RATE)) for wav in wavs]
        if isinstance(self.upstream, AstModel):  # of its tokens most may be padding
            ast = self.upstream
            read = ast.patches if self.tap.point == INPUTS else ast.over_time
            return [torch.cat([read(block, [wav]) for block in self._run([wav])]) for wav in wavs]
        outputs = torch.stack(self._run(wavs))  # [layers, batch, frames, width] or [layers, frames, batch, width]
        if self.batch_axis == 1:
            outputs = outputs.transpose(1, 2)
        return [outputs[:, index, : self._count(wav)] for index, wav in enumerate(wavs)]

    def _count(self, wav: Tensor) -> int | None:
        """Return the number of block outputs for a clip; None where it is not known, so that all are its own."""
        if isinstance(self.upstream, W2vBertModel):
            return int(self.upstream.token_mask([wav]).sum())
        return frames_of(self.upstream, len(wav)) if self.counts_frames else None

    def _in_windows(self, windows: Sequence[Tensor]) -> Tensor:
        """Return the outputs of all blocks for the windows of a clip one after the other, [layers, frames, width]."""
        counts = [number_of_states(len(window), DOWNSAMPLE_RATE) for window in windows]
        parts = [torch.stack(self._run([w]))[:, 0, :count] for w, count in zip(windows, counts, strict=True)]
        return torch.cat(parts, dim=1)

    def _run(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        device = next(self.upstream.parameters()).device
        return self.tap.listen(lambda: self.upstream([wav.to(device) for wav in wavs]))
