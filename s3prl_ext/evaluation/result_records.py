"""Result files as :mod:`s3prl_ext.training.results.result_file` writes them.

Their schema, its check, and how they are read.

The present schema has every key of :data:`KEYS` and :data:`OUTCOME`. Older ones lack those that came later: they are
read as None.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3prl_ext.configs import value_at
from s3prl_ext.errors import DataError
from s3prl_ext.metrics import factor
from s3prl_ext.reading import parse_json

logger = logging.getLogger(__name__)

SCHEMA = 3
NUMBER = (int, float)
NONE = type(None)

# key -> (schema that brought it, types); a failed run has an error, no step and no metrics
KEYS: dict[str, tuple[int, tuple[type, ...]]] = {
    "schema": (1, (int,)),
    "mode": (1, (str,)),
    "upstream": (1, (str,)),
    "downstream": (1, (str,)),
    "seed": (1, (int,)),
    "step": (1, (int, NONE)),
    "seconds": (1, NUMBER),
    "metrics": (1, (dict,)),
    "trainable": (1, (dict,)),
    "args": (1, (dict,)),
    "config": (1, (dict,)),
    "versions": (1, (dict,)),
    "date": (2, (str,)),
    "data": (2, (dict, NONE)),
    "machine": (2, (dict,)),
    "peak_memory": (2, (dict,)),
    "commit": (2, (str, NONE)),
    "error": (2, (str, NONE)),
}
# Of a run that ended well; not in the record of a failure.
OUTCOME: dict[str, tuple[int, tuple[type, ...]]] = {
    "merge": (1, (dict, NONE)),
    "seconds_per_step": (2, (*NUMBER, NONE)),
    "intervals": (2, (dict,)),
    "items": (3, (dict,)),
    "splits_sha256": (2, (str, NONE)),
}
SOURCE = {"name": (str, NONE), "attention_sha256": (str, NONE), "lambda": (dict,), "noise": (dict, NONE),
          "layer_selection": (dict, NONE), "layer_map": (list, NONE), "base": (dict, NONE), "align": (dict, NONE),
          "basis": (dict, NONE), "projection": (dict, NONE), "moments": (dict, NONE)}  # fmt: skip
NO_METRICS = ("step", "split", "items", "intervals", "density")  # of a row of the history
ROW = {"value": (*NUMBER, NONE), "unit": (str, NONE), "higher_is_better": (bool, NONE)}


def numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return metrics by name with NaN for those that a file holds as null: their loss was not a number."""
    return {name: float("nan") if value is None else value for name, value in metrics.items()}


