"""The trained lambdas of a model (L-MAM): one parameter, what shares its entries, what keeps them within [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.interpolation import SUM_TOLERANCE
from s3prl_ext.merging.learnable_config import LearnableConfig

ROUNDING = 1e-6  # by how much the sum of lambdas in float32 may exceed 1


@dataclass(frozen=True)
class FirstLambdas:
    """Where the lambdas of one source begin.

    Attributes:
        layers: layers of the target that it is merged into, ascending.
        values: projection -> one value for each of `layers`.
        name: what to call the source.
    """

    layers: Sequence[int]
    values: Mapping[str, Sequence[float]]
    name: str = ""


class LearnableLambda(nn.Module):
    """All lambdas of a model, in one parameter `values` of shape [layers, projections, heads].

    A dimension that shares its lambda has size 1. Of several sources the shape is [sources, layers, projections, heads]
    over all layers and projections that any of them is merged into; entries of one that is not act on nothing. What
    shares a lambda shares the constraint: its sum over the sources counts all that are in the layer, projection or
    head, or anywhere (``global``). With the constraint ``sigmoid`` the parameter holds logits.

    Args:
        sources: at least one.
        heads: attention heads of each layer.
        config: granularity and constraint.

    Raises:
        UsageError: the first values differ where they share one lambda, or are outside what the constraint allows.
    """

    present: Tensor

    def __init__(self, sources: Sequence[FirstLambdas], heads: int, config: LearnableConfig) -> None:
        super().__init__()
        self.config = config
        self.sources = tuple(source.name for source in sources)
        self.layers = tuple(sorted({layer for source in sources for layer in source.layers}))
        self.projections = tuple(p for p in PROJECTIONS if any(p in source.values for source in sources))
        self._slots = [{Slot(layer, p) for layer in source.layers for p in source.values} for source in sources]
        for source in sources:
            _check_shared(source, config)
        shape = self._place(Slot(max(self.layers), self.projections[-1]))
        rows, columns = (size + 1 for size in shape)
        values = torch.zeros(len(sources), rows, columns, 1, dtype=torch.float64)
        present = torch.zeros(values.shape, dtype=torch.bool)
        for number, source in enumerate(sources):
            for projection, column in source.values.items():
                for layer, value in zip(source.layers, column, strict=True):
                    place = (number, *self._place(Slot(layer, projection)))
                    values[place], present[place] = value, True
        _check_range(values, present, config)
        if config.constraint == "sigmoid":
            values = _logits(values, present)
        if config.granularity == "head":
            values, present = (each.expand(-1, -1, -1, heads) for each in (values, present))
        values = values if len(sources) > 1 else values[0]
        self.values = nn.Parameter(values.to(torch.float32).clone(memory_format=torch.contiguous_format))
        self.register_buffer("present", present.contiguous(), persistent=False)

    def _place(self, slot: Slot) -> tuple[int, int]:
        """Return row and column of the lambdas of a matrix."""
        row = 0 if self.config.granularity == "global" else self.layers.index(slot.layer)
        return row, self.projections.index(slot.projection) if self.config.granularity == "projection" else 0

    def sources_of(self, slot: Slot) -> list[int]:
        """Return the numbers of the sources that are merged into a matrix."""
        return [number for number, slots in enumerate(self._slots) if slot in slots]

    def forward(self, slot: Slot) -> Tensor:
        """Return lambda of each source that is merged into a matrix: [sources, 1], or [sources, heads]."""
        row, column = self._place(slot)
        lambdas = self._constrained(self._grid(self.values)[:, row, column], self.present[:, row, column])
        return lambdas[self.sources_of(slot)] if len(self._slots) > 1 else lambdas

    def _grid(self, values: Tensor) -> Tensor:
        """Return values as [sources, layers, projections, heads]."""
        return values if values.dim() == 4 else values.unsqueeze(0)

    def _constrained(self, values: Tensor, present: Tensor) -> Tensor:
        """Return lambda from what the parameter holds, [sources, ...]."""
        if self.config.constraint != "sigmoid":
            return values
        if len(self._slots) == 1:
            return values.sigmoid()
        of_target = values.new_zeros(1, *values.shape[1:])
        return torch.cat([of_target, values.masked_fill(~present, -math.inf)]).softmax(dim=0)[1:]

    @torch.no_grad()
    def project(self) -> None:
        """Put lambda back into [0, 1] where the constraint is ``clamp``; call it after each optimizer step."""
        if self.config.constraint != "clamp":
            return
        if len(self._slots) == 1:
            self.values.clamp_(0.0, 1.0)
        else:
            self.values.copy_(nearest_shares(self.values))

    @torch.no_grad()
    def current(self) -> Tensor:
        """Return a copy of all lambdas as they act now, flat, on the CPU, in the order of :meth:`names`."""
        return self._acting()[self.present].to("cpu", torch.float32, copy=True)

    def _acting(self) -> Tensor:
        return self._constrained(self._grid(self.values.detach()), self.present)

    @torch.no_grad()
    def outside(self) -> list[str]:
        """Return the names of lambdas outside [0, 1], or whose sum over the sources is above 1."""
        lambdas = self._acting()
        wrong = ~((lambdas >= 0.0) & (lambdas <= 1.0))
        if len(self._slots) > 1:
            wrong |= lambdas.sum(dim=0) > 1.0 + ROUNDING
        return [name for name, out in zip(self.names(), wrong[self.present].tolist(), strict=True) if out]

    def names(self) -> list[str]:
        """Return a name for each lambda: ``layer_03``, ``layer_03/q_proj``, ``layer_03/head_11`` or ``global``.

        Of several sources it begins with the number of the source: ``source_0/layer_03``.
        """
        found = []
        for number, row, column, head in self.present.nonzero().tolist():
            parts = [f"source_{number}"] if len(self._slots) > 1 else []
            parts += ["global"] if self.config.granularity == "global" else [f"layer_{self.layers[row]:02d}"]
            parts += [self.projections[column]] if self.config.granularity == "projection" else []
            parts += [f"head_{head:02d}"] if self.config.granularity == "head" else []
            found.append("/".join(parts))
        return found


def nearest_shares(values: Tensor) -> Tensor:
    """Return the nearest point with entries >= 0 and a sum of at most 1 along the first dimension.

    Where the positive parts add up to no more than 1 it is these. Otherwise it is the nearest point of the simplex,
    max(v - t, 0) with the one t that makes the sum 1 (Duchi et al., 2008, Fig. 1).

    Args:
        values: [sources, ...].
    """
    ordered = values.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(values) + 1, device=values.device).view(-1, *[1] * (values.dim() - 1))
    thresholds = (ordered.cumsum(dim=0) - 1.0) / counts
    last = (ordered > thresholds).sum(dim=0, keepdim=True).sub(1).clamp(min=0)  # none of NaN
    on_simplex = (values - thresholds.gather(0, last)).clamp(min=0.0)
    positive = values.clamp(min=0.0)
    return torch.where(positive.sum(dim=0) <= 1.0, positive, on_simplex)


def _check_shared(source: FirstLambdas, config: LearnableConfig) -> None:
    """Refuse first values of a source that differ where they share one lambda."""
    of = f" of source {source.name}" if source.name else ""
    rows = list(zip(*source.values.values(), strict=True))  # one for each layer
    if config.granularity in ("layer", "head", "global") and any(len(set(row)) > 1 for row in rows):
        raise UsageError(
            f"lambda{of} differs between projections, which share it with granularity {config.granularity}: give one "
            "value, or set learnable: {granularity: projection}."
        )
    if config.granularity == "global" and len(set(rows)) > 1:
        raise UsageError(
            f"lambda{of} differs between layers, which share it with granularity global: give one value, and for a set "
            "of layers learnable: {granularity: global, layers: merged}."
        )


def _check_range(values: Tensor, present: Tensor, config: LearnableConfig) -> None:
    """Refuse first values that the constraint does not allow.

    Args:
        values: [sources, layers, projections, 1], 0 where a source is not merged.
        present: where it is.
    """
    low, high = values[present].min().item(), values[present].max().item()
    total = values.sum(dim=0).max().item()
    if config.constraint == "clamp" and not (low >= 0.0 and high <= 1.0):
        raise UsageError(f"constraint clamp keeps lambda in [0, 1], but its first values are in [{low:g}, {high:g}].")
    if config.constraint == "clamp" and total > 1.0 + SUM_TOLERANCE:
        raise UsageError(
            f"constraint clamp keeps the sum of lambda over the sources in [0, 1], but first values that share a "
            f"lambda add up to {total:g}: lower them."
        )
    if config.constraint == "sigmoid" and not (low > 0.0 and max(high, total) < 1.0):
        summed = f", with sums of up to {total:g} over the sources" if len(values) > 1 else ""
        raise UsageError(
            f"constraint sigmoid needs a first lambda above 0 and below 1, but its first values are in [{low:g}, "
            f"{high:g}]{summed}: choose another value, or constraint raw; "
            f"for a set of layers also learnable: {{constraint: sigmoid, layers: merged}}."
        )


def _logits(values: Tensor, present: Tensor) -> Tensor:
    """Return z with exp z_s / (1 + sum of exp z) = lambda_s; 0 where a source is not merged."""
    if len(values) == 1:
        return values.logit()
    return (values.log() - (1.0 - values.sum(dim=0)).log()).masked_fill(~present, 0.0)
