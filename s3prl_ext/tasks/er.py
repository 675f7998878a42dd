"""Emotion recognition on IEMOCAP, five folds (SUPERB's ER)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import right_clips
from s3prl_ext.tasks.record import Folds, Reads, Task, Utterances

FOLDS = tuple(f"fold{number}" for number in range(1, 6))  # fold N tests on session N and trains on the other four
UNNAMED = FOLDS[0]  # that s3prl takes where none is named

TASK = Task(
    name="er",
    downstream="emotion",
    metrics=("acc",),
    preset="er/superb",
    variables={"IEMOCAP": "IEMOCAP"},
    reads=(Reads("datarc.root"), Reads("datarc.meta_data", divides=("Session*/*.json",))),
    folds=Folds("downstream_expert.datarc.test_fold", FOLDS, unnamed=UNNAMED),
    divided_by=("downstream_expert.datarc.valid_ratio",),
    counts={"acc": right_clips("filename", "truth")},
    utterances=Utterances("{}_fold?_predict.txt", "{}_fold?_truth.txt", "acc"),
    decoder="s3prl_ext.prediction.classification:emotion",
    superb=("acc",),  # the mean over the five folds
    modules=("s3prl.downstream.emotion.expert",),
)
