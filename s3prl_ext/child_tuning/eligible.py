"""Which weights of an upstream may join a child network.

By default the encoder layers, the encoder's layer norm and the layer norm before the feature projection:
85,057,024 weights for wav2vec 2.0 and HuBERT base, in s3prl's naming as in transformers' (AD-TUNING, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.models.architectures import find_architecture, has_module


def eligible_names(names: Sequence[str], patterns: Iterable[str] | None = None) -> list[str]:
    """Return those of `names` that may join a child network, in their own order.

    Args:
        names: parameter names of an upstream.
        patterns: shell wildcards over full names; None selects by the table of architectures.

    Raises:
        UsageError: a pattern matches nothing, or no architecture with eligible weights fits.
    """
    if patterns is not None:
        chosen: set[str] = set()
        for pattern in patterns:
            hits = [name for name in names if fnmatchcase(name, pattern)]
            if not hits:
                raise UsageError(
                    f"tuning.eligible: the pattern '{pattern}' matches no weight of the upstream; "
                    f"its weights are named like {', '.join(list(names)[:5]) or '(it has none)'}."
                )
            chosen.update(hits)
        return [name for name in names if name in chosen]
    row = find_architecture(names)
    if row is not None and row.eligible is not None:
        modules = (row.layers, *row.eligible)
        return [name for name in names if any(has_module([name], module) for module in modules)]
    raise UsageError(
        "the upstream has no encoder layers that a child network could be chosen from "
        f"(its weights: {', '.join(list(names)[:5]) or 'none'}); use a transformer upstream or give tuning.eligible."
    )


def eligible_parameters(
    model: torch.nn.Module, patterns: Iterable[str] | None = None
) -> Mapping[str, torch.nn.Parameter]:
    """Return the eligible parameters of `model` by name, in the model's own order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in eligible_names(list(parameters), patterns)}
