"""Task files of the released AD-TUNING code, read as they are: its keys stand for sections of ours.

========================================  =====================================================
released                                  ours
========================================  =====================================================
``optimizer.name: ChildnetAdamW``         the same name
``optimizer.reserve_p: [0.1, 0.01]``      ``tuning: {method: child, mask: fisher, density: [...],``
                                          ``fisher: {preset: official}}``
``runner.strive_ratio: 0.2``              ``early_stop.ratio``
``runner.observation: [dev, per]``        ``early_stop.split`` and ``early_stop.metric``
========================================  =====================================================

The preset ``official`` is the released Fisher pass: the task's own training loader, in train mode, the loss of a batch
divided by ``runner.gradient_accumulate_steps``, each tensor's gradient clipped before it is squared.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

from s3prl_ext.errors import UsageError

logger = logging.getLogger(__name__)

OPTIMIZER = "ChildnetAdamW"


def translate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task file in which the released keys are replaced by sections ``tuning`` and ``early_stop``.

    A file without such a key is returned unchanged.

    Raises:
        UsageError: released and our own keys for the same thing stand side by side, or a value has no counterpart.
    """
    optimizer, runner = config.get("optimizer"), config.get("runner")
    released = [f"optimizer.{key}" for key in ("reserve_p",) if isinstance(optimizer, Mapping) and key in optimizer]
    race = [f"runner.{key}" for key in ("strive_ratio", "observation") if isinstance(runner, Mapping) and key in runner]
    if not released and not race:
        return dict(config)
    result = copy.deepcopy(dict(config))
    for keys, section in ((released, "tuning"), (race, "early_stop")):
        if keys and section in result:
            raise UsageError(
                f"{' and '.join(keys)} of the released AD-TUNING code and the section {section} say the same thing: "
                "keep one of the two."
            )
    if released:
        density = result["optimizer"].pop("reserve_p")
        result["tuning"] = {"method": "child", "mask": "fisher", "density": density, "fisher": {"preset": "official"}}
    if race:
        result["early_stop"] = _early_stop(result["runner"])
    if isinstance(result.get("tuning", {}).get("density"), list) and len(result["tuning"]["density"]) == 1:
        result["tuning"]["density"] = result["tuning"]["density"][0]
    if isinstance(result.get("tuning", {}).get("density"), list):
        result.setdefault("early_stop", {})
    logger.info("read %s as in the released AD-TUNING code", ", ".join(released + race))
    return result


def _early_stop(runner: dict[str, Any]) -> dict[str, Any]:
    """Take the keys of the race out of section ``runner`` and return them as a section ``early_stop``."""
    section = {}
    if (ratio := runner.pop("strive_ratio", None)) is not None:
        section["ratio"] = ratio
    observation = runner.pop("observation", None)
    if observation is None:
        return section
    parts = [observation] if isinstance(observation, str) else list(observation)
    if parts[0] == "train":
        raise UsageError(
            "runner.observation: train compares candidates by their training loss, which the released code could not "
            "run; write [dev, METRIC], such as [dev, per]."
        )
    splits = runner.get("eval_dataloaders") or ["dev"]
    section["split"] = parts[0] if parts[0] in splits else splits[0]
    if len(parts) > 1:
        section["metric"] = {"f1": "slot_type_f1"}.get(parts[1], parts[1])
    return section
