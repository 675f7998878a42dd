"""The study file: what is varied, what is fixed, how the best is chosen, what a job needs.

::

    upstreams: [fbank, hubert_base]
    tasks: [ks, sid]
    methods: [weighted_sum, {label: child, method: child, density: 0.01}]
    axes: {lr: [1e-2, 1e-3, 1e-4]}
    seeds: [0, 1, 2]
    choose: lr
    preset: superb
    set: {runner.total_steps: 10000}
    resources: {cpus: 2, gpus: 1, hours: 12}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml

from s3prl_ext.configs import expand_variables, load_yaml, parse_yaml
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.reading import parse_json
from s3prl_ext.settings import choice, count, load, name, number, raise_all, unknown_keys

# Axis -> key of the task file that it sets; another axis has its key as its name. Of ``lambda`` see AxisPoint.
KEYS = {"lr": "optimizer.lr", "density": "tuning.density", "rank": "tuning.rank"}
LAMBDA = "lambda"
FIXED_AXES = ("task", "upstream", "method")
OWN_FLAGS = (  # of s3prl-ext run, which a study gives itself
    "-m", "--mode", "-a", "--auto_resume", "-p", "--expdir", "-n", "--expname", "-e", "--past_exp", "-t", "-u", "--upstream",
    "-k", "--upstream_ckpt", "-g", "--upstream_model_config", "-d", "--downstream", "-c", "--config", "-o", "--override",
    "--seed",
)  # fmt: skip
STOCK = "stock"  # method of a run without a section ``tuning``


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
        gpus: devices; a fraction shares one (Ray only).
        memory: GiB.
        hours: time limit, for schedulers that want one.
    """

    cpus: Annotated[int, count()] = 1
    gpus: Annotated[float, number(least=0)] = 0.0
    memory: Annotated[float | None, number(above=0)] = None
    hours: Annotated[float | None, number(above=0)] = None


@dataclass(frozen=True)
class _Upstream:
    upstream: Annotated[str, name()]
    label: Annotated[str | None, name()] = None
    ckpt: Annotated[str | None, name()] = None
    config: Annotated[str | None, name()] = None


@dataclass(frozen=True)
class _Task:
    task: Annotated[str, name()]
    preset: Annotated[str | None, name()] = None
    set: Any = None


@dataclass(frozen=True)
class Study:
    """A checked study file.

    Attributes:
        axes: points by axis, in the order of the file: ``task``, ``upstream``, ``method``, then those of section ``axes``.
        seeds: the first one searches, where something is chosen.
        choose: axes along which the best point of each cell is chosen on dev.
        checkpoint: ``best`` (on dev, as the task keeps it) or ``last``: the one that is tested.
        settings: task-file keys that every run gets.
        flags: flags that every run gets.
        exclude: combinations that are left out, each by the labels of some axes.
        resources: of one job.
        retries: how often a job whose process was lost is started again.
    """

    axes: Mapping[str, tuple[AxisPoint, ...]]
    seeds: tuple[int, ...] = (0,)
    choose: tuple[str, ...] = ()
    checkpoint: str = "best"
    settings: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[Mapping[str, str], ...] = ()
    resources: Resources = Resources()
    retries: int = 2

    @cached_property
    def points(self) -> dict[str, dict[str, AxisPoint]]:
        """The points of each axis by their label."""
        return {axis: {point.label: point for point in points} for axis, points in self.axes.items()}

    def without(self, labels: Mapping[str, str]) -> bool:
        """Return whether a combination of labels is excluded."""
        return any(all(labels[axis] == label for axis, label in one.items()) for one in self.exclude)


@dataclass(frozen=True)
class _File:
    """The keys of a study file, before what they mean together."""

    upstreams: Any
    tasks: Any
    methods: Any = ("weighted_sum",)
    axes: Any = None
    seeds: Any = (0,)
    choose: Any = None
    preset: Annotated[str, name()] = "superb"
    checkpoint: Annotated[str, choice("best", "last")] = "best"
    set: Any = None
    flags: Any = None
    exclude: Any = None
    resources: Resources = Resources()
    retries: Annotated[int, count(0)] = 2


