"""A finished sweep on disk, with made-up scores: what ``s3prl-ext sweep`` would have written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from s3prl_ext.metrics import metric
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group, arms_in_order
from s3prl_ext.sweeps.selection import summarize
from s3prl_ext.sweeps.store import Store

LAMBDAS = (0.05, 0.1)
GROUPS = (
    Group("all", (0, 1, 2, 3), "none", LAMBDAS, 1),
    Group("0-1", (0, 1), "none", LAMBDAS, 1),
    Group("all", (0, 1, 2, 3), "target", LAMBDAS, 2),
)


def error(arm: Arm, split: str) -> float:
    """Return a made-up error: merging helps at 0.05, noise hurts."""
    if not arm.lambda_:
        return 9.25
    worse = 10.0 * arm.lambda_ + arm.draw if arm.noise != "none" else 0.0
    return 9.0 + abs(arm.lambda_ - 0.05) * 10 + 0.1 * len(arm.layers) + worse + (0.5 if split == "test" else 0.0)


def write_sweep(
    folder: Path,
    groups: tuple[Group, ...] = GROUPS,
    finished: bool = True,
    score: Callable[[Arm, str], float] = error,
    **merged: Any,
) -> Path:
    """Write ``sweep.json`` of the task ljspeech into a new folder; returns its path.

    Args:
        merged: settings of the merge, such as ``biases``.
    """
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {
        "task": "ljspeech",
        "task file": {},
        "seed": 1337,
        "features": ["last_hidden_state", None],
    } | merged
    store = Store(folder, settings)
    for split in ("dev", "test"):
        store.check_data(split, split * 8)
        for arm in [BASELINE, *arms_in_order(groups)]:
            store.add(arm, split, {"metrics": {"wer": score(arm, split), "loss": 1.0}, "intervals": {}, "seconds": 0.1})

    def lookup(arm: Arm, split: str) -> tuple[float, None]:
        return score(arm if arm.lambda_ else BASELINE, split), None

    model = {"name": "/models/hubert", "layers": 4, "width": 8, "attention_sha256": "a" * 64}
    store.write(target=model, source=model | {"name": "/models/bert"}, versions={"torch": "2.13.0"})
    if finished:
        rows = summarize(groups, "dev", "test", metric("wer"), lookup)
        facts = {"name": "wer", "unit": "%", "higher_is_better": False}
        store.write(metric=facts, dev="dev", test="test", summary=rows)
    return store.path
