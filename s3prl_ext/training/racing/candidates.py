"""The candidates of a race: what the lists in a section ``tuning`` make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.tuning_config import CHOICE_KEYS, MASK_OPTIONS, TuningConfig

# Keys of `tuning` whose own value is a list: one list inside a list makes candidates of them.
LIST_KEYS = ("eligible", "projections", "train_layers", "layers")


@dataclass(frozen=True)
class Candidate:
    """One of the runs that are raced.

    Attributes:
        name: what sets it apart, such as ``density=0.01``; also the name of its folder.
        tuning: its section ``tuning``, without lists.
    """

    name: str
    tuning: Record

    @property
    def density(self) -> float:
        """Its density; 1 where the method has none."""
        return float(self.tuning.get("density", 1.0))


def candidates_of(section: Section) -> list[Candidate]:
    """Return one candidate for each combination of the lists in a section ``tuning``, in the order given.

    Where methods or masks race, a candidate has the keys that its own reads: ``{method: [child, lora], density: [0.1,
    0.01]}`` makes three.

    Raises:
        UsageError: a list is empty or names a value twice.
    """
    lists: dict[str, list[Any]] = {}
    for key, value in section.items():
        native = key in LIST_KEYS and not (isinstance(value, list) and any(isinstance(v, list) for v in value))
        if isinstance(value, (list, tuple)) and not native:
            if not value:
                raise UsageError(f"tuning.{key} is an empty list: give one value, or several to race.")
            named = [_shown(item) for item in value]
            if len(set(named)) < len(named):
                raise UsageError(f"tuning.{key} names a candidate twice: {', '.join(named)}.")
            lists[key] = list(value)
    if not lists:
        return [Candidate("", dict(section))]
    made: dict[str, Candidate] = {}
    for values in itertools.product(*lists.values()):
        chosen = dict(zip(lists, values))
        tuning = _without_keys_of_others({**section, **chosen}, lists)
        name = ",".join(f"{key}={_shown(value)}" for key, value in chosen.items() if key in tuning)
        made.setdefault(name, Candidate(name, tuning))
    return list(made.values())


def _without_keys_of_others(tuning: Record, lists: Mapping[str, Sequence[Any]]) -> Record:
    """Return a candidate's section without the keys that only others of the raced methods or masks read."""
    methods = [method for method in lists.get("method", []) if method in METHODS]
    elsewhere = {key for method in methods for key in METHODS[method].keys}
    known = tuning.get("method") in METHODS  # else it is refused later
    elsewhere -= set(METHODS[tuning["method"]].keys) if known else elsewhere
    masks = {mask for mask in lists.get("mask", []) if mask != tuning.get("mask")}
    elsewhere |= {key for key, owners in MASK_OPTIONS.items() if masks & {*owners} and tuning.get("mask") not in owners}
    return {key: value for key, value in tuning.items() if key not in elsewhere}


def _shown(value: Any) -> str:
    """Return a value as it is written in a candidate's name: 1.0e-3 and 0.001 are the same."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(_shown, value))
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return "".join(c if c.isalnum() or c in "._-" else "_" for c in str(value))


def shares_masks(section: Section, other: Section) -> bool:
    """Return whether the masks of two sections ``tuning`` come from one choice, and differ in density at most."""
    return all(section.get(key) == other.get(key) for key in CHOICE_KEYS)


def check_alike(candidates: Sequence[Candidate], tunings: Sequence[TuningConfig], features_given: bool) -> None:
    """Raise UsageError where candidates would read different features or bases, so that they cannot share a head.

    Args:
        candidates: the candidates.
        tunings: their sections ``tuning``.
        features_given: the user chose the features with ``-s`` or ``-l``.
    """
    weighted = {METHODS[tuning.method].weighted_sum for tuning in tunings}
    if len(weighted) > 1 and not features_given:
        names = ", ".join(candidate.name for candidate in candidates)
        raise UsageError(
            f"the candidates {names} read different features (last hidden state, weighted sum): choose one for all "
            "with -s hidden_states or -s last_hidden_state."
        )
    bases = {(tuning.held, tuning.eligible if tuning.held else None) for tuning in tunings}
    if len(bases) > 1:
        raise UsageError(
            "tuning.base_dtype bfloat16 rounds the upstream, which all candidates start from: give it, and eligible, "
            "one value, for child networks alone."
        )


def chosen_tuning(section: Section | None, name: str | None) -> Record | None:
    """Return the section ``tuning`` that trained weights come from: of a race, that of the candidate `name`.

    Raises:
        DataError: the section makes no candidate of that name.
    """
    if not section:
        return None
    found = candidates_of(section)
    named = [candidate for candidate in found if candidate.name == (name or "")]
    if len(found) > 1 and name is None:
        raise DataError(
            "this is the start of a race, of which nothing is trained: finish the race, or name the checkpoint of a "
            "candidate, race/NAME/states-N.ckpt."
        )
    if len(found) > 1 and not named:
        raise DataError(f"the tuned weights are those of candidate {name}, which tuning does not make.")
    return (named or found)[0].tuning
