"""A sweep read again from ``sweep.json``: its groups and scores, for tables and pictures of several sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from s3prl_ext.configs import value_at
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.merge_facts import merge_facts
from s3prl_ext.evaluation.result_records import numbers
from s3prl_ext.evaluation.scored_runs import UNNAMED_MERGE, ScoredRun, model_name
from s3prl_ext.metrics import Metric, metric
from s3prl_ext.reading import parse_json
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group, arm_folder
from s3prl_ext.sweeps.merged import otherwise, record_of, sweep_sha256, unmerged_sha256
from s3prl_ext.sweeps.store import SCHEMA, groups_of_summary, origins_of
from s3prl_ext.tasks import Task, task_of
from s3prl_ext.tasks.record import EVALUATE_RATIO


@dataclass(frozen=True)
class StoredSweep:
    """A finished sweep.

    Attributes:
        path: its ``sweep.json``.
        content: what the file holds.
        groups: what was compared, one for each row of the summary.
    """

    path: Path
    content: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def metric_name(self) -> str:
        """The metric that chose lambda."""
        return self.content["metric"]["name"]

    @property
    def metric(self) -> Metric:
        """Direction and unit of that metric."""
        return metric(self.metric_name)

    @property
    def title(self) -> str:
        """What is merged into what, on which task, and in what it differs from MAM's merge."""
        source = self.content["source"]
        name = Path(source["name"]).name if source else "noise"
        return titled(name, Path(self.content["target"]["name"]).name, self.content["settings"]["task"], self.content)

    @property
    def otherwise(self) -> list[str]:
        """In what its merges differ from MAM's, in words such as ``slerp``; empty where they do not."""
        return otherwise(self.content)

    @property
    def origins(self) -> list[Mapping[str, Any]]:
        """By which commit and versions, and on which machines, its results were made, each once."""
        return origins_of(self.content)

    def items(self, split: str) -> int | None:
        """Return how many utterances of a split were scored, where the file says so."""
        return self.content["results"][f"{BASELINE.key}:{split}"].get("items")

    def lookup(self, arm: Arm, split: str) -> tuple[float, tuple[float, float] | None] | None:
        """Return value and interval of an arm on a split, or None where it was not scored."""
        result = self.content["results"].get(f"{(arm if arm.lambda_ else BASELINE).key}:{split}")
        if result is None:
            return None
        bounds = result["intervals"].get(self.metric_name)
        return numbers(result["metrics"])[self.metric_name], (bounds[0], bounds[1]) if bounds else None

    def complete_on(self, split: str) -> bool:
        """Return whether every arm was scored on a split."""
        arms = [BASELINE, *(arm for group in self.groups for value in group.lambdas for arm in group.arms(value))]
        return all(self.lookup(arm, split) is not None for arm in arms)

    def runs(self) -> list[ScoredRun]:
        """Return every arm of every group on every split where it was scored, and the unmerged target."""
        found = [self._run(BASELINE, "none", True, split) for split in self.content["data"]]
        for group, row in zip(self.groups, self.content["summary"], strict=True):
            for value in group.lambdas:
                is_chosen = row["lambda"] == value
                arms = group.arms(value)
                found += [
                    self._run(arm, group.name, is_chosen, split) for arm in arms for split in self.content["data"]
                ]
        return [run for run in found if run is not None]

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {"unmerged": unmerged_sha256(self.content), "sweep": sweep_sha256(self.content)}

    def _read_parts(self, task: Task) -> dict[str, Any]:
        """Return the settings by which a part of a split may be scored, by the names of facts of results."""
        settings, keys = self.content["settings"], task.part or ()
        found = {f"downstream_expert.{key}": value_at(settings["task file"], key) for key in keys}
        share = settings.get("share of each split")  # sweeps that say nothing, and those with all of it, are alike
        return found | {EVALUATE_RATIO: float(share) if share is not None and float(share) < 1 else None}

    def _run(self, arm: Arm, layers: str, chosen: bool, split: str) -> ScoredRun | None:
        result = self.content["results"].get(f"{arm.key}:{split}")
        if result is None:
            return None
        settings = self.content["settings"]
        facts = {
            "upstream": model_name(self.content.get("upstream", UNNAMED_MERGE), self.content["target"]["name"]),
            "method": "frozen",
            **merge_facts(record_of(self.content, arm), layers),
            "chosen": chosen,
            "unmerged": self._hashes["unmerged"],
        }
        task = task_of(settings["task"], settings["task file"])
        facts |= {key: value for key, value in self._read_parts(task).items() if value is not None}
        if arm.lambda_:
            facts["sweep"] = self._hashes["sweep"]
        if self.content.get("upstream_ckpt"):
            facts["upstream_ckpt"] = self.content["upstream_ckpt"]
        # results of earlier versions do not name their folder
        folder = self.path.parent / "arms" / (result.get("folder") or arm_folder(arm, self.groups))
        seed = str(settings["seed"]) + (f", draw {arm.draw}" if arm.noise != "none" else "")
        return ScoredRun(
            task.name, split, numbers(result["metrics"]), result["intervals"], seed,
            facts, "sweep", 0, self.path, folder if folder.is_dir() else None, judged_by=task.metrics,
        )  # fmt: skip


def titled(source: str, target: str, task: str, content: Mapping[str, Any]) -> str:
    """Return the title of a sweep: ``bert into hubert: ljspeech (slerp)``.

    Args:
        source, target, task: what they are called.
        content: of ``sweep.json``, with target, source and settings.
    """
    words = otherwise(content)
    return f"{source} into {target}: {task}" + (f" ({', '.join(words)})" if words else "")


def read_sweep(path: Path) -> StoredSweep:
    """Read a ``sweep.json``.

    Raises:
        DataError: it is missing, corrupt, of another schema, or of an unfinished sweep.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise DataError(
                f"{path} has schema {content['schema']!r}, but this version reads {SCHEMA}: run the sweep again."
            )
        if "summary" not in content:
            raise DataError(
                f"{path} is unfinished ({len(content['results'])} scores): give the command of the sweep again."
            )
        sweep = StoredSweep(Path(path), content, tuple(groups_of_summary(content)))
        runs = sweep.runs()  # reads all that tables and pictures need
        numbers = [*(value for run in runs for value in run.values.values()),
                   *(end for run in runs for ends in run.intervals.values() for end in ends)]  # fmt: skip
        hashes, versions = content["data"].values(), content.get("versions", {})
        if not all(isinstance(origin, Mapping) for origin in sweep.origins):
            raise TypeError("what its results were made by")
        if not all(isinstance(number, (int, float)) for number in numbers) or not all(run.values for run in runs):
            raise TypeError("a score that is not a number")
        source = content["source"] or {"name": ""}
        names = (
            content["target"]["name"],
            source["name"],
            content.get("upstream", ""),
            content.get("upstream_ckpt") or "",
        )
        if not all(isinstance(name, str) for name in names):
            raise TypeError("names of models")
        if not all(isinstance(sha256, str) for sha256 in hashes) or not isinstance(versions, Mapping):
            raise TypeError("hashes of data or versions")
        return sweep
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the sweep.json of a sweep.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a result of a sweep ({error!r}): run s3prl-ext sweep again.") from error
