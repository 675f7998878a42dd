"""Is a difference more than chance? Wilson's and bootstrap intervals over utterances, and McNemar's exact test.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference" (1927); Bisani and Ney,
"Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004);
McNemar, "Note on the sampling error of the difference between correlated proportions" (1947), in its exact form.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.tasks.counts import DRAWS

BLOCK = 2_000_000  # drawn utterances at a time
LEVEL = 0.95

Interval = tuple[float, float]


def wilson(share: float, count: float, level: float = LEVEL) -> Interval:
    """Return Wilson's score interval of a share, such as an accuracy; it has a width at 0 and 1 too.

    Args:
        share: in [0, 1].
        count: how many independent clips it was found on, above 0; an effective sample size need not be whole.
        level: of confidence.

    Raises:
        UsageError: share or count out of range.
    """
    if not (0 <= share <= 1 and count > 0):
        raise UsageError(f"Wilson's interval needs a share in [0, 1] of more than 0 clips, not {share} of {count}.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = share + z * z / (2 * count)
    half = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def bootstrap_ratio(
    errors: Sequence[float], totals: Sequence[float], draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Return the percentile bootstrap interval of ``sum(errors) / sum(totals)``, such as a corpus word error rate.

    Whole utterances are drawn with replacement, so errors and length of an utterance stay together. Their order does
    not matter.

    Args:
        errors: errors of each utterance, [utterances].
        totals: reference words (or characters, clips) of each utterance, same order.
        draws: bootstrap samples.
        seed: of a generator of its own.
        level: share of the samples that lies between the two ends.

    Raises:
        DataError: no utterance, lengths that differ, or nothing to divide by.
        UsageError: draws or level out of range.
    """
    return _percentiles(*_in_order(*_columns(errors, totals)), draws, seed, level)


def bootstrap_difference(
    first_errors: Sequence[float],
    second_errors: Sequence[float],
    totals: Sequence[float],
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Return the paired bootstrap interval of the second system's error rate minus the first's.

    Both systems are scored on the same drawn utterances. An interval below 0 says that the second makes fewer errors.

    Args:
        first_errors, second_errors: errors of the two systems on the same utterances, in the same order.
        totals: reference words (or clips) of each utterance; further arguments as in :func:`bootstrap_ratio`.

    Raises:
        DataError, UsageError: as :func:`bootstrap_ratio`.
    """
    first, t = _columns(first_errors, totals)
    second, _ = _columns(second_errors, totals)
    return _percentiles(*_in_order(second - first, t), draws, seed, level)


def mcnemar_exact(only_first_right: int, only_second_right: int) -> float:
    """Return the two-sided p of McNemar's exact test: are the clips on which two systems differ split by chance?

    Args:
        only_first_right: clips that the first system has right and the second wrong.
        only_second_right: the reverse.
    """
    if min(only_first_right, only_second_right) < 0:
        raise DataError(f"McNemar's test needs counts of at least 0, not {only_first_right} and {only_second_right}.")
    from scipy.stats import binomtest  # takes a second, which no training should wait for

    differing = only_first_right + only_second_right
    return float(binomtest(only_first_right, differing, 0.5).pvalue) if differing else 1.0


def _columns(errors: Sequence[float], totals: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    e, t = np.asarray(errors, dtype=float), np.asarray(totals, dtype=float)
    if e.ndim != 1 or e.shape != t.shape:
        raise DataError(f"a bootstrap needs one number of errors per utterance, but got {e.shape} for {t.shape}.")
    if not len(e) or t.min() < 0 or not t.sum() > 0:
        raise DataError("a bootstrap needs at least one utterance with something to count; check the split.")
    return e, t


def _in_order(errors: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in one order of the utterances, whatever order they come in."""
    order = np.lexsort((errors, totals))
    return errors[order], totals[order]


def _percentiles(errors: np.ndarray, totals: np.ndarray, draws: int, seed: int, level: float) -> Interval:
    """Return the interval of the ratio of the sums over drawn utterances.

    A sample of empty utterances only counts for nothing.
    """
    if draws < 1 or not 0 < level < 1:
        raise UsageError(f"a bootstrap needs draws of at least 1 and a level in (0, 1), not {draws} and {level}.")
    rng, count, ratios = np.random.default_rng(seed), len(errors), []
    rows_at_a_time = max(1, BLOCK // count)
    for start in range(0, draws, rows_at_a_time):
        rows = rng.integers(count, size=(min(rows_at_a_time, draws - start), count))
        above, below = errors[rows].sum(axis=1), totals[rows].sum(axis=1)
        ratios.append(np.divide(above, below, out=np.full(len(rows), np.nan), where=below > 0))
    low, high = np.nanpercentile(np.concatenate(ratios), [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
