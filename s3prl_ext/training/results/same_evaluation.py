"""Which evaluation a result file is of: two files of the same one may replace each other, others may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.evaluation.merge_facts import merge_facts
from s3prl_ext.training.results.run_settings import Change, in_words, scoring_changes
from s3prl_ext.training.upstream_settings import KEY, other_settings

WEIGHTS = "weights_sha256"  # key of a result file: of the checkpoint that was scored


def other_evaluation(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return in words what else than `now` an evaluation was of; None where both are the same evaluation.

    An evaluation is one of the same weights of a task, on the same upstream, merged alike, on the same corpus, with the
    same settings. Weights, models and corpora are known by their hashes, wherever they lie, and by their places where
    one of the files lacks the hashes.

    Args:
        before, now: contents of their result files.
    """
    if before["step"] != now["step"] or _other_file(before, now, "init_ckpt", WEIGHTS, named=True):
        return f"another checkpoint ({before['args'].get('init_ckpt')}, step {before['step']})"
    settings = other_settings(now.get(KEY), before.get(KEY) or {})
    merges = [merge_facts(one.get("merge")) for one in (now, before)]
    found = {
        "another upstream": in_words(_upstream_changes(now, before)) or ", ".join(settings[:3]),
        "another merge": in_words(_changes(*merges)),
        "other settings": in_words(scoring_changes(now, before)),
    }
    return next((f"{what} ({said})" for what, said in found.items() if said), None)


def only_checkpoints_differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two evaluations are of checkpoints of two steps and the same in all else.

    Args:
        before, now: contents of their result files.
    """
    args = before["args"] | {"init_ckpt": now["args"].get("init_ckpt")}
    moved = {**before, "args": args, "step": now["step"], WEIGHTS: now.get(WEIGHTS)}
    return before["step"] != now["step"] and other_evaluation(moved, now) is None


def _upstream_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """Return what names or makes another upstream, apart from a merge, which has a record of its own."""
    found = _changes(*({"upstream": one["upstream"]} for one in (before, now)))
    if _other_file(before, now, "upstream_ckpt", "upstream_sha256"):
        if _hashed(before, now, "upstream_sha256"):
            found["upstream_sha256"] = (before["upstream_sha256"][:12], now["upstream_sha256"][:12])
        else:
            found["upstream_ckpt"] = (before["args"].get("upstream_ckpt"), now["args"].get("upstream_ckpt"))
    if not before.get("merge") and not now.get("merge"):
        key = "upstream_model_config"
        found |= _changes(*({key: one["args"].get(key)} for one in (before, now)))
    return found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    pairs = {key: (before.get(key), now.get(key)) for key in dict.fromkeys([*before, *now])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _hashed(before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> bool:
    return None not in (before.get(key), now.get(key))


def _other_file(
    before: Mapping[str, Any], now: Mapping[str, Any], argument: str, key: str, named: bool = False
) -> bool:
    """Return whether two results are of other files: by their hashes, and their names where these count, or places."""
    given = [one["args"].get(argument) for one in (before, now)]
    first, second = (None if one is None else Path(str(one)).resolve() for one in given)
    if not _hashed(before, now, key):
        return first != second
    return before[key] != now[key] or (named and (first and first.name) != (second and second.name))
