"""Bootstrap intervals of a metric from what a task recorded for each utterance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import editdistance

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.significance import Interval, bootstrap_ratio
from s3prl_ext.metrics import METRICS

# Errors (or successes) and totals of each utterance.
Counts = tuple[list[float], list[float]]


def _edits(references: Sequence[Sequence], hypotheses: Sequence[Sequence]) -> Counts:
    errors = [float(editdistance.eval(h, r)) for r, h in zip(references, hypotheses, strict=True)]
    return errors, [float(len(reference)) for reference in references]


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def _characters(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


# metric -> records that it needs -> counts, by the names that the tasks use for their records
_COUNTS: dict[str, dict[tuple[str, ...], Callable[..., Counts]]] = {
    "acc": {
        ("acc",): lambda acc: (list(acc), [1.0] * len(acc)),
        ("prediction", "target"): lambda p, t: ([float(a == b) for a, b in zip(p, t)], [1.0] * len(t)),
    },
    "error": {("prediction", "target"): lambda p, t: ([float(a != b) for a, b in zip(p, t)], [1.0] * len(t))},
    "wer": {
        ("references", "hypotheses"): lambda r, h: _edits(_words(r), _words(h)),
        ("target_words", "pred_words"): _edits,
    },
    "cer": {("references", "hypotheses"): lambda r, h: _edits(_characters(r), _characters(h))},
    "uer": {("target_tokens", "pred_tokens"): lambda r, h: _edits(_words(r), _words(h))},
    "per": {("groundtruth", "hypothesis"): lambda r, h: _edits(_words(r), _words(h))},
}


def interval(metric: str, value: float, values: Mapping[str, float], records: Mapping[str, Any]) -> Interval | None:
    """Return the 95 % interval of a metric in its own unit, or None where the utterances' counts are not known.

    Args:
        metric: a name of :data:`s3prl_ext.metrics.METRICS`.
        value: the metric itself; counts that do not give it are not used.
        values: all metrics that the task reported; ``wer_low`` and ``wer_high`` are taken as they are.
        records: what the task recorded for each utterance.
    """
    if f"{metric}_low" in values and f"{metric}_high" in values:
        return values[f"{metric}_low"], values[f"{metric}_high"]
    scale = 100.0 if metric in METRICS and METRICS[metric].unit == "%" else 1.0
    for names, counts in _COUNTS.get(metric, {}).items():
        if not all(records.get(name) for name in names):
            continue
        errors, totals = counts(*(records[name] for name in names))
        if not math.isclose(scale * sum(errors) / max(1.0, sum(totals)), value, rel_tol=1e-4, abs_tol=1e-6):
            continue
        try:
            low, high = bootstrap_ratio(errors, totals)
        except DataError:
            return None
        return scale * low, scale * high
    return None
