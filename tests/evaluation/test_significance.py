"""Intervals and tests against brute force and closed forms."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
from scipy import stats

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.significance import (
    bootstrap_difference,
    bootstrap_ratio,
    mcnemar_exact,
    wilson,
)


def brute_force_ratios(errors, totals):
    """Return the ratio of every possible resample, each once: the exact bootstrap distribution."""
    rows = itertools.product(range(len(errors)), repeat=len(errors))
    return [sum(errors[i] for i in r) / sum(totals[i] for i in r) for r in rows]


def test_ratio_approaches_the_exact_bootstrap_distribution():
    errors, totals = [3, 0, 1, 5, 2], [10, 4, 7, 9, 12]
    exact = np.percentile(brute_force_ratios(errors, totals), [2.5, 97.5])
    found = bootstrap_ratio(errors, totals, draws=20000)
    assert found == pytest.approx(exact, abs=0.012)


def test_ratio_is_corpus_level_not_a_mean_of_rates():
    low, high = bootstrap_ratio([1] * 50 + [0] * 50, [1] * 50 + [99] * 50, draws=500)
    assert low < 50 / 5000 < high < 0.02  # the mean of the rates would be 0.5


def test_ratio_over_single_clips_equals_scipys_bootstrap_of_a_mean():
    values = np.random.default_rng(3).random(200) < 0.3
    expected = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert bootstrap_ratio(values, np.ones(200), draws=5000) == pytest.approx(tuple(expected), abs=0.01)


@pytest.mark.parametrize(("right", "clips"), [(0, 8), (3, 8), (8, 8), (1203, 3081)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipys(right, clips, level):
    expected = stats.binomtest(right, clips).proportion_ci(level, method="wilson")
    assert wilson(right / clips, clips, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_level_widens_and_seed_repeats():
    errors, totals = np.arange(30) % 4, np.full(30, 8)
    narrow, wide = (bootstrap_ratio(errors, totals, level=level) for level in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert bootstrap_ratio(errors, totals, seed=5) == bootstrap_ratio(errors, totals, seed=5)
    errors = np.random.default_rng(0).random(30)
    assert bootstrap_ratio(errors, totals, seed=5) != bootstrap_ratio(errors, totals, seed=6)


def test_an_interval_hardly_depends_on_its_seed_and_not_on_the_order():
    """With 1,000 draws, whether the interval of such a difference holds 0 was a matter of the seed."""
    rng = np.random.default_rng(1)
    first, totals = rng.poisson(1.0, 60), rng.integers(4, 15, 60)
    second = np.maximum(0, first + rng.integers(-1, 2, 60))
    lows, highs = zip(*(bootstrap_difference(first, second, totals, seed=seed) for seed in range(12)), strict=True)
    width = np.mean(highs) - np.mean(lows)
    assert max(max(ends) - min(ends) for ends in (lows, highs)) < 0.06 * width
    order = rng.permutation(60)
    shuffled = bootstrap_difference(first[order], second[order], totals[order])
    assert shuffled == bootstrap_difference(first, second, totals)
    assert bootstrap_ratio(first[order], totals[order]) == bootstrap_ratio(first, totals)


def test_blocks_of_draws_do_not_change_an_interval(monkeypatch):
    errors, totals = np.arange(50) % 3, np.full(50, 7)
    whole = bootstrap_ratio(errors, totals, draws=500)
    monkeypatch.setattr("s3prl_ext.evaluation.significance.BLOCK", 50 * 200)
    assert bootstrap_ratio(errors, totals, draws=500) == whole


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    bootstrap_ratio([0, 1, 1], [1, 1, 1])
    assert (np.random.get_state()[1] == before).all()


def test_paired_difference_is_narrower_than_two_intervals_and_has_the_right_sign():
    rng = np.random.default_rng(0)
    totals = rng.integers(5, 30, 300)
    first = rng.binomial(totals, 0.2)
    second = np.maximum(first - (rng.random(300) < 0.3), 0)
    low, high = bootstrap_difference(first, second, totals)
    difference = (second.sum() - first.sum()) / totals.sum()
    assert low < difference < high < 0
    alone = [bootstrap_ratio(e, totals) for e in (first, second)]
    assert high - low < min(b - a for a, b in alone)


def test_difference_of_equal_systems_is_exactly_zero():
    assert bootstrap_difference([1, 0, 2], [1, 0, 2], [4, 4, 4]) == (0.0, 0.0)


@pytest.mark.parametrize("b, c", [(0, 0), (1, 0), (3, 9), (9, 3), (25, 10), (7, 7)])
def test_mcnemar_sums_the_binomial_tails(b, c):
    n = b + c
    tail = sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_unsuitable_input_is_refused():
    with pytest.raises(DataError, match="at least one utterance"):
        bootstrap_ratio([], [])
    with pytest.raises(DataError, match="at least one utterance"):
        bootstrap_ratio([0, 0], [0, 0])
    with pytest.raises(DataError, match="one number of errors per utterance"):
        bootstrap_ratio([1, 2], [1])
    with pytest.raises(UsageError, match="level"):
        bootstrap_ratio([1, 0], [1, 1], level=95)
    with pytest.raises(UsageError, match=r"a share in \[0, 1\]"):
        wilson(45, 60)
    with pytest.raises(DataError, match="at least 0"):
        mcnemar_exact(-1, 3)
