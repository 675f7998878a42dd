"""Using what was trained: predictions for audio of any kind.

::

    from s3prl_ext.prediction import load

    model = load("exp/ks")
    print(model.predict("clip.wav"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s3prl_ext.prediction.model import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """Import torch when the model is asked for: the flags of the command need only the names of formats."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    return getattr(importlib.import_module("s3prl_ext.prediction.model"), name)
