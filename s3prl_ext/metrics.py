"""Metrics of the tasks: direction and unit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from s3prl_ext.errors import unknown_name


@dataclass(frozen=True)
class Metric:
    """What a metric's number means.

    Attributes:
        higher_is_better: direction.
        unit: ``"ratio"`` (0 to 1), ``"%"``, ``"nats"``, ``"dB"``, ``"MOS"`` or ``"tokens"``, as s3prl reports it (of
            SF's ``wer`` and ``cer``, which it gives as ratios, 100 times that is recorded).
    """

    higher_is_better: bool
    unit: str

    def better(self, a: float, b: float) -> bool:
        """Return whether value `a` beats value `b`; NaN beats nothing and everything beats NaN."""
        if math.isnan(a):
            return False
        if math.isnan(b):
            return True
        return a > b if self.higher_is_better else a < b


METRICS: dict[str, Metric] = {
    "acc": Metric(higher_is_better=True, unit="ratio"),
    "slot_type_f1": Metric(higher_is_better=True, unit="ratio"),
    "slot_value_cer": Metric(higher_is_better=False, unit="ratio"),
    "slot_value_wer": Metric(higher_is_better=False, unit="ratio"),
    "slot_edit_f1_full": Metric(higher_is_better=True, unit="%"),
    "slot_edit_f1_part": Metric(higher_is_better=True, unit="%"),
    "per": Metric(higher_is_better=False, unit="ratio"),
    "wer": Metric(higher_is_better=False, unit="%"),
    "wer_low": Metric(higher_is_better=False, unit="%"),  # ends of the 95 % interval
    "wer_high": Metric(higher_is_better=False, unit="%"),
    "wer_new_texts": Metric(higher_is_better=False, unit="%"),  # without the utterances whose text train has too
    "uer": Metric(higher_is_better=False, unit="%"),
    "cer": Metric(higher_is_better=False, unit="%"),
    "error": Metric(higher_is_better=False, unit="%"),
    "error_low": Metric(higher_is_better=False, unit="%"),
    "error_high": Metric(higher_is_better=False, unit="%"),
    "EER": Metric(higher_is_better=False, unit="ratio"),
    "mtwv": Metric(higher_is_better=True, unit="ratio"),
    "der": Metric(higher_is_better=False, unit="ratio"),
    "pesq": Metric(higher_is_better=True, unit="MOS"),
    "stoi": Metric(higher_is_better=True, unit="ratio"),
    "si_sdr": Metric(higher_is_better=True, unit="dB"),  # s3prl reports the improvement over the mixture
    "loss": Metric(higher_is_better=False, unit="nats"),
    "intent_loss": Metric(higher_is_better=False, unit="nats"),
    "special_tokens": Metric(higher_is_better=False, unit="tokens"),  # of a CTC head, dropped from its transcripts
}


NAMES = {
    "wer": "WER", "per": "PER", "cer": "CER", "uer": "UER", "der": "DER", "EER": "EER", "mtwv": "MTWV",
    "acc": "accuracy", "slot_type_f1": "slot type F1", "slot_value_cer": "slot value CER", "pesq": "PESQ",
    "stoi": "STOI", "si_sdr": "SI-SDRi",
}  # fmt: skip


def metric(name: str) -> Metric:
    """Return the row of `name`; an unknown metric is a UsageError that lists the known ones."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


# What a task without a row in s3prl_ext.tasks is judged by: the first of these that it reports.
MAIN_METRICS = ("slot_type_f1", "per", "wer", "error", "EER", "der", "acc")


def heading(name: str, what: str = "") -> str:
    """Return name, unit and direction of a metric as the head of a column, such as ``WER (%) ↓``.

    Args:
        name: of the metric.
        what: printed before it, such as ``test``.
    """
    arrow = "↑" if metric(name).higher_is_better else "↓"
    return f"{what and what + ' '}{NAMES.get(name, name.replace('_', ' '))} ({shown_unit(name)}) {arrow}"


def shown_unit(name: str) -> str:
    """Return the unit in which values are shown: ratios in per cent."""
    unit = metric(name).unit
    return "%" if unit == "ratio" else unit


def factor(name: str) -> float:
    """Return what a value is multiplied by to be shown: ratios are shown in per cent."""
    return 100.0 if metric(name).unit == "ratio" else 1.0
