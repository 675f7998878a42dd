"""LoRA adapters in the format of peft: their settings and factors, and what they change in query, key and value.

A folder of peft holds ``adapter_config.json`` and ``adapter_model.safetensors`` with the factors of each module,
``base_model.model.encoder.layers.0.attention.q_proj.lora_A.weight`` [rank, inputs] and ``lora_B`` [outputs, rank]; the
module computes W + (lora_alpha / r) B A.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.attention.files import open_weights
from s3prl_ext.attention.layouts import Slot, slots_of
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json

logger = logging.getLogger(__name__)

CONFIG_FILE, WEIGHT_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHT_FILE = "adapter_model.bin"
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# Settings of peft's LoRA that ours does not have -> the value that leaves them out.
OFF: dict[str, Any] = {
    "use_dora": False, "bias": "none", "lora_bias": False, "fan_in_fan_out": False, "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {}, "trainable_token_indices": None, "alora_invocation_tokens": None, "target_parameters": None,
    "layer_replication": None, "use_qalora": False, "use_bdlora": None, "arrow_config": None, "kasa_config": None,
    "monteclora_config": None,
}  # fmt: skip
# Ways to begin that leave the base as it was; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take a part out of it.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def is_adapter(path: Path) -> bool:
    """Return whether a path is a folder in peft's format."""
    return (path / CONFIG_FILE).is_file()


def read_lora(folder: Path) -> tuple[Mapping[str, Any], dict[tuple[str, str], Tensor]]:
    """Return the settings of an adapter, and its factors by module and ``A`` or ``B``.

    Args:
        folder: as ``save_pretrained`` of a ``PeftModel`` writes it.

    Raises:
        DataError: a file is missing or corrupt, or the adapter is of another kind than our LoRA.
    """
    config, factors = _read_config(folder), _read_factors(folder)
    ranks = {int(tensor.shape[0]) for (_, factor), tensor in factors.items() if factor == "A"}
    if ranks != {config["r"]}:
        raise DataError(f"{folder}: the factors have rank {sorted(ranks)}, but {CONFIG_FILE} says r: {config['r']}.")
    return config, factors


def scale_of(config: Mapping[str, Any]) -> float:
    """Return the factor of B A by the settings of an adapter."""
    rank = config["r"]
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def with_adapter(weights: AttentionWeights, folder: Path, name: str, prefix: str | None = None) -> AttentionWeights:
    """Return the attention of a model with a LoRA folded in; slots that it does not act on are the same tensors.

    Those that it acts on are in float32, or float64: the change is often smaller than the steps of half precision.

    Args:
        weights: of the model that the adapter was trained on.
        folder: of the adapter.
        name: what to call the model.
        prefix: as in :func:`s3prl_ext.attention.layouts.find_attention`.

    Raises:
        DataError: as :func:`read_lora`, the adapter acts on no query, key or value, or is of another model.
    """
    if not is_adapter(folder):
        raise DataError(f"{folder} holds no adapter of peft: it lacks {CONFIG_FILE}.")
    config, factors = read_lora(folder)
    modules = sorted({module for module, _ in factors})
    places = slots_of([f"{module}.weight" for module in modules], prefix)
    if not places:
        raise DataError(
            f"{folder} acts on {', '.join(modules[:3])}, ..., none of which is a query, key or value that is known."
        )
    if len(places) < len(modules):
        logger.warning("%s acts on %d modules, of which %d are query, key or value; the others are not merged.",
                       folder, len(modules), len(places))  # fmt: skip
    merged = dict(weights)
    for key, slots in places.items():
        module = key.removesuffix(".weight")
        change = scale_of(config) * factors[module, "B"].float() @ factors[module, "A"].float()
        for slot, part in zip(slots, change.chunk(len(slots)), strict=True):
            merged[slot] = _added(weights, slot, part, folder, name)
    return merged


def _added(weights: AttentionWeights, slot: Slot, change: Tensor, folder: Path, name: str) -> Tensor:
    own = weights.get(slot)
    if own is None or own.shape != change.shape:
        has = "no such layer" if own is None else f"the shape {tuple(own.shape)}"
        raise DataError(
            f"{folder} changes {slot} of shape {tuple(change.shape)}, of which {name} has {has}: name its own model."
        )
    return own.to(torch.promote_types(own.dtype, torch.float32)) + change


def _read_config(folder: Path) -> Mapping[str, Any]:
    file = folder / CONFIG_FILE
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable as JSON: {error}.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise DataError(f"{file} describes an adapter of peft's type {kind}: only LORA is read.")
    used = [f"{key}: {json.dumps(config[key])}" for key, off in OFF.items() if config.get(key, off) not in (off, None)]
    if used:
        raise DataError(
            f"{file} uses {', '.join(used)}, which our LoRA does not have: merge the adapter into its base with peft, "
            "and use the result as a model."
        )
    if config.get("init_lora_weights") not in STARTS:
        raise DataError(
            f"{file}: the adapter began with {config['init_lora_weights']}, which changed the base as well: convert it "
            "with peft (path_initial_model_for_weight_conversion), "
            "or merge it into its base and use the result as a model."
        )
    for key, kinds in (("r", int), ("lora_alpha", (int, float))):
        if not isinstance(config.get(key), kinds) or isinstance(config[key], bool) or config[key] <= 0:
            raise DataError(f"{file}: {key} must be a number above 0, but is {json.dumps(config.get(key))}.")
    return config


def _read_factors(folder: Path) -> dict[tuple[str, str], Tensor]:
    """Return the factors by module and ``A`` or ``B``; both of each module are there and fit each other."""
    file = next((folder / name for name in (WEIGHT_FILE, OLD_WEIGHT_FILE) if (folder / name).is_file()), None)
    if file is None:
        raise DataError(f"{folder} lacks {WEIGHT_FILE}: get the adapter again.")
    reader, factors = open_weights(file), {}
    for name in list(reader.keys()):
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise DataError(f"{file} holds {name}, which is not a factor of a LoRA of linear maps.")
        factors[match["module"], match["factor"]] = reader[name]
    for module in {module for module, _ in factors}:
        a, b = (factors.get((module, factor)) for factor in "AB")
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            raise DataError(f"{file} is incomplete: the two factors of {module} are not [r, inputs] and [outputs, r].")
    if not factors:
        raise DataError(f"{file} has no factors.")
    return factors
