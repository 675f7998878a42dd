"""Weight gradients of linear layers at the chosen entries alone: no dense gradient is computed.

Half of a backward pass is weight gradients. Where few entries of a weight matrix train, only theirs are computed,
dW[i, j] = sum over t of gy[t, i] x[t, j], by a sampled product of two dense matrices. Where whole rows train, theirs
are a dense product of these rows alone, at any density.

s3prl's attention hands ``q_proj.weight`` and its like to ``F.multi_head_attention_forward`` and never calls the linear
module, so the weight itself has to know: its class becomes :class:`SampledWeight`, which torch asks about every
function that takes it. ``F.linear`` gets the sampled gradient, wherever it is called. In any other function (s3prl's
``out_proj``, which ``multi_head_attention_forward`` multiplies internally) the dense gradient is computed, gathered,
and dropped at once.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

PLAIN = frozenset({"__get__", "__set__", "__delete__", "requires_grad_", "detach", "__repr__", "size", "dim", "numel"})


class SampledWeight(nn.Parameter):
    """A frozen weight matrix of which a few entries train; made by :func:`sample`, undone by :func:`restore`.

    Attributes:
        slot: leaf tensor [k] whose ``.grad`` collects the gradient of the chosen entries.
        entries: their sorted flat indices (int32) [k].
        rows: the rows that they are, where they are whole rows, else None.
    """

    slot: torch.Tensor
    entries: torch.Tensor
    rows: torch.Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give the result of any torch function, with the gradient of the chosen entries where gradients are on."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # its q, k and v weights reach F.linear; the output's does not
            return func(*(_with_gathered_gradient(a) for a in args), **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if not torch.is_grad_enabled() or func.__name__ in PLAIN:
                return func(*args, **kwargs)
            if func is F.linear and not isinstance(args[0], SampledWeight):
                return _linear(*args, **kwargs)
            args = tuple(_with_gathered_gradient(a) for a in args)
            return func(*args, **{key: _with_gathered_gradient(a) for key, a in kwargs.items()})

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        """Return an ordinary frozen parameter: the weights of a copied model are nobody's child network."""
        with torch._C.DisableTorchFunctionSubclass():
            memo[id(self)] = copied = nn.Parameter(self.detach().clone(), requires_grad=False)
        return copied


def sample(weight: nn.Parameter, slot: torch.Tensor, indices: torch.Tensor) -> None:
    """Let `weight` collect the gradient of its chosen entries in ``slot.grad`` and compute no other, in place.

    Args:
        weight: a weight matrix [out, in]; it stays the same object and gets ``requires_grad=False``.
        slot: leaf tensor [k] that requires grad.
        indices: sorted flat indices (int32) [k] on the device of `weight`.
    """
    _silence_beta_warning()
    weight.requires_grad_(False)
    weight.__class__ = SampledWeight
    assert isinstance(weight, SampledWeight)
    weight.slot, weight.entries, weight.rows = slot, indices, whole_rows(indices, weight.shape[1])


def whole_rows(indices: torch.Tensor, columns: int) -> torch.Tensor | None:
    """Return the rows of a matrix that its chosen entries are; None where they are not whole rows.

    Args:
        indices: sorted flat indices [k].
        columns: of the matrix.
    """
    if indices.numel() == 0 or indices.numel() % columns:
        return None
    by_row = indices.view(-1, columns)
    first, last = by_row[:, 0], by_row[:, -1]
    if bool((first % columns).any()) or bool((last - first != columns - 1).any()):
        return None
    return first // columns


def restore(weight: nn.Parameter) -> None:
    """Make `weight` an ordinary parameter again; harmless where it is one."""
    if isinstance(weight, SampledWeight):
        del weight.slot, weight.entries, weight.rows
        weight.__class__ = nn.Parameter  # type: ignore[assignment]


def sampled_product(left: torch.Tensor, right: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return entries of ``left.T @ right`` [out, in].

    Args:
        left: [T, out] of any floating dtype.
        right: [T, in].
        indices: sorted flat indices (int32) [k] into [out, in].

    Returns:
        The entries [k], float32.
    """
    rows, columns = left.shape[1], right.shape[1]
    starts = torch.arange(rows + 1, dtype=indices.dtype, device=indices.device) * columns
    pattern = torch.sparse_csr_tensor(
        torch.searchsorted(indices, starts, out_int32=True),
        indices % columns,
        torch.zeros(indices.numel(), device=left.device),
        (rows, columns),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, left.float().t().contiguous(), right.float(), beta=0.0).values()


class _SampledLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Any,
        slot: torch.Tensor,
        indices: torch.Tensor,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, indices, rows)
        # For more than two dimensions F.linear returns a view, which autograd lets nobody change in place.
        y = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0]))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        x, weight, indices, rows = ctx.saved_tensors
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_input = (flat @ weight.to(flat.dtype)).reshape(x.shape) if ctx.needs_input_grad[0] else None
        to_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        inputs = x.reshape(-1, x.shape[-1])
        if rows is not None:
            chosen = (flat.index_select(1, rows).t() @ inputs).reshape(-1).float()
        else:
            chosen = sampled_product(flat, inputs, indices)
        return to_input, None, to_bias, chosen, None, None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, slot: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (indices,) = ctx.saved_tensors
        return None, gradients[0].reshape(-1).index_select(0, indices), None


def _with_gathered_gradient(argument: Any) -> Any:
    """Return a weight as a plain tensor whose dense gradient is gathered into its slot; other arguments as they are."""
    if isinstance(argument, (list, tuple)):
        return type(argument)(_with_gathered_gradient(a) for a in argument)
    if not isinstance(argument, SampledWeight):
        return argument
    with torch._C.DisableTorchFunctionSubclass():
        return _Gathered.apply(argument.detach(), argument.slot, argument.entries)


def _linear(input: torch.Tensor, weight: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    device = input.device.type
    if torch.is_autocast_enabled(device):
        input = input.to(torch.get_autocast_dtype(device))
    return _SampledLinear.apply(input, weight.detach(), bias, weight.slot, weight.entries, weight.rows)


@functools.cache
def _silence_beta_warning() -> None:
    """Let torch say once, unheard, that its sparse layout is in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1))
