"""Leave the train and evaluation modes of models as they were found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(models: Iterable[nn.Module]) -> Iterator[None]:
    """Give each module of `models` its own mode back afterwards, whatever happens inside."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