def read_study(path: Path, override: str | None = None) -> Study:
    """Read and check a study file; ``${VARIABLE}`` is replaced as in task files.

    Args:
        path: of the file.
        override: changes to it, such as ``tasks=[ks],,axes.lr=[1e-2,1e-3]``.

    Raises:
        UsageError: with everything that is wrong in it.
    """
    where = path.name
    content = load_yaml(path)
    for option in override.split(",,") if override else ():
        _change(content, option)
    file = load(_File, expand_variables(content, where), where)
    problems: list[str] = []
    axes = {
        "task": _points(file.tasks, f"{where}.tasks", lambda v, w: _task(v, w, file.preset), problems),
        "upstream": _points(file.upstreams, f"{where}.upstreams", _upstream, problems),
        "method": _points(file.methods, f"{where}.methods", _method, problems),
    }
    for axis, values in _mapping(file.axes, f"{where}.axes", problems).items():
        if axis in FIXED_AXES or axis == "seed":
            problems.append(f"{where}.axes: {axis} has a key of its own, {axis}s.")
        else:
            axes[axis] = _points(values, f"{where}.axes.{axis}", lambda v, w, axis=axis: _value(axis, v, w), problems)
    choose = file.choose if isinstance(file.choose, (list, tuple)) else [file.choose] if file.choose else []
    problems += [
        str(unknown_name("axis", str(axis), axes, where=f"{where}.choose")) for axis in choose if axis not in axes
    ]
    problems += [f"{where}.choose: a cell is a task; choose among its other axes." for axis in choose if axis == "task"]
    study = Study(
        axes=axes,
        seeds=tuple(int(point.label) for point in _points(file.seeds, f"{where}.seeds", _seed, problems)),
        choose=tuple(choose),
        checkpoint=file.checkpoint,
        settings=_settings(file.set, f"{where}.set", problems),
        flags={key: str(value) for key, value in _mapping(file.flags, f"{where}.flags", problems).items()},
        exclude=_exclude(file.exclude, f"{where}.exclude", axes, problems),
        resources=file.resources,
        retries=file.retries,
    )
    problems += [
        f"{where}.flags: {flag} is set by the study itself; remove it." for flag in study.flags if flag in OWN_FLAGS
    ]
    raise_all(problems)
    return study


def _change(content: dict[str, Any], option: str) -> None:
    """Replace one key of a study file, with ``KEY=VALUE`` as on the command line; the value is YAML."""
    key, equals, text = option.strip().partition("=")
    if not equals or not key.strip():
        raise UsageError(
            f"-o: '{option.strip()}' must be KEY=VALUE, such as tasks=[ks]; several are separated by ',,'."
        )
    *sections, last = key.strip().split(".", 1)  # of set, keys have dots of their own
    place = content
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UsageError(f"-o: '{section}' of the study is not a mapping, so {key.strip()} cannot be set.")
    try:
        place[last] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UsageError(f"-o: the value of {key.strip()} is not readable as YAML: {text.strip()}.") from error


def _points(values: Any, where: str, read: Any, problems: list[str]) -> tuple[AxisPoint, ...]:
    """Return the points of an axis; a single value is an axis of one, and labels must differ."""
    found: list[AxisPoint] = []
    for number_, value in enumerate(values if isinstance(values, (list, tuple)) else [values]):
        try:
            found.append(read(value, f"{where}[{number_}]"))
        except UsageError as error:
            problems.append(str(error))
    labels = [point.label for point in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    problems += [
        f"{where} has '{label}' twice: remove one, or label upstreams and methods (label: NAME)." for label in twice
    ]
    if not isinstance(values, (list, tuple)) or values:
        return tuple(found)
    problems.append(f"{where} is empty: name at least one.")
    return ()


def _upstream(value: Any, where: str) -> AxisPoint:
    given = load(
        _Upstream, {"upstream": value} if isinstance(value, str) else value, where, example="{upstream: hubert_base}"
    )
    flags = {"-u": given.upstream, "-k": given.ckpt, "-g": given.config}
    return AxisPoint(
        _label(given.label or given.upstream, where), flags={key: text for key, text in flags.items() if text}
    )


def _task(value: Any, where: str, preset: str) -> AxisPoint:
    from s3prl_ext.run_flags import preset_path
    from s3prl_ext.tasks import known, named

    given = load(_Task, {"task": value} if isinstance(value, str) else value, where, example="{task: ks}")
    names = [row.name for row in known()]
    if given.task not in names:
        raise unknown_name("task", given.task, names, where=where)
    file = f"{given.task}/{given.preset or preset}"
    preset_path(file)
    problems: list[str] = []
    settings = _settings(given.set, f"{where}.set", problems)
    raise_all(problems)
    return AxisPoint(given.task, settings, {"-d": named(given.task).downstream, "-c": file})


def _method(value: Any, where: str) -> AxisPoint:
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("method"), str):
        raise UsageError(
            f"{where} must be a method or a section such as {{method: child, density: 0.01}}, got {value!r}."
        )
    section = {key: entry for key, entry in value.items() if key != "label"}
    label = _label(str(value.get("label", value["method"])), where)
    if section["method"] == STOCK:
        if len(section) > 1:
            raise UsageError(f"{where}: method {STOCK} is s3prl's own training and has no options.")
        return AxisPoint(label)
    return AxisPoint(label, {"tuning": section})


