"""A study that goes on in the folder of an earlier one: what both must share, and what stays of the earlier one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from s3prl_ext.errors import UsageError
from s3prl_ext.studies.config import FILE, Adjustment, Labels, Study, content_of, kept_study
from s3prl_ext.studies.plan import combinations, run_of
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.training.results.run_settings import Change, changes, decisive, in_words
from s3prl_ext.writing import write_json


def keep(study: Study, folder: Path) -> None:
    """Write what the study is into its folder; axes may grow, and shrink, but what a run has may not change.

    Raises:
        UsageError: the folder holds a study that chooses otherwise, or runs that have begun with other settings.
    """
    before = kept_study(folder)
    if before is not None:
        _check_plan(before, study, folder)
        study = united(before, study)
        _check_runs(before, study, folder)
    write_json(folder / FILE, content_of(study), indent=1)


def united(before: Study, now: Study) -> Study:
    """Return a study with the points that it had before too, where they make cells of their own, and all seeds.

    Points that are gone keep their entries of ``adjust``, and cells that ``exclude`` names now stay as they were. A
    seed that now chooses is not among those that are scored on test, though it may have been before.
    """
    axes, gone = dict(now.axes), dict[str, tuple[str, ...]]()
    for axis in axes.keys() - set(now.choose):
        points = tuple(point for point in before.axes[axis] if point.label not in now.points[axis])
        axes[axis] = (*axes[axis], *points)
        if points:
            gone[axis] = tuple(point.label for point in points)
    known = {*now.seeds, *now.own_search_seeds}
    seeds = (*now.seeds, *(seed for seed in before.seeds if seed not in known))
    whole = dataclasses.replace(now, axes=axes, seeds=seeds, adjust=_united_adjust(before, now, gone), only={})
    return dataclasses.replace(whole, kept=tuple(_kept(before, whole)))


def _united_adjust(before: Study, now: Study, gone: Labels) -> tuple[Adjustment, ...]:
    """Return the entries of ``adjust``: those of before for the points that are gone, those of now for the others."""
    found: list[Adjustment] = []
    for one in before.adjust:
        for axis, labels in gone.items():
            entry = _within(one, axis, labels)
            if entry.of[axis] and entry not in found:
                found.append(entry)
    for one in now.adjust:
        entry = one
        for axis in gone:
            entry = _within(entry, axis, tuple(now.points[axis]))
        found.append(entry)
    return tuple(found)


def _within(one: Adjustment, axis: str, labels: Sequence[str]) -> Adjustment:
    """Return an entry for some labels of an axis alone, as far as it is for them."""
    of = {name: tuple(some) for name, some in one.of.items()}
    of[axis] = tuple(label for label in labels if label in of.get(axis, labels))
    return dataclasses.replace(one, of=of)


def _kept(before: Study, now: Study) -> Iterator[Labels]:
    """Yield the combinations of cells that a study had before and that are excluded now."""
    present = {_cell(now, labels) for labels in combinations(now)}
    for labels in _common(before, now):
        if _cell(now, labels) not in present:
            yield {axis: (label,) for axis, label in labels.items()}


def _common(before: Study, now: Study) -> Iterator[Mapping[str, str]]:
    """Yield the combinations that a study had before, but for those of points that it has no more."""
    for labels in combinations(before):
        if all(label in now.points[axis] for axis, label in labels.items()):
            yield labels


def _cell(study: Study, labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(label for axis, label in labels.items() if axis not in study.choose)


def _check_plan(before: Study, now: Study, folder: Path) -> None:
    """Refuse a study that chooses otherwise, or names its runs otherwise."""
    old, new = content_of(before), content_of(now)
    said = [f"{key} {old[key]}" for key in ("checkpoint", "choose", "race", "scheduler") if old[key] != new[key]]
    searched = before.search_seeds
    if searched != now.search_seeds:
        said.append(f"{'seeds' if len(searched) > 1 else 'seed'} {', '.join(map(str, searched))} for the search")
    if list(before.axes) != list(now.axes):
        said.append(f"the axes {', '.join(before.axes)}")
    if said:
        raise UsageError(f"{folder} belongs to a study with {'; '.join(said)}: give another -p.")


def _check_runs(before: Study, now: Study, folder: Path) -> None:
    """Refuse a study in which runs that have begun would have other settings or flags."""
    seeds = dict.fromkeys([*before.search_seeds, *before.seeds])
    found = []
    for labels in _common(before, now):
        begun = [run for seed in seeds if (run := run_of(before, labels, seed, folder)).folder.is_dir()]
        if begun and (changed := _changes(begun[0], run_of(now, labels, begun[0].seed, folder))):
            found.append((begun[0].name, changed))
    if found:
        (name, changed), more = found[0], f", and {len(found) - 1} more have changed" if found[1:] else ""
        raise UsageError(
            f"{folder} holds runs with other settings: {name} would have {in_words(changed)}{more}; put them back, or "
            "give another -p."
        )


def _changes(before: StudyRun, now: StudyRun) -> dict[str, Change]:
    """Return the flags and settings that a run had and would have now, where they differ, by name."""
    flags = [run.given_flags() for run in (before, now)]
    found: dict[str, Change] = {
        flag: (flags[0].get(flag), flags[1].get(flag))
        for flag in dict.fromkeys([*flags[0], *flags[1]])
        if flags[0].get(flag) != flags[1].get(flag)
    }
    if before.settings() != now.settings():
        found |= changes(decisive(before.config()), decisive(now.config()))
    return found
