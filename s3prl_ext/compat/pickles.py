"""Files of foreign models: pickled Python code in them is not run, even where s3prl asks torch for it."""

from __future__ import annotations

import os
import pickle
from types import ModuleType
from typing import Any

from s3prl_ext.errors import DataError

SWITCH = "S3PRL_EXT_TRUST"

# The loaders of mockingjay, TERA, Audio ALBERT and distiller, which pass weights_only=False.
MODULES = ("s3prl.upstream.mockingjay.builder", "s3prl.upstream.distiller.builder")


class CarefulTorch(ModuleType):
    """torch as one module sees it, with a ``load`` that runs no code of a file unless ``S3PRL_EXT_TRUST=1``."""

    def __init__(self, torch: ModuleType) -> None:
        super().__init__(torch.__name__, torch.__doc__)
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def load(self, path: Any, *args: Any, **options: Any) -> Any:
        """Do what ``torch.load`` does, with ``weights_only=True``.

        Raises:
            DataError: the file holds objects that only code of its own can rebuild.
        """
        options["weights_only"] = os.environ.get(SWITCH) != "1"
        try:
            return self._torch.load(path, *args, **options)
        except pickle.UnpicklingError as error:
            held = " ".join(str(error).split("Please file")[0].split())[:200]
            raise DataError(
                f"{path} holds pickled Python code, which is not run ({held}); "
                f"where you trust its author, set {SWITCH}=1."
            ) from error


def is_trusting(module: ModuleType) -> bool:
    """Tell whether a module uses torch itself."""
    return not isinstance(module.torch, CarefulTorch)


def distrust(module: ModuleType) -> None:
    """Give a module a torch that runs no code of files."""
    module.torch = CarefulTorch(module.torch)
