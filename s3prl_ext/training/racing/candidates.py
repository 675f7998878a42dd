"""The candidates of a race: what the lists in a section ``tuning`` make."""

from __future__ import annotations

import hashlib
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
LONGEST_NAME = 200  # bytes; file systems take 255


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
            read = [_read(item) for item in value]
            if len(set(read)) < len(read):
                raise UsageError(f"tuning.{key} names a candidate twice: {', '.join(map(_shown, value))}.")
            lists[key] = list(value)
    if not lists:
        return [Candidate("", dict(section))]
    names = {key: _names(values) for key, values in lists.items()}
    made: dict[str, Candidate] = {}
    for places in itertools.product(*map(range, map(len, lists.values()))):
        chosen = {key: values[place] for (key, values), place in zip(lists.items(), places)}
        tuning = _without_keys_of_others({**section, **chosen}, lists)
        name = _short(",".join(f"{key}={names[key][place]}" for key, place in zip(lists, places) if key in tuning))
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


def _read(value: Any) -> Any:
    """Return a value as it will be read: 1.0e-3 and 0.001 are the same."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_read, value))
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _names(values: Sequence[Any]) -> list[str]:
    """Return what values are called in names of candidates; what would be called alike has a hash behind it."""
    shown = [_shown(value) for value in values]
    return [
        name if shown.count(name) == 1 else f"{name}~{_hash(str(_read(value)))}" for name, value in zip(shown, values)
    ]


def _short(name: str) -> str:
    """Return the name, shortened with a hash where it is too long for a folder."""
    return name if len(name.encode()) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 4]}~{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
