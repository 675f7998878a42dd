"""Query by example on QUESST14, English (SUPERB's QbE).

Documents ranked for each query, the maximum term weighted value.

A document is accepted for a query where its score exceeds a threshold, the same for all queries. With the misses and
false alarms of each query that occurs in a document at all, ``TWV = 1 - mean(P_miss + BETA * P_fa)``; the metric is its
maximum over thresholds (NIST's STD evaluation of 2006, with the prior and costs of QUESST 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s3prl_ext.tasks.counts import DRAWS, Ends, Records
from s3prl_ext.tasks.record import Reads, Task

if TYPE_CHECKING:
    import numpy as np

PRIOR, FALSE_ALARM, MISS = 0.0008, 1.0, 100.0  # of a query in a document; costs
BETA = FALSE_ALARM / MISS * (1 / PRIOR - 1)  # 12.49
SEED = 0  # of the bootstrap


def maximum_twv(scores: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> float:
    """Return the largest term weighted value over all thresholds; 0, that of accepting nothing, is the least.

    NaN where a score is not finite.

    Args:
        scores: of the documents for each query, [documents].
        targets: whether a document holds the query, [documents]; every query is in some document and not in all.
    """
    import numpy as np

    if not all(np.isfinite(of_query).all() for of_query in scores):
        return float("nan")
    return max(0.0, float(_values(scores, targets).mean(axis=0).max()))


def _values(scores: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the term weighted value of each query at the score of each document that holds one, [queries, thresholds].

    Between these the value can only fall.
    """
    import numpy as np

    thresholds = np.unique(np.concatenate([of_query[holds] for of_query, holds in zip(scores, targets, strict=True)]))
    rows = []
    for of_query, holds in zip(scores, targets, strict=True):
        order = np.argsort(of_query)[::-1]
        gains = np.where(holds, 1 / holds.sum(), -BETA / (~holds).sum())[order]
        accepted = np.searchsorted(-of_query[order], -thresholds, side="right")
        rows.append(np.concatenate([[0.0], np.cumsum(gains)])[accepted])
    return np.array(rows)


def over_queries(records: Records) -> Ends | None:
    """Return the maximum term weighted value and the ends of its interval over queries, drawn anew."""
    import numpy as np

    scores, targets = records.get("twv_scores"), records.get("twv_targets")
    if not scores or not targets or len(scores) < 2:
        return None
    value, queries = maximum_twv(scores, targets), len(scores)
    if np.isnan(value):
        return None
    times = np.random.default_rng(SEED).multinomial(queries, np.full(queries, 1 / queries), DRAWS).astype(float)
    values = _values(scores, targets)
    drawn = [max(0.0, float((row @ values).max()) / queries) for row in times]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Ends(value, float(low), float(high))


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
    superb_note="QbE: its values were not compared with those of QUESST's own scorer, which the leaderboard's are.",
    modules=("s3prl.downstream.quesst14_dtw.expert",),
    needs={"dtw": "dtw-python"},
)
