"""Result files, sweeps and per-utterance files that tests write: small, of the present schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.evaluation.result_records import SCHEMA
from s3prl_ext.evaluation.transcripts import transcript, write_transcripts
from s3prl_ext.metrics import METRICS

MERGE_SOURCE = {
    "name": "/models/bert", "layers": 4, "width": 8, "attention_sha256": "b" * 64, "layer_map": [0, 1, 2, 3],
    "noise": None, "layer_selection": None,
}  # fmt: skip


def content(
    values: dict[str, float],
    split: str = "test",
    downstream: str = "ljspeech",
    seed: int = 1,
    mode: str = "evaluate",
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of a result file; `changes` replace whole top-level entries, ``tuning`` that section."""
    rows = {
        name: {"value": value, "unit": METRICS[name].unit, "higher_is_better": METRICS[name].higher_is_better}
        for name, value in values.items()
    }
    config: dict[str, Any] = {"optimizer": {"lr": 0.001}, "runner": {"total_steps": 4}, "downstream_expert": {}}
    if "tuning" in changes:
        config["tuning"] = changes.pop("tuning")
    whole = {
        "schema": SCHEMA, "mode": mode, "date": "2026-01-02T03:04:05+00:00", "upstream": "hubert", "downstream": downstream,
        "seed": seed, "step": 4, "seconds": 1.5, "seconds_per_step": 0.1, "metrics": {split: rows},
        "intervals": {split: {}}, "items": {split: 5}, "trainable": {"Upstream": 0, "Downstream": 3}, "args": {"upstream_trainable": False},
        "config": config, "merge": None, "candidate": None, "upstream_sha256": "a" * 64,
        "data": {"sha256": "d" * 64, "files": 2, "bytes": 10, "covers": "all"}, "splits_sha256": None,
        "machine": {"cpu": "a processor", "gpu": None}, "peak_memory": {"process": 1, "gpu": None}, "commit": "c" * 40,
        "versions": {"s3prl_ext": "0.1.0", "torch": "2.13.0"}, "error": None,
    }  # fmt: skip
    return copy.deepcopy(whole | changes)


def merge(value: float, layers: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> dict[str, Any]:
    """Return the record of a merge with one lambda in some of four layers."""
    by_layer = [value if layer in layers else 0.0 for layer in range(4)]
    source = MERGE_SOURCE | {"lambda": {name: by_layer for name in ("q_proj", "k_proj", "v_proj")}} | changes
    return {"target": {"name": "hubert"}, "sources": [source], "biases": False, "learnable": None}


def write(folder: Path, what: dict[str, Any], name: str | None = None) -> Path:
    """Write a result file into a new or existing folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    split = next(iter(what["metrics"]), "test")
    path = folder / (name or ("result.json" if what["mode"] == "train" else f"result-{split}.json"))
    path.write_text(json.dumps(what), encoding="utf-8")
    return path


def write_hypotheses(folder: Path, texts: list[tuple[str, str]], split: str = "test") -> float:
    """Write transcripts of (reference, hypothesis) beside a result; returns their word error rate in per cent."""
    rows = [transcript(f"u{number}", *pair) for number, pair in enumerate(texts)]
    write_transcripts(rows, folder / f"transcripts-{split}.jsonl")
    return 100 * sum(row.errors for row in rows) / sum(row.words for row in rows)


def damaged(content: Any, values: Sequence[Any] = (None, 5, "x", [], {}, True)) -> Iterator[tuple[str, Any]]:
    """Yield copies of JSON content in which one place after the other is missing or has another value, with its name."""
    for place in _places(content):
        for value in values:
            yield f"{place}: {value!r}", _changed(content, place, value)
        if place:
            yield f"{place}: missing", _changed(content, place, None, missing=True)


def _places(content: Any, before: tuple = ()) -> Iterator[tuple]:
    yield before
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from _places(content[key], (*before, key))


def _changed(content: Any, place: tuple, value: Any, missing: bool = False) -> Any:
    if not place:
        return value
    whole = copy.deepcopy(content)
    inside = whole
    for key in place[:-1]:
        inside = inside[key]
    if missing:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return whole
