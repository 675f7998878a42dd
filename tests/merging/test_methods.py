"""Slerp, task arithmetic, TIES and DARE on tensors: equal to mergekit's arrays, identities, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ext.attention.layouts import Slot
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import parse_config
from s3prl_ext.merging.interpolation import interpolate
from s3prl_ext.merging.methods import MERGE_METHODS, MethodConfig, Part, parse_method
from s3prl_ext.merging.names import DELTA_METHODS, METHOD_NAMES
from s3prl_ext.merging.resolution import resolve_lambdas
from s3prl_ext.merging.slerp import slerp
from s3prl_ext.merging.task_vectors import fisher_mean, task_arithmetic, ties, trim

SLOT = Slot(0, "q_proj")


@pytest.fixture(scope="module")
def golden():
    """Matrices [12, 8] and what mergekit 0.1.5 makes of them."""
    arrays = np.load(Path(__file__).parent.parent / "golden" / "mergekit_methods.npz")
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_methods_equal_mergekit(golden):
    target, deltas = golden["target"], list(golden["sources"] - golden["base"])
    close(slerp(target, golden["sources"][0], 0.3), golden["slerp_03"])
    close(slerp(target, golden["near"], 0.3), golden["slerp_near"])  # nearly collinear: the straight line
    close(task_arithmetic(target, deltas, [0.2, 0.5, 0.1]), golden["task_arithmetic"])
    close(ties(target, deltas, [0.4] * 3, 0.3), golden["ties"])
    for index, delta in enumerate(deltas):
        close(trim(delta, 0.3), golden[f"trim_{index}"])


def test_slerp_keeps_to_the_arc_and_its_ends_are_exact():
    target, source = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for weight in (0.1, 0.5, 0.9):
        expected = [math.cos(weight * math.pi / 2), math.sin(weight * math.pi / 2)]
        close(slerp(target, source, weight), torch.tensor([expected]))
    assert slerp(target, source, 0.0) is target and torch.equal(slerp(target, source, 1.0), source)
    for other in (torch.zeros(1, 2), -target, 3 * target):  # no arc, or none that is the shortest
        assert torch.equal(slerp(target, other, 0.25), interpolate(target, other, 0.25))


def test_the_fisher_mean_is_the_minimum_of_the_tasks_quadratic_losses():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(3, 4, generator=generator)
    deltas = [torch.randn(3, 4, generator=generator) for _ in range(3)]
    fishers = [torch.rand(3, 4, generator=generator) * 10.0 ** (3 * n - 20) for n in range(3)]
    weights = [0.5, 0.2, 0.9]
    merged = fisher_mean(target, deltas, weights, fishers)

    def loss(w):  # of task j around its weights, with curvature F_j
        terms = zip(weights, fishers, deltas, strict=True)
        return sum(one * (f.double() * (w - target.double() - d.double()) ** 2).sum() for one, f, d in terms)

    point = merged.double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    scale = sum(one * f.double() * d.double().abs() for one, f, d in zip(weights, fishers, deltas, strict=True))
    assert (gradient.abs() / scale).max() < 1e-5
    equal = fisher_mean(target, deltas, weights, [torch.full((3, 4), 7e-12)] * 3)
    mean = target + sum(one * d for one, d in zip(weights, deltas, strict=True)) / 1.6
    torch.testing.assert_close(equal, mean)
    for unknown in ([torch.zeros(3, 4)] * 3, [None, *fishers[1:]]):
        torch.testing.assert_close(fisher_mean(target, deltas, weights, unknown), mean)
    torch.testing.assert_close(fisher_mean(target, deltas[:1], [0.3], fishers[:1]), target + deltas[0])
    one_sided = fisher_mean(target, deltas[:2], [1.0, 1.0], [fishers[0], torch.zeros(3, 4)])
    torch.testing.assert_close(one_sided, target + deltas[0])


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare"])
def test_a_source_that_equals_its_base_changes_nothing(name, golden):
    parts = [Part(golden["base"], 0.7, golden["base"].clone())]
    assert torch.equal(parse_method(name).combine(golden["target"], parts, SLOT), golden["target"])


def test_task_vectors_on_the_target_itself_are_interpolation(golden):
    """With the target as the base W_t + lambda (W_s - W_t) is Eq. 1; with all entries kept, TIES and DARE are that too."""
    target, source = golden["target"], golden["sources"][1]
    expected = interpolate(target, source, 0.3)
    for method in (
        MethodConfig("task_arithmetic"), MethodConfig("ties", density=1.0), MethodConfig("dare", density=1.0, seed=0)
    ):  # fmt: skip
        close(method.combine(target, [Part(source, 0.3, target)], SLOT), expected)


def test_sources_of_opposite_signs_cancel_in_a_sum_but_not_in_ties():
    target, deltas = torch.zeros(1, 2), [torch.tensor([[4.0, 1.0]]), torch.tensor([[-3.0, 1.0]])]
    assert torch.equal(task_arithmetic(target, deltas, [1.0, 1.0]), torch.tensor([[1.0, 2.0]]))
    assert torch.equal(ties(target, deltas, [1.0, 1.0], 1.0), torch.tensor([[4.0, 1.0]]))
    assert torch.equal(ties(target, deltas, [0.1, 1.0], 1.0), torch.tensor([[-3.0, 0.55]]))  # lambda elects too


def test_trim_keeps_the_earlier_of_equal_magnitudes_and_at_least_one():
    delta = torch.tensor([[1.0, -2.0], [2.0, 2.0]])
    assert torch.equal(trim(delta, 0.5), torch.tensor([[0.0, -2.0], [2.0, 0.0]]))
    assert torch.equal(trim(delta, 1e-9), torch.tensor([[0.0, -2.0], [0.0, 0.0]]))


def test_dare_keeps_the_mean_and_draws_by_seed_source_and_slot():
    base, source, target = torch.zeros(200, 200), torch.ones(200, 200), torch.zeros(200, 200)

    def merged(seed=0, slot=SLOT, number=0):
        return MethodConfig("dare", 0.1, seed).combine(target, [Part(source, 1.0, base, number)], slot)

    first = merged()
    assert set(first.unique().tolist()) == {0.0, 10.0}
    assert first.mean().item() == pytest.approx(1.0, abs=0.1)
    torch.manual_seed(5)
    assert torch.equal(first, merged())
    for other in (merged(seed=1), merged(slot=Slot(1, "q_proj")), merged(number=1)):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_taken_in_float32_or_wider_and_inputs_stay(dtype, golden):
    target, source, base = (golden[key].to(dtype) for key in ("target", "near", "base"))
    copies = [tensor.clone() for tensor in (target, source, base)]
    wide = torch.promote_types(dtype, torch.float32)
    inputs = torch.randn(2, 30, target.shape[1], generator=torch.Generator().manual_seed(0))
    moments = tuple(inputs.transpose(1, 2) @ inputs)
    for name, row in MERGE_METHODS.items():
        method = parse_method({"name": name, "pairs": "pairs.tsv"} if row.by_inputs else name)
        result = method.combine(target, [Part(source, 0.4, base, moments=moments)], SLOT)
        exact = method.combine(target.to(wide), [Part(source.to(wide), 0.4, base.to(wide), moments=moments)], SLOT)
        assert result.dtype == dtype and torch.equal(result, exact.to(dtype))
    assert all(torch.equal(*both) for both in zip(copies, (target, source, base), strict=True))


def test_the_names_that_flags_know_are_those_of_the_table():
    assert tuple(MERGE_METHODS) == METHOD_NAMES and set(DELTA_METHODS) <= set(MERGE_METHODS)


def test_defaults_are_filled_in():
    assert parse_method("ties") == MethodConfig("ties", density=0.2)
    assert parse_method({"name": "dare", "seed": 3}) == MethodConfig("dare", density=0.1, seed=3)


MERGE = {"target": {"model": "speech"}, "source": {"model": "text"}, "lambda": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slurp"}, "method: unknown name 'slurp'; did you mean 'slerp'\\?"),
        ({"method": 3}, "method must be one of linear, slerp, .*, or a mapping with name, got 3"),
        ({"method": {"name": "slerp", "density": 0.1}}, "slerp takes no option, but density is given"),
        ({"method": {"name": "ties", "seed": 1}}, "ties takes density only, but seed is given"),
        ({"method": {"name": "ties", "density": 0}}, r"method.density must be in \(0, 1\], got 0"),
        ({"method": "ties"}, r"needs a base for method ties: name the model .* base: \{model: FOLDER\}"),
        ({"method": "fisher"}, "fisher weighs what tuned tasks changed by their own data.*for s3prl-ext merge --deltas"),
        ({"base": {"model": "x"}}, "base is for the methods task_arithmetic, ties, dare, but method is linear"),
        ({"base": {"model": "x", "package": "y"}, "method": "ties"}, "base must name exactly one of model and package"),
        ({"base": {"model": "x"}, "method": "dare", "noise": "target"}, "noise replaces .* but dare merges what training"),
        (
            {"method": "task_arithmetic", "base": {"model": "x"}, "learnable": True},
            "learnable takes method linear or slerp, but it is task_arithmetic: choose one, or fix lambda",
        ),
        (
            {"method": {"name": "regmean", "pairs": "p.tsv"}, "lambda": 1.5, "allow_extrapolation": True},
            "method regmean takes lambda between 0 and 1, and no larger sum of them: leave allow_extrapolation out",
        ),
        ({"align": "layers"}, "align: unknown kind 'layers'. Known: basis, heads"),
        ({"align": {"kind": "heads", "heads": 0}}, "align.heads must be a whole number"),
        ({"lambda": {"first": 0.1, "decay": 1.2}}, r"lambda.decay must be in \(0, 1\], got 1.2"),
        ({"lambda": {"decay": 0.5}}, "lambda must be a number, a list, .*first: 0.2, decay: 0.9"),
        (
            {"method": "slerp", "source": None, "sources": [{"model": "a"}, {"model": "b"}]},
            "method slerp takes one source, but there are 2",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_config(MERGE | changes, "my.yaml")
    assert "\n" not in str(caught.value)


def test_lambda_decays_with_depth_and_may_differ_by_projection():
    config = parse_config(MERGE | {"lambda": {"default": {"first": 0.4, "decay": 0.5}, "v_proj": 0.1}}, "my.yaml")
    (lambdas,) = resolve_lambdas(config, 3)
    assert lambdas == {"q_proj": [0.4, 0.2, 0.1], "k_proj": [0.4, 0.2, 0.1], "v_proj": [0.1] * 3}


def test_only_interpolation_bounds_the_sum_of_lambdas():
    sources = [{"model": name, "lambda": 0.8, "base": {"model": "base"}} for name in ("a", "b")]
    resolve_lambdas(parse_config({"target": MERGE["target"], "sources": sources, "method": "ties"}, "my.yaml"), 2)
    plain = [{"model": name, "lambda": 0.8} for name in ("a", "b")]
    with pytest.raises(UsageError, match="adds up to 1.6"):
        resolve_lambdas(parse_config({"target": MERGE["target"], "sources": plain}, "my.yaml"), 2)
