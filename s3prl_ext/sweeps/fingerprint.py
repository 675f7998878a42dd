"""Hashes of models and data, by which a sweep knows its own earlier results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def model_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()


def data_sha256(batches: Iterable[Any]) -> str:
    """Return the SHA-256 of everything that a data loader gives: waveforms, labels, names."""
    digest = hashlib.sha256()
    for batch in batches:
        _add(digest, batch)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, dict):
        _add(digest, [[str(key), item] for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))])
    else:
        digest.update(repr(value).encode())
