"""What a sweep compares: a grid of lambda, layer sets and noise kinds, or arms with names of their own.

A *group* is a set of layers with one kind of source matrices; lambda is chosen within it. An *arm* is one setting of
the weights: a layer set, a noise kind with the number of its draw, and lambda.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.merging.names import SIMILARITY_NAMES
from s3prl_ext.papers.figures import mam_figure
from s3prl_ext.settings import Problems, as_number, count, unknown_keys
from s3prl_ext.sweeps.presets import NOISES, PRESETS

NOISE_DRAWS = 5  # of each noise control: the least that MAM's averages suggest
KEYS = ("lambda", "layers", "noise", "draws", "by", "top_k", "arms")
ARM_KEYS = ("lambda", "layers", "noise", "draws")

# Axes of a grid as lists: names of layers such as "all", "12-19" or ["0", "3"].
ArmGrid = TypedDict(
    "ArmGrid",
    {
        "lambda": list[float],
        "layers": list[str | list[str]],
        "noise": list[str],
        "draws": int,
        "by": list[str],
        "top_k": list[int],
    },
)


class Grid(ArmGrid):
    """A checked grid, as ``sweep.json`` keeps it."""

    arms: dict[str, ArmGrid]


@dataclass(frozen=True)
class Arm:
    """One setting of the target's weights.

    Attributes:
        layers: target layers that are merged, sorted; empty for the unmerged target.
        noise: a name of :data:`NOISES`.
        draw: number of the noise's draw.
        lambda_: weight of the source; 0 = target.
    """

    layers: tuple[int, ...] = ()
    noise: str = "none"
    draw: int = 0
    lambda_: float = 0.0

    @property
    def key(self) -> str:
        """A hash that is the same in every run."""
        text = f"{self.layers}|{self.noise}|{self.draw}|{self.lambda_!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


BASELINE = Arm()


@dataclass(frozen=True)
class Group:
    """Arms among which lambda is chosen.

    Attributes:
        name: what to call it.
        layers: target layers.
        noise: a name of :data:`NOISES`.
        lambdas: ascending, above 0 (the unmerged target is scored once, for all groups), or below with extrapolation.
        draws: number of draws of the noise; 1 without noise.
    """

    name: str
    layers: tuple[int, ...]
    noise: str
    lambdas: tuple[float, ...]
    draws: int

    def arms(self, lambda_: float) -> list[Arm]:
        """Return the arms of one lambda: one for each draw."""
        return [Arm(self.layers, self.noise, draw, lambda_) for draw in range(self.draws)]


def arm_name(arm: Arm, groups: Sequence[Group]) -> str:
    """Return what to call an arm of a sweep, such as ``12-19 noise source draw 2 lambda 0.1``."""
    if not arm.layers:
        return "target"
    layers = next((g.name for g in groups if g.layers == arm.layers), ",".join(map(str, arm.layers)))
    noise = f" noise {arm.noise} draw {arm.draw}" if arm.noise != "none" else ""
    return f"{layers}{noise} lambda {arm.lambda_:g}"


def arm_folder(arm: Arm, groups: Sequence[Group]) -> str:
    """Return the name of an arm as that of a folder, such as ``12-19_noise_source_draw_2_lambda_0.1``."""
    return _as_folder(arm_name(arm, groups))


def arm_folders(groups: Sequence[Group], stored: Mapping[str, str]) -> dict[Arm, str]:
    """Return the folder, below ``arms``, with what the task writes for each arm of a grid, such as its transcripts.

    It is named after the arm; where another arm has that folder, the arm's key is added to the name.

    Args:
        groups: those of the grid.
        stored: folders of the arms that were scored, also of other grids, by the arms' keys; these are kept.
    """
    owners = {folder: key for key, folder in stored.items()}
    folders = {}
    for arm in arms_in_order(groups):
        name = arm_folder(arm, groups)
        if arm.key in stored:
            folders[arm] = stored[arm.key]
        else:
            folders[arm] = name if owners.setdefault(name, arm.key) == arm.key else f"{name}_{arm.key}"
    return folders


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.,+-]+", "_", name)


def read_grid(
    file: Mapping[str, Any], flags: Mapping[str, Any], extrapolate: bool, where: str, noise: str = "none"
) -> Grid:
    """Check a grid file together with the flags, which win, and return it with all keys of :data:`KEYS`.

    Args:
        file: content of a grid file or preset; empty for none.
        flags: keys of :data:`KEYS` as given on the command line.
        extrapolate: accept lambda outside [0, 1].
        where: name of the file, shown before each complaint.
        noise: what is merged where neither says it: a name of :data:`NOISES`.

    Raises:
        UsageError: with one line for every problem found.
    """
    grid = {"noise": noise, **file, **flags}
    problems = Problems(unknown_keys(grid, KEYS, where))
    arms = grid.get("arms") or {}
    if not isinstance(arms, Mapping):
        problems.append(
            f"{where}: arms must map names to settings, such as {{block: {{layers: 12-19, lambda: 0.25}}}}."
        )
        arms = {}
    if not grid.get("arms") and "lambda" not in grid:
        problems.append(
            f"{where} is an empty grid: give --lambda 0,0.05,0.1, or --grid with one of {', '.join(PRESETS)}."
        )
    checked: Grid = {**_check_axes(grid, extrapolate, where, problems), "arms": {}}
    for name, arm in arms.items():
        place = f"{where}: arms.{name}"
        if not isinstance(arm, Mapping) or "lambda" not in arm:
            problems.append(f"{place} must be a mapping with a lambda, got {arm!r}.")
            continue
        problems += unknown_keys(arm, ARM_KEYS, place)
        checked["arms"][str(name)] = _check_axes(
            {"draws": grid.get("draws", NOISE_DRAWS), "noise": noise, **arm}, extrapolate, place, problems
        )
    if bool(checked["by"]) != bool(checked["top_k"]):
        problems.append(f"{where}: by and top_k belong together: by names the metrics, top_k the numbers of layers.")
    problems.raise_lines()
    return checked


def _check_axes(grid: Mapping[str, Any], extrapolate: bool, where: str, problems: Problems) -> ArmGrid:
    """Return the axes of a grid as lists, and add what is wrong with them to `problems`."""
    by_similarity = "by" in grid or "top_k" in grid
    default = [] if by_similarity else ["all"]
    axes: ArmGrid = {
        "lambda": [],
        "layers": _layer_sets(grid.get("layers", default)),
        "noise": as_list(grid.get("noise", "none")),
        "draws": problems.attempt(count(), grid.get("draws", NOISE_DRAWS), f"{where}: draws") or NOISE_DRAWS,
        "by": as_list(grid.get("by", [])),
        "top_k": [
            found
            for value in as_list(grid.get("top_k", []))
            if (found := problems.attempt(count(), value, f"{where}: top_k")) is not None
        ],
    }
    for value in as_list(grid.get("lambda", [])):
        number = problems.attempt(as_number, value, f"{where}: lambda")
        if number is not None and not extrapolate and not 0.0 <= number <= 1.0:
            problems.append(
                f"{where}: lambda must be between 0 (target) and 1 (source), got {number:g}: set "
                "allow_extrapolation: true in the configuration of the merge to go beyond."
            )
        elif number is not None:
            axes["lambda"].append(number)
    if "lambda" in grid and not as_list(grid["lambda"]):
        problems.append(f"{where} is an empty grid: lambda names no value.")
    for layers in axes["layers"]:
        if problems.attempt(parse_layers, layers, None, f"{where}: layers") == () and layers != "all":
            problems.append(f"{where}: layers {layers!r} names no layer: the unmerged target is scored anyway.")
    problems += [str(unknown_name("noise", name, NOISES, where)) for name in axes["noise"] if name not in NOISES]
    problems += [
        str(unknown_name("metric (by)", name, SIMILARITY_NAMES, where))
        for name in axes["by"]
        if name not in SIMILARITY_NAMES
    ]
    return axes


def _layer_sets(value: Any) -> list[Any]:
    """Return the sets of layers of a grid file, where a text is one set as it is in a merge file: ``0-3,8``."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, a text at its commas, and anything else as the only item."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def groups_of(
    grid: Grid,
    layers_of: Callable[[str | list[str]], tuple[int, ...]],
    similar: Callable[[str, int], Sequence[int]],
) -> list[Group]:
    """Return the groups of a checked grid, each once.

    Args:
        grid: as :func:`read_grid` returns it.
        layers_of: returns the layers that a text such as ``12-19`` names.
        similar: returns the k layers that are most similar by a metric.

    Raises:
        UsageError: a layer is out of range, only lambda 0 is left to score, or two groups have one name.
    """
    sets = {_label(layers): layers_of(layers) for layers in grid["layers"]} if grid["lambda"] else {}
    for metric in grid["by"]:
        sets |= {f"{metric} top-{k}": tuple(similar(metric, k)) for k in grid["top_k"]}
    found = [
        _group(label, layers, noise, grid["lambda"], grid["draws"])
        for label, layers in sets.items()
        for noise in grid["noise"]
    ]
    for name, arm in grid["arms"].items():
        parts = [(noise, layers) for noise in arm["noise"] for layers in arm["layers"]]
        for noise, layers in parts:
            label = name if len(parts) == 1 else f"{name} {_label(layers)}"
            found.append(_group(label, layers_of(layers), noise, arm["lambda"], arm["draws"]))
    if not any(group.lambdas for group in found):
        raise UsageError("the only lambda of the grid is 0, which is the unmerged target: add values such as 0.05,0.1.")
    groups = list(dict.fromkeys(group for group in found if group.lambdas))
    _refuse_equal_names(groups)
    return groups


