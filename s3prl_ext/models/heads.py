"""How many attention heads the modules of a built model say that they have."""

from __future__ import annotations

from torch import nn


def heads_of(module: nn.Module) -> int | None:
    """Return the number of attention heads of a module, None for one that does not say it."""
    heads = getattr(module, "num_heads", getattr(module, "num_attention_heads", None))
    return heads if isinstance(heads, int) else None


def head_counts(model: nn.Module) -> dict[str, int]:
    """Return the number of attention heads by the name of the module that says so."""
    counts = {name: heads_of(module) for name, module in model.named_modules()}
    return {name: count for name, count in counts.items() if count is not None}


def module_heads(model: nn.Module) -> int | None:
    """Return the number of attention heads of the first module that says it, None where none does."""
    return next(iter(head_counts(model).values()), None)
