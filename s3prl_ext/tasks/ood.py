"""Speech recognition out of domain (SUPERB-SG's OOD-ASR): Spanish, Arabic, Mandarin of Common Voice; talk of SBCSAE."""

from __future__ import annotations

from dataclasses import replace

from s3prl_ext.tasks import ctc
from s3prl_ext.tasks.counts import edits
from s3prl_ext.tasks.record import Part, Reads, Sets


def as_s3prl_splits(text: str) -> list[str]:
    """Return the words of a text as s3prl counts them: what stands between single blanks."""
    return text.split(" ")


TASK = replace(
    ctc.TASK,
    name="ood",
    corpus=("common_voice", "sbcsae"),
    metrics=("wer", "cer"),  # Mandarin is judged by characters
    preset="ood/es",
    variables={
        "COMMON_VOICE": "Common Voice 7.0",
        "COMMON_VOICE_VOCAB": "characters of each language",
        "SBCSAE": "Santa Barbara Corpus of Spoken American English",
    },
    reads=(
        Reads("corpus.path"),
        *(Reads(f"corpus.{split}", divides=("",)) for split in ("train", "dev", "test")),
        Reads("text.vocab_file"),
    ),
    sets=Sets(
        ("downstream_expert.corpus.name", "downstream_expert.corpus.path"),
        {"es": "wer", "ar": "wer", "zh-CN": "cer", "sbcsae": "wer"},
    ),
    part=Part("corpus.ratio", "corpus.offset"),
    settings="",  # its lists are files
    counts={
        "wer": edits("groundtruth", "hypothesis", as_s3prl_splits),
        "cer": edits("groundtruth", "hypothesis"),
    },
    decoder="s3prl_ext.prediction.transcription:characters",
    superb=("wer", "cer"),
    modules=(*ctc.TASK.modules, "s3prl.downstream.ctc.corpus.common_voice"),
)
