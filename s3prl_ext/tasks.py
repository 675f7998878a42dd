"""What each task is judged by, and on which splits: the one table that races, reports and sweeps ask.

Direction and unit of a metric are in :data:`s3prl_ext.metrics.METRICS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_ext.metrics import MAIN_METRICS


@dataclass(frozen=True)
class Task:
    """How one task is judged.

    Attributes:
        name: short name, as in tables and presets.
        downstream: name for ``-d``.
        metrics: it is judged by the first of these that it reports.
        dev: split that chooses (lambda, a candidate, a learning rate).
        test: split that is reported.
        best: file name of the checkpoint that it keeps as the best on dev.
        corpus: ``downstream_expert.corpus.name``, where several tasks share a name for ``-d``.
        own_head: its head may come without training (a model's own, a fitted one), and it refuses one that is untrained
            when it is evaluated.
    """

    name: str
    downstream: str
    metrics: tuple[str, ...]
    dev: str = "dev"
    test: str = "test"
    best: str = "dev-best.ckpt"
    corpus: str | None = None
    own_head: bool = False


TASKS: tuple[Task, ...] = (
    Task("pr", "ctc", ("per",), corpus="libriphone"),
    Task("asr", "asr", ("wer",), dev="dev-clean", test="test-clean", best="dev-clean-best.ckpt"),
    Task("ks", "speech_commands", ("acc",)),
    Task("ic", "fluent_commands", ("acc",)),
    Task("sid", "voxceleb1", ("acc",)),
    Task("sf", "ctc", ("slot_type_f1",), corpus="snips"),
    Task("ctc", "ctc", ("slot_type_f1", "per", "wer")),  # on any other corpus
    Task("sd", "diarization", ("der",), best="best-states-dev.ckpt"),
    Task("ljspeech", "ljspeech", ("wer",), own_head=True),
    Task("vctk", "vctk", ("wer",), own_head=True),
    Task("librispeech_zeroshot", "librispeech_zeroshot", ("wer",), own_head=True),
    Task("esc50", "esc50", ("error",), own_head=True),
)
added: list[Task] = []  # rows of extensions


def task_of(downstream: str, expert: Mapping[str, Any] | None = None) -> Task:
    """Return the row of a task; one without a row is judged by the first of ``MAIN_METRICS`` that it reports.

    Args:
        downstream: name for ``-d``.
        expert: section ``downstream_expert``, which names the corpus of ``ctc``.
    """
    corpus = ((expert or {}).get("corpus") or {}).get("name") if downstream == "ctc" else None
    rows = [row for row in (*TASKS, *added) if row.downstream == downstream]
    fallback = Task(downstream, downstream, MAIN_METRICS)
    return next((row for row in rows if row.corpus in (None, corpus)), fallback)


def named(name: str) -> Task:
    """Return the row of a short name, such as ``ks``; see :func:`task_of` for one without a row."""
    return next((row for row in (*TASKS, *added) if row.name == name), task_of(name))


def main_metric(row: Task, reported: Collection[str]) -> str | None:
    """Return the metric that a task is judged by, or None where it reports none of those in its row."""
    return next((name for name in row.metrics if name in reported), None)


def reported_splits() -> set[str]:
    """Return the names of the splits that are reported."""
    return {row.test for row in (*TASKS, *added)}


def choosing_splits() -> set[str]:
    """Return the names of the splits that choose."""
    return {row.dev for row in (*TASKS, *added)}


def best_checkpoints() -> tuple[str, ...]:
    """Return the file names under which tasks keep their best checkpoint."""
    return tuple(dict.fromkeys(row.best for row in (*TASKS, *added)))
