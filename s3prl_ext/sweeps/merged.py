"""What a sweep merges: its arms as records of merges, so that they are told apart and named as any other merge is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.evaluation.merge_facts import deviations, merge_facts
from s3prl_ext.sweeps.grid import Arm

# Settings of a sweep that do not concern the unmerged target.
OF_THE_MERGE = (
    "source", "layer_map", "projections", "biases", "noise", "merged part", "method", "base", "align", "basis",
    "projection", "moments",
)  # fmt: skip


def record_of(content: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """Return an arm as the record of a merge.

    Args:
        content: of ``sweep.json``, with target, source and settings.
    """
    settings, source = content["settings"], content["source"] or {}
    depth = _depth(content)
    merged = [arm.lambda_ if layer in arm.layers else 0.0 for layer in range(depth)]
    of_projections = dict.fromkeys(settings.get("projections", PROJECTIONS), merged)
    base = settings.get("base")
    placed = {key: settings.get(key) for key in ("layer_map", "align", "basis", "projection", "moments")}
    return {
        "target": content["target"],
        "sources": [
            {
                "name": source.get("name"),
                "attention_sha256": source.get("attention_sha256"),
                "lambda": dict.fromkeys(PROJECTIONS, [0.0] * depth) | of_projections,
                "noise": None if arm.noise == "none" else {"kind": arm.noise, **(settings.get("noise") or {})},
                "base": {"attention_sha256": base} if base else None,
                **placed,
            }
        ],
        "method": settings.get("method"),
        "biases": settings.get("biases", False),
        "learnable": None,
    }


def otherwise(content: Mapping[str, Any]) -> list[str]:
    """Return in what the merges of a sweep differ from MAM's, in words such as ``slerp``; empty where they do not."""
    every = Arm(tuple(range(_depth(content))), lambda_=1.0)
    return list(deviations(merge_facts(record_of(content, every))).values())


def unmerged_sha256(content: Mapping[str, Any]) -> str:
    """Return a hash of what decides the scores of the unmerged target, and of these on dev.

    Two sweeps have it in common where these are the same.
    """
    dev = content["dev"]
    settings = {key: value for key, value in content["settings"].items() if key not in OF_THE_MERGE}
    scores = [result["metrics"] for result in content["results"].values() if _is_unmerged(result, dev)]
    return _sha256([settings, content["data"].get(dev), scores])


def sweep_sha256(content: Mapping[str, Any]) -> str:
    """Return a hash of everything except the arms that decides the scores: models, data, settings."""
    return _sha256({key: content[key] for key in ("settings", "data")})


def _depth(content: Mapping[str, Any]) -> int:
    """Return the number of the target's layers, or in a file that does not say it, of those that are merged."""
    merged = (layer + 1 for result in content["results"].values() for layer in result["arm"]["layers"])
    return max(content["target"].get("layers") or 0, *merged, 1)


def _is_unmerged(result: Mapping[str, Any], split: str) -> bool:
    return result["split"] == split and not result["arm"]["lambda"]


def _sha256(decisive: Any) -> str:
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
