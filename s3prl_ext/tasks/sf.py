"""Slot filling on Audio SNIPS (SUPERB's SF)."""

from __future__ import annotations

from dataclasses import replace

from s3prl_ext.tasks import ctc
from s3prl_ext.tasks.counts import Records, Sums


def slot_types(records: Records) -> Sums | None:
    """Return the F1 of each utterance, whose mean s3prl reports."""
    from s3prl.downstream.ctc.metric import slot_type_f1

    pairs = _pairs(records)
    return Sums([slot_type_f1([h], [r]) for r, h in pairs], [1.0] * len(pairs)) if pairs else None


def slot_values(records: Records) -> Sums | None:
    """Return character errors and characters of the slot values of each utterance.

    One without a slot counts nothing.
    """
    from s3prl.downstream.ctc.metric import parse, slot_value_cer

    errors, totals = [], []
    for reference, hypothesis in _pairs(records):
        values = [slot.split(":")[0] for slot in parse(hypothesis, reference)[2].split(";") if slot]
        totals.append(float(sum(map(len, values))))
        errors.append(slot_value_cer([hypothesis], [reference]) * totals[-1] if totals[-1] else 0.0)
    return Sums(errors, totals) if totals else None


def _pairs(records: Records) -> list[tuple[str, str]]:
    return list(zip(records.get("groundtruth") or (), records.get("hypothesis") or (), strict=True))


TASK = replace(
    ctc.TASK,
    name="sf",
    corpus="snips",
    metrics=("slot_type_f1",),
    preset="sf/superb",
    variables={"AUDIO_SNIPS": "Audio SNIPS"},
    counts={"slot_type_f1": slot_types, "slot_value_cer": slot_values},
    superb=("slot_type_f1", "slot_value_cer"),
    modules=(*ctc.TASK.modules, "s3prl.downstream.ctc.corpus.snips"),
)
