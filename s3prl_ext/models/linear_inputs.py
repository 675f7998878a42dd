"""Second moments of what the weight matrices of a model are multiplied with, wherever its code multiplies them.

The attention of s3prl's models hands weights to a function and never calls their modules, so that hooks would not see
it: products are watched below torch's functions, where every linear map is a product with a transposed weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class LinearInputs(TorchDispatchMode):
    """While it is entered, sum x x^T over the rows x that weights are multiplied with, x W^T.

    Args:
        weights: [out, in] by name; the tensors that the model computes with.

    Attributes:
        sums: name -> sum of x x^T, [in, in] in float64; a weight that was in no product is not in it.
        rows: name -> number of rows.
        valid: number of rows of a product -> which of them count; all in products of another number.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._named = {weight.data_ptr(): (name, weight.shape) for name, weight in weights.items()}
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.valid: Mapping[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what the operation returns, after a look at its operands."""
        if func in _PRODUCTS:
            self._see(*args[-2:])
        elif func is torch.ops.aten.linear.default:
            self._see(args[0].reshape(-1, args[0].shape[-1]), args[1].t())
        return func(*args, **(kwargs or {}))

    def _see(self, rows: Tensor, right: Tensor) -> None:
        name, shape = self._named.get(right.data_ptr(), ("", None))
        if shape is None or right.shape != shape[::-1] or right.stride() != (1, shape[1]):
            return
        valid = self.valid.get(len(rows))
        x = (rows if valid is None else rows[valid]).detach().double()
        moment = (x.T @ x).cpu()
        self.sums[name] = self.sums[name].add_(moment) if name in self.sums else moment
        self.rows[name] = self.rows.get(name, 0) + len(x)

    def means(self) -> dict[str, Tensor]:
        """Return name -> mean of x x^T."""
        return {name: total / self.rows[name] for name, total in self.sums.items()}
