"""Speech recognition on VCTK with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks import recognition
from s3prl_ext.tasks.record import Task

TASK = Task(
    name="vctk",
    downstream="vctk",
    metrics=recognition.METRICS,
    own_head=True,
    preset="vctk/mam",
    variables={"VCTK": "VCTK"},
    reads=recognition.READS,
    counts=recognition.COUNTS,
    utterances=recognition.UTTERANCES,
    writes=recognition.WRITES,
    decoder=recognition.DECODER,
)
