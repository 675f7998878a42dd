"""The device of ``--device``, checked before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from s3prl_ext.errors import UsageError, nearest

DEVICE_KINDS = ("cpu", "cuda", "mps", "xpu")
CPU_INFO = Path("/proc/cpuinfo")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
WRONG = 0.5  # error of a convolution of unit variance; rounding to bf16 makes some 0.03
UNITS = {"bf16": {"avx512_bf16", "amx_bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}  # of x86 processors


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


def slow_precision(device: str, amp: str | None) -> str | None:
    """Return a sentence where mixed precision makes a run many times slower: on a processor that has to emulate it.

    Args:
        device: of the run.
        amp: ``runner.amp``.

    Returns:
        None elsewhere, and where the system does not say what its processor can.
    """
    if amp is None or torch.device(device).type != "cpu":
        return None
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    if flags is None or flags & UNITS[amp]:
        return None
    slower = "15 to 26" if amp == "bf16" else "30 to 80"
    return (
        f"runner.amp: {amp} on this processor, which has no {amp} units ({' or '.join(sorted(UNITS[amp]))}), makes a "
        f"step about {slower} times slower than without it: leave amp out, or train on a GPU"
    )


def check_convolutions(model: nn.Module, device: str, amp: str | None) -> None:
    """Refuse mixed precision on a processor that convolves wrongly in it.

    The convolutions of oneDNN 3.x in bfloat16 on processors with AMX give wrong values for some kernels with few
    channels in a group (seen with 4 and 8, kernel 16, torch 2.13). Each shape of the model is tried on noise.

    Args:
        model: the upstream.
        device: of the run.
        amp: ``runner.amp``.

    Raises:
        UsageError: with the name of the convolution.
    """
    if amp is None or torch.device(device).type != "cpu":
        return
    tried = set()
    for name, module in model.named_modules():
        groups = getattr(module, "groups", 1)
        if not isinstance(groups, int) or groups < 2:
            continue
        weight = getattr(module, "weight_v", None) if hasattr(module, "weight_v") else getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 3:
            continue
        shape = (*weight.shape, groups)
        if shape not in tried and convolution_error(shape, DTYPES[amp]) > WRONG:
            raise UsageError(
                f"runner.amp: {amp}: the convolution '{name}' of the upstream ({weight.shape[1]} channels in a group, "
                f"kernel {weight.shape[2]}) gives wrong values in {amp} on this processor: leave amp out, or train "
                "on a GPU."
            )
        tried.add(shape)


def convolution_error(shape: tuple[int, int, int, int], dtype: torch.dtype) -> float:
    """Return the largest error of a convolution of noise in a dtype: out, channels in a group, kernel, groups."""
    out, channels, kernel, groups = shape
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(2, channels * groups, 3 * kernel, generator=generator)
    weight = torch.randn(out, channels, kernel, generator=generator) / (channels * kernel) ** 0.5
    exact = F.conv1d(signal, weight, padding=kernel // 2, groups=groups)
    found = F.conv1d(signal.to(dtype), weight.to(dtype), padding=kernel // 2, groups=groups)
    return float((found.float() - exact).abs().max())
