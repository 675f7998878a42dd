"""s3prl's ``-d ctc`` on any corpus; phoneme recognition and slot filling are this task with more known."""

from __future__ import annotations

from s3prl_ext.tasks.record import Reads, Task

TASK = Task(
    name="ctc",
    downstream="ctc",
    metrics=("slot_type_f1", "per", "wer"),
    reports="metric",
    kept_on="save_best_on",
    reads=(
        Reads("corpus.path", divides=(), parts="corpus"),  # splits are folders or speakers
        Reads("corpus.lexicon"),
        Reads("text.vocab_file"),
        Reads("text.slots_file"),
    ),
    settings="corpus",
    ratios=("wer", "cer"),
    writes=("*.ark",),
    decoder="s3prl_ext.prediction.transcription:ctc",
    modules=("s3prl.downstream.ctc.expert",),
)
