"""A child network as one flat parameter: the optimizer sees the k chosen weights and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from s3prl_ext.child_tuning.masks import Mask, count
from s3prl_ext.errors import DataError


class ChildNetwork(nn.Module):
    """The chosen entries of a model's weights, gathered into one flat parameter `values` of shape [k].

    A training step is: backward on the whole model, :meth:`gather_gradients`, clipping and the step of any torch
    optimizer on `values`, :meth:`write_back`. Gradient, weight decay and optimizer state exist for the k entries
    alone, so every other entry stays bitwise what it was (AD-TUNING, Eq. 3, with the mask acting on the whole update).

    Args:
        parameters: the model's eligible parameters by name; those without a chosen entry get
            ``requires_grad=False``.
        mask: sorted flat indices of the chosen entries per name.

    Raises:
        DataError: the mask names a tensor or an index that the model does not have.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mask: Mask) -> None:
        super().__init__()
        mask = {name: indices for name, indices in mask.items() if indices.numel()}
        for name, indices in mask.items():
            if name not in parameters or int(indices[-1]) >= parameters[name].numel():
                raise DataError(f"the mask of the child network does not fit the upstream: '{name}' is not its weight.")
        self.mask = {name: indices.cpu() for name, indices in mask.items()}
        self._weights: list[nn.Parameter] = []
        self._indices: list[torch.Tensor] = []
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in mask)
            if name in mask:
                self._weights.append(parameter)
                self._indices.append(mask[name].to(parameter.device))
        self.values = nn.Parameter(self._gather([w.detach() for w in self._weights]))

    def __len__(self) -> int:
        """Return k, the number of trainable entries."""
        return count(self.mask)

    def _gather(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        if not tensors:
            return torch.zeros(0)
        return torch.cat([t.take(i) for t, i in zip(tensors, self._indices)])

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Collect the gradients of the chosen entries into ``values.grad`` and drop the model's dense ones."""
        dense = [torch.zeros_like(w) if w.grad is None else w.grad for w in self._weights]
        self.values.grad = self._gather(dense)
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Write `values` into the model's weights; no other entry is touched."""
        parts = self.values.split([i.numel() for i in self._indices])
        for weight, indices, part in zip(self._weights, self._indices, parts):
            weight.put_(indices, part.to(weight.dtype))
