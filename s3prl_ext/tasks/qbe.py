"""Query by example on QUESST14, English (SUPERB's QbE).

Documents ranked for each query, the maximum term weighted value.

A document is accepted for a query where its score exceeds a threshold, the same for all queries. With the misses and
false alarms of each query that occurs in a document at all, ``TWV = 1 - mean(P_miss + BETA * P_fa)``; the metric is its
maximum over thresholds (NIST's STD evaluation of 2006, with the prior and costs of QUESST 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s3prl_ext.tasks.counts import Ends, Records
from s3prl_ext.tasks.record import Reads, Task

if TYPE_CHECKING:
    import numpy as np

PRIOR, FALSE_ALARM, MISS = 0.0008, 1.0, 100.0  # of a query in a document; costs
BETA = FALSE_ALARM / MISS * (1 / PRIOR - 1)  # 12.49
DRAWS, SEED = 1000, 0  # of the bootstrap


def maximum_twv(
    scores: Sequence[np.ndarray], targets: Sequence[np.ndarray], weights: np.ndarray | None = None
) -> float:
    """Return the largest term weighted value over all thresholds; 0, that of accepting nothing, is the least.

    NaN where a score is not finite.

    Args:
        scores: of the documents for each query, [documents].
        targets: whether a document holds the query, [documents]; every query is in some document and not in all.
        weights: how often each query counts; None for once.
    """
    import numpy as np

    if not all(np.isfinite(of_query).all() for of_query in scores):
        return float("nan")
    counted = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=float)
    gains = [
        weight * np.where(holds, 1 / holds.sum(), -BETA / (~holds).sum())
        for weight, holds in zip(counted, targets, strict=True)
    ]
    every, gain = np.concatenate(list(scores)), np.concatenate(gains) / counted.sum()
    order = np.argsort(-every, kind="stable")
    value = np.cumsum(gain[order])[np.flatnonzero(np.diff(every[order], append=-np.inf))]
    return float(max(0.0, value.max()))


def over_queries(records: Records) -> Ends | None:
    """Return the maximum term weighted value and the ends of its interval over queries, drawn anew 1,000 times."""
    import numpy as np

    scores, targets = records.get("twv_scores"), records.get("twv_targets")
    if not scores or not targets or len(scores) < 2:
        return None
    rng = np.random.default_rng(SEED)
    weights = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), DRAWS)
    low, high = np.percentile([maximum_twv(scores, targets, row) for row in weights], [2.5, 97.5])
    return Ends(maximum_twv(scores, targets), float(low), float(high))


TASK = Task(
    name="qbe",
    downstream="quesst14_dtw",
    metrics=("mtwv",),
    own_head=True,
    trains=False,
    preset="qbe/superb",
    variables={"QUESST14": "QUESST14"},
    reads=(Reads("datarc.dataset_root", divides=("scoring/*.lst",)),),
    counts={"mtwv": over_queries},
    writes=("benchmark.stdlist.xml",),
    decoder="s3prl_ext.prediction.search:SearchDecoder",
    superb=("mtwv",),
    modules=("s3prl.downstream.quesst14_dtw.expert",),
    needs={"dtw": "dtw-python"},
)
