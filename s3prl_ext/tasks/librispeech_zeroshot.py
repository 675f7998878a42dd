"""Speech recognition on LibriSpeech with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks.recognition import recognition

TASK = recognition(
    "librispeech_zeroshot",
    "librispeech_zeroshot/zero_shot",
    "LIBRISPEECH",
    "LibriSpeech",
    "librispeech",
)
