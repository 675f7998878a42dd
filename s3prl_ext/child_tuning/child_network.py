"""A child network as one flat parameter: the optimizer sees the k chosen weights and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning import held_weight, sparse_linear
from s3prl_ext.child_tuning.interleaving import FEWEST, interleaved, sorted_again
from s3prl_ext.child_tuning.masks import Mask
from s3prl_ext.errors import DataError
from s3prl_ext.randomness import generator_of

SPARSE_GRADIENT_DENSITY = 0.03  # weight matrices of which at most so much trains get no dense gradient
MANY = 1 << 15  # entries of a tensor from which on scatter_ writes them sooner than put_


class ChildNetwork(nn.Module):
    """The chosen entries of a model's weights, gathered into one flat parameter `values` of shape [k].

    A training step is: backward on the whole model, :meth:`gather_gradients`, clipping and the step of any torch
    optimizer on :meth:`parameters`, :meth:`write_back`, :meth:`zero_grad`. Gradient, weight decay and optimizer state
    exist for the k entries alone, so every other entry stays bitwise what it was (AD-TUNING, Eq. 3, with the mask
    acting on the whole update). Where every entry of all `parameters` is chosen (density 1), the weights themselves
    are the parameters, and training is what it would be without a child network.

    Args:
        parameters: the model's eligible parameters by name; those without a chosen entry get
            ``requires_grad=False``.
        mask: sorted flat indices of the chosen entries per name.
        sparse_gradients: compute no dense gradient for weight matrices of which at most 3 %, or whole rows, train.
        dense_norm: keep the norm of the gradient of all eligible weights, for ``clip_scope: all``; no gradient is
            sparse then.
        redraw: keep each gradient entry with this probability at each step, divided by it (CHILD-TUNING_F of the
            original code); None keeps all. Needs a mask of density 1.
        seed: seed of `redraw`.
        held: hold the matrices in bfloat16 but for the chosen entries, whose values stay float32, see
            :mod:`s3prl_ext.child_tuning.held_weight`; they are rounded to it already. Not with `dense_norm`, nor where
            every entry is chosen.

    Attributes:
        values: the chosen entries [k], weight by weight; those of a large weight with dense gradients in an order that
            is fast to read and write (see :mod:`s3prl_ext.child_tuning.interleaving` and :meth:`store_sorted`). Empty
            where the weights themselves are the parameters.
        outside: with `dense_norm` a parameter of one entry, whose gradient is the norm of the gradient outside the
            child network, so that clipping counts it; its value means nothing.

    Raises:
        DataError: the mask names a tensor or an index that the model does not have.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mask: Mask,
        sparse_gradients: bool = True,
        dense_norm: bool = False,
        redraw: float | None = None,
        seed: int = 0,
        held: bool = False,
    ) -> None:
        super().__init__()
        mask = fitting(mask, parameters)
        self._eligible = dict(parameters)
        self._sparse = sparse_gradients and not dense_norm
        self._redraw, self._seed = redraw, seed
        self._held = held
        self._choose(mask)
        self.outside: nn.Parameter | None = None
        if dense_norm and not self.whole:
            self.outside = nn.Parameter(torch.zeros(1, device=self.values.device))
        self.attach()

    def _choose(self, mask: Mask) -> None:
        """Make the chosen entries of a mask the parameters."""
        self._names = list(mask)
        self._weights = [self._eligible[name] for name in mask]
        self._indices = [i.to(w.device, torch.int32) for i, w in zip(mask.values(), self._weights)]
        self._sampled = [self._sparse and has_sampled_gradient(w, i) for w, i in zip(self._weights, self._indices)]
        self.whole = len(self) == sum(parameter.numel() for parameter in self._eligible.values()) > 0
        self._interleaved = [
            not self.whole and not sampled and i.numel() >= FEWEST and i.device.type == "cpu"
            for i, sampled in zip(self._indices, self._sampled)
        ]
        self._indices = [interleaved(i) if flag else i for i, flag in zip(self._indices, self._interleaved)]
        if self.whole:
            self.weights = nn.ParameterList(self._weights)
            self.values = torch.zeros(0)
        else:
            self.values = nn.Parameter(self._gather())
            self._collect_into(torch.zeros_like(self.values, requires_grad=False))

    def _collect_into(self, gradient: torch.Tensor) -> None:
        """Divide `values` and the flat gradient by weight."""
        sizes = [i.numel() for i in self._indices]
        self._gradient = gradient
        self._values = self.values.detach().split(sizes)
        self._parts = [_Part(*part) for part in zip(self._indices, gradient.split(sizes), self._sampled)]

    @property
    def mask(self) -> Mask:
        """The sorted flat indices (int32, CPU) of the chosen entries per name."""
        parts = zip(self._names, self._indices, self._interleaved)
        return {name: sorted_again(indices) if flag else indices.cpu() for name, indices, flag in parts}

    def __len__(self) -> int:
        """Return k, the number of trainable entries."""
        return sum(i.numel() for i in self._indices)

    def attach(self) -> None:
        """Make this the network whose gradients the model collects; another one on the same weights loses its hold."""
        release(self._eligible.values())
        for parameter in self._eligible.values():
            parameter.requires_grad_(self.outside is not None)
        for weight in self._weights:
            weight.requires_grad_(True)
        if self.whole or self.outside is not None:
            return
        for weight, values, part, sampled in zip(self._weights, self._values, self._parts, self._sampled):
            part.sampled = sampled or (self._held and weight.dim() == 2)
            if part.sampled:
                slot = values.detach().requires_grad_()
                slot.grad = part.gradient  # autograd adds to it in place
                if self._held and weight.dim() == 2:
                    held_weight.hold(weight, slot, part.indices, sampled)
                else:
                    sparse_linear.sample(weight, slot, part.indices)
            else:
                handle = weight.register_post_accumulate_grad_hook(part.collect)
                weight._child_hooks = [handle]  # type: ignore[attr-defined]
        if self._held:
            chosen = set(self._names)
            for name, weight in held_weight.held_matrices(self._eligible).items():
                if name not in chosen:
                    held_weight.hold(weight)
            held_weight.return_freed_memory()

    @torch.no_grad()
    def _gather(self) -> torch.Tensor:
        if not self._weights:
            return torch.zeros(0)
        return torch.cat([w.detach().reshape(-1).index_select(0, i) for w, i in zip(self._weights, self._indices)])

    def dense_gradients(self) -> list[torch.Tensor]:
        """Return the gradients of all eligible weights, zeros where there is none; empty without `dense_norm`.

        Several ranks average them before :meth:`gather_gradients`: the norm that clips is that of the mean gradient.
        """
        if self.outside is None:
            return []
        for parameter in self._eligible.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self._eligible.values() if p.grad is not None]

    @torch.no_grad()
    def gather_gradients(self, step: int = 0) -> None:
        """Put the gradients of the chosen entries into ``.grad`` of the parameters, and drop the model's dense ones.

        Args:
            step: number of optimizer steps done, which with the seed decides about `redraw`.
        """
        if self.whole:
            if self._redraw is not None:
                self._thin_out(step, self._redraw)
            return
        dense = [p.grad for p in self._eligible.values() if p.grad is not None] if self.outside is not None else []
        for weight, part in zip(self._weights, self._parts):
            if weight.grad is not None:
                part.collect(weight)
            elif part.empty and not part.sampled:
                part.gradient.zero_()
        self.values.grad = self._gradient
        if self.outside is not None:
            squares = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) ** 2 for g in dense]).sum()
            own = torch.linalg.vector_norm(self._gradient, dtype=torch.float64) ** 2
            self.outside.grad = (squares - own).clamp(min=0).sqrt().float().reshape(1)
            for parameter in self._eligible.values():
                parameter.grad = None

    def _thin_out(self, step: int, density: float) -> None:
        generator = generator_of("redraw", self._seed, step)
        for weight in self._weights:
            if weight.grad is not None:
                drawn = torch.rand(weight.shape, generator=generator) < density
                weight.grad.mul_(drawn.to(weight.device)).div_(density)

    @torch.no_grad()
    def write_back(self) -> None:
        """Write `values` into the model's weights, no other entry is touched; and forget the collected gradients."""
        if self.whole:
            return
        self._forget()
        for weight, indices, values in zip(self._weights, self._indices, self._values):
            if not isinstance(weight, held_weight.HeldWeight):  # a held one reads `values`
                _write(weight, indices, values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the collected gradients of a step that is given up."""
        super().zero_grad(set_to_none)
        if not self.whole:
            self._forget()

    def store_sorted(self, optimizer: Optimizer) -> None:
        """Let an optimizer's state dict hold what belongs to `values` in the order of the mask, and read it so.

        What is stored then fits any device, and options of this class, that give `values` another order.

        Args:
            optimizer: any torch optimizer of :meth:`parameters`.
        """
        if any(self._interleaved):
            optimizer.register_state_dict_post_hook(lambda own, state: self._reordered(own, state, sorted_again))
            optimizer.register_load_state_dict_pre_hook(lambda own, state: self._reordered(own, state, interleaved))

    def _reordered(
        self, optimizer: Optimizer, state: dict[str, Any], order: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, Any]:
        """Return a state dict of an optimizer with the entries of `values` in another order."""
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = {number for number, parameter in zip(numbers, parameters) if parameter is self.values}
        sizes = [i.numel() for i in self._indices]

        def ordered(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.shape != self.values.shape:
                return value
            parts = zip(value.split(sizes), self._interleaved)
            return torch.cat([order(part) if flag else part for part, flag in parts])

        states = {
            number: {key: ordered(value) for key, value in of.items()} if number in own else of
            for number, of in state["state"].items()
        }
        return {**state, "state": states}

    def _forget(self) -> None:
        if any(part.sampled for part in self._parts):
            self._gradient.zero_()
        for part in self._parts:
            part.empty = True


def fitting(mask: Mask, parameters: Mapping[str, nn.Parameter]) -> Mask:
    """Return a mask in the order of the parameters, without tensors of which nothing is chosen.

    Raises:
        DataError: it names a tensor or an index that the model does not have.
    """
    chosen = {name: indices for name, indices in mask.items() if indices.numel()}
    for name, indices in chosen.items():
        if name not in parameters or int(indices[-1]) >= parameters[name].numel():
            raise DataError(f"the mask of the child network does not fit the upstream: '{name}' is not its weight.")
    return {name: chosen[name] for name in parameters if name in chosen}


def has_sampled_gradient(weight: torch.Tensor, indices: torch.Tensor) -> bool:
    """Return whether computing the gradient of the chosen entries alone is less work than the dense one."""
    if weight.dim() != 2 or indices.numel() == weight.numel():
        return False
    few = indices.numel() <= SPARSE_GRADIENT_DENSITY * weight.numel()
    return few or sparse_linear.whole_rows(indices, weight.shape[1]) is not None


def release(parameters: Iterable[nn.Parameter]) -> None:
    """Free weights from whatever child network collects their gradients; they are ordinary parameters again."""
    for parameter in parameters:
        held_weight.restore(parameter)
        sparse_linear.restore(parameter)
        for handle in parameter.__dict__.pop("_child_hooks", ()):
            handle.remove()


def _write(weight: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    """Write entries of a weight in place."""
    values = values if values.dtype == weight.dtype else values.to(weight.dtype)
    if indices.numel() >= MANY and weight.is_contiguous():
        weight.detach().view(-1).scatter_(0, indices.long(), values)
    else:
        weight.put_(indices.long(), values)


class _Part:
    """The chosen entries of one weight and their place in the flat gradient.

    Attributes:
        sampled: autograd adds to `gradient` by itself, so that it has to begin at zero.
        empty: nothing was collected since the last step; what `gradient` holds is of that one.
    """

    def __init__(self, indices: torch.Tensor, gradient: torch.Tensor, sampled: bool) -> None:
        self.indices = indices
        self.gradient = gradient
        self.sampled = sampled
        self.empty = True

    @torch.no_grad()
    def collect(self, weight: torch.Tensor) -> None:
        """Add the chosen entries of the weight's dense gradient, and drop the dense one."""
        assert weight.grad is not None
        dense = weight.grad.reshape(-1)
        if not self.empty:
            self.gradient += dense.index_select(0, self.indices)
        elif dense.dtype == self.gradient.dtype:
            torch.index_select(dense, 0, self.indices, out=self.gradient)
        else:
            self.gradient.copy_(dense.index_select(0, self.indices))
        self.empty = False
        weight.grad = None
