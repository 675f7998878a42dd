"""The formula of MAM, Eq. 1, on single tensors."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.merging.interpolation import interpolate, relative_change, spread
from tests.support import reference


def pair(dtype=torch.float32, source_dtype=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(6, 5, generator=generator).to(dtype)
    return target, (3.0 * torch.randn(6, 5, generator=generator)).to(source_dtype or dtype)


@pytest.mark.parametrize("weight", [0.05, 0.1, 0.25, 0.5, 0.75, 0.95, -0.2, 1.3])
def test_equals_the_formula(weight):
    target, source = pair()
    expected = reference.interpolate(target, source, weight).float()
    torch.testing.assert_close(interpolate(target, source, weight), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ends_are_bitwise_in_every_dtype(dtype):
    target, source = pair(dtype)
    target[0, 0], source[0, 0], source[1, 1] = -0.0, -0.0, 1e-30
    assert interpolate(target, source, 0.0) is target
    result = interpolate(target, source, 1.0)
    assert result.dtype == dtype and result is not source
    assert torch.equal(result.view(torch.uint8), source.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_are_combined_in_float32(dtype):
    target, source = pair(dtype, torch.float32)
    result = interpolate(target, source, 0.3)
    assert result.dtype == dtype
    # one rounding only, that of the final cast
    expected = torch.lerp(target.float(), source, 0.3).to(dtype)
    assert torch.equal(result, expected)


def test_inputs_stay_unchanged():
    target, source = pair()
    before = target.clone(), source.clone()
    for weight in (0.0, 0.4, 1.0):
        interpolate(target, source, weight)
    assert torch.equal(target, before[0]) and torch.equal(source, before[1])


def test_relative_change():
    assert relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == pytest.approx(0.2)
    assert relative_change(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_change(torch.zeros(2), torch.ones(2)) == float("inf")


@pytest.mark.parametrize(
    ("points", "depth", "expected"),
    [
        ([0.0, 1.0], 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ([0.0, 0.4, 0.0], 5, [0.0, 0.2, 0.4, 0.2, 0.0]),
        ([0.1, 0.2, 0.3], 3, [0.1, 0.2, 0.3]),
        ([0.1], 3, [0.1, 0.1, 0.1]),
        ([0.1, 0.9], 1, [0.1]),
        ([0.0, 1.0, 2.0, 3.0], 2, [0.0, 3.0]),
    ],
)
def test_gradients_run_over_depth(points, depth, expected):
    assert spread(points, depth) == pytest.approx(expected)
