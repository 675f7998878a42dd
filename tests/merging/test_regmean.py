"""RegMean on tensors: the minimum of its loss, identities, and moments in rotated coordinates."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.basis import Basis, Rotation
from s3prl_ext.merging.methods import Part, parse_method
from s3prl_ext.merging.regmean import InputMoments, regression_mean, regression_mean_of_tasks
from tests.merging.test_head_projection import orthonormal, randn


def moment(seed, width=6, samples=40):
    x = randn(samples, width, seed=seed)
    return x.T @ x / samples


def test_it_is_the_minimum_of_the_mean_squared_change_of_outputs():
    target, sources = randn(4, 6), [randn(4, 6, seed=1), randn(4, 6, seed=2)]
    inputs = [randn(40, 6, seed=3 + n) * (n + 1) for n in range(3)]
    grams = [x.T @ x / 40 for x in inputs]
    merged = regression_mean(target, sources, [0.2, 0.5], [(grams[0], gram) for gram in grams[1:]], 1.0)

    def loss(w):
        models = zip((0.3, 0.2, 0.5), (target, *sources), inputs, strict=True)
        return sum(weight * (x @ (w - own).T).square().sum() / 40 for weight, own, x in models)

    point = merged.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    assert gradient.abs().max() < 1e-10
    assert loss(merged) < loss(0.3 * target + 0.2 * sources[0] + 0.5 * sources[1])


def test_equal_inputs_no_covariance_or_one_model_are_the_interpolation():
    target, source, one, other = randn(4, 6), randn(4, 6, seed=1), moment(2), moment(3)
    linear = torch.lerp(target, source, 0.3)
    torch.testing.assert_close(regression_mean(target, [source], [0.3], [(one, one)], 0.9), linear)
    torch.testing.assert_close(regression_mean(target, [target], [0.3], [(one, other)], 0.9), target)
    assert torch.equal(regression_mean(target, [source], [1.0], [(one, other)], 0.9), source)
    entry = regression_mean(target, [source], [0.3], [(one, other)], 0.0)  # column by column
    weights = 0.3 * torch.diagonal(other) / (0.7 * torch.diagonal(one) + 0.3 * torch.diagonal(other))
    torch.testing.assert_close(entry, target + weights * (source - target))


def test_directions_that_no_token_has_are_interpolated():
    target, source = randn(4, 6), randn(4, 6, seed=1)
    grams = moment(4, samples=2), moment(5, samples=2)
    merged = regression_mean(target, [source], [0.3], [grams], 1.0)
    values, vectors = torch.linalg.eigh(0.7 * grams[0] + 0.3 * grams[1])
    unseen = vectors[:, values < 1e-10]
    assert unseen.shape[1] == 2
    torch.testing.assert_close(merged @ unseen, torch.lerp(target, source, 0.3) @ unseen)
    left = 0.7 * target @ grams[0] + 0.3 * source @ grams[1]
    torch.testing.assert_close(merged @ (0.7 * grams[0] + 0.3 * grams[1]), left)  # the minimum all the same


def test_of_tasks_it_is_the_minimum_of_the_mean_squared_change_of_their_outputs():
    base, deltas = randn(4, 6), [randn(4, 6, seed=1), randn(4, 6, seed=2)]
    inputs = [randn(40, 6, seed=3 + n) * (n + 1) for n in range(2)]
    grams = [x.T @ x / 40 for x in inputs]
    merged = regression_mean_of_tasks(base, deltas, [0.2, 0.6], grams, 1.0)

    def loss(w):
        models = zip((0.2, 0.6), deltas, inputs, strict=True)
        return sum(weight * (x @ (w - base - own).T).square().sum() / 40 for weight, own, x in models)

    point = merged.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    assert gradient.abs().max() < 1e-10 and loss(merged) < loss(base + 0.25 * deltas[0] + 0.75 * deltas[1])
    solved = torch.linalg.solve(
        0.2 * grams[0] + 0.6 * grams[1], 0.2 * grams[0] @ deltas[0].T + 0.6 * grams[1] @ deltas[1].T
    )
    torch.testing.assert_close(merged, base + solved.T)
    torch.testing.assert_close(regression_mean_of_tasks(base, deltas, [2.0, 6.0], grams, 1.0), merged)
    same = regression_mean_of_tasks(base, deltas, [0.2, 0.6], [grams[0]] * 2, 0.9)
    torch.testing.assert_close(same, base + 0.25 * deltas[0] + 0.75 * deltas[1])
    assert torch.equal(regression_mean_of_tasks(base, deltas[:1], [0.1], grams[:1], 0.9), base + deltas[0])


def test_moments_follow_the_basis_of_the_source():
    rotation = orthonormal(8, 6, seed=1)  # a source of 8 coordinates
    inputs = randn(40, 8, seed=2)
    theirs = inputs.T @ inputs / 40
    rotated = InputMoments({0: (moment(3), theirs)}, {}).rotated(Basis({0: Rotation(rotation, 6, 1.0)}))
    seen = inputs @ rotation
    torch.testing.assert_close(rotated.values[0][1], seen.T @ seen / 40)
    assert InputMoments({0: (theirs, theirs)}, {}).rotated(None).values[0][1] is theirs


def test_the_section_and_a_bias():
    config = parse_method({"name": "regmean", "pairs": "pairs.tsv", "shrink": 0.5})
    assert config.plain() == {"name": "regmean", "density": None, "seed": 0, "share": 0.1, "shrink": 0.5}
    bias, other = randn(4), randn(4, seed=1)
    torch.testing.assert_close(
        config.combine(bias, [Part(other, 0.3)], (0, "q_proj", "bias")), torch.lerp(bias, other, 0.3)
    )
    for wrong, message in (
        ("regmean", r"regmean needs paired inputs: give \{name: regmean, pairs: FILE\}"),
        ({"name": "regmean", "pairs": "x", "shrink": 2}, "shrink must be"),
        (
            {"name": "regmean", "pairs": "x", "density": 0.1},
            "regmean takes pairs, root, split, share, seed, shrink only",
        ),
        ({"name": "ties", "pairs": "x"}, "ties takes density only, but pairs is given"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_method(wrong)