def _value(axis: str, value: Any, where: str) -> AxisPoint:
    label = _label(_text(value), where)
    if axis == LAMBDA:
        return AxisPoint(label, flags={"-g": f"lambda={label}"})
    return AxisPoint(label, {KEYS.get(axis, axis): _plain(value)})


def _seed(value: Any, where: str) -> AxisPoint:
    return AxisPoint(str(count(0)(value, where)))


def _settings(value: Any, where: str, problems: list[str]) -> dict[str, Any]:
    given = _mapping(value, where, problems)
    unfit = [key for key, entry in given.items() if "=" in str(entry) or ",," in str(entry)]
    problems += [
        f"{where}.{key}: a value with '=' or ',,' cannot be passed on; put it into a task file." for key in unfit
    ]
    return {key: _plain(entry) for key, entry in given.items()}


def _mapping(value: Any, where: str, problems: list[str]) -> Mapping[str, Any]:
    if value is None or isinstance(value, Mapping):
        return value or {}
    problems.append(f"{where} must be a mapping, got {value!r}.")
    return {}


def _exclude(
    value: Any, where: str, axes: Mapping[str, tuple[AxisPoint, ...]], problems: list[str]
) -> tuple[Mapping[str, str], ...]:
    found = []
    for number_, one in enumerate(value or []):
        labels = {axis: _text(label) for axis, label in _mapping(one, f"{where}[{number_}]", problems).items()}
        problems += unknown_keys(labels, axes, f"{where}[{number_}]")
        for axis, label in labels.items():
            if axis in axes and label not in [point.label for point in axes[axis]]:
                known = [point.label for point in axes[axis]]
                problems.append(str(unknown_name(axis, label, known, where=f"{where}[{number_}]")))
        found.append(labels)
    return tuple(found)


def _label(text: str, where: str) -> str:
    """Return a label that is fit for a folder's name."""
    if not text or set(text) & set("/\\,= ") or text.startswith("."):
        raise UsageError(
            f"{where}: '{text}' cannot name a folder: give it a label of letters, digits, '.', '-' and '_'."
        )
    return text


def _text(value: Any) -> str:
    """Return a value as a label; ``1.0e-3``, ``"1e-3"`` and 0.001 are one."""
    plain = _plain(value)
    if isinstance(plain, float):
        return short if float(short := f"{plain:g}") == plain else repr(plain)
    return str(plain)


def _plain(value: Any) -> Any:
    """Return a number that YAML has read as a string, such as 1e-3, as a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


FILE = "study.json"  # in the folder of a study: what was run there


def kept_study(folder: Path) -> Study | None:
    """Return the study that a folder holds, or None where it holds none.

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
            axes=axes, seeds=tuple(content["seeds"]), choose=tuple(content["choose"]), checkpoint=content["checkpoint"],
            settings=content["settings"], flags=content["flags"], exclude=tuple(content["exclude"]),
            resources=Resources(**content["resources"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is corrupt ({error!r}): run the study again, which keeps the finished runs."
        ) from error


def content_of(study: Study) -> dict[str, Any]:
    """Return a study as it is kept in its folder and compared with the file that goes on."""
    return {
        "axes": {axis: {point.label: [dict(point.settings), dict(point.flags)] for point in points}
                 for axis, points in study.axes.items()},
        "choose": list(study.choose), "checkpoint": study.checkpoint,
        "settings": dict(study.settings), "flags": dict(study.flags),
        "seeds": list(study.seeds), "exclude": [dict(one) for one in study.exclude],
        "resources": dataclasses.asdict(study.resources),
    }  # fmt: skip