def _refuse_equal_names(groups: Sequence[Group]) -> None:
    """Refuse groups that tables, or the folders of their arms, would not tell apart."""
    named: dict[tuple[str, str], Group] = {}
    for group in groups:
        other = named.setdefault((_as_folder(group.name), group.noise), group)
        if other is not group:
            names = " and ".join(dict.fromkeys(f"'{one.name}'" for one in (other, group)))
            raise UsageError(
                f"two parts of the grid with noise {group.noise} have one name, {names}: give an arm a name that no "
                "other arm and no set of layers has, and that differs in more than blanks and punctuation."
            )


def _label(layers: str | list[str]) -> str:
    return ",".join(map(str, layers)) if isinstance(layers, (list, tuple)) else str(layers)


def _group(label: str, layers: tuple[int, ...], noise: str, lambdas: Sequence[float], draws: int) -> Group:
    chosen = tuple(sorted({value for value in lambdas if value != 0.0}))
    return Group(label, layers, noise, chosen, 1 if noise == "none" else draws)


def printed_by(paper: str | None, groups: Sequence[Group]) -> list[tuple[Group, float]]:
    """Return the groups and lambdas for which the MAM paper prints a figure of a merge on this corpus.

    Without noise.
    """
    if paper is None:
        return []
    pairs = [(group, lambda_) for group in groups if group.noise == "none" for lambda_ in group.lambdas]
    return [(group, lambda_) for group, lambda_ in pairs if mam_figure(paper, group.name, group.noise, lambda_)]


def arms_in_order(groups: Sequence[Group]) -> list[Arm]:
    """Return all arms, each once: the unmerged target, then by noise, draw, layers and lambda.

    In this order the matrices of a draw are made once.
    """
    arms = {arm for group in groups for lambda_ in group.lambdas for arm in group.arms(lambda_)}
    return [BASELINE, *sorted(arms, key=lambda arm: (NOISES.index(arm.noise), arm.draw, arm.layers, arm.lambda_))]
