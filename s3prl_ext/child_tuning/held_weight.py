"""Frozen weight matrices held in bfloat16, with the few entries that train in float32.

A function that takes such a weight gets the matrix W in float32: every entry is the bfloat16 one but the chosen ones,
which have the values of the child network. W lives as long as the function runs; a backward pass makes it again, so
that no float32 matrix is kept between the two. What is computed is what a float32 model computes whose frozen weights
were rounded to bfloat16 (:func:`round_base`), and the gradient of the chosen entries is that of float32.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from s3prl_ext.child_tuning import sparse_linear
from s3prl_ext.child_tuning.sparse_linear import PLAIN, SampledWeight
from s3prl_ext.errors import DataError

HELD = torch.bfloat16
# What asks about a weight and not for its values, or is done to the memory that holds it.
_ABOUT = PLAIN - {"detach"} | {
    "data_ptr", "element_size", "is_complex", "is_contiguous", "is_floating_point", "nelement", "stride",
    "untyped_storage",
}  # fmt: skip
_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_VIEWS = tuple(getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH"))


def held_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return those of the eligible weights that are held in bfloat16: the matrices."""
    return {name: parameter for name, parameter in parameters.items() if parameter.dim() == 2}


@torch.no_grad()
def round_base(parameters: Mapping[str, nn.Parameter]) -> None:
    """Round the matrices among an upstream's eligible weights to bfloat16; they stay float32.

    To nearest, ties to even. A second call changes nothing.

    Raises:
        DataError: a weight is not float32, or overflows.
    """
    for name, parameter in held_matrices(parameters).items():
        if parameter.dtype != torch.float32:
            raise DataError(f"'{name}' is {parameter.dtype}; base_dtype bfloat16 rounds float32 weights.")
        rounded = parameter.detach().to(HELD)
        if not rounded.isfinite().all():
            raise DataError(f"'{name}' holds values that are not finite, or not in bfloat16: use base_dtype float32.")
        parameter.data = rounded.float()  # not in place: memory that is mapped from a file would be copied for it


class HeldWeight(SampledWeight):
    """A frozen matrix in bfloat16 whose chosen entries are float32; made by :func:`hold`, undone by :func:`restore`.

    For code that asks, its dtype is float32, as it acts in every function. Functions that would change it in place are
    refused: its trained entries are the child network's.

    Attributes:
        slot: leaf tensor [k], float32: the values of the chosen entries, whose ``.grad`` collects their gradient; None
            where none is chosen.
        entries: their flat indices (int32) [k], sorted where `sampled`; None where none is chosen.
        rows: the rows that they are, where they are whole rows and `sampled`.
        sampled: whether the gradient is computed for the chosen entries alone.
    """

    sampled: bool

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give the result of any torch function for the matrix in float32."""
        kwargs = kwargs or {}
        if func == _DTYPE:
            return torch.float32
        if func is F.multi_head_attention_forward:  # its q, k and v weights reach F.linear; the output's does not
            return _with_matrices(func, args, kwargs, deep=False)
        if func is torch.Tensor.detach:
            return matrix_of(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ in _ABOUT and func not in _VIEWS:
                return func(*args, **kwargs)
            if func is torch.Tensor.to and isinstance(args[0], HeldWeight) and _stays(*args, **kwargs):
                return args[0]
            if func is F.linear and not isinstance(args[0], HeldWeight):
                return _linear(*args, **kwargs)
            if func.__name__.endswith("_") and not func.__name__.endswith("__"):
                raise RuntimeError(f"{func.__name__} would change a frozen weight that is held in bfloat16.")
            return _with_matrices(func, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Return an ordinary frozen float32 parameter."""
        memo[id(self)] = copied = nn.Parameter(matrix_of(self), requires_grad=False)
        return copied


def hold(
    weight: nn.Parameter, slot: torch.Tensor | None = None, indices: torch.Tensor | None = None, sampled: bool = False
) -> None:
    """Hold a float32 matrix in bfloat16 but for its chosen entries, in place; it stays the same object.

    Args:
        weight: [out, in], rounded by :func:`round_base` but for the chosen entries.
        slot: leaf tensor [k] with the values of the chosen entries; None where none is chosen.
        indices: flat indices (int32) [k] on the device of `weight`, sorted where `sampled`.
        sampled: compute the gradient of the chosen entries alone, not the dense one.

    Raises:
        DataError: another entry is not a bfloat16 number, so that it would be lost.
    """
    weight.requires_grad_(False)
    before = weight.detach()
    weight.data = before.to(HELD)
    weight.__class__ = HeldWeight
    assert isinstance(weight, HeldWeight)
    weight.slot, weight.entries, weight.sampled = slot, indices, sampled  # type: ignore[assignment]
    weight.rows = sparse_linear.whole_rows(indices, before.shape[1]) if sampled and indices is not None else None
    if not torch.equal(matrix_of(weight), before):
        restore(weight)
        weight.data = before
        raise DataError("a frozen weight is not a bfloat16 number: round the upstream first (round_base).")


