"""Random numbers: the global states as plain values that a checkpoint can hold, and generators of their own."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]  # plain values and uint8 tensors


def generator_of(*key: int | str | None) -> torch.Generator:
    """Return a generator on the CPU that depends on nothing but `key`; the global states stay as they are."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))  # torch seeds its CPU generator by 32 bits


def get_state() -> RandomState:
    """Return the random states of Python, numpy, torch and every CUDA device (plain types and uint8 tensors)."""
    state = np.random.get_state(legacy=False)
    inner = state["state"]
    return {
        "python": random.getstate(),
        "numpy": (
            state["bit_generator"],
            inner["key"].tolist(),
            int(inner["pos"]),
            int(state["has_gauss"]),
            float(state["gauss"]),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_state(state: RandomState) -> None:
    """Put back what :func:`get_state` returned; CUDA states are skipped where the devices differ in number."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch (with all CUDA devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def preserved(seed: int | None = None) -> Iterator[None]:
    """Leave all random states as they were found; inside, start from `seed` where one is given."""
    state = get_state()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        set_state(state)
