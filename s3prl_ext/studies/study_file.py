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
    adjust: [{task: asr, method: child, set: {tuning.lr: 1e-4}}]
    resources: {cpus: 2, gpus: 1, hours: 12}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from s3prl_ext.configs import expand_variables, load_yaml, value_at
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.overrides import parse_value
from s3prl_ext.settings import choice, count, load, name, raise_all, switch, unknown_keys
from s3prl_ext.studies.config import FIXED_AXES, Adjustment, AxisPoint, Labels, Resources, Study
from s3prl_ext.training.racing.early_stop import EarlyStopConfig

# Axis -> key of the task file that it sets; another axis has its key as its name. Of ``lambda`` see AxisPoint.
KEYS = {"lr": "optimizer.lr", "density": "tuning.density", "rank": "tuning.rank"}
LAMBDA = "lambda"
OWN_FLAGS = (  # of s3prl-ext run, which a study gives itself
    "-m", "--mode", "-a", "--auto_resume", "-p", "--expdir", "-n", "--expname", "-e", "--past_exp", "-t", "-u",
    "--upstream",
    "-k", "--upstream_ckpt", "-g", "--upstream_model_config", "-d", "--downstream", "-c", "--config", "-o",
    "--override",
    "--seed",
)  # fmt: skip
SCHEDULERS = ("halving", "asha")  # of a race
STOCK = "stock"  # method of a run without a section ``tuning``


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
class _File:
    """The keys of a study file, before what they mean together."""

    upstreams: Any
    tasks: Any
    methods: Any = ("weighted_sum",)
    axes: Any = None
    seeds: Any = (0,)
    search_seeds: Any = ()
    choose: Any = None
    race: Any = None
    preset: Annotated[str, name()] = "superb"
    checkpoint: Annotated[str, choice("best", "last")] = "best"
    set: Any = None
    flags: Any = None
    exclude: Any = None
    adjust: Any = None
    resources: Resources = field(default_factory=Resources)
    retries: Annotated[int, count(0)] = 2
    share_fisher: Annotated[bool, switch()] = True


def read_study(path: Path, override: str | None = None, only: Sequence[str] = ()) -> Study:
    """Read and check a study file; ``${VARIABLE}`` is replaced as in task files.

    Args:
        path: of the file.
        override: changes to it, such as ``tasks=[ks],,axes.lr=[1e-2,1e-3]``; what they ``set`` holds for all runs.
        only: the part to run, such as ``task=ks,sid``; an entry for each axis.

    Raises:
        UsageError: with everything that is wrong in it.
    """
    where = path.name
    content = load_yaml(path)
    set_here = [key for option in override.split(",,") if (key := _change(content, option))] if override else []
    file = load(_File, expand_variables(content, where), where)
    problems: list[str] = []
    axes = _axes(file, where, problems)
    choose = _several(file.choose) if file.choose else []
    problems += [
        str(unknown_name("axis", str(axis), axes, where=f"{where}.choose")) for axis in choose if axis not in axes
    ]
    problems += [f"{where}.choose: a cell is a task; choose among its other axes." for axis in choose if axis == "task"]
    settings = _settings(file.set, f"{where}.set", problems)
    problems += _without_effect({key: settings[key] for key in set_here if key in settings}, axes)
    seeds = _seeds(file.seeds, f"{where}.seeds", problems)
    race, scheduler = _race(file.race, f"{where}.race", bool(choose), problems)
    study = Study(
        axes=axes,
        seeds=seeds,
        own_search_seeds=_search_seeds(file, seeds, where, problems),
        choose=tuple(choose),
        race=race,
        scheduler=scheduler,
        checkpoint=file.checkpoint,
        settings=settings,
        flags=_flags(file.flags, f"{where}.flags", problems),
        exclude=tuple(
            _some(one, f"{where}.exclude[{place}]", axes, problems) for place, one in enumerate(file.exclude or [])
        ),
        adjust=(
            *(_adjust(one, f"{where}.adjust[{place}]", axes, problems) for place, one in enumerate(file.adjust or [])),
            *([Adjustment({}, {key: settings[key] for key in set_here if key in settings})] if set_here else []),
        ),
        only=_only(only, axes, choose, problems),
        resources=file.resources,
        retries=file.retries,
        share_fisher=file.share_fisher,
    )
    raise_all(problems)
    return study


