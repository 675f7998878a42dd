"""The settings of two runs compared: what decides their results, whatever version or machine has written them down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from s3prl_ext.evaluation.scored_runs import has_effect
from s3prl_ext.tasks import task_of
from s3prl_ext.tasks.record import LABELS

# Arguments of a run that decide a score besides upstream and task file, with what they are where they are not given.
ARGUMENTS = {
    "downstream_variant": None, "upstream_feature_selection": "hidden_states", "upstream_layer_selection": None,
    "upstream_feature_normalize": False, "seed": None,
}  # fmt: skip
COMPLETED = "downstream_expert."  # the section to which a task may add what its file leaves open
OF_TRAINING = ("optimizer.", "scheduler.", "early_stop.")  # sections that do not change how a checkpoint is scored
SCORING_RUNNER = ("evaluate_ratio", "amp", "fp16", "cache", "cache_dtype")  # keys of section runner that do
Change = tuple[Any, Any]  # the values of a setting in two runs


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task file by dotted key: numbers as floats, without empty keys, labels, and what has no effect."""
    return dict(_flat(config))


def _flat(section: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        key = f"{where}{name}"
        if not has_effect(name) or value is None or key == f"downstream_expert.{LABELS}":
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, _plain(value)


def _plain(value: Any) -> Any:
    """Return a value as YAML, JSON and a checkpoint have it alike: ``1e-4`` is a text in YAML."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(value)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """Return what differs between two task files that :func:`decisive` gave, by key; a default counts as missing."""
    found = {key: (before.get(key), now.get(key)) for key in dict.fromkeys([*before, *now])}
    return {key: change for key, change in found.items() if not same(key, *change)}


def same(key: str, one: Any, other: Any) -> bool:
    """Return whether two values of a key are the same; None where a task file lacks it."""
    return one == other or (None in (one, other) and (other if one is None else one) == _default(key))


def _default(key: str) -> Any:
    """Return what section ``runner`` takes where a key is missing; None where that is not known."""
    from s3prl_ext.training.task_file import RunnerConfig

    section, _, name = key.partition(".")
    return _plain(getattr(RunnerConfig, name, None)) if section == "runner" else None


def scoring_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    """Return the settings that decide how a checkpoint is scored and differ between two result files.

    A corpus counts by its hashes (their beginnings are returned); by its paths where one of the files lacks them.

    Args:
        before, now: contents of the files; what one of them does not say is not compared.
    """
    tasks = [one.get("downstream") for one in (before, now)]
    found: dict[str, Change] = {} if None in tasks or tasks[0] == tasks[1] else {"-d": (tasks[0], tasks[1])}
    if before.get("config") and now.get("config"):
        differing = changes(decisive(before["config"]), decisive(now["config"]))
        hashed = all(one.get("data") for one in (before, now))
        task = task_of(now["downstream"], now["config"].get("downstream_expert"))
        places = task.corpus_paths if hashed else ()
        found |= {key: change for key, change in differing.items() if _scores(key) and key not in places}
    found |= _corpus_changes(before, now)
    given = [one.get("args") or {} for one in (before, now)]
    for name, default in ARGUMENTS.items():
        if all(name in args for args in given):
            one, other = (default if args[name] is None else args[name] for args in given)
            found |= {f"args.{name}": (one, other)} if one != other else {}
    return found


def _corpus_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Change]:
    hashes = {
        "data.sha256": [(one.get("data") or {}).get("sha256") for one in (before, now)],
        "splits_sha256": [one.get("splits_sha256") for one in (before, now)],
    }
    known = {key: (str(one)[:12], str(other)[:12]) for key, (one, other) in hashes.items() if one and other}
    return {key: pair for key, pair in known.items() if pair[0] != pair[1]}


def without_variables(found: Mapping[str, Change], planned: Mapping[str, Any]) -> dict[str, Change]:
    """Return differences without those in settings that a variable gives: paths, of which result files have hashes.

    Args:
        found: differences by key.
        planned: the task file with its variables, as :func:`decisive` gave it.
    """
    return {key: change for key, change in found.items() if "${" not in str(planned.get(key))}


def _scores(key: str) -> bool:
    section, _, name = key.partition(".")
    return name in SCORING_RUNNER if section == "runner" else not key.startswith(OF_TRAINING)


def in_words(found: Mapping[str, Change], most: int = 3) -> str:
    """Return differences in words, such as ``optimizer.lr 0.1 in place of 0.01``: the second in place of the first."""
    said = [f"{key} {_shown(now)} in place of {_shown(before)}" for key, (before, now) in list(found.items())[:most]]
    return ", ".join(said) + (f" and {len(found) - most} more" if len(found) > most else "")


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"
