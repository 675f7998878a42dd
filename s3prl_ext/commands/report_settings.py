"""Results of one upstream with other settings: the same weights, but other features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.scored_runs import UPSTREAM, ScoredRun
from s3prl_ext.training.upstream_settings import KEY, certain_differences, stated_sha256


def with_settings(runs: Sequence[ScoredRun], records: Sequence[ResultRecord]) -> list[ScoredRun]:
    """Return the runs; where one upstream was run with several settings, each has the hash of its own as a fact.

    Two settings count as one where they agree in all that both files state, or where two versions of transformers have
    read them. Results of earlier versions state none and get no such fact.

    Args:
        runs: of all tasks and splits.
        records: the result files that they are from.
    """
    stated = {record.path: record[KEY] for record in records if record[KEY]}
    hashes = {path: stated_sha256(settings) for path, settings in stated.items()}
    known = {hashes[path]: settings for path, settings in stated.items()}
    found: dict[object, set[str]] = {}
    for run in runs:
        if run.source in hashes:
            found.setdefault(run.key(UPSTREAM), set()).add(hashes[run.source])
    several = {
        key
        for key, those in found.items()
        if any(certain_differences(known[one], known[other]) for one, other in combinations(sorted(those), 2))
    }
    return [
        replace(run, facts={**run.facts, KEY: hashes[run.source]})
        if run.source in hashes and run.key(UPSTREAM) in several
        else run
        for run in runs
    ]
