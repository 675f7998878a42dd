"""A study: what is varied, what is fixed, how the best is chosen, what a job needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json
from s3prl_ext.settings import count, number
from s3prl_ext.training.racing.early_stop import EarlyStopConfig

FIXED_AXES = ("task", "upstream", "method")
Labels = Mapping[str, tuple[str, ...]]
"""Some combinations: labels by axis; any label of an axis that it does not name."""


@dataclass(frozen=True)
class AxisPoint:
    """A place on an axis: its label in tables and folders, and what it adds to a command.

    Attributes:
        label: as the file writes it; numbers in their shortest form.
        settings: task-file keys with their values.
        flags: flags of ``s3prl-ext run`` with their values.
    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one job needs.

    Attributes:
        cpus: processor cores.
        gpus: devices; a fraction shares one (Ray only). None: one, where the engine has any.
        memory: GiB.
        hours: time limit, for schedulers that want one.
    """

    cpus: Annotated[int, count()] = 1
    gpus: Annotated[float | None, number(least=0)] = None
    memory: Annotated[float | None, number(above=0)] = None
    hours: Annotated[float | None, number(above=0)] = None


def covers(some: Labels, labels: Mapping[str, str]) -> bool:
    """Return whether a combination is among some."""
    return all(labels[axis] in wanted for axis, wanted in some.items())


@dataclass(frozen=True)
class Adjustment:
    """What some combinations have in addition.

    Attributes:
        of: these combinations.
        settings: task-file keys with their values.
        flags: flags of ``s3prl-ext run`` with their values.
    """

    of: Labels
    settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A checked study file.

    Attributes:
        axes: points by axis, in the order of the file: ``task``, ``upstream``, ``method``, then those of section
            ``axes``.
        seeds: of the runs that are scored on test.
        choose: axes along which the best point of each cell is chosen on dev.
        scheduler: of a race: ``halving`` waits at each rung for all runs, ``asha`` for none (see studies.asha).
        race: when the runs of a cell are compared on the way, and how many go on; None trains all of them to the end.
        checkpoint: ``best`` (on dev, as the task keeps it) or ``last``: the one that is tested.
        settings: task-file keys that every run gets.
        flags: flags that every run gets.
        exclude: combinations that are left out.
        adjust: what some combinations have in addition; of two that set the same key the later one counts.
        only: the part that is run now; the study in its folder is the whole one.
        track: tracker of all trainings, see :mod:`s3prl_ext.tracking`; it changes no result, and the folder does not
            hold it.
        resources: of one job.
        retries: how often a job whose process was lost is started again.
        share_fisher: runs of one upstream, task and seed share their Fisher scores, in ``fisher/`` of the study.
        own_search_seeds: of the runs that choose, where they are others; the mean over them counts. Else the first of
            ``seeds`` chooses.
        kept: of the study in a folder, combinations of earlier files that stay in its tables though ``exclude`` names
            them now.
    """

    axes: Mapping[str, tuple[AxisPoint, ...]]
    seeds: tuple[int, ...] = (0,)
    choose: tuple[str, ...] = ()
    race: EarlyStopConfig | None = None
    scheduler: str = "halving"
    checkpoint: str = "best"
    settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[Labels, ...] = ()
    adjust: tuple[Adjustment, ...] = ()
    only: Labels = field(default_factory=dict)
    track: str | None = None
    resources: Resources = Resources()
    retries: int = 2
    share_fisher: bool = True
    own_search_seeds: tuple[int, ...] = ()
    kept: tuple[Labels, ...] = ()

    @property
    def search_seeds(self) -> tuple[int, ...]:
        """The seeds of the runs that choose."""
        return self.own_search_seeds or self.seeds[:1]

    @property
    def further_seeds(self) -> int:
        """How many of ``seeds`` have not trained what was chosen when it is chosen."""
        return len(set(self.seeds) - set(self.search_seeds))

    @cached_property
    def points(self) -> dict[str, dict[str, AxisPoint]]:
        """The points of each axis by their label."""
        return {axis: {point.label: point for point in points} for axis, points in self.axes.items()}

    def has(self, labels: Mapping[str, str]) -> bool:
        """Return whether a combination is run, or was."""
        excluded = any(covers(one, labels) for one in self.exclude)
        return covers(self.only, labels) and (not excluded or any(covers(one, labels) for one in self.kept))

    def adjustments(self, labels: Mapping[str, str]) -> Iterator[Adjustment]:
        """Yield what a combination has in addition."""
        return (one for one in self.adjust if covers(one.of, labels))


FILE = "study.json"  # in the folder of a study: what was run there


def kept_study(folder: Path) -> Study | None:
    """Return the study that a folder holds, or None where there is none.

    Raises:
        DataError: its file is corrupt.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        axes = {
            axis: tuple(AxisPoint(label, *parts) for label, parts in points.items())
            for axis, points in content["axes"].items()
        }
        return Study(
            axes=axes, seeds=tuple(content["seeds"]),
            own_search_seeds=tuple(content.get("search_seeds", ())), choose=tuple(content["choose"]),
            race=EarlyStopConfig.read(content["race"], f"{path}: race") if content.get("race") is not None else None,
            scheduler=content.get("scheduler", "halving"), checkpoint=content["checkpoint"],
            settings=content["settings"], flags=content["flags"], exclude=tuple(content["exclude"]),
            adjust=tuple(Adjustment(*parts) for parts in content["adjust"]),
            resources=Resources(**content["resources"]), kept=tuple(content.get("kept", ())),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is corrupt ({error!r}): delete it, and run the study again, which keeps the finished runs."
        ) from error


def content_of(study: Study) -> dict[str, Any]:
    """Return a study as it is kept in its folder and compared with the file that goes on."""
    return {
        "axes": {axis: {point.label: [dict(point.settings), dict(point.flags)] for point in points}
                 for axis, points in study.axes.items()},
        "choose": list(study.choose), "race": race_content(study.race), "scheduler": study.scheduler,
        "checkpoint": study.checkpoint,
        "settings": dict(study.settings), "flags": dict(study.flags),
        "seeds": list(study.seeds), "search_seeds": list(study.own_search_seeds),
        "exclude": [_listed(one) for one in study.exclude],
        "adjust": [[_listed(one.of), dict(one.settings), dict(one.flags)] for one in study.adjust],
        "resources": dataclasses.asdict(study.resources), "kept": [_listed(one) for one in study.kept],
    }  # fmt: skip


def race_content(race: EarlyStopConfig | None) -> dict[str, Any] | None:
    """Return a section ``race`` as plain values, without what it leaves at its default."""
    if race is None:
        return None
    values = {f.name: (getattr(race, f.name), f.default) for f in dataclasses.fields(race)}
    return {name: list(value) if isinstance(value, tuple) else value for name, (value, default) in values.items()
            if value != default}  # fmt: skip


def _listed(some: Labels) -> dict[str, list[str]]:
    return {axis: list(labels) for axis, labels in some.items()}
