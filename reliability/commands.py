"""The commands that are disturbed: what writes into a folder, and how two such folders are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.shared import STEPS, Place, run_differences

RACE = "config.early_stop={'ratio':0.34},," + STEPS
TRAININGS = {  # name -> -o
    "frozen": "config.tuning={'method':'weighted_sum'},," + STEPS,
    "child": "config.tuning={'method':'child','density':0.05,'fisher':{'max_batches':6}},," + STEPS,
    "race": "config.tuning={'method':'child','density':[0.05,0.01],'fisher':{'max_batches':6}},," + RACE,
    "methods": "config.tuning={'method':['lora','bitfit'],'rank':2},," + RACE,
    "learnable": "config.tuning={'method':'full'},," + STEPS,
}


@dataclass(frozen=True)
class Kind:
    """A kind of command.

    Attributes:
        flags: of the command that writes into a folder.
        again: flags that are added where it goes on after it was killed.
        differences: between what it wrote and what an undisturbed one wrote.
    """

    flags: Callable[[Place, Path], list[Any]]
    differences: Callable[[Path, Path], list[str]]
    again: tuple[str, ...] = ()


def whole(place: Place, name: str, before: Callable[[], None] | None = None) -> tuple[Path, float]:
    """Run a command undisturbed, unless that is done; return its folder, and the seconds that it took now."""
    folder = place.folder / "whole" / name
    if folder.exists():
        return folder, 0.0
    folder.parent.mkdir(exist_ok=True)
    flags = KINDS[name].flags(place, folder)  # this may run others
    return folder, place.succeed(flags, f"whole-{name}", before)


def _training(name: str) -> Callable[[Place, Path], list[Any]]:
    def flags(place: Place, folder: Path) -> list[Any]:
        found = place.train(folder, TRAININGS[name])
        if name == "learnable":
            at = found.index("-u")
            found[at : at + 4] = ["-u", "merged_attention", "-g", f"{place.merge},,learnable=true"]
        return found

    return flags


def _delta(place: Place) -> Path:
    return whole(place, "child")[0] / "delta.safetensors"


def _sweep(place: Place, folder: Path) -> list[Any]:
    options = "config.downstream_expert.head.init='target',,config.runner.evaluate_ratio=0.2"
    upstream = ["-u", "merged_attention", "-g", place.merge, "-d", "ljspeech", "-c", "ljspeech/mini", "-o", options]
    return ["sweep", *upstream, "-p", folder, "--device", "cpu", "--lambda", "0,0.1,0.5", "--metric", "cer"]


def _evaluate(place: Place, folder: Path) -> list[Any]:
    best = whole(place, "child")[0] / "dev-best.ckpt"
    return ["run", "-m", "evaluate", "-e", best, "-o", f"args.expdir='{folder}',,config.runner.evaluate_ratio=0.2"]


def tree_differences(folder: Path, whole: Path) -> list[str]:
    """Compare every byte of two folders, except where they name themselves."""

    def read(base: Path) -> dict[str, bytes]:
        files = [path for path in base.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(p.relative_to(base)): p.read_bytes().replace(str(base).encode(), b"HERE") for p in files}

    a, b = read(folder), read(whole)
    return [f"{name} differs" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]


def _json_differences(file: str, keys: tuple[str, ...]) -> Callable[[Path, Path], list[str]]:
    def read(path: Path) -> dict[str, Any]:
        content = json.loads((path / file).read_text())
        for arm in content.get("results", {}).values():
            arm.pop("seconds", None)
        return content

    def differences(folder: Path, whole: Path) -> list[str]:
        a, b = read(folder), read(whole)
        return [f"{file}: {key} differs" for key in keys if a.get(key) != b.get(key)]

    return differences


KINDS = {
    **{name: Kind(_training(name), run_differences, ("-a",)) for name in TRAININGS},
    "evaluate": Kind(_evaluate, _json_differences("result-test.json", ("metrics", "step"))),
    "sweep": Kind(_sweep, _json_differences("sweep.json", ("settings", "data", "results", "summary", "metric"))),
    "export": Kind(lambda place, out: ["export", "--delta", _delta(place), "--out", out], tree_differences),
    "apply": Kind(
        lambda place, out: ["apply", "--delta", _delta(place), "--model", place.hubert, "--out", out], tree_differences
    ),
    "merge": Kind(
        lambda place, out: ["merge", "-u", "merged_attention", "-g", place.merge, "--out", out], tree_differences
    ),
}
