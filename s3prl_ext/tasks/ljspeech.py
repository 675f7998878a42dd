"""Speech recognition on LJ Speech with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks import recognition
from s3prl_ext.tasks.record import Task

TASK = Task(
    name="ljspeech",
    downstream="ljspeech",
    metrics=recognition.METRICS,
    own_head=True,
    preset="ljspeech/mam",
    variables={"LJSPEECH": "LJ Speech"},
    reads=recognition.READS,
    counts=recognition.COUNTS,
    utterances=recognition.UTTERANCES,
    writes=recognition.WRITES,
    decoder=recognition.DECODER,
)
