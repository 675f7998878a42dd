"""What a run changes in its upstream: remembered, stored in checkpoints as a small delta, taken back.

A checkpoint of a child network or an adapter holds ``UpstreamDelta`` in place of s3prl's ``Upstream``: the hash of the
untouched upstream, the changed entries, and the weights that the method added (:class:`Delta` with values).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning.child_network import release
from s3prl_ext.child_tuning.delta import Delta, difference
from s3prl_ext.child_tuning.held_weight import is_held
from s3prl_ext.child_tuning.masks import Mask
from s3prl_ext.configs import Section
from s3prl_ext.errors import DataError
from s3prl_ext.models.hashing import state_sha256, tensors_sha256
from s3prl_ext.training.statistics import StateChanged, check_buffers, copy_buffers, restore_buffers
from s3prl_ext.training.upstream_settings import stated_settings
from s3prl_ext.upstreams.merged_attention.record import rounding_hint


class TunedUpstream:
    """The changes of one run to one upstream.

    Made from the untouched model, before a method inserts anything or a checkpoint is loaded.

    Args:
        model: the upstream, not wrapped for several devices.

    Attributes:
        base_sha256: hash of the untouched upstream.
        settings: of the untouched upstream, see :func:`s3prl_ext.training.upstream_settings.stated_settings`.
        indices: changed entries by tensor name, sorted flat (CPU); empty where no child network trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.base_sha256 = state_sha256(model.state_dict())
        self.settings = stated_settings(model)
        self.indices: Mask = {}
        self._base: dict[str, Tensor] = {}  # values of the entries of `indices` in the untouched upstream
        self._copies: dict[str, Tensor] = {}  # whole tensors, see remember_trainable
        self._buffers = copy_buffers(model)
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    # -- child networks --------------------------------------------------------------------------------------------

    def track(self, mask: Mapping[str, Tensor]) -> None:
        """Remember the entries of a child network as they are in the untouched upstream.

        A second call changes nothing.
        """
        if self.indices:
            return
        self.indices = {name: indices.cpu() for name, indices in mask.items() if indices.numel()}
        self._base = self._values()

    @torch.no_grad()
    def extend(self, mask: Mapping[str, Tensor]) -> None:
        """Remember more entries, which are as in the untouched upstream where they are not remembered already."""
        weights = self._tensors()
        for name, chosen in mask.items():
            known = self.indices.get(name, torch.zeros(0, dtype=torch.int32))
            every = torch.unique(torch.cat([known.to(torch.int32), chosen.to(torch.int32).cpu()]))
            if len(every) == len(known):
                continue
            values = weights[name].detach().reshape(-1).index_select(0, every.to(weights[name].device)).cpu()
            if len(known):
                values[torch.searchsorted(every, known.to(torch.int32))] = self._base[name]
            self.indices[name], self._base[name] = every, values

    def _tensors(self) -> dict[str, Tensor]:
        """Return the model's own parameters and buffers by name; of merged tasks, running statistics change too."""
        return self.model.state_dict(keep_vars=True)

    @torch.no_grad()
    def _values(self) -> dict[str, Tensor]:
        weights = self._tensors()
        return {
            name: weights[name].detach().reshape(-1).index_select(0, i.to(weights[name].device)).cpu()
            for name, i in self.indices.items()
        }

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        weights = self._tensors()
        for name, indices in self.indices.items():
            weight = weights[name]
            weight.put_(indices.long().to(weight.device), values[name].to(weight))

    @property
    def is_small(self) -> bool:
        """Whether the changes are a child network or an adapter, and not a whole upstream."""
        return bool(self.indices) or bool(adapters.inserted(self.model))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def check_base(self, stored_sha256: str | None, where: str) -> None:
        """Raise DataError where a checkpoint was made from another upstream than this one."""
        if stored_sha256 is not None and stored_sha256 != self.base_sha256:
            raise DataError(
                f"{where} was made from another upstream (hash {stored_sha256[:12]}, but this one has "
                f"{self.base_sha256[:12]}): give the -u, -k and -g that it was trained with, and its --seed where the "
                "files of the model lack weights." + rounding_hint(getattr(self.model, "merge_record", None))
            )

    def check_not_untuned(self, untuned_sha256: str | None, where: str) -> None:
        """Raise DataError where a head belongs to the tuned upstream, and this one is the untuned."""
        if untuned_sha256 == self.base_sha256:
            raise DataError(
                f"{where} is the head of a tuned upstream, and this is the untuned one: add the adapter or task vector "
                "next to it to the model, as its README.md says, and give that with -k."
            )

    def state(self) -> Delta:
        """Return the changes as a checkpoint holds them: with values.

        Raises:
            StateChanged: something else of the upstream has changed too.
        """
        check_buffers(self.model, self._buffers)
        indices = {name: indices.to(torch.int32) for name, indices in self.indices.items()}
        return Delta(self.base_sha256, indices, added=self._added(), values=self._values())

    def check_untouched(self) -> None:
        """Compare everything outside the child network or adapter with the untouched upstream: 0.3 s per 100 M weights.

        The entries of the child network are put back for the comparison and are then as before.

        Raises:
            StateChanged: it is another one.
        """
        check_buffers(self.model, self._buffers)
        found = self._sha256_of_base() if is_held(self.model.parameters()) else self._sha256_before()
        if found != self.base_sha256:
            raise StateChanged(
                f"weights of the upstream outside the child network or adapter changed in training (hash {found[:12]}, "
                f"but {self.base_sha256[:12]} before): what would be stored is not the model that was scored. Look for "
                "code of the task or upstream that writes to them, or use tuning.method: "
                "full, which stores the whole upstream."
            )

    def _sha256_before(self) -> str:
        """Return the hash of the model with the untouched values of the remembered entries, which are put in for it."""
        tuned = self._values()
        self._put(self._base)
        try:
            return state_sha256(
                adapters.base_state(self.model) if adapters.inserted(self.model) else self.model.state_dict()
            )
        finally:
            self._put(tuned)

    def _sha256_of_base(self) -> str:
        """Return the same of a model with held weights, of which one matrix at a time is made."""
        state = self.model.state_dict(keep_vars=True)
        return tensors_sha256((name, self._untouched(name, state[name])) for name in sorted(state))

    @torch.no_grad()
    def _untouched(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self.indices:
            return tensor
        values = tensor.detach().clone()
        return values.put_(self.indices[name].long().to(values.device), self._base[name].to(values))

    def load(self, delta: Delta, where: str) -> None:
        """Make the untouched upstream the tuned one; an adapter must be inserted already.

        Raises:
            DataError: the delta does not fit this upstream.
        """
        self.check_base(delta.base_sha256, where)
        if delta.added:
            adapters.load_adapter_state(self.model, delta.added)
        own = set().union(*(row.names for row in adapters.inserted(self.model).values()))
        delta = replace(delta, added={}).over(self.model.state_dict(), where)
        self.track({name: indices.to(torch.int32) for name, indices in delta.indices.items() if name not in own})
        delta.toggle(self.model.state_dict())
        loaded = copy_buffers(self.model)
        self._buffers |= {name: loaded[name] for name in self.indices if name in loaded}  # training leaves them so

    def _added(self) -> dict[str, Tensor]:
        if not adapters.inserted(self.model):
            return {}
        return {name: tensor.cpu() for name, tensor in adapters.adapter_state(self.model).items()}

    def delta(self, task: Mapping[str, Mapping[str, Tensor]], info: Section) -> Delta:
        """Return the changes as a file can hold them.

        Args:
            task: state dicts of featurizer and downstream.
            info: plain values that say what the delta is.

        Raises:
            StateChanged: something else of the upstream has changed too.
        """
        changes, weights = self.state(), self._tensors()
        sizes = {name: weights[name].numel() for name in changes.indices}
        bits = difference(self._base, changes.values, in_place=True)  # of the copy that state() has made
        child = Delta(self.base_sha256, changes.indices, bits, sizes, {}, task, info)
        return child.with_tensors(adapters.base_state(self.model), changes.added) if changes.added else child

    # -- back to the untouched upstream ----------------------------------------------------------------------------

    def remember_trainable(self) -> None:
        """Keep copies of all weights that train as a whole, so that :meth:`revert` can put them back."""
        own = set().union(*(row.names for row in adapters.inserted(self.model).values()))
        self._copies = {
            name: parameter.detach().cpu().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and name not in own and name not in self.indices
        }

    @torch.no_grad()
    def revert(self) -> None:
        """Make the model the untouched upstream again, bitwise: entries, copies, buffers, adapters, training flags."""
        release(self.model.parameters())
        restore_buffers(self.model, self._buffers)
        self._put(self._base)
        self.indices, self._base = {}, {}
        weights = dict(self.model.named_parameters())
        for name, copy in self._copies.items():
            weights[name].copy_(copy)
        self._copies = {}
        if adapters.inserted(self.model):
            adapters.remove(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trained[name])
            parameter.grad = None
