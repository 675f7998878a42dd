"""A task's chosen masks as a safetensors file.

Indices by tensor name, their levels, the scores' histogram, the origin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from s3prl_ext.child_tuning.delta import content_sha256
from s3prl_ext.child_tuning.masks import NestedMask
from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json
from s3prl_ext.writing import written

FORMAT = "s3prl_ext.masks"
Histogram = tuple[torch.Tensor, torch.Tensor]  # lower edges (float32), counts (int64)


def save(
    mask: NestedMask, path: str | os.PathLike[str], origin: Mapping[str, Any], histogram: Histogram | None
) -> None:
    """Write masks to a file that appears only when it is complete.

    Args:
        mask: the masks.
        path: the file.
        origin: plain values that say how the masks were chosen.
        histogram: :func:`s3prl_ext.child_tuning.masks.score_histogram` of the scores, or None.

    Raises:
        DataError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    tensors = {f"indices.{name}": i for name, i in mask.indices.items()}
    tensors |= {f"levels.{name}": level for name, level in mask.levels.items()}
    if histogram is not None:
        tensors["histogram.edges"], tensors["histogram.counts"] = histogram
    metadata = {"format": FORMAT, "densities": json.dumps(mask.densities), "origin": json.dumps(origin, sort_keys=True)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata["content_sha256"] = content_sha256(tensors, metadata)
    try:
        with written(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write the masks to {path}: {error}; free some space or choose another folder."
        ) from error


def load(path: str | os.PathLike[str]) -> tuple[NestedMask, dict[str, Any], Histogram | None]:
    """Return the masks of a file, their origin, and the scores' histogram where there is one.

    Raises:
        DataError: the file is missing, corrupt, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not readable as masks (missing, truncated or corrupt): {error}.") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} does not contain masks of child networks.")
    expected = content_sha256(tensors, metadata)
    if metadata.get("content_sha256", expected) != expected:  # earlier files have no checksum
        raise DataError(f"{path} is corrupt or was edited: its content does not match its checksum.")
    parts: dict[str, dict[str, torch.Tensor]] = {"indices": {}, "levels": {}, "histogram": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    mask = NestedMask(tuple(parse_json(metadata["densities"])), parts["indices"], parts["levels"])
    histogram = (parts["histogram"]["edges"], parts["histogram"]["counts"]) if parts["histogram"] else None
    return mask, parse_json(metadata["origin"]), histogram