@torch.no_grad()
def matrix_of(weight: nn.Parameter) -> torch.Tensor:
    """Return what a parameter is in a function: of a held one a new float32 matrix, of another its own values."""
    if not isinstance(weight, HeldWeight):
        return weight.detach()
    with torch._C.DisableTorchFunctionSubclass():
        return _filled(weight, torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format))


def _filled(weight: HeldWeight, matrix: torch.Tensor) -> torch.Tensor:
    """Return `matrix` [out, in] with the values that the weight acts with."""
    matrix.copy_(weight.detach())
    if weight.entries is not None:
        matrix.view(-1).index_copy_(0, weight.entries.long(), weight.slot.detach())
    return matrix


_thread = threading.local()


def _in_place_of_the_last(weight: HeldWeight) -> torch.Tensor:
    """Return what :func:`matrix_of` does, in memory that the next call of this thread writes to.

    Memory of its own for each of many large matrices leaves holes between the activations, which fill with the next.
    """
    buffers: dict[Any, torch.Tensor] = vars(_thread)
    size, device = weight.numel(), weight.device
    if device not in buffers or len(buffers[device]) < size:
        buffers[device] = torch.empty(size, device=device)
    return _filled(weight, buffers[device][:size].view(weight.shape))


def restore(weight: nn.Parameter) -> None:
    """Make a held weight an ordinary float32 parameter again, with the present values of its chosen entries."""
    if isinstance(weight, HeldWeight):
        matrix = matrix_of(weight)
        del weight.slot, weight.entries, weight.rows, weight.sampled
        weight.__class__ = nn.Parameter  # type: ignore[assignment]
        weight.data = matrix


class _HeldLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: list[HeldWeight], bias: Any, slot: Any) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.weight = weight[0]
        # For more than two dimensions F.linear returns a view, which autograd lets nobody change in place.
        y = F.linear(x.reshape(-1, x.shape[-1]), _in_place_of_the_last(ctx.weight), bias)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], y.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (x,), weight = ctx.saved_tensors, ctx.weight
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_input = to_bias = to_slot = None
        if ctx.needs_input_grad[0]:
            to_input = (flat @ _in_place_of_the_last(weight).to(flat.dtype)).reshape(x.shape)
        if ctx.needs_input_grad[2]:
            to_bias = flat.sum(0)
        if ctx.needs_input_grad[3]:
            inputs = x.reshape(-1, x.shape[-1])
            if not weight.sampled:
                to_slot = (flat.t() @ inputs).reshape(-1).index_select(0, weight.entries).float()
            elif weight.rows is not None:
                to_slot = (flat.index_select(1, weight.rows).t() @ inputs).reshape(-1).float()
            else:
                to_slot = sparse_linear.sampled_product(flat, inputs, weight.entries)
        return to_input, None, to_bias, to_slot


class _Matrix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: list[HeldWeight], slot: Any) -> torch.Tensor:
        ctx.entries = weight[0].entries
        return matrix_of(weight[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return None, gradients[0].reshape(-1).index_select(0, ctx.entries)


def _stays(weight: HeldWeight, *args: Any, **kwargs: Any) -> bool:
    """Return whether ``weight.to(...)`` is the weight itself, as a module is asked that is where it should be."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return dtype is None and (device is None or torch.empty(0, device=device).device == weight.device)


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    device = input.device.type
    if torch.is_autocast_enabled(device):
        input = input.to(torch.get_autocast_dtype(device))
    return _HeldLinear.apply(input, [weight], bias, weight.slot)


def _with_matrices(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], deep: bool = True) -> Any:
    """Return the result of a function for the matrices of held weights, of which it keeps none for the backward pass.

    Args:
        deep: keyword arguments are replaced too.
    """
    made: dict[int, HeldWeight] = {}

    def replaced(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return type(argument)(map(replaced, argument))
        if not isinstance(argument, HeldWeight):
            return argument
        with torch._C.DisableTorchFunctionSubclass():
            matrix = _Matrix.apply([argument], argument.slot)
        made[matrix.untyped_storage().data_ptr()] = argument
        return matrix

    def pack(tensor: torch.Tensor) -> Any:
        weight = made.get(tensor.untyped_storage().data_ptr())
        if weight is None or tensor.dtype != torch.float32:
            return tensor
        return weight, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        weight, *shape = kept
        return matrix_of(weight).as_strided(*shape)

    args = tuple(map(replaced, args))
    if deep:
        kwargs = {key: replaced(value) for key, value in kwargs.items()}
    with saved_tensors_hooks(pack, unpack):
        return func(*args, **kwargs)


def return_freed_memory() -> None:
    """Give the memory of freed tensors back to the system: glibc may keep it. Elsewhere nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_held(parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether any of some parameters is held in bfloat16."""
    return any(isinstance(parameter, HeldWeight) for parameter in parameters)
