"""What is known of each task: one module with one record (:class:`Task`) per task, and the table that all else asks.

Direction and unit of a metric are in :data:`s3prl_ext.metrics.METRICS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ext.tasks import (
    asr,
    asv,
    ctc,
    er,
    esc50,
    ic,
    ks,
    librispeech_zeroshot,
    ljspeech,
    ood,
    pr,
    qbe,
    sd,
    se,
    sf,
    sid,
    ss,
    vctk,
)  # fmt: skip
from s3prl_ext.tasks.counts import Count
from s3prl_ext.tasks.record import Reads, Task, Utterances

__all__ = ["OTHER", "TASKS", "UNAVAILABLE", "Reads", "Task", "Utterances", "named", "task_of"]

# SUPERB's come in the order of its paper's Table 2, then SUPERB-SG's; ctc, on any other corpus, after pr, sf and ood.
TASKS: tuple[Task, ...] = (
    pr.TASK, ks.TASK, ic.TASK, sid.TASK, er.TASK, asr.TASK, qbe.TASK, sf.TASK, ood.TASK, ctc.TASK, asv.TASK, sd.TASK,
    ss.TASK, se.TASK, ljspeech.TASK, vctk.TASK, librispeech_zeroshot.TASK, esc50.TASK,
)  # fmt: skip
added: list[Task] = []  # of extensions

OTHER = Task("", "")  # what holds for a task without a record

# Tasks of SUPERB-SG that cannot run on today's libraries: name for -d -> what is missing.
UNAVAILABLE = {
    "speech_translation": "its data, model and beam search are fairseq's, whose last release (0.12.2) cannot be "
    "imported on Python 3.11 or later",
    "a2o-vc-vcc2020": "its conversions are only scored by separate programs of s3prl's repository, with vocoders to be "
    "downloaded and with pyworld, pysptk, fastdtw and resemblyzer, and none of that has a replacement here",
}


def known() -> tuple[Task, ...]:
    """Return the records of all tasks, those of extensions last."""
    return (*TASKS, *added)


def of_downstream(downstream: str) -> list[Task]:
    """Return the records of a name for ``-d``, of which ``ctc`` has several."""
    return [task for task in known() if task.downstream == downstream]


def task_of(downstream: str, expert: Mapping[str, Any] | None) -> Task:
    """Return the record of a task; one without a record is judged by the first of ``MAIN_METRICS`` that it reports.

    Args:
        downstream: name for ``-d``.
        expert: section ``downstream_expert``, which names the corpus where tasks share a name for ``-d``, and may list
            the metrics; None where only the name is known.
    """
    corpus = expert.get("corpus") if isinstance(expert, Mapping) else None
    name = corpus.get("name") if isinstance(corpus, Mapping) else None
    fits = (task for task in of_downstream(downstream) if task.reads_corpus(name))
    return next(fits, Task(downstream, downstream)).of_file(expert)


def named(name: str) -> Task:
    """Return the record of a short name, such as ``ks``; see :func:`task_of` for one without a record."""
    return next((task for task in known() if task.name == name), task_of(name, None))


def remedy(task: Task) -> str:
    """Return the command that installs what a task lacks.

    An extra of this package, or the packages of an extension's.
    """
    return "pip install " + (
        "'s3prl_ext[superb]'" if task.name in {own.name for own in TASKS} else " ".join(task.lacks())
    )


def reported_splits() -> set[str]:
    """Return the names of the splits that are reported."""
    return {task.test for task in known()}


def is_best(task: Task, name: str, splits: Sequence[str]) -> bool:
    """Return whether a task names the checkpoint so that its choosing split finds best.

    Of a task without a record, or one that is not evaluated on its choosing split, that is the best one of the first
    split that begins with ``dev``, else of the first: a name of ``best``, ``states`` and that split alone.

    Args:
        task: its record.
        name: file name that it gives.
        splits: those that are evaluated.
    """
    if task.name in {one.name for one in known()} and task.dev in splits:
        return name == task.best
    choosing = [split for split in splits if split.startswith("dev")] or list(splits)
    words = [word for word in re.split(r"[-_.]", name) if word not in ("best", "states", "ckpt")]
    return not words or words == re.split(r"[-_.]", choosing[0])


def best_checkpoints() -> tuple[str, ...]:
    """Return the file names under which tasks keep their best checkpoint."""
    return tuple(dict.fromkeys(task.best for task in known()))


def result_files() -> tuple[str, ...]:
    """Return patterns of the files that evaluations of any task leave in a run's folder."""
    return tuple(dict.fromkeys(pattern for task in known() for pattern in task.result_files()))


def built_files() -> set[str]:
    """Return the names of the files that tasks write when they are built."""
    return {name for task in known() for name in task.built}


def corpus_variables() -> dict[str, str]:
    """Return the environment variables of task files, with the corpus that each names and its tasks."""
    corpora = {variable: corpus for task in known() for variable, corpus in task.variables.items()}
    users = {variable: ", ".join(task.name for task in known() if variable in task.variables) for variable in corpora}
    return {variable: f"{corpus} ({users[variable]})" for variable, corpus in corpora.items()}


def counts_of(task: Task, metric: str) -> list[Count]:
    """Return what may give the counts of a metric: the task's own, or for one without counts those of all tasks."""
    tables = [task.counts] if task.counts else [other.counts for other in TASKS]
    return list(dict.fromkeys(table[metric] for table in tables if metric in table))


def writers_of(kind: str) -> str:
    """Return the short names of the tasks whose files of utterances are of a kind, in words."""
    *names, last = [task.name for task in known() if task.utterances and task.utterances.kind == kind]
    return f"{', '.join(names)} or {last}" if names else last


def utterances_of(task: Task) -> list[Utterances]:
    """Return the files of single utterances: the task's own, or for one that names none those of all tasks."""
    files = [task.utterances] if task.utterances else [other.utterances for other in TASKS]
    return list(dict.fromkeys(one for one in files if one is not None))
