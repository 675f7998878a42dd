"""``sweep.json``: what has been scored so far, so that a sweep can be stopped and resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import SWEEP_FILE
from s3prl_ext.sweeps.grid import Arm, Group, arm_folder
from s3prl_ext.writing import numbers_or_none, write_json

SCHEMA = 1
NAME = SWEEP_FILE
TABLE, PLOT = "sweep.md", "sweep.png"
RECORDED_LATER = ("target's settings", "head's settings")  # not in the sweeps of 0.1.0
CONCLUSIONS = ("metric", "dev", "test", "summary")  # a finished sweep has these


class Store:
    """The results of a sweep by arm and split; each new one is written at once, to a new file that replaces the old.

    Args:
        folder: existing folder of the sweep.
        settings: everything except the arms that decides the results, as plain values.
        overwrite: start again where the folder has results already.
        origin: what results that are added are made by and on, as plain values; None to leave it out.

    Raises:
        DataError: the folder's file is unreadable.
        UsageError: it was made with different settings.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.origin = origin
        self.path = folder / NAME
        self.content: dict[str, Any] = {"schema": SCHEMA, "settings": dict(settings), "data": {}, "results": {}}
        if not self.path.is_file() or overwrite:
            return
        stored = _read(self.path)
        if "noise" in settings and all(r["arm"]["noise"] == "none" for r in stored["results"].values()):
            stored["settings"]["noise"] = settings["noise"]  # it decided none of the results
        for key in sorted({*stored["settings"], *settings}):
            was, now = stored["settings"].get(key), settings.get(key)
            if key in RECORDED_LATER and key not in stored["settings"]:
                raise UsageError(
                    f"{self.path} is of a version that did not record the {key} (preprocessing, configuration, "
                    "vocabulary), so that its scores may be of another model: choose another folder with -p, or start "
                    "again with --overwrite. Reports read it as before."
                )
            if was != _plain(now):
                raise UsageError(
                    f"{self.path} was made with another {key} ({_short(was)}, now {_short(_plain(now))}): choose "
                    "another folder with -p, or start again with --overwrite."
                )
        self.content = stored

    def get(self, arm: Arm, split: str) -> dict[str, Any] | None:
        """Return the stored result of an arm on a split, or None."""
        return self.content["results"].get(_key(arm, split))

    @property
    def folders(self) -> dict[str, str]:
        """The folders, below ``arms``, of the arms that were scored, by the arms' keys."""
        results = self.content["results"].items()
        return {key.partition(":")[0]: result["folder"] for key, result in results if "folder" in result}

    def add(self, arm: Arm, split: str, result: Mapping[str, Any]) -> None:
        """Keep the result of an arm on a split, and write the file."""
        described = {"layers": list(arm.layers), "noise": arm.noise, "draw": arm.draw, "lambda": arm.lambda_}
        made = {} if self.origin is None else {"origin": self._keep_origin(self.origin)}
        self.content["results"][_key(arm, split)] = {"arm": described, "split": split, **result, **made}
        self._reopen()
        self.write()

    def take(self, other: Store) -> None:
        """Keep results of another file of the same sweep, and write the file."""
        results = other.content["results"]
        if results.keys() - self.content["results"].keys():
            self._reopen()
        self.content["results"] |= results
        if "origins" in other.content:
            self.content["origins"] = self.content.get("origins", {}) | other.content["origins"]
        self.write()

    def _keep_origin(self, origin: Mapping[str, Any]) -> str:
        """Keep by and on what results are made; returns the name by which they refer to it."""
        name = hashlib.sha256(json.dumps(_plain(origin), sort_keys=True).encode()).hexdigest()[:12]
        self.content.setdefault("origins", {})[name] = dict(origin)
        return name

    def _reopen(self) -> None:
        """Drop what was concluded from the results so far: with more of them the sweep is not finished."""
        for key in CONCLUSIONS:
            self.content.pop(key, None)

    def check_data(self, split: str, sha256: str) -> None:
        """Keep the hash of a split's data; raise UsageError where results of other data are stored."""
        was = self.content["data"].setdefault(split, sha256)
        if was != sha256:
            raise UsageError(
                f"the data of split '{split}' differ from those that {self.path} was made with: choose another folder "
                "with -p, or start again with --overwrite."
            )

    def write(self, **more: Any) -> None:
        """Write the file, with further top-level entries."""
        self.content |= more
        write_json(self.path, self.content, indent=1)


def origins_of(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return by which commit and versions and on which machines the results of a sweep were made, each once.

    Args:
        content: of ``sweep.json``; results of earlier versions do not say it one by one: it is that of the first.
    """
    first = {key: content[key] for key in ("commit", "machine", "versions") if content.get(key) is not None}
    found: list[Mapping[str, Any]] = []
    for result in content["results"].values():
        origin = content["origins"][result["origin"]] if "origin" in result else first
        found += [origin] if origin and origin not in found else []
    return found


def groups_of_summary(content: Mapping[str, Any]) -> list[Group]:
    """Return the groups of a finished sweep.

    A file of 0.1.0 does not name their lambdas: all that were scored.

    Args:
        content: of ``sweep.json``, with a summary.
    """
    groups = []
    for row in content["summary"]:
        found = (
            [float(value) for value in row["lambdas"]]
            if "lambdas" in row
            else {
                result["arm"]["lambda"]
                for result in content["results"].values()
                if result["arm"]["layers"] == row["layers"] and result["arm"]["noise"] == row["noise"]
            }
        )
        groups.append(Group(row["group"], tuple(row["layers"]), row["noise"], tuple(sorted(found)), row["draws"]))
    return groups


def _name_folders(content: Mapping[str, Any]) -> None:
    """Name the folder of each result of an earlier version of a finished sweep, as that version read it."""
    groups = groups_of_summary(content)
    for result in content["results"].values():
        arm = result["arm"]
        scored = Arm(tuple(arm["layers"]), arm["noise"], arm["draw"], arm["lambda"])
        result.setdefault("folder", arm_folder(scored, groups))


def count_results(path: Path) -> int:
    """Return how many results the file of a sweep holds.

    Raises:
        DataError: it is unreadable.
    """
    return len(_read(path)["results"])


def _key(arm: Arm, split: str) -> str:
    return f"{arm.key}:{split}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA and all(
            isinstance(content[key], dict) for key in ("settings", "data", "results")
        ):
            if "summary" in content:
                _name_folders(content)
            return content
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{path} is not a result of a sweep: move it away, or start again with --overwrite.")


def _plain(value: Any) -> Any:
    """Return a value as JSON would give it back."""
    return json.loads(json.dumps(numbers_or_none(value)))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
