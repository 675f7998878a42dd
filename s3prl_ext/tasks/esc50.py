"""Environmental sounds, ESC-50."""

from __future__ import annotations

from s3prl_ext.tasks.counts import equal_labels
from s3prl_ext.tasks.record import Reads, Task, Utterances

TASK = Task(
    name="esc50",
    downstream="esc50",
    metrics=("error",),
    own_head=True,
    preset="esc50/mam",
    variables={"ESC50": "ESC-50"},
    reads=(Reads("datarc.esc50_root", folder="s3prl_ext.corpora.esc50:folder_of"),),
    divided_by=("downstream_expert.fold", "downstream_expert.split"),
    counts={"acc": equal_labels("prediction", "target")},
    utterances=Utterances("predictions-{}.jsonl", "predictions-{}.jsonl", "error", "predictions"),
    writes=("splits.json", "head.json"),
    decoder="s3prl_ext.prediction.classification:sound",
)
