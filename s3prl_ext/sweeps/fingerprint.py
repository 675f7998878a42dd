"""Hashes of weights and data, by which a sweep knows its own earlier results."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (str, bytes, bool, int, float, complex, type(None))  # their repr is the same in every process


def model_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        _add(digest, value)
    return digest.hexdigest()


def data_sha256(batches: Iterable[Any]) -> str:
    """Return the SHA-256 of everything that a data loader gives: waveforms, labels, names.

    Args:
        batches: tensors, arrays, numbers, texts, and lists, tuples, iterators and dicts of them.

    Raises:
        TypeError: a batch holds something else, whose text need not be the same in the next process.
    """
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
    elif isinstance(value, np.generic):
        digest.update(repr(value.item()).encode())
    elif isinstance(value, Iterator):  # of KS, IC and SID: zip(*samples)
        _add(digest, list(value))
    elif isinstance(value, (list, tuple, range)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif isinstance(value, dict):
        _add(digest, [[str(key), item] for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))])
    elif isinstance(value, PLAIN):
        digest.update(repr(value).encode())
    else:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"a batch holds an object of type {kind}, whose content cannot be hashed: let the task's data loader "
            "return tensors, arrays, numbers and texts, or lists and dicts of them."
        )
