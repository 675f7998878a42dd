"""What the speech recognition tasks of this package share: transcripts, word and character error rates."""

from __future__ import annotations

from s3prl_ext.tasks.counts import characters, edits, words
from s3prl_ext.tasks.record import Reads, Utterances

METRICS = ("wer",)
READS = (Reads("datarc.path", parts="datarc.split"),)
COUNTS = {
    "wer": edits("references", "hypotheses", words),
    "cer": edits("references", "hypotheses", characters),
}
UTTERANCES = Utterances("transcripts-{}.jsonl", "transcripts-{}.jsonl", "wer", "transcripts")
WRITES = ("splits.json", "head.json")
DECODER = "s3prl_ext.prediction.transcription:recognition"
