"""All that is done to a source before it is merged.

Its hidden space is rotated, its heads are paired or brought into shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import AttentionWeights
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment import HeadLikeness, align_heads, check_ungrouped, permute_heads
from s3prl_ext.merging.basis import Basis
from s3prl_ext.merging.head_projection import Placement, place_heads
from s3prl_ext.merging.regmean import InputMoments


@dataclass(frozen=True)
class Aligned:
    """A source that is ready to be merged.

    Attributes:
        weights: in the target's shapes.
        base: of the model that it was trained from, moved in the same way; None where there is none.
        facts: what the record of the merge says: the order of heads, the shapes before.
        kept: Frobenius norm of each projected tensor over that of the source's.
    """

    weights: AttentionWeights
    base: AttentionWeights | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[Slot, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Paired:
    """What paired inputs say about a source.

    Attributes:
        basis: its hidden space in the target's; None where it is not rotated.
        alike: how alike heads are; None where their weights say it.
        moments: of what both read, each in its own coordinates; None where no method asks for them.
    """

    basis: Basis | None = None
    alike: HeadLikeness | None = None
    moments: InputMoments | None = None

    def common_moments(self) -> InputMoments | None:
        """Return the moments with the source's in the coordinates in which it is merged."""
        return None if self.moments is None else self.moments.rotated(self.basis)


@dataclass(frozen=True)
class Aligner:
    """How a source, or the noise in its place, is brought into the target's coordinates.

    Attributes:
        paired: what paired inputs say.
        heads: number of heads of target and source, None for one that does not say it.
        pair: pair heads that are alike; otherwise head i is paired with head i.
        projections: those that are merged.
    """

    paired: Paired = Paired()
    heads: tuple[int | None, int | None] = (None, None)
    pair: bool = False
    projections: Sequence[str] = PROJECTIONS

    @property
    def basis(self) -> Basis | None:
        """The source's hidden space in the target's; None where it is left."""
        return self.paired.basis

    def apply(
        self, target: AttentionWeights, source: AttentionWeights, base: AttentionWeights | None = None
    ) -> Aligned:
        """Return a source as it is merged; computed on the CPU, so that every machine with the same one agrees.

        Args:
            target: before the merge.
            source: under the target's slots, in its own shapes.
            base: of the source, in the same shapes; it is moved as the source is.

        Raises:
            UsageError: widths or numbers of heads do not fit, or heads share keys and values.
        """
        found = self._apply(_at(target, "cpu"), _at(source, "cpu"), None if base is None else _at(base, "cpu"))
        home = next((tensor.device for tensor in source.values()), "cpu")
        return dataclasses.replace(
            found, weights=_at(found.weights, home), base=None if found.base is None else _at(found.base, home)
        )

    def _apply(self, target: AttentionWeights, source: AttentionWeights, base: AttentionWeights | None) -> Aligned:
        rotated = source if self.basis is None else self.basis.apply(source)
        moved_base = base if base is None or self.basis is None else self.basis.apply(base)
        if not source:  # noise of which nothing is merged
            return Aligned(rotated, moved_base)
        projected = self.basis is not None and self._differs(target, source)
        if projected or self.pair:
            check_ungrouped(target, "the target")
            check_ungrouped(source, "the source")
        if projected:
            return self._projected(target, source, rotated, moved_base)
        if not self.pair:
            return Aligned(rotated, moved_base)
        heads = self.heads[0]
        assert heads is not None
        weights, orders = align_heads(target, rotated, heads, self.projections, self._alike)
        if moved_base is not None:
            moved_base = {
                slot: permute_heads(tensor, orders[slot.layer]) if slot.projection in self.projections else tensor
                for slot, tensor in moved_base.items()
            }
        facts = {"kind": "heads", "heads": heads, **self._alike_facts(), "orders": list(orders.values())}
        return Aligned(weights, moved_base, {"align": facts})

    @property
    def _alike(self) -> Mapping[int, torch.Tensor] | None:
        return None if self.paired.alike is None else self.paired.alike.values

    def _alike_facts(self) -> dict[str, Any]:
        return {} if self.paired.alike is None else dict(self.paired.alike.facts)

    def _differs(self, target: AttentionWeights, source: AttentionWeights) -> bool:
        """Return whether the shapes, or the numbers of heads, of two models differ."""
        same = all(tensor.shape == target[slot].shape for slot, tensor in source.items() if slot in target)
        return not same or (None not in self.heads and self.heads[0] != self.heads[1])

    def _projected(
        self,
        target: AttentionWeights,
        source: AttentionWeights,
        rotated: AttentionWeights,
        base: AttentionWeights | None,
    ) -> Aligned:
        """Return a source of other shapes in the target's, and how much of its norm is kept."""
        ours, theirs = self.heads
        if ours is None or theirs is None:
            silent = "target" if ours is None else "source"
            raise UsageError(
                f"align basis: the {silent} does not say how many heads it has, by which its rows are divided."
            )
        placements = place_heads(target, rotated, (ours, theirs), self.projections, self.pair, self._alike)
        placed = _placed(rotated, placements, self.projections)
        kept = {slot: _norm(tensor) / max(_norm(source[slot]), 1e-30) for slot, tensor in placed.items()}
        first = next(iter(placed))
        facts = {
            "from": list(source[first].shape),
            "to": list(target[first].shape),
            "heads": [theirs, ours],
            "orders": [list(placement.order) for placement in placements.values()],
            "paired": self.pair,
        } | self._alike_facts()
        scaled = base and _scaled(_placed(base, placements, self.projections), placements)
        return Aligned(_scaled(placed, placements), scaled, {"projection": facts}, kept)


def _at(weights: AttentionWeights, device: str | torch.device) -> AttentionWeights:
    return {slot: tensor.to(device) for slot, tensor in weights.items()}


def _placed(
    weights: AttentionWeights, placements: Mapping[int, Placement], projections: Sequence[str]
) -> AttentionWeights:
    """Return what is merged, with the target's heads; other slots of the source do not fit and are left out."""
    return {
        slot: placements[slot.layer].apply(tensor, slot.projection)
        for slot, tensor in weights.items()
        if slot.layer in placements and slot.projection in projections
    }


def _scaled(weights: AttentionWeights, placements: Mapping[int, Placement]) -> AttentionWeights:
    return {slot: tensor * placements[slot.layer].scale(slot.projection) for slot, tensor in weights.items()}


def _norm(tensor: torch.Tensor) -> float:
    return torch.linalg.vector_norm(tensor.float()).item()
