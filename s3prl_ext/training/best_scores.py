"""A task's memory of its best scores: by it the task decides under which names a model is saved.

Most of s3prl's tasks keep it in a buffer, which is in their state dict; some in a plain attribute (mosei,
phone_linear, mos_prediction), which is not. Buffers and attributes of the task itself count, not those of its modules.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from s3prl_ext.configs import Record, Section

_PREFIX = "best"  # of the names of plain attributes: best, best_scores


def buffers(expert: nn.Module) -> Record:
    """Return the buffers of a task itself, by name."""
    return dict(expert.named_buffers(recurse=False))


def attributes(expert: nn.Module) -> Record:
    """Return copies of the plain attributes in which a task keeps its best scores, by name."""
    return {name: copy.deepcopy(value) for name, value in vars(expert).items() if name.startswith(_PREFIX)}


def remembered(expert: nn.Module) -> Record:
    """Return both, for :func:`put_back`."""
    return buffers(expert) | attributes(expert)


def put_back(expert: nn.Module, before: Section) -> None:
    """Give a task the best scores that it had when `before` was taken."""
    own = buffers(expert)
    for name, value in before.items():
        setattr(expert, name, value if name in own else copy.deepcopy(value))


def stored(expert: nn.Module) -> Record | None:
    """Return the numbers in the plain attributes as a checkpoint can hold them; None where there are none."""
    found = {name: _numbers(value) for name, value in attributes(expert).items()}
    return {name: value for name, value in found.items() if value is not None} or None


def load(expert: nn.Module, values: Section | None) -> None:
    """Give a task the numbers that :func:`stored` returned when its checkpoint was saved."""
    for name, value in (values or {}).items():
        present = vars(expert).get(name)
        if isinstance(present, dict) and isinstance(value, Mapping):
            present.update(value)
        elif name in vars(expert):
            setattr(expert, name, value)


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        found = {key: _numbers(item) for key, item in value.items() if isinstance(key, (str, int))}
        return {key: item for key, item in found.items() if item is not None} or None
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
