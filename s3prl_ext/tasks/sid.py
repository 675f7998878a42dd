"""Speaker identification on VoxCeleb1 (SUPERB's SID)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import right_clips
from s3prl_ext.tasks.record import Reads, Task, Utterances

TASK = Task(
    name="sid",
    downstream="voxceleb1",
    metrics=("acc",),
    preset="sid/superb",
    variables={"VOXCELEB1": "VoxCeleb1"},
    reads=(Reads("datarc.file_path"), Reads("datarc.meta_data", divides=("",))),
    counts={"acc": right_clips("filename", "truth_speaker")},
    utterances=Utterances("{}_predict.txt", "{}_truth.txt", "acc"),
    decoder="s3prl_ext.prediction.classification:speaker",
    superb=("acc",),
    modules=("s3prl.downstream.voxceleb1.expert",),
)
