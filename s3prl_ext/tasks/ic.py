"""Intent classification on Fluent Speech Commands (SUPERB's IC)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import right_clips
from s3prl_ext.tasks.record import Reads, Task, Utterances

SLOTS = ("action", "object", "location")  # of an intent, in the order of the head's outputs

TASK = Task(
    name="ic",
    downstream="fluent_commands",
    metrics=("acc",),
    preset="ic/superb",
    variables={"FLUENT_SPEECH_COMMANDS": "Fluent Speech Commands"},
    reads=(Reads("datarc.file_path", divides=("data/*.csv",)),),
    counts={"acc": right_clips("filename", "truth")},
    utterances=Utterances("{}_predict.csv", "{}_truth.csv", "acc", between=","),
    decoder="s3prl_ext.prediction.classification:intent",
    superb=("acc",),
    modules=("s3prl.downstream.fluent_commands.expert",),
)