@dataclass(frozen=True)
class ResultRecord:
    """One result file.

    Attributes:
        path: the file.
        content: as written, with None for keys that an older schema lacks.
    """

    path: Path
    content: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.content.get(key)

    def at(self, dotted: str) -> Any:
        """Return the value at a dotted key such as ``config.tuning.density``; None where there is none."""
        return value_at(self.content, dotted)

    def score(self, split: str, name: str) -> float | None:
        """Return a metric on a split as it is shown: ratios in per cent; None where there is no number."""
        value = self["metrics"].get(split, {}).get(name, {}).get("value")
        return None if value is None else factor(name) * value

    def interval(self, split: str, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of :meth:`score`; None where the task gives none."""
        ends = self["intervals"].get(split, {}).get(name)
        return None if ends is None else (factor(name) * ends[0], factor(name) * ends[1])

    def curve(self, split: str, name: str) -> dict[int, float]:
        """Return the scores of the evaluations during training, by step."""
        rows = [row for row in self["history"] or () if row["split"] == split and row.get(name) is not None]
        return {row["step"]: factor(name) * row[name] for row in rows}


def problems(content: Any) -> list[str]:
    """Return what is wrong with the content of a result file, one clause each; empty where nothing is."""
    if not isinstance(content, Mapping):
        return [f"holds a {type(content).__name__} in place of a mapping"]
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        return [f"has schema {schema!r}"] if "schema" in content else ["has no 'schema'"]
    if schema > SCHEMA:
        return [f"has schema {schema}, but this version reads up to {SCHEMA}: update s3prl_ext"]
    expected = KEYS | (OUTCOME if content.get("error") is None else {})
    found = []
    for key, (since, types) in expected.items():
        if key not in content:
            found += [f"lacks '{key}'"] if since <= schema else []
        elif not isinstance(content[key], types) or (isinstance(content[key], bool) and bool not in types):
            found.append(f"has {content[key]!r:.40} as '{key}'")
    found += [] if found else _metric_problems(content) + _interval_problems(content)
    return found or _merge_problems(content.get("merge")) + _tasks_problems(content.get("merged_tasks"))


def _metric_problems(content: Mapping[str, Any]) -> list[str]:
    found = []
    for split, rows in content["metrics"].items():
        if not isinstance(rows, Mapping):
            found.append(f"has {rows!r:.40} as metrics of '{split}'")
            continue
        for name, row in rows.items():
            fits = isinstance(row, Mapping) and "value" in row
            fits = fits and all(isinstance(row.get(key), types) for key, types in ROW.items())
            if not fits or isinstance(row["value"], bool):
                found.append(f"has {row!r:.60} as '{name}' of '{split}'")
    return found


def _interval_problems(content: Mapping[str, Any]) -> list[str]:
    found = []
    for split, rows in (content.get("intervals") or {}).items():
        if not isinstance(rows, Mapping):
            found.append(f"has {rows!r:.40} as intervals of '{split}'")
            continue
        for name, ends in rows.items():
            numbers = isinstance(ends, Sequence) and len(ends) == 2 and all(isinstance(end, NUMBER) for end in ends)
            if not numbers or ends[0] > ends[1]:
                found.append(f"has {ends!r:.40} as interval of '{name}' of '{split}'")
    for split, count in (content.get("items") or {}).items():
        if not isinstance(count, (int, NONE)) or isinstance(count, bool) or (count is not None and count < 1):
            found.append(f"has {count!r:.40} as items of '{split}'")
    return found


def _tasks_problems(merged: Any) -> list[str]:
    """Return what is wrong with the record of merged tasks, as far as tables read it."""
    if merged is None:
        return []
    tasks = merged.get("merged") if isinstance(merged, Mapping) else None
    method = merged.get("method") if isinstance(merged, Mapping) else None
    fits = isinstance(method, Mapping) and isinstance(method.get("name"), str) and isinstance(tasks, list)
    if not fits or not tasks or not all(isinstance(t, Mapping) and isinstance(t.get("lambda"), NUMBER) for t in tasks):
        return [f"has {merged!r:.60} as merged tasks"]
    return []


def _merge_problems(merge: Mapping[str, Any] | None) -> list[str]:
    """Return what is wrong with the record of a merge, as far as tables read it."""
    if not merge:
        return []
    sources = merge.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(source, Mapping) for source in sources):
        return [f"has {sources!r:.40} as the sources of its merge"]
    found = []
    method, target = merge.get("method"), merge.get("target")
    if not isinstance(target, (Mapping, NONE)):
        found.append(f"has {target!r:.40} as the target of its merge")
    if method and not (isinstance(method, Mapping) and isinstance(method.get("name"), str)):
        found.append(f"has {method!r:.40} as the method of its merge")
    if not _is_learnable(merge.get("learnable"), len(sources)):
        found.append(f"has {merge['learnable']!r:.40} as learnable lambda of its merge")
    for source in sources:
        for key, types in SOURCE.items():
            if not isinstance(source.get(key), types):
                found.append(f"has {source.get(key)!r:.40} as '{key}' of a merged source")
        rows = list(source["lambda"].values()) if isinstance(source.get("lambda"), Mapping) else []
        lists = rows and all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows)
        if not lists or not all(isinstance(value, NUMBER) for row in rows for value in row):
            found.append("has no number for each layer as 'lambda' of a merged source")
        if isinstance(source.get("noise"), Mapping) and not isinstance(source["noise"].get("kind"), str):
            found.append("has a noise without a kind")
        chosen = source.get("layer_selection")
        if isinstance(chosen, Mapping) and not {"by", "top_k"} <= set(chosen):
            found.append("has a selection of layers without 'by' and 'top_k'")
    return found


def _is_learnable(section: Any, sources: int | None = None) -> bool:
    """Return whether a section says which layers and projections have a lambda to learn, or is None.

    Args:
        section: of the merge, or of one source.
        sources: number of sources; None for the section of one.
    """
    if not section:
        return section is None or section is False
    lists = isinstance(section, Mapping) and all(
        isinstance(section.get(key, []), list) for key in ("layers", "projections", "sources")
    )
    if not lists or not all(isinstance(layer, int) for layer in section.get("layers", [])):
        return False
    own = section.get("sources", []) if sources else []
    texts = (section.get(key, "") for key in ("granularity", "constraint"))
    return len(own) in (0, sources) and all(map(_is_learnable, own)) and all(isinstance(text, str) for text in texts)


def read_record(path: Path) -> ResultRecord:
    """Read and check one result file.

    Raises:
        DataError: it is missing, is not JSON, or is not a result file; the sentence says what is wrong.
    """
    path = Path(path)
    if path.suffix in (".ckpt", ".safetensors"):
        raise DataError(f"{path} holds weights, not results: give the folder of the run, or its result.json.")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give result files or folders of runs.") from error
    except ValueError as error:
        raise DataError(
            f"{path} is corrupt: not JSON ({error}): delete it, and give the command that wrote it again."
        ) from error
    found = problems(content)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise DataError(f"{path} is not a result file: it {'; '.join(found[:3])}{more}.")
    if content["schema"] < SCHEMA:
        lacking = [key for key in KEYS | OUTCOME if key not in content]
        logger.info("%s is of schema %d: it lacks %s", path, content["schema"], ", ".join(lacking))
        content = dict.fromkeys(lacking) | {"intervals": _intervals(content)} | content
    return ResultRecord(path, content)


def _intervals(content: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the intervals of a file of schema 1, which has their ends among the metrics."""
    return {
        split: {
            name: [rows[f"{name}_low"]["value"], rows[f"{name}_high"]["value"]]
            for name in rows
            if f"{name}_low" in rows and f"{name}_high" in rows
        }
        for split, rows in content["metrics"].items()
    }
