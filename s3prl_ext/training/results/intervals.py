"""95 % intervals of a task's metrics, from what it recorded for each utterance.

Shares of right utterances get Wilson's interval, ratios of sums (error rates) and means the percentile bootstrap over
utterances. A metric whose utterances do not give the value that the task reports has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from s3prl_ext.configs import Section
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.significance import Interval, bootstrap_ratio, wilson
from s3prl_ext.metrics import METRICS
from s3prl_ext.tasks import OTHER, Task, counts_of
from s3prl_ext.tasks.counts import Ends, Share

FEWEST = 2  # utterances; the bootstrap of a single one has no width


def intervals(values: Mapping[str, float], records: Section, task: Task = OTHER) -> dict[str, Interval]:
    """Return the 95 % interval of each metric whose utterances are known, in its own unit.

    Args:
        values: all metrics that the task reported; ``wer_low`` and ``wer_high`` are taken as they are.
        records: what the task recorded for each utterance; ``recording`` where each entry is a whole recording (SD).
        task: says what gives the counts of each metric.
    """
    names = [name for name in values if not name.endswith(("_low", "_high"))]
    found = {name: _interval(name, values, records, task) for name in names}
    return {name: both for name, both in found.items() if both is not None}


def _interval(metric: str, values: Mapping[str, float], records: Section, task: Task) -> Interval | None:
    if f"{metric}_low" in values and f"{metric}_high" in values:
        return values[f"{metric}_low"], values[f"{metric}_high"]
    scale = 100.0 if metric in METRICS and METRICS[metric].unit == "%" else 1.0
    for count in counts_of(task, metric):
        found = count(records)
        if found is None or not _gives(scale * found.value, values[metric]):
            continue
        if isinstance(found, Share):
            return wilson(values[metric], found.clips)
        if isinstance(found, Ends):
            return scale * found.low, scale * found.high
        if len(found.errors) < FEWEST:
            continue
        try:
            low, high = bootstrap_ratio(found.errors, found.totals)
        except DataError:
            return None
        return scale * low, scale * high
    return None


def _gives(found: float, reported: float) -> bool:
    return math.isclose(found, reported, rel_tol=1e-4, abs_tol=1e-6)
