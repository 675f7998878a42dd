"""Set the attention of a model to one arm after another, in place, from one loaded pair of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.merging.aligner import Aligner
from s3prl_ext.merging.interpolation import dtype_of_sum
from s3prl_ext.merging.layers import align
from s3prl_ext.merging.merge import check_finite
from s3prl_ext.merging.methods import LINEAR, MethodConfig, Part
from s3prl_ext.merging.noise import Moments, NoiseConfig, noise_moments, sample
from s3prl_ext.merging.regmean import InputMoments
from s3prl_ext.sweeps.grid import Arm


class ArmWeights:
    """The query, key and value parameters of a target, which take the values of an arm and get their own back.

    Merged values are those of :meth:`s3prl_ext.merging.methods.MethodConfig.combine`, bit for bit.

    Args:
        target: views of the model's parameters, which are written to.
        source: the source's parameters as read, or None where every arm is noise that needs none.
        layer_map: source layer for each target layer.
        projections: those that are merged.
        biases: merge the biases too.
        noise: seed and statistics of the noise controls; its kind and draw are the arm's.
        method: how matrices are combined.
        base: of the source, under the target's slots, aligned as the source will be; for methods that need one.
        aligner: how the source and each draw of noise are brought into the target's coordinates; None to leave them.
        moments: of what target and source read, in these coordinates; for methods that need them.

    Raises:
        DataError: a matrix holds NaN or infinity.
    """

    def __init__(
        self,
        target: AttentionWeights,
        source: AttentionWeights | None,
        layer_map: list[int | None],
        projections: Sequence[str],
        biases: bool = False,
        noise: NoiseConfig | None = None,
        method: MethodConfig = LINEAR,
        base: AttentionWeights | None = None,
        aligner: Aligner | None = None,
        moments: InputMoments | None = None,
    ) -> None:
        self._target = {
            slot: tensor.detach()
            for slot, tensor in target.items()
            if slot.projection in projections and (biases or slot.kind == "weight")
        }
        self._untouched = {slot: tensor.detach() for slot, tensor in target.items() if slot not in self._target}
        self._source_as_read, self._layer_map = source, layer_map
        check_finite(target, self._target, "the target")
        self._original = {slot: tensor.clone() for slot, tensor in self._target.items()}
        self._method, self._aligner, self._moments = method, aligner, moments
        self._base = base and {s: base[s].to(tensor.device) for s, tensor in self._target.items() if s in base}
        self._source: dict[Slot, Tensor] | None = None
        mapped = {slot: tensor for slot, tensor in self._target.items() if layer_map[slot.layer] is not None}
        self._shapes = {slot: tensor.shape for slot, tensor in mapped.items()}  # of noise
        if source is not None:
            aligned = {slot: tensor for slot, tensor in align(source, layer_map).items() if slot in self._target}
            check_finite(aligned, aligned, "the source", lambda slot: layer_map[slot.layer] or 0)
            if aligner is not None and aligner.basis is not None:  # noise is rotated as the source is
                self._shapes = {slot: tensor.shape for slot, tensor in aligned.items()}
            self._source = self._aligned({slot: self._ready(slot, tensor) for slot, tensor in aligned.items()})
        self._noise = noise or NoiseConfig("standard")
        self._drawn: tuple[tuple[str, int], dict[Slot, Tensor]] | None = None
        self._statistics: dict[str, dict[Slot, Moments] | None] = {}
        self._changed: set[Slot] = set()

    def apply(self, arm: Arm) -> None:
        """Set the model to an arm; parameters that it leaves alone have the target's values, bit for bit."""
        slots = {slot for slot in self._target if slot.layer in arm.layers} if arm.lambda_ != 0.0 else set()
        for slot in self._changed - slots:
            self._target[slot].copy_(self._original[slot])
        self._changed |= slots
        other = self._matrices(arm) if slots else {}
        for slot in slots & other.keys():
            if self._method != LINEAR:
                base = self._base[slot] if self._base else None
                part = Part(other[slot], arm.lambda_, base, moments=self._moments_of(slot))
                self._target[slot].copy_(self._method.combine(self._original[slot], [part], slot))
            elif arm.lambda_ == 1.0:
                self._target[slot].copy_(other[slot])
            elif self._target[slot].dtype == other[slot].dtype:
                torch.lerp(self._original[slot], other[slot], arm.lambda_, out=self._target[slot])
            else:
                wide = self._original[slot].to(other[slot].dtype)
                self._target[slot].copy_(wide.lerp_(other[slot], arm.lambda_))
        self._changed = set(slots)

    def check_in(self, modules: Iterable[nn.Module]) -> None:
        """Raise RuntimeError unless what arms are written to is the memory of these modules' parameters."""
        held = {parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()}
        lost = [slot for slot, tensor in self._target.items() if tensor.untyped_storage().data_ptr() not in held]
        if lost:
            raise RuntimeError(
                f"{len(lost)} of {len(self._target)} matrices of a sweep are no longer those of its model, which was "
                "moved: its arms would all score the unmerged target."
            )

    def restore(self) -> None:
        """Give the model its own values back."""
        self.apply(Arm())

    def _moments_of(self, slot: Slot) -> tuple[Tensor, Tensor] | None:
        if self._moments is None or slot.kind != "weight":
            return None
        ours, theirs = self._moments.values[slot.layer]
        return ours.to(self._target[slot].device), theirs.to(self._target[slot].device)

    def _ready(self, slot: Slot, tensor: Tensor) -> Tensor:
        """Return a matrix on the target's device in the dtype in which the sum is taken: float32, or wider."""
        target = self._target[slot]
        return tensor.to(target.device, dtype_of_sum(target, tensor))

    def _aligned(self, matrices: dict[Slot, Tensor]) -> dict[Slot, Tensor]:
        """Return matrices in the target's coordinates, where that is asked for."""
        return matrices if self._aligner is None else dict(self._aligner.apply(self._original, matrices).weights)

    def _matrices(self, arm: Arm) -> dict[Slot, Tensor]:
        """Return what is merged in: the source's matrices, or the arm's draw of noise."""
        if arm.noise == "none":
            assert self._source is not None
            return self._source
        if self._drawn is None or self._drawn[0] != (arm.noise, arm.draw):
            self._drawn = None  # let go of the old ones first
            config = dataclasses.replace(self._noise, kind=arm.noise, draw=arm.draw)
            if arm.noise not in self._statistics:
                own = self._untouched | self._original
                self._statistics[arm.noise] = noise_moments(config, own, self._source_as_read, self._layer_map)
            drawn = sample(self._shapes, self._statistics[arm.noise], config)
            ready = {slot: self._ready(slot, tensor) for slot, tensor in drawn.items()}
            self._drawn = (arm.noise, arm.draw), self._aligned(ready)
        return self._drawn[1]
