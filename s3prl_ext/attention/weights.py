"""Read, replace and hash the query, key and value parameters of a model, whatever its layout calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from s3prl_ext.attention.layouts import PROJECTIONS, AttentionKeys, Slot, find_attention
from s3prl_ext.errors import DataError
from s3prl_ext.models.hashing import tensors_sha256

# Attention parameters by slot: weights [width, width], biases [width].
AttentionWeights = Mapping[Slot, Tensor]


def extract(state: Mapping[str, Tensor], where: str = "the state dict", prefix: str | None = None) -> AttentionWeights:
    """Return the attention parameters of a state dict as views: writing to them writes to the model.

    Raises:
        DataError: as :func:`s3prl_ext.attention.layouts.find_attention`.
    """
    return read_slots(find_attention(state, where, prefix), state.__getitem__)


def read_slots(keys: AttentionKeys, load: Callable[[str], Tensor]) -> AttentionWeights:
    """Return the attention parameters named by `keys`, asking `load` once for each tensor.

    Args:
        load: returns the tensor behind a state-dict key.
    """
    tensors = {name: load(name) for name in dict.fromkeys(keys.names.values())}
    if not keys.architecture.fused:
        return {slot: tensors[name] for slot, name in keys.names.items()}
    parts = {name: _split_fused(name, tensor) for name, tensor in tensors.items()}
    return {slot: parts[name][PROJECTIONS.index(slot.projection)] for slot, name in keys.names.items()}


def _split_fused(name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.shape[0] % 3:
        raise DataError(
            f"{name} of shape {tuple(tensor.shape)} is not a fused query-key-value tensor of (3 * width, ...)."
        )
    return tensor.chunk(3)


def insert(state: Mapping[str, Tensor], weights: AttentionWeights, where: str = "the state dict") -> dict[str, Tensor]:
    """Return a copy of `state` with the attention parameters of `weights` in place of the old ones.

    All other tensors are the same objects as in `state`. Dtypes are those of `weights`; a fused tensor keeps its own.

    Args:
        weights: any subset of the model's slots.

    Raises:
        DataError: `state` has no attention, or not a slot of `weights`.
    """
    keys = find_attention(state, where)
    result = dict(state)
    for slot, tensor in weights.items():
        if slot not in keys.names:
            raise DataError(f"{where} has no {slot}: it has {keys.layers} attention layers ({keys.architecture.name}).")
        name = keys.names[slot]
        if not keys.architecture.fused:
            result[name] = tensor
            continue
        if result[name] is state[name]:
            result[name] = state[name].clone()
        _split_fused(name, result[name])[PROJECTIONS.index(slot.projection)].copy_(tensor)
    return result


def depth(weights: Iterable[Slot]) -> int:
    """Return the number of attention layers."""
    return 1 + max(slot.layer for slot in weights)


def width(weights: AttentionWeights) -> int:
    """Return the input width of the attention, taken from the first query matrix."""
    return weights[Slot(0, "q_proj")].shape[-1]


def sha256(weights: AttentionWeights) -> str:
    """Return the SHA-256 of attention parameters: slots in order with dtype, shape and bytes, whatever the layout."""
    return tensors_sha256((slot, weights[slot]) for slot in sorted(weights))  # one at a time
