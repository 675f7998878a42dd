"""A child network whose entries are chosen again during training, with the optimizer's state of those that stay.

Entries that entered together are one parameter, a generation: the optimizer counts its steps from when they entered, so
a new entry starts as at the first step of a training (zero moments, with Adam's correction for that), and one that
stays goes on as if nothing had happened. An entry that leaves keeps its tuned value and loses its state: what is not
selected is not updated, as in the dense variant of Dynamic Parameter Selection (Zhang et al., NeurIPS 2022,
arXiv:2211.01642; reference 22 of AD-TUNING).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning.child_network import ChildNetwork, fitting, has_sampled_gradient
from s3prl_ext.child_tuning.masks import Mask

Kept = tuple[int, torch.Tensor] | None  # generation before and positions in it; None for new entries


class ChangingChildNetwork(ChildNetwork):
    """A child network that :meth:`rechoose` gives other entries; see :class:`ChildNetwork` for its use.

    Args:
        parameters: the model's eligible parameters by name.
        mask: sorted flat indices of the chosen entries per name.
        members: generation of each entry plus 1 per name, as :meth:`members_in` returned it for `mask`; None: all are
            new.
        sparse_gradients, dense_norm: as for :class:`ChildNetwork`.

    Attributes:
        generations: the parameters, the oldest first.
    """

    _ages = torch.zeros(0, dtype=torch.int16)  # generation of each entry, weight by weight

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        mask: Mask,
        members: Mapping[str, torch.Tensor] | None = None,
        sparse_gradients: bool = True,
        dense_norm: bool = False,
    ) -> None:
        super().__init__(parameters, mask, sparse_gradients, dense_norm)
        if members is not None and self._names:
            self._ages = torch.cat([members[name] - 1 for name in self._names])
            self._make_generations()

    def _choose(self, mask: Mask) -> None:
        self._names = list(mask)
        self._weights = [self._eligible[name] for name in mask]
        self._indices = [i.to(w.device, torch.int32) for i, w in zip(mask.values(), self._weights)]
        self._sampled = [self._sparse and has_sampled_gradient(w, i) for w, i in zip(self._weights, self._indices)]
        self._interleaved = [False] * len(self._indices)
        self.whole = False
        self.values = self._gather()
        self._collect_into(torch.zeros_like(self.values))
        if len(self._ages) != len(self.values):
            self._ages = torch.zeros(len(self.values), dtype=torch.int16)
        self._make_generations()

    def _make_generations(self) -> None:
        ages = self._ages.to(self.values.device)
        count = int(ages.max()) + 1 if len(ages) else 0
        self._orders = [(ages == age).nonzero().squeeze(1) for age in range(count)]
        self.generations = nn.ParameterList([self.values[order] for order in self._orders])

    @torch.no_grad()
    def gather_gradients(self, step: int = 0) -> None:
        """Put the gradients of the chosen entries into ``.grad`` of the generations."""
        super().gather_gradients(step)
        self.values.grad = None
        for parameter, order in zip(self.generations, self._orders):
            parameter.grad = self._gradient[order]

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the generations into the model's weights, no other entry is touched."""
        for parameter, order in zip(self.generations, self._orders):
            self.values[order] = parameter
        super().write_back()

    @torch.no_grad()
    def rechoose(self, mask: Mask) -> list[Kept]:
        """Let the entries of another mask train, with the values that they have in the model.

        Args:
            mask: sorted flat indices per name.

        Returns:
            For each generation what it is of the generations before, for :func:`carry_over`.
        """
        mask = fitting(mask, self._eligible)
        before, orders = self._positions(mask), [order.cpu() for order in self._orders]
        ages = torch.where(before >= 0, self._ages[before.clamp(min=0)], len(orders)).to(torch.int16)
        alive = torch.unique(ages)
        self._ages = torch.searchsorted(alive, ages).to(torch.int16)  # numbered without gaps
        self._choose(mask)
        self.attach()
        return [
            (int(age), torch.searchsorted(orders[int(age)], before[ages == age])) if age < len(orders) else None
            for age in alive
        ]

    def _positions(self, mask: Mask) -> torch.Tensor:
        """Return where each entry of a mask is in `values` now, weight by weight; -1 for one that is not there."""
        starts, found = {}, []
        start = 0
        for name, indices in zip(self._names, self._indices):
            starts[name] = start, indices.cpu().long()
            start += indices.numel()
        for name, indices in mask.items():
            first, present = starts.get(name, (0, torch.zeros(0, dtype=torch.long)))
            place = torch.searchsorted(present, indices.long())
            inside = place < len(present)
            inside[inside.clone()] = present[place[inside]] == indices.long()[inside]
            found.append(torch.where(inside, place + first, -1))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def members_in(self, indices: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the generation plus 1 of each of some entries (int16), 0 for one that does not train now.

        Args:
            indices: sorted flat indices by name, all entries of the network among them.
        """
        ages = dict(zip(self._names, self._ages.split([i.numel() for i in self._indices])))
        own = self.mask
        found = {}
        for name, every in indices.items():
            found[name] = torch.zeros(len(every), dtype=torch.int16)
            if name in own:
                found[name][torch.searchsorted(every.long(), own[name].long())] = ages[name] + 1
        return found


def chosen_of(
    indices: Mapping[str, torch.Tensor], members: Mapping[str, torch.Tensor]
) -> tuple[Mask, dict[str, torch.Tensor]]:
    """Return mask and members of a network from all entries that have trained and :meth:`members_in` of them."""
    kept = {name: every for name, every in members.items() if bool(every.any())}
    mask = {name: indices[name][every > 0] for name, every in kept.items()}
    return mask, {name: every[every > 0] for name, every in kept.items()}


def carry_over(
    optimizer: Optimizer, before: Sequence[nn.Parameter], after: Iterable[nn.Parameter], kept: Sequence[Kept]
) -> None:
    """Put other parameters in the place of an optimizer's, with the state of the entries that stay.

    Args:
        optimizer: any torch optimizer; `before` are in one of its groups.
        before: parameters, each [k], that it has now.
        after: those that take their place.
        kept: for each of `after`, of which of `before` it is which entries, or None.
    """
    after, old = list(after), {id(parameter) for parameter in before}
    states = [optimizer.state.pop(parameter, None) for parameter in before]
    for group in optimizer.param_groups:
        places = [place for place, parameter in enumerate(group["params"]) if id(parameter) in old]
        if places:
            rest = [parameter for parameter in group["params"] if id(parameter) not in old]
            group["params"] = [*rest[: places[0]], *after, *rest[places[0] :]]
    for parameter, source in zip(after, kept, strict=True):
        state = None if source is None else states[source[0]]
        if source is not None and state:
            shape = before[source[0]].shape
            optimizer.state[parameter] = {key: _part(value, shape, source[1]) for key, value in state.items()}


def _part(value: Any, shape: torch.Size, positions: torch.Tensor) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value[positions.to(value.device)] if value.shape == shape else value.clone()
