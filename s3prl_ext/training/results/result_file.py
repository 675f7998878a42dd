"""``result.json``: what a run measured, with the configuration and versions that produced it."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from s3prl_ext import hub
from s3prl_ext.configs import Record
from s3prl_ext.errors import DataError, StoppedByUser, UsageError, sentence
from s3prl_ext.evaluation.result_records import SCHEMA, problems, read_record
from s3prl_ext.metrics import METRICS
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import FAILED, RunFolder
from s3prl_ext.run_folder import step_of as checkpoint_step
from s3prl_ext.tasks import task_of
from s3prl_ext.training.batching.corpus_hash import Corpus
from s3prl_ext.training.results import provenance
from s3prl_ext.training.results.provenance import PACKAGES  # noqa: F401  the packages that result files name
from s3prl_ext.training.results.same_evaluation import only_checkpoints_differ, other_evaluation
from s3prl_ext.training.train_state import Diverged
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)


def write(
    args: Namespace,
    config: Record,
    metrics: dict[str, dict[str, float]],
    step: int,
    seconds: float,
    trainable: dict[str, int],
    merge: Record | None = None,
    seconds_per_step: float | None = None,
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    items: Mapping[str, int | None] | None = None,
    corpus: Corpus | None = None,
    **facts: Any,
) -> Path:
    """Write the metrics of a run's splits to ``result.json`` (train) or ``result-SPLIT.json`` (evaluate).

    Args:
        args: the arguments of ``run_downstream.py``; the file goes to their ``expdir``.
        config: the task file after overrides.
        metrics: value by split and metric name.
        step: optimizer steps behind the scored model.
        seconds: wall time of the training or evaluation.
        trainable: number of trainable weights of upstream, featurizer and downstream.
        merge: record of a merged upstream.
        seconds_per_step: wall time of an optimizer step, with what is scored and saved on the way; None without
            training.
        intervals: 95 % interval by split and metric; None where they were not computed.
        items: how many utterances were scored, by split.
        corpus: of the run, whose files may have been listed already.
        **facts: further plain values, such as the evaluations on the way.
    """
    path = RunFolder(args.expdir).result(None if args.mode == "train" else "-".join(metrics))
    rows = {split: {key: _row(key, value) for key, value in row.items()} for split, row in metrics.items()}
    corpus = corpus or Corpus(args.downstream, config)
    content = _frame(args, config, seconds, corpus) | {
        "step": step,
        "seconds_per_step": seconds_per_step,
        "metrics": rows,
        "intervals": {split: _lists((intervals or {}).get(split, {})) for split in metrics},
        "items": {split: (items or {}).get(split) for split in metrics},
        "trainable": trainable,
        "merge": merge,
        **facts,
        "splits_sha256": splits_sha256(args, corpus),
    }
    found = problems(content)
    if found:
        logger.warning("%s has an unusual content: %s", path, "; ".join(found))
    if args.mode != "train":
        _set_other_aside(path, content)
    write_json(path, content, default=str)
    _failed(path).unlink(missing_ok=True)  # of an earlier attempt
    logger.info("metrics written to %s", path)
    return path


def _set_other_aside(path: Path, content: Record) -> None:
    """Rename the result of another evaluation that has the name of a new one, and say so.

    Results of several ``states-N.ckpt`` of a task of which SUPERB reports the best one are all kept, one for each step,
    as ``result-SPLIT-step-N.json``.
    """
    folder = RunFolder(path.parent)
    if (again := _beside(path, content)) is not None and again.is_file():
        logger.warning("%s is of this step too: it is kept as %s", again, folder.set_aside(again, content["step"]).name)
    try:
        old = read_record(path).content
    except DataError:
        return  # there is none to keep
    other = other_evaluation(old, content)
    if other is None:
        return
    try:
        beside = _beside(path, old) if only_checkpoints_differ(old, content) else None
        kept = folder.set_aside(path, old["step"] or 0) if beside is None else path.replace(beside)
    except FileNotFoundError:
        return  # an evaluation at the same time has done so
    logger.warning("%s was the result of %s: it is kept as %s", path, other, kept.name)


def _beside(path: Path, content: Mapping[str, Any]) -> Path | None:
    """Return where a result stands beside those of other checkpoints; None where it counts alone."""
    task = task_of(content["downstream"], content["config"].get("downstream_expert"))
    step = checkpoint_step(Path(str(content["args"].get("init_ckpt"))))
    return path.with_name(f"{path.stem}-step-{step}.json") if task.chosen_on_test and step is not None else None


def write_stop(
    args: Namespace,
    config: Record,
    scores: Mapping[str, Mapping[str, float]],
    step: int,
    seconds: float,
    corpus: Corpus,
    **facts: Any,
) -> None:
    """Write metrics by split and wall time of a run that stops on the way (``args.until``) to ``at-STEP.json``.

    With them comes what a comparison depends on: task file, corpus and, among the further plain values, the upstream.
    """
    folder = RunFolder(args.expdir)
    content = {
        "mode": args.mode, "step": step, "seconds": round(seconds, 3),
        "metrics": {split: dict(row) for split, row in scores.items()},
        "config": config, "data": corpus.hash, "splits_sha256": splits_sha256(args, corpus), **facts,
    }  # fmt: skip
    write_json(folder.stop(step), content, default=str)
    _failed(folder.result()).unlink(missing_ok=True)  # of an earlier attempt
    logger.info("stopped at step %d; its scores are in %s", step, folder.stop(step))


def step_of(path: Path) -> int | None:
    """Return the step that a result file reports; None where there is none to read."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def failures_recorded(
    args: Namespace, config: Record, split: str = "", active: bool = True, corpus: Corpus | None = None
) -> Iterator[None]:
    """Write ``result-failed.json`` (``result-SPLIT-failed.json``) where the body raises an error.

    A wrong flag and an interrupt do not count as failures, nor does a file that is missing or refused before there is a
    checkpoint: such an experiment leaves nothing behind. Of a run whose gradients were not finite, ``diverged`` is
        true.

    Args:
        args, config, corpus: as for :func:`write`.
        split: what is evaluated; empty for a training.
        active: False on all ranks but the first.
    """
    started = time.monotonic()
    try:
        yield
    except (UsageError, StoppedByUser):
        raise
    except Exception as error:
        folder = RunFolder(args.expdir)
        diverged = isinstance(error, Diverged)
        begun = folder.is_started or diverged or not isinstance(error, (DataError, FileNotFoundError))
        if active and folder.path.is_dir() and begun:
            corpus = corpus or Corpus(args.downstream, config)
            content = _frame(args, config, time.monotonic() - started, corpus)
            content |= {"step": None, "metrics": {}, "trainable": {}}
            try:
                path = _failed(folder.result(None if args.mode == "train" else split))
                write_json(path, content | {"error": sentence(error), "diverged": diverged}, default=str)
            except OSError as second:  # such as a full disk, which may be the first error too
                logger.warning("the failure could not be recorded in %s: %s", folder.path, second)
        raise


