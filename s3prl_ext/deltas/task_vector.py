"""A child network as a sparse task vector: the difference of each changed entry, under the names of the base's files.

Task arithmetic (Ilharco et al. 2023) adds and scales such differences. In float32 base + (tuned - base) may differ from
the tuned value in its last bit: what is exact is ``delta.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas.tensor_names import Shapes, match_names
from s3prl_ext.errors import UsageError

FORMAT = "sparse_task_vector"
WEIGHT_FILE = "task_vector.safetensors"


def task_vector(
    delta: Delta, base: Mapping[str, Tensor], shapes: Shapes, where: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a sparse task vector and the header of its file.

    Args:
        delta: over `base`, with bits.
        base: state dict of the untuned upstream.
        shapes: shape of each tensor of the base's files.
        where: what the delta is called in messages.

    Returns:
        For each changed tensor NAME of the files ``NAME.indices`` (int64, flat, sorted) and ``NAME.values`` (float32,
        tuned - base); and the header: format, hash of the base, and the shape of each tensor as JSON.

    Raises:
        UsageError: the delta changes no entry of the base.
        DataError: the files are those of another model.
    """
    if not delta.indices or delta.added:
        method = (delta.info.get("tuning") or {}).get("method") or "no tuning method"
        raise UsageError(
            f"{where} holds {method}; a task vector is the change of a child network or of bitfit: "
            "for a lora use --format peft."
        )
    names = match_names({name: tuple(tensor.shape) for name, tensor in base.items()}, shapes, where)
    tuned = {name: base[name].clone() for name in delta.indices}
    delta.toggle(tuned)
    tensors: dict[str, Tensor] = {}
    for name, indices in delta.indices.items():
        tensors[f"{names[name]}.indices"] = indices.to(torch.int64)
        tensors[f"{names[name]}.values"] = (tuned[name] - base[name]).reshape(-1)[indices]
    stored = {names[name]: list(shapes[names[name]]) for name in delta.indices}
    header = {"format": FORMAT, "base_sha256": delta.base_sha256, "shapes": json.dumps(stored)}
    return tensors, header
