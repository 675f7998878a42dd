"""SHA-256 of a model's tensors: the bytes are part of deltas, checkpoints and results, so they never change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def add_tensors(digest: Any, tensors: Iterable[tuple[object, Tensor]]) -> None:
    """Add tensors to a digest of hashlib, in their order: name, dtype, shape and bytes of each."""
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def tensors_sha256(tensors: Iterable[tuple[object, Tensor]]) -> str:
    """Return the SHA-256 of named tensors, in their order."""
    digest = hashlib.sha256()
    add_tensors(digest, tensors)
    return digest.hexdigest()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict: tensors in the order of their names."""
    return tensors_sha256(sorted(state.items()))