def _axes(file: _File, where: str, problems: list[str]) -> dict[str, tuple[AxisPoint, ...]]:
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
    return axes


def _several(value: Any) -> list[Any]:
    """Return a list; a single value is a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _change(content: dict[str, Any], option: str) -> str | None:
    """Replace one key of a study file, with ``KEY=VALUE`` as on the command line, or add to a list with ``KEY+=VALUE``.

    Returns:
        the task-file key, where it is one of ``set``.
    """
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
    value = parse_value(text, key.strip()) if text.strip() else None
    if last.endswith("+"):
        last = last.removesuffix("+")
        value = [*_several(place.get(last) or []), *_several(value)]
    place[last] = value
    return last if sections == ["set"] else None


def _without_effect(set_here: Mapping[str, Any], axes: Mapping[str, Sequence[AxisPoint]]) -> Iterator[str]:
    """Yield a sentence for each key of ``-o set`` that an axis sets in every run."""
    for axis in (axis for axis in axes if axis not in FIXED_AXES):
        varied = KEYS.get(axis, axis)
        for key, value in set_here.items():
            inside = value_at(value, varied.removeprefix(f"{key}.")) if varied.startswith(f"{key}.") else value
            related = key == varied or key.startswith(f"{varied}.") or varied.startswith(f"{key}.")
            if related and inside is not None:
                yield f"-o set.{key}: axis {axis} sets {varied} in every run; change axes.{axis}, or remove it there."


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


def _race(value: Any, where: str, chooses: bool, problems: list[str]) -> tuple[EarlyStopConfig | None, str]:
    """Return when the runs of a cell are compared on the way, and the scheduler."""
    if value is None:
        return None, SCHEDULERS[0]
    given = dict(value) if isinstance(value, Mapping) else value
    scheduler = given.pop("scheduler", SCHEDULERS[0]) if isinstance(given, dict) else SCHEDULERS[0]
    try:
        scheduler = choice(*SCHEDULERS)(scheduler, f"{where}.scheduler")
        race = EarlyStopConfig.read(given, where)
    except UsageError as error:
        problems.append(str(error))
        return None, SCHEDULERS[0]
    if scheduler == "asha" and not race.rungs:
        problems.append(f"{where}.scheduler asha compares at rungs: add {where}.rungs, such as [1000, 3000].")
    problems += [
        f"{where}.{key}: a study compares its runs on dev, by the metric of the task; remove it."
        for key in ("metric", "split")
        if getattr(race, key) is not None
    ]
    if not chooses:
        problems.append(f"{where}: say what races, such as choose: lr.")
    return race, scheduler


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
    if not named(given.task).trains:
        raise UsageError(
            f"{where}: {given.task} trains nothing: remove it, and score it with s3prl-ext run -m evaluate."
        )
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
    section = {key: entry for key, entry in value.items() if key not in ("label", "set")}
    label = _label(str(value.get("label", value["method"])), where)
    problems: list[str] = []
    settings = _settings(value.get("set"), f"{where}.set", problems)
    raise_all(problems)
    if section["method"] == STOCK:
        if len(section) > 1:
            raise UsageError(f"{where}: method {STOCK} is s3prl's own training and has no options.")
        return AxisPoint(label, settings)
    return AxisPoint(label, {"tuning": section, **settings})


def _value(axis: str, value: Any, where: str) -> AxisPoint:
    label = _label(_text(value), where)
    if axis == LAMBDA and isinstance(value, (list, tuple)):
        raise UsageError(f"{where} is a list: an axis {LAMBDA} has one number at a time; give others as upstreams.")
    if axis == LAMBDA:
        return AxisPoint(label, flags={"-g": f"lambda={label}"})
    return AxisPoint(label, {KEYS.get(axis, axis): _plain(value)})


def _seeds(values: Any, where: str, problems: list[str]) -> tuple[int, ...]:
    points = _points(values, where, lambda value, place: AxisPoint(str(count(0)(value, place))), problems)
    return tuple(int(point.label) for point in points)


def _search_seeds(file: _File, seeds: Sequence[int], where: str, problems: list[str]) -> tuple[int, ...]:
    """Return the seeds of their own that choose, if there are any."""
    if not _several(file.search_seeds):
        return ()
    own = _seeds(file.search_seeds, f"{where}.search_seeds", problems)
    if not file.choose:
        problems.append(f"{where}.search_seeds: nothing is chosen; say what, such as choose: lr, or remove them.")
    if twice := sorted(set(own) & set(seeds)):
        problems.append(
            f"{where}.search_seeds: seed {twice[0]} is one of seeds too, and its test score would be that of a run "
            "which chose; name other ones."
        )
    if file.race is not None and len(own) > 1:
        problems.append(f"{where}.search_seeds: the runs that race have one seed; name one.")
    return own


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


def _flags(value: Any, where: str, problems: list[str]) -> dict[str, str]:
    flags = {str(key): str(entry) for key, entry in _mapping(value, where, problems).items()}
    problems += [f"{where}: {flag} is set by the study itself; remove it." for flag in flags if flag in OWN_FLAGS]
    return flags


def _some(value: Any, where: str, axes: Mapping[str, Sequence[AxisPoint]], problems: list[str]) -> Labels:
    """Return labels by axis, each a label or a list."""
    given = _mapping(value, where, problems)
    problems += unknown_keys(given, axes, where)
    some = {str(axis): tuple(map(_text, _several(labels))) for axis, labels in given.items()}
    for axis, labels in some.items():
        known = [point.label for point in axes.get(axis, ())]
        problems += [
            str(unknown_name(axis, label, known, where=where)) for label in labels if known and label not in known
        ]
    return some


def _adjust(value: Any, where: str, axes: Mapping[str, Sequence[AxisPoint]], problems: list[str]) -> Adjustment:
    given = _mapping(value, where, problems)
    rest = {key: entry for key, entry in given.items() if key not in ("set", "flags")}
    settings = _settings(given.get("set"), f"{where}.set", problems)
    return Adjustment(
        _some(rest, where, axes, problems), settings, _flags(given.get("flags"), f"{where}.flags", problems)
    )


def _only(
    given: Sequence[str], axes: Mapping[str, Sequence[AxisPoint]], choose: Iterable[str], problems: list[str]
) -> Labels:
    some: dict[str, list[str]] = {}
    for text in given:
        axis, equals, labels = text.partition("=")
        if not equals or not labels:
            problems.append(f"--only must be AXIS=LABEL, such as task=ks,sid, got '{text}'.")
        elif axis in choose:
            problems.append(f"--only: among {axis} one is chosen, which takes all of them; name other axes.")
        else:
            some.setdefault(axis, []).extend(labels.split(","))
    return _some(some, "--only", axes, problems)


def _label(text: str, where: str) -> str:
    """Return a label that is fit for a folder's name."""
    if not text or set(text) & set("/\\,= []*?'\"") or text.startswith("."):
        raise UsageError(
            f"{where}: '{text}' cannot name a folder: give it a label of letters, digits, '.', '-' and '_'."
        )
    return text


def _text(value: Any) -> str:
    """Return a value as a label; ``1.0e-3``, ``"1e-3"`` and 0.001 are one, and a list is ``0-4-8``."""
    if isinstance(value, (list, tuple)) and not any(isinstance(one, (list, tuple, Mapping)) for one in value):
        return "-".join(map(_text, value)) or "none"
    plain = _plain(value)
    if isinstance(plain, float):
        return short if float(short := f"{plain:g}") == plain else repr(plain)
    return str(plain)


def _plain(value: Any) -> Any:
    """Return a number that YAML has read as a string, such as 1e-3, as a number."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value
