"""Section ``learnable`` of a merge: what shares one lambda, and what keeps it between target and sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from s3prl_ext.errors import UsageError
from s3prl_ext.settings import choice, load

GRANULARITIES = ("layer", "projection", "head", "global")
CONSTRAINTS = ("raw", "clamp", "sigmoid")
SCOPES = ("all", "merged")
DEFAULT_LAMBDA = 0.1  # Adam moves a scalar by about lr a step, so the initial value matters


@dataclass(frozen=True)
class LearnableConfig:
    """Section ``learnable`` of a merge.

    Attributes:
        granularity: what shares one lambda of a source: the q, k and v of a ``layer``, one ``projection`` of a layer, a
            ``head`` of a layer (its rows of q, k and v), or everything (``global``).
        constraint: ``raw`` may leave [0, 1] in training; ``clamp`` is put back into it after each optimizer step, of
            several sources to the nearest point with lambda >= 0 and a sum of at most 1; ``sigmoid`` trains logits z,
            lambda_s = exp z_s / (1 + sum of exp z) over the sources, the target's logit being 0.
        layers: which layers have a lambda: ``all``, those outside the merge's ``layers`` beginning at 0 (Eq. 3 has one
            for every layer), or only the ``merged`` ones.
    """

    granularity: Annotated[str, choice(*GRANULARITIES)] = "layer"
    constraint: Annotated[str, choice(*CONSTRAINTS)] = "raw"
    layers: Annotated[str, choice(*SCOPES)] = "all"


def parse_learnable(value: Any, where: str = "learnable") -> LearnableConfig | None:
    """Return the section ``learnable``, None where it is false.

    Args:
        value: true, false, or a mapping such as ``{granularity: head, constraint: sigmoid}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    if isinstance(value, bool):
        return LearnableConfig() if value else None
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be true, false or a mapping such as {{granularity: layer}}, got {value!r}.")
    return load(LearnableConfig, value, where)
