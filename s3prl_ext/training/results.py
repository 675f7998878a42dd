"""``result.json``: what a run measured, with the configuration and versions that produced it."""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
from argparse import Namespace
from importlib import metadata
from pathlib import Path
from typing import Any

from s3prl_ext.metrics import METRICS

logger = logging.getLogger(__name__)

SCHEMA = 1
PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers", "numpy")


def write(
    args: Namespace,
    config: dict[str, Any],
    metrics: dict[str, dict[str, float]],
    step: int,
    seconds: float,
    trainable: dict[str, int],
    merge: dict[str, Any] | None = None,
    **facts: Any,
) -> Path:
    """Write the metrics of a run's splits to ``result.json`` (train) or ``result-SPLIT.json`` (evaluate).

    Args:
        args: the arguments of ``run_downstream.py``; the file goes to their ``expdir``.
        config: the task file after overrides.
        metrics: value by split and metric name.
        step: optimizer steps behind the scored model.
        seconds: wall time of the training or evaluation.
        trainable: number of trainable weights of upstream, featurizer and downstream.
        merge: record of a merged upstream.
        **facts: further plain values, such as the evaluations on the way.
    """
    name = "result.json" if args.mode == "train" else f"result-{'-'.join(metrics)}.json"
    content = {
        "schema": SCHEMA,
        "mode": args.mode,
        "upstream": args.upstream,
        "downstream": args.downstream,
        "seed": args.seed,
        "step": step,
        "seconds": round(seconds, 3),
        "metrics": {split: {key: _row(key, value) for key, value in row.items()} for split, row in metrics.items()},
        "trainable": trainable,
        "args": {key: _plain(value) for key, value in vars(args).items()},
        "config": config,
        "merge": merge,
        **facts,
        "versions": {package: _version(package) for package in PACKAGES} | {"python": platform.python_version()},
    }
    path = Path(args.expdir) / name
    _write_json(content, path)
    logger.info("metrics written to %s", path)
    return path


def _row(name: str, value: float) -> dict[str, Any]:
    known = METRICS.get(name)
    return {
        "value": value,
        "unit": known.unit if known else None,
        "higher_is_better": known.higher_is_better if known else None,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None), list, dict)) else str(value)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write_json(content: dict[str, Any], path: Path) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2, default=str)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
