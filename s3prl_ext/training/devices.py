"""The device of ``--device``, checked before a model is loaded."""

from __future__ import annotations

import torch

from s3prl_ext.errors import UsageError, nearest

DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu")


def check_device(name: str) -> None:
    """Raise UsageError where torch cannot use a device here.

    Args:
        name: such as ``cpu``, ``cuda`` or ``cuda:1``.
    """
    kind, _, number = name.partition(":")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta":
        hint = "; did you mean 'cuda'?" if kind == "gpu" else nearest(kind, DEVICE_KINDS)
        raise UsageError(f"--device {name} is not a device of torch{hint} Write cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: torch finds no CUDA device here; leave --device out to run on the CPU (s3prl-ext doctor "
            "shows what torch finds)."
        )
    if device.type == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, counted from cuda:0.")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        raise UsageError(f"--device {name} cannot be used here ({reason}): try cpu.") from error
