"""LoRA adapters in the format of peft: read as a delta, and written for ``peft.PeftModel.from_pretrained``.

A folder of peft holds ``adapter_config.json`` and ``adapter_model.safetensors`` with the factors of each module,
``base_model.model.encoder.layers.0.attention.q_proj.lora_A.weight`` [rank, inputs] and ``lora_B`` [outputs, rank]; the
module computes W + (lora_alpha / r) B A, as ours does.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from s3prl_ext.adapters.lora import Config
from s3prl_ext.attention.peft_files import CONFIG_FILE, OFF, WEIGHT_FILE, is_adapter, read_lora
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.architectures import Architecture, known
from s3prl_ext.upstreams.speech_models import is_whisper

__all__ = ["CONFIG_FILE", "WEIGHT_FILE", "adapter_files", "is_adapter", "read_adapter"]

UPSTREAM_PREFIX = "model."  # under which every upstream of a transformers folder holds the model
_OURS = re.compile(r"model\.(?P<module>.+)\.parametrizations\.weight\.0\.lora_(?P<factor>[ab])")


def read_adapter(folder: Path) -> Delta:
    """Read a LoRA adapter as a delta without a task; the hash of its base is not known.

    Args:
        folder: as ``save_pretrained`` of a ``PeftModel`` writes it.

    Raises:
        DataError: a file is missing or corrupt, the adapter is of another kind than our LoRA, or its modules are not
            the same projections in each of some layers of a model that the table of architectures knows.
    """
    config, factors = read_lora(folder)
    row, places = _places(folder, {module for module, _ in factors})
    projections = [part for part in row.parts if any(part == place[1] for place in places.values())]
    layers = sorted({layer for layer, _ in places.values()})
    if len(places) != len(projections) * len(layers):
        raise DataError(
            f"{folder} has {len(places)} modules, which are not the same projections in each layer "
            f"({', '.join(projections)} in {len(layers)} layers): "
            "merge it into its base with peft, and use the result as a model."
        )
    rank = config["r"]
    alpha = float(config["lora_alpha"]) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    tuning = {"method": "lora", "rank": rank, "alpha": alpha, "projections": projections, "layers": layers}
    added = {}
    for (module, factor), tensor in factors.items():
        layer, part = places[module]
        name = (
            f"{UPSTREAM_PREFIX}{row.layers}.{layer}.{row.parts[part]}.parametrizations.weight.0.lora_{factor.lower()}"
        )
        added[name] = tensor.float()
    base = str(config.get("base_model_name_or_path") or "")
    return Delta("", added=added, info={"upstream": _upstream(base), "upstream_ckpt": base, "tuning": tuning})


def _places(folder: Path, modules: set[str]) -> tuple[Architecture, dict[str, tuple[int, str]]]:
    """Return the row that knows all modules, and layer and projection of each.

    Raises:
        DataError: no row knows them, or they belong to several encoders.
    """
    for row in (row for row in known() if row.linears):
        parts = {module: part for part, module in row.parts.items()}
        inside = re.compile(rf"((?:.*\.)?){re.escape(row.layers)}\.(\d+)\.(.+)")
        matches = {module: inside.fullmatch(module) for module in modules}
        found = {m: (int(hit[2]), parts[hit[3]]) for m, hit in matches.items() if hit and hit[3] in parts}
        if len(found) == len(modules) and len({hit[1] for hit in matches.values() if hit}) == 1:
            return row, found
    raise DataError(
        f"{folder} acts on modules that no known speech encoder has ({', '.join(sorted(modules)[:3])}, ...): its "
        "target_modules must be linear maps of the encoder's attention and feed-forward."
    )


def _upstream(base: str) -> str:
    return "whisper_custom" if base and is_whisper(Path(base).expanduser()) else "hf_speech_custom"


def adapter_files(delta: Delta, base: str, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors of a LoRA in peft's format.

    Args:
        delta: of an upstream of a transformers folder.
        base: folder or hub id of that model, as ``AutoModel`` takes it.
        where: what the delta is called in messages.

    Raises:
        UsageError: the delta is not a LoRA of such an upstream.
    """
    tuning = delta.info.get("tuning") or {}
    matches = {name: _OURS.fullmatch(name) for name in delta.added}
    if tuning.get("method") != "lora" or not matches or delta.indices or not all(matches.values()):
        raise UsageError(
            f"{where} holds {tuning.get('method') or 'no tuning method'}; peft's format takes a lora on the model of a "
            "transformers folder: leave --format out, or for a child network use --format task_vector."
        )
    tensors: dict[str, Tensor] = {}
    modules: dict[str, None] = {}
    for name, match in matches.items():
        assert match is not None
        modules[match["module"]] = None
        factor = match["factor"].upper()
        tensors[f"base_model.model.{match['module']}.lora_{factor}.weight"] = delta.added[name].contiguous()
    config = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "revision": None,
        "inference_mode": True,
        "r": next(t.shape[0] for n, t in tensors.items() if n.endswith("lora_A.weight")),
        "lora_alpha": tuning.get("alpha", Config().alpha), "lora_dropout": 0.0, "use_rslora": False,
        "target_modules": list(modules),
        **{key: OFF[key] for key in ("use_dora", "bias", "fan_in_fan_out", "modules_to_save", "rank_pattern",
        "alpha_pattern")},
    }  # fmt: skip
    return config, tensors
