"""What the speech recognition tasks of this package share: transcripts, word and character error rates."""

from __future__ import annotations

from dataclasses import replace

from s3prl_ext.tasks.counts import characters, edits, words
from s3prl_ext.tasks.record import Reads, Task, Utterances

SHARED = Task(
    name="",
    downstream="",
    metrics=("wer",),
    own_head=True,
    released_head=True,
    reads=(Reads("datarc.path", parts="datarc.split"),),
    counts={
        "wer": edits("references", "hypotheses", words),
        "cer": edits("references", "hypotheses", characters),
    },
    utterances=Utterances("transcripts-{}.jsonl", "transcripts-{}.jsonl", "wer", "transcripts"),
    writes=("splits.json", "head.json"),
    decoder="s3prl_ext.prediction.transcription:recognition",
)


def recognition(name: str, preset: str, variable: str, corpus: str, module: str) -> Task:
    """Return the record of the task `name` on a corpus.

    Args:
        name: of the task, also for ``-d``.
        preset: its task file where ``-c`` is not given.
        variable: of the environment, which names the folder of the corpus or the one that holds it.
        corpus: in words.
        module: of the corpus in ``s3prl_ext.corpora``, whose ``folder_of`` finds it.
    """
    reads = tuple(one._replace(folder=f"s3prl_ext.corpora.{module}:folder_of") for one in SHARED.reads)
    return replace(SHARED, name=name, downstream=name, preset=preset, variables={variable: corpus}, reads=reads)
