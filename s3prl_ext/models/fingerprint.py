"""SHA-256 of all that decides the outputs of a built model: its weights, and the settings that are not in them."""

from __future__ import annotations

import hashlib
import json
import types
from typing import Any

from torch import nn

from s3prl_ext.model_settings import OF_STORAGE
from s3prl_ext.models.hashing import state_sha256

NUMBERS = (bool, int, float)


def model_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of weights and settings, the same for every copy of a model that is built from its files."""
    return hashlib.sha256(f"{state_sha256(module.state_dict())}|{settings_sha256(module)}".encode()).hexdigest()


def module_sha256(module: nn.Module) -> str:
    """Return :func:`model_sha256` together with what the parts of a model hold apart from their weights.

    That is the type of each part, its numbers and tuples of numbers, such as heads and strides, and its functions, such
    as an activation: also of models that have no configuration, or were changed after they were built.
    """
    digest = hashlib.sha256(model_sha256(module).encode())
    for name, part in module.named_modules():
        facts = {key: fact for key, value in sorted(vars(part).items()) if (fact := _fact(key, value)) is not None}
        digest.update(f"{name}|{type(part).__name__}|{facts}|".encode())
    return digest.hexdigest()


def _fact(key: str, value: Any) -> Any:
    """Return a number, tuple of numbers or name of a function among the attributes of a module, None for others."""
    if key == "training":
        return None
    if isinstance(value, NUMBERS) or (isinstance(value, tuple) and all(isinstance(item, NUMBERS) for item in value)):
        return tuple(value) if isinstance(value, tuple) else value
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return None


def settings_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of what decides the outputs of a model apart from its weights, as the files next to them say.

    That is the preprocessing of transformers and of s3prl, the configuration of the model and of its parts, and what a
    task names in a method ``decisive()``, such as vocabulary and generation settings of its head.
    """
    extractor, task = getattr(module, "extracter", None), getattr(module, "task_cfg", None)
    decisive: Any = getattr(module, "decisive", None)
    facts = {
        "configs": [_without_names(config.to_diff_dict()) for config in configurations(module)],
        "preprocessing": None if extractor is None else _without_names(extractor.to_dict()),
        "task": None if task is None else str(task),
        "head": decisive() if callable(decisive) else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def configurations(module: nn.Module) -> list[Any]:
    """Return the configurations of transformers that a model and its parts have, each once."""
    parts: list[Any] = list(module.modules())
    found = {id(part.config): part.config for part in parts if hasattr(getattr(part, "config", None), "to_diff_dict")}
    return list(found.values())


def _without_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without what only says where they come from and how they were stored."""
    return {key: value for key, value in settings.items() if not key.startswith("_") and key not in OF_STORAGE}