def _frame(args: Namespace, config: Record, seconds: float, corpus: Corpus) -> Record:
    """Return what every record holds: what was run, where, and with which versions and data."""
    return {
        "schema": SCHEMA,
        "mode": args.mode,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "upstream": args.upstream,
        "downstream": args.downstream,
        "seed": args.seed,
        "seconds": round(seconds, 3),
        "args": {key: _plain(value) for key, value in vars(args).items()},
        "config": config,
        "data": corpus.hash,
        "machine": provenance.machine(args.device),
        "peak_memory": provenance.peak_memory(),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "hub": hub.resolved(),
        "error": None,
    }


def _failed(path: Path) -> Path:
    return path.with_name(f"{path.stem}{FAILED}")


def _row(name: str, value: float) -> Record:
    known = METRICS.get(name)
    return {
        "value": value,
        "unit": known.unit if known else None,
        "higher_is_better": known.higher_is_better if known else None,
    }


def _lists(intervals: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Return the ends of the intervals as JSON keeps them."""
    return {name: [float(end) for end in ends] for name, ends in intervals.items()}


def splits_sha256(args: Namespace, corpus: Corpus) -> str | None:
    """Return the hash of the split lists in the run's folder, or of what divides s3prl's corpora."""
    try:
        return parse_json(RunFolder(args.expdir).splits.read_text(encoding="utf-8")).get("sha256")
    except (OSError, ValueError, AttributeError):
        return corpus.splits_sha256


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None), list, dict)) else str(value)
