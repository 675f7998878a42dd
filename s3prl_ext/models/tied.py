"""Tensors that modules share: a state dict lists such a tensor under a name for each, all in the same memory."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return for each name of a model's state dict the first name of the same tensor: mostly the name itself."""
    seen: dict[tuple[object, ...], str] = {}
    found = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        found[name] = seen.setdefault(place, name)
    return found
