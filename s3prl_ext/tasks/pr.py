"""Phoneme recognition on LibriSpeech (SUPERB's PR)."""

from __future__ import annotations

from s3prl_ext.tasks import ctc
from s3prl_ext.tasks.counts import edits, words
from s3prl_ext.tasks.record import Task, Utterances

TASK = Task(
    name="pr",
    downstream=ctc.DOWNSTREAM,
    corpus="libriphone",
    metrics=("per",),
    preset="pr/superb",
    variables={"LIBRISPEECH": "LibriSpeech", "LIBRISPEECH_LEXICON": "pronunciations for LibriSpeech"},
    reads=ctc.READS,
    settings=ctc.SETTINGS,
    counts={"per": edits("groundtruth", "hypothesis", words)},
    ratios=ctc.RATIOS,
    utterances=Utterances("{}-hyp.ark", "{}-ref.ark", "per", "words"),
    writes=ctc.WRITES,
    decoder=ctc.DECODER,
    superb=("per",),
    modules=(ctc.EXPERT, "s3prl.downstream.ctc.corpus.libriphone"),
)
