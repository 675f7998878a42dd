"""Phoneme recognition on LibriSpeech (SUPERB's PR)."""

from __future__ import annotations

from dataclasses import replace

from s3prl_ext.tasks import ctc
from s3prl_ext.tasks.counts import edits, words
from s3prl_ext.tasks.record import Utterances

TASK = replace(
    ctc.TASK,
    name="pr",
    corpus="libriphone",
    metrics=("per",),
    preset="pr/superb",
    variables={"LIBRISPEECH": "LibriSpeech", "LIBRISPEECH_LEXICON": "pronunciations for LibriSpeech"},
    counts={"per": edits("groundtruth", "hypothesis", words)},
    utterances=Utterances("{}-hyp.ark", "{}-ref.ark", "per", "words"),
    superb=("per",),
    modules=(*ctc.TASK.modules, "s3prl.downstream.ctc.corpus.libriphone"),
)
