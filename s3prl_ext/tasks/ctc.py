"""What phoneme recognition and slot filling share: s3prl's ``-d ctc``, and that task on any other corpus."""

from __future__ import annotations

from s3prl_ext.tasks.record import Reads, Task

DOWNSTREAM = "ctc"
READS = (
    Reads("corpus.path", divides=(), parts="corpus"),  # splits are folders or speakers
    Reads("corpus.lexicon"),
    Reads("text.vocab_file"),
    Reads("text.slots_file"),
)
SETTINGS = "corpus"
RATIOS = ("wer", "cer")
WRITES = ("*.ark",)
DECODER = "s3prl_ext.prediction.transcription:ctc"
EXPERT = "s3prl.downstream.ctc.expert"

TASK = Task(
    name="ctc",
    downstream=DOWNSTREAM,
    metrics=("slot_type_f1", "per", "wer"),
    reads=READS,
    settings=SETTINGS,
    ratios=RATIOS,
    writes=WRITES,
    decoder=DECODER,
)
