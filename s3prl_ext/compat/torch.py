"""torch: checkpoints that hold command-line arguments, and distributed training without a GPU."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from s3prl_ext.compat.shim import Shim


def _refuses_namespace(module: ModuleType) -> bool:
    serialization = module.serialization
    return hasattr(serialization, "add_safe_globals") and argparse.Namespace not in serialization.get_safe_globals()


def _allow_namespace(module: ModuleType) -> None:
    module.serialization.add_safe_globals([argparse.Namespace])


def _has_no_gpu(module: ModuleType) -> bool:
    # device_count does not initialise CUDA, so forked workers and a later CUDA_VISIBLE_DEVICES still work.
    return sys.modules["torch"].cuda.device_count() == 0


def _ignore_set_device(module: ModuleType) -> None:
    sys.modules["torch"].cuda.set_device = lambda device: None


SHIMS = (
    Shim(
        name="torch-safe-globals",
        module="torch",
        needed=_refuses_namespace,
        apply=_allow_namespace,
        reason="s3prl's checkpoints hold an argparse.Namespace, which torch.load of 2.6 and later refuses by default; "
        "the rest of its check on unpickling stays in force",
        remove_when="s3prl stores its arguments as a plain dict",
    ),
    Shim(
        name="torch-set-device",
        module="s3prl.downstream.runner",
        needed=_has_no_gpu,
        apply=_ignore_set_device,
        reason="with --local_rank s3prl calls torch.cuda.set_device, which fails where there is no GPU",
        remove_when="s3prl asks torch.cuda.is_available() first",
    ),
)
