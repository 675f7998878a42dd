"""Speech models as encoders: frames of all blocks from audio files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio
from s3prl_ext.upstreams.beats.expert import BANDS, steps_of
from s3prl_ext.upstreams.beats.expert import UpstreamExpert as BeatsExpert
from s3prl_ext.upstreams.hf_speech.ast import AstModel
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, INPUTS, Tap
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert as WhisperExpert


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
        pads: whether attention reads more than a clip's own states: those of an AST are padded to a fixed length.
    """

    def __init__(self, upstream: nn.Module, name: str, batch_size: int = 1, point: str = BLOCKS):
        self.upstream, self.name = upstream, name
        self.tap = Tap(upstream, name, point=point)
        self.window: int | None = upstream.positions if isinstance(upstream, WhisperExpert) else None
        self.pads = isinstance(upstream, AstModel)
        probe = [torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))] * 2  # two clips of 1 s
        states = self._run(probe)
        self.batch_axis = 0 if states[0].shape[0] == len(probe) else 1
        frames = states[0].shape[1 - self.batch_axis]
        known = self._frames(SAMPLE_RATE)
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
        frames = [self._frames(len(wav)) if self.counts_frames else outputs.shape[2] for wav in wavs]
        return [outputs[:, index, :count] for index, count in enumerate(frames)]

    def _in_windows(self, windows: Sequence[Tensor]) -> Tensor:
        """Return the outputs of all blocks for the windows of a clip one after the other, [layers, frames, width]."""
        return torch.cat([torch.stack(self._run([window]))[:, 0] for window in windows], dim=1)

    def _run(self, wavs: Sequence[Tensor]) -> list[Tensor]:
        device = next(self.upstream.parameters()).device
        return self.tap.listen(lambda: self.upstream([wav.to(device) for wav in wavs]))

    def _frames(self, samples: int) -> int | None:
        """Return the number of block outputs for a clip, from the strides of the convolutions; None if unknown."""
        if isinstance(self.upstream, BeatsExpert):
            return steps_of(samples) * BANDS
        extractor = next((m for n, m in self.upstream.named_modules() if n.split(".")[-1] == "feature_extractor"), None)
        convolutions = [m for m in extractor.modules() if isinstance(m, nn.Conv1d)] if extractor is not None else []
        for convolution in convolutions:
            samples = (samples - convolution.kernel_size[0]) // convolution.stride[0] + 1
        return samples if convolutions else None
