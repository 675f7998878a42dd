"""Keyword spotting on Speech Commands (SUPERB's KS)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import right_clips
from s3prl_ext.tasks.record import Reads, Task, Utterances

TASK = Task(
    name="ks",
    downstream="speech_commands",
    metrics=("acc",),
    preset="ks/superb",
    variables={"SPEECH_COMMANDS": "Speech Commands"},
    reads=(  # a hash of the speaker decides the split
        Reads("datarc.speech_commands_root", divides=()),
        Reads("datarc.speech_commands_test_root", divides=()),
    ),
    counts={"acc": right_clips("filename", "truth")},
    utterances=Utterances("{}_predict.txt", "{}_truth.txt", "acc"),
    decoder="s3prl_ext.prediction.classification:keywords",
    superb=("acc",),
    modules=("s3prl.downstream.speech_commands.expert",),
)
