"""Speech recognition on LibriSpeech with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks import recognition
from s3prl_ext.tasks.record import Task

TASK = Task(
    name="librispeech_zeroshot",
    downstream="librispeech_zeroshot",
    metrics=recognition.METRICS,
    own_head=True,
    preset="librispeech_zeroshot/zero_shot",
    variables={"LIBRISPEECH": "LibriSpeech"},
    reads=recognition.READS,
    counts=recognition.COUNTS,
    utterances=recognition.UTTERANCES,
    writes=recognition.WRITES,
    decoder=recognition.DECODER,
)
