"""95 % intervals of a task's metrics, from what it recorded for each utterance.

Shares of right utterances get Wilson's interval, ratios of sums (error rates) and means the percentile bootstrap over
utterances. A metric whose utterances do not give the value that the task reports has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import editdistance

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.significance import Interval, bootstrap_ratio, wilson
from s3prl_ext.metrics import METRICS

# Errors (or successes) and totals of each utterance.
Counts = tuple[list[float], list[float]]

FEWEST = 2  # utterances; the bootstrap of a single one has no width


def _edits(references: Sequence[Sequence], hypotheses: Sequence[Sequence]) -> Counts:
    errors = [float(editdistance.eval(h, r)) for r, h in zip(references, hypotheses, strict=True)]
    return errors, [float(len(reference)) for reference in references]


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def _characters(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def _mean(values: Sequence[float]) -> Counts:
    return list(values), [1.0] * len(values)


def _slot_types(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Return the F1 of each utterance, whose mean s3prl reports."""
    from s3prl.downstream.ctc.metric import slot_type_f1

    return _mean([slot_type_f1([h], [r]) for r, h in zip(references, hypotheses, strict=True)])


def _slot_values(references: Sequence[str], hypotheses: Sequence[str]) -> Counts:
    """Return character errors and characters of the slot values of each utterance; one without a slot counts nothing."""
    from s3prl.downstream.ctc.metric import parse, slot_value_cer

    errors, totals = [], []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        values = [slot.split(":")[0] for slot in parse(hypothesis, reference)[2].split(";") if slot]
        totals.append(float(sum(map(len, values))))
        errors.append(slot_value_cer([hypothesis], [reference]) * totals[-1] if totals[-1] else 0.0)
    return errors, totals


# metric -> records that it needs -> counts, by the names that the tasks use for their records
_COUNTS: dict[str, dict[tuple[str, ...], Callable[..., Counts]]] = {
    "wer": {
        ("references", "hypotheses"): lambda r, h: _edits(_words(r), _words(h)),
        ("target_words", "pred_words"): _edits,
    },
    "cer": {("references", "hypotheses"): lambda r, h: _edits(_characters(r), _characters(h))},
    "uer": {("target_tokens", "pred_tokens"): lambda r, h: _edits(_words(r), _words(h))},
    "per": {("groundtruth", "hypothesis"): lambda r, h: _edits(_words(r), _words(h))},
    "slot_type_f1": {("groundtruth", "hypothesis"): _slot_types},
    "slot_value_cer": {("groundtruth", "hypothesis"): _slot_values},
    "der": {("der", "recording"): lambda der, _: _mean(der)},  # s3prl's mean over recordings
}
# Records that name the clips, and what is right in each.
_CLIPS = (("filename", "truth"), ("filename", "truth_speaker"))


def intervals(values: Mapping[str, float], records: Mapping[str, Any]) -> dict[str, Interval]:
    """Return the 95 % interval of each metric whose utterances are known, in its own unit.

    Args:
        values: all metrics that the task reported; ``wer_low`` and ``wer_high`` are taken as they are.
        records: what the task recorded for each utterance; ``recording`` where each entry is a whole recording (SD).
    """
    names = [name for name in values if not name.endswith(("_low", "_high"))]
    found = {name: _interval(name, values, records) for name in names}
    return {name: both for name, both in found.items() if both is not None}


def _interval(metric: str, values: Mapping[str, float], records: Mapping[str, Any]) -> Interval | None:
    if f"{metric}_low" in values and f"{metric}_high" in values:
        return values[f"{metric}_low"], values[f"{metric}_high"]
    if metric == "acc":
        return _accuracy(values[metric], records)
    scale = 100.0 if metric in METRICS and METRICS[metric].unit == "%" else 1.0
    for names, counts in _COUNTS.get(metric, {}).items():
        if not all(records.get(name) for name in names):
            continue
        errors, totals = counts(*(records[name] for name in names))
        if len(errors) < FEWEST or not _gives(scale * sum(errors) / max(1.0, sum(totals)), values[metric]):
            continue
        try:
            low, high = bootstrap_ratio(errors, totals)
        except DataError:
            return None
        return scale * low, scale * high
    return None


def _accuracy(value: float, records: Mapping[str, Any]) -> Interval | None:
    """Return Wilson's interval of a share of right clips.

    Where clips were drawn several times (KS draws its dev batches), it is that of as many clips as the draws are worth
    (Kish's effective sample size), which is at most the number of different ones.
    """
    if records.get("prediction") and records.get("target"):
        right = [float(a == b) for a, b in zip(records["prediction"], records["target"], strict=True)]
        return wilson(value, len(right)) if _gives(sum(right) / len(right), value) else None
    right = list(records.get("acc") or ())
    for names in _CLIPS:
        columns = [records.get(name) or () for name in names]
        if right and all(len(column) == len(right) for column in columns) and _gives(sum(right) / len(right), value):
            draws = Counter(map(str, zip(*columns, strict=True))).values()
            return wilson(value, sum(draws) ** 2 / sum(count**2 for count in draws))
    return None


def _gives(found: float, reported: float) -> bool:
    return math.isclose(found, reported, rel_tol=1e-4, abs_tol=1e-6)
