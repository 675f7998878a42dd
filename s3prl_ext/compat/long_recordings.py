"""Diarization of recordings that are longer than a chunk (``datarc.chunk_size`` frames): labels, predictions, rates.

s3prl cuts them into chunks that do not overlap, scores each chunk with its own order of speakers, and writes the chunks
one after another, the last one with its padding. Here test recordings are cut into windows that overlap, as ``predict``
cuts them, and everything after the model is s3prl's own, given the whole recording as one chunk. Recordings up to a
chunk go the way that s3prl goes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from s3prl_ext.compat.shim import Shim
from s3prl_ext.model_settings import SAMPLE_RATE

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SHORTEST = SAMPLE_RATE // 10  # of a chunk, in samples: upstreams give no frame of much shorter ones


def _label_by_overlap(module: ModuleType) -> None:
    labelled = module.DiarizationDataset._get_labeled_speech

    @functools.wraps(labelled)
    def labelled_by_overlap(self: Any, rec: str, start: int, end: int, *args: Any, **kwargs: Any) -> Any:
        import numpy as np

        samples, labels, *others = labelled(self, rec, start, end, *args, **kwargs)
        segments = self.data.segments[rec]
        speakers = sorted({self.data.utt2spk[segment["utt"]] for segment in segments})
        labels[:] = 0
        for segment in segments:
            first, last = (int(np.rint(segment[at] * SAMPLE_RATE / self.frame_shift)) for at in ("st", "et"))
            if first < end and last > start:
                place = speakers.index(self.data.utt2spk[segment["utt"]])
                labels[max(first - start, 0) : last - start, place] = 1
        return samples, labels, *others

    module.DiarizationDataset._get_labeled_speech = labelled_by_overlap


def _cut_with_overlap(module: ModuleType) -> None:
    build = module.DiarizationDataset.__init__

    @functools.wraps(build)
    def build_with_overlap(self: Any, mode: str, data_dir: str, *args: Any, **kwargs: Any) -> None:
        from s3prl_ext.corpora.overlaps import overlapping

        build(self, mode, data_dir, *args, **kwargs)
        if mode != "test":
            self.chunk_indices = [chunk for chunk in self.chunk_indices if not _is_rest(chunk, self.frame_shift)]
            return
        long = [recording for recording, chunks in self.chunk_indices.items() if len(chunks) > 1]
        for recording in long:
            *_, (_, _, end) = self.chunk_indices[recording]
            windows = overlapping(end // self.subsampling, self.chunk_size)
            self.chunk_indices[recording] = [
                (recording, first * self.subsampling, last * self.subsampling) for first, last in windows
            ]
        if long:
            count, chunk = len(self.chunk_indices), self.chunk_size * self.subsampling * self.frame_shift
            logger.warning(
                "%s: %d of %d recordings (%.3g %%) are longer than a chunk (datarc.chunk_size: %d frames, %g s): they "
                "are cut into windows that overlap, in which their speakers are matched. s3prl's own figures of such "
                "recordings, SUPERB's too, hold unmatched speakers and the padding of the last chunk: compare none "
                "with these.",
                data_dir, len(long), count, 100 * len(long) / count, self.chunk_size, chunk / SAMPLE_RATE,
            )  # fmt: skip

    module.DiarizationDataset.__init__ = build_with_overlap


def _is_rest(chunk: tuple[str, int, int], frame_shift: int) -> bool:
    """Tell whether a chunk is what is left at the end of a longer recording, and too short to train on or score."""
    _, start, end = chunk
    return start > 0 and (end - start) * frame_shift < SHORTEST


def _repair_dataset(module: ModuleType) -> None:
    _label_by_overlap(module)
    _cut_with_overlap(module)


def _whole_recordings(module: ModuleType) -> None:
    forward = module.DownstreamExpert.forward

    @functools.wraps(forward)
    def forward_whole(
        self: Any, mode: str, features: Any, labels: Any, lengths: Any, rec_id: Any, *args: Any, **kwargs: Any
    ) -> Any:
        from torch import nn

        if mode != "test" or len(features) == 1:
            return forward(self, mode, features, labels, lengths, rec_id, *args, **kwargs)
        logits, whole = _joined(self, features, labels, self.test_dataset.chunk_indices[rec_id])
        model, self.model = self.model, nn.Identity()  # it has been called: what follows gets its logits
        try:
            return forward(self, mode, [logits], [whole], [len(whole)], rec_id, *args, **kwargs)
        finally:
            self.model = model

    module.DownstreamExpert.forward = forward_whole


def _joined(
    expert: Any, features: Sequence[Tensor], labels: Sequence[Any], windows: Sequence[tuple[str, int, int]]
) -> tuple[Tensor, Any]:
    """Return the model's logits and the labels of a whole recording, both [frames, speakers].

    Args:
        expert: s3prl's.
        features: [frames, width] of each window.
        labels: [frames, speakers] of each window.
        windows: recording, first frame and frame after the last of each.
    """
    import numpy as np
    import torch

    from s3prl_ext.corpora.overlaps import speaker_order

    pieces: list[Tensor] = []
    for clip, label in zip(features, labels, strict=True):
        inputs, _ = expert._match_length(clip[None], torch.from_numpy(label)[None])
        pieces.append(expert.model(inputs)[0])
    logits, whole = pieces[0], labels[0]
    for piece, label, (_, start, _) in zip(pieces[1:], labels[1:], windows[1:], strict=True):
        overlap = len(whole) - start
        both = (torch.sigmoid(part.detach().float()).cpu().numpy() for part in (logits[start:], piece[:overlap]))
        order = torch.from_numpy(speaker_order(*both)).to(piece.device)
        logits = torch.cat([logits, piece[overlap:, order]])
        whole = np.concatenate([whole, label[overlap:]])
    return logits, whole


SHIMS = (
    Shim(
        name="sd-long-recordings",
        module="s3prl.downstream.diarization.dataset",
        needed=lambda module: not hasattr(module.DiarizationDataset._get_labeled_speech, "__wrapped__"),
        apply=_repair_dataset,
        reason="s3prl gives no label to a turn that covers a whole chunk, and cuts test recordings so that nothing "
        "tells which speaker of one chunk is which of the next; it stops at a rest of a recording that is shorter than "
        "a frame of the upstream",
        remove_when="s3prl labels by overlap, leaves short rests out, and cuts test recordings with overlap",
    ),
    Shim(
        name="sd-whole-predictions",
        module="s3prl.downstream.diarization.expert",
        needed=lambda module: not hasattr(module.DownstreamExpert.forward, "__wrapped__"),
        apply=_whole_recordings,
        reason="s3prl writes the padding of a recording's last chunk as frames of speech, and each chunk with an order "
        "of speakers of its own",
        remove_when="s3prl scores and writes recordings as a whole",
    ),
)
