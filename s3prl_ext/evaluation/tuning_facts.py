"""In what a tuning method differs from the papers', by the facts of a run, as ``merge_facts`` says it of merges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_ext.child_tuning.names import PAPER

# method -> options, with the values that stand for the papers' rows, which are the defaults. `param_matched` is none of
# them: it is there to reach the count that AD-TUNING's table prints.
OPTIONS: dict[str, Mapping[str, object]] = {
    "child": PAPER,
    "full": {"layer_decay": 1.0, "train_layers": "all"},
    "houlsby": {"bottleneck": 32, "layers": None},
    "adapter_bias": {"layers": None},
    "lora": {"rank": 8, "alpha": 16.0, "projections": ("q_proj", "v_proj"), "layers": None},
    "prefix": {"length": 10},
    "cnn_adapter": {"scale": 0.01},
    "chapter": {"bottleneck": 32, "layers": None, "scale": 0.01},
}

LAST_STATE = ("frozen", "full")  # methods whose rows read the last hidden state; the others read the weighted sum
FEATURES = {True: ("last_hidden_state/None", "hidden_states/-1"), False: ("hidden_states/None",)}
RACE = {"keep": 1, "evaluations": 1, "patience": 1, "rungs": None}  # section early_stop: one comparison leaves one


def reads_otherwise(facts: Mapping[str, Any]) -> bool:
    """Return whether a run reads other features than the papers' row of its method; False where that is not known."""
    return facts.get("features") not in (None, "None/None", *FEATURES[facts.get("method") in LAST_STATE])


def races_otherwise(facts: Mapping[str, Any], dev: str, metric: str) -> bool:
    """Return whether a race was decided in another way than AD-TUNING's.

    Args:
        facts: of its winner.
        dev: split that chooses in its task.
        metric: that its task is judged by.
    """
    usual = {**RACE, "split": dev, "metric": metric}
    return any(not _same(facts.get(f"early_stop.{key}", value), value) for key, value in usual.items())


def deviations(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run's method that are not the papers', with their values; empty where there are none."""
    usual = OPTIONS.get(str(facts.get("method")), {})
    found = {key: facts.get(f"tuning.{key}", value) for key, value in usual.items()}
    return {key: value for key, value in found.items() if not _same(value, usual[key])}


def lambda_is_held(facts: Mapping[str, Any]) -> bool:
    """Return whether a learnable lambda keeps its first value: its learning rate is 0."""
    return bool(facts.get("learnable")) and _same(facts.get("tuning.lambda_lr"), 0.0)


def _same(value: Any, usual: object) -> bool:
    """Return whether a value of a task file, which may be a number in quotes, is the usual one."""
    if isinstance(usual, tuple):
        return isinstance(value, (list, tuple)) and sorted(map(str, value)) == sorted(map(str, usual))
    if isinstance(usual, (int, float)) and not isinstance(usual, bool) and isinstance(value, str):
        try:
            return float(value) == usual
        except ValueError:
            return False
    return bool(value == usual) or (usual is None and value == "all")
