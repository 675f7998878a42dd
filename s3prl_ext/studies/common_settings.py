"""The settings that the runs of a task share: those that neither an axis nor the study sets, but its task file."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.training.results.run_settings import COMPLETED, Change, changes, decisive, same, without_variables


@dataclass(frozen=True)
class RunSettings:
    """The task file that a run has had, next to the one that it would have now.

    Attributes:
        name: of the run.
        keys: what the study sets for it.
        planned: the task file that it would have now.
        shared: what comes from its task file, by dotted key.
        own: what the study sets for it and its record has otherwise.
        changed: what its task file gives otherwise now.
        places: keys of the paths of its corpus.
    """

    name: str
    keys: tuple[str, ...]
    planned: Mapping[str, Any]
    shared: Mapping[str, Any]
    own: Mapping[str, Change] = field(default_factory=dict)
    changed: Mapping[str, Change] = field(default_factory=dict)
    places: Collection[str] = ()

    @classmethod
    def of(cls, run: StudyRun, config: Mapping[str, Any] | None) -> RunSettings:
        """Compare the task file of a record with the present one; None for a run that has not begun.

        The paths of its corpus are left out, which hashes compare, and what a variable gives; so are the keys that a
        task adds to its own section.
        """
        places = run.task.corpus_paths
        keys, planned = tuple(run.settings()), decisive(run.config())
        found = planned if config is None else decisive(config)
        differing = _without_added(changes(planned, found), planned)
        known = {key for key in found if key in planned or not key.startswith(COMPLETED)}
        own = {key: change for key, change in differing.items() if _is_of(key, keys)}
        left_out = {key for key in known if key in places or "${" in str(planned.get(key)) or _is_of(key, keys)}
        shared = {key: found[key] for key in found if key in known - left_out}
        changed = {key: change for key, change in differing.items() if key not in own and key not in places}
        return cls(run.name, keys, planned, shared, own, changed, places)

    def decisive(self, settings: Mapping[str, Sequence[Any]]) -> dict[str, Change]:
        """Return what a resumed run went on with, as far as it decides a result: values before and now by key."""
        before, now = (decisive({key: pair[side] for key, pair in settings.items()}) for side in (0, 1))
        found = {key: change for key, change in changes(before, now).items() if key not in self.places}
        return without_variables(found, self.planned)


def _without_added(found: Mapping[str, Change], planned: Mapping[str, Any]) -> dict[str, Change]:
    known = {key: one for key, one in found.items() if key in planned or not key.startswith(COMPLETED)}
    return without_variables(known, planned)


def _is_of(key: str, sections: Collection[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


class CommonSettings:
    """Notes what the first run had in each setting, and compares others with it."""

    def __init__(self) -> None:
        self.first: dict[str, tuple[str, Any]] = {}
        self.runs: dict[str, tuple[str, ...]] = {}

    def differing(self, settings: RunSettings) -> tuple[str, dict[str, Change]] | None:
        """Return the name of an earlier run with other settings, and these settings of both; None where there is none.

        A setting that the study gives one of two runs is not compared.
        """
        found: dict[str, tuple[str, Change]] = {}
        for key in dict.fromkeys([*settings.shared, *self.first]):
            if _is_of(key, settings.keys):
                continue
            value = settings.shared.get(key)
            if key not in self.first:
                lacks = next((name for name, keys in self.runs.items() if not _is_of(key, keys)), None)
                self.first[key] = (settings.name, value) if lacks is None else (lacks, None)
            name, other = self.first[key]
            if not same(key, other, value):
                found[key] = (name, (other, value))
        self.runs.setdefault(settings.name, settings.keys)
        if not found:
            return None
        first = next(iter(found.values()))[0]
        return first, {key: change for key, (name, change) in found.items() if name == first}
