"""What trainings began with (``-i``): checkpoints of one kind of training that differ in nothing but the seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.scored_runs import BEGINS_WITH, ScoredRun, begun_with, facts_of, training_of
from s3prl_ext.reading import file_sha256
from s3prl_ext.run_folder import RunFolder


def with_kinds(runs: Sequence[ScoredRun], records: Sequence[ResultRecord]) -> list[ScoredRun]:
    """Return the runs with the kind of training in place of the very checkpoint that each began with.

    That is done where each seed began with the checkpoint of the same seed, and that checkpoint and the result of its
    training can be read. Others keep the name and hash of their checkpoint, so that they have rows of their own.

    Args:
        runs: of all tasks and splits.
        records: the result files that they are from.
    """
    found: dict[str, set[str | None]] = {}
    hashes: dict[Path, str] = {}  # of checkpoints, which several results may come from
    for record in records:
        if (name := begun_with(record)) is not None:
            found.setdefault(name, set()).add(_kind(record, name, hashes))
    kinds = {name: next(iter(those)) for name, those in found.items() if len(those) == 1}
    changed = []
    for run in runs:
        kind = kinds.get(str(run.facts.get(BEGINS_WITH)))
        changed.append(run if kind is None else replace(run, facts={**run.facts, BEGINS_WITH: kind}))
    return changed


def _kind(record: ResultRecord, name: str, hashes: dict[Path, str]) -> str | None:
    """Return what kind of training a result's weights came from; None where it is of another seed or not known.

    Args:
        record: of a training that began with weights, or of its evaluation.
        name: of the checkpoint, with the beginning of its hash.
        hashes: of the files that were read so far.
    """
    training = training_of(record)
    given = None if training is None or training["mode"] != "train" else training["args"].get("init_ckpt")
    if not given or not Path(given).is_file():
        return None
    path = Path(given)
    try:
        if path not in hashes:
            hashes[path] = file_sha256(path)
        if name != f"{path.name} ({hashes[path][:12]})":
            return None  # a resumed training names its own, or another one is there now
        first = read_record(RunFolder(path.parent).result())
    except (DataError, OSError):
        return None
    if first["mode"] != "train" or first["error"] is not None or first["seed"] != record["seed"]:
        return None
    scored = {"mode": "evaluate", "args": {**first["args"], "init_ckpt": str(path)}}
    facts = facts_of(ResultRecord(first.path.with_name("result-first.json"), {**first.content, **scored}))
    digest = hashlib.sha256(repr(sorted(facts.items(), key=lambda pair: pair[0])).encode()).hexdigest()
    return f"{path.name} of {facts['method']} ({digest[:12]})"
