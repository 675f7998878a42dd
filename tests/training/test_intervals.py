"""95 % intervals from what the tasks record: they hold the value, shrink with the clips, and are absent where unknown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

import s3prl_ext
from s3prl_ext.training.results.intervals import intervals


def clips(right: int, wrong: int, **more) -> dict:
    """Return what s3prl's classifiers record."""
    count = right + wrong
    return {"acc": [1.0] * right + [0.0] * wrong, "filename": [f"c{n}" for n in range(count)],
            "truth": ["yes"] * count} | more  # fmt: skip


def test_accuracy_has_wilsons_interval():
    expected = binomtest(45, 60).proportion_ci(method="wilson")
    assert intervals({"acc": 0.75, "loss": 1.0}, clips(45, 15))["acc"] == pytest.approx((expected.low, expected.high))
    assert intervals({"acc": 0.75}, {"prediction": [0, 1, 1, 1], "target": [1, 1, 1, 1]})["acc"] == pytest.approx(
        tuple(binomtest(3, 4).proportion_ci(method="wilson"))
    )


def test_a_clip_that_is_drawn_again_is_no_new_evidence():
    once, twice = clips(45, 15), clips(45, 15)
    twice = {name: column * 2 for name, column in twice.items()}
    assert intervals({"acc": 0.75}, twice)["acc"] == pytest.approx(intervals({"acc": 0.75}, once)["acc"])
    uneven = clips(45, 15, filename=["same"] * 30 + [f"c{n}" for n in range(30)])
    low, high = intervals({"acc": 0.75}, uneven)["acc"]
    assert high - low > np.diff(intervals({"acc": 0.75}, once)["acc"])[0]
    other_word = clips(45, 15, filename=["a"] * 60, truth=[f"w{n}" for n in range(60)])  # one name in sixty folders
    assert intervals({"acc": 0.75}, other_word)["acc"] == pytest.approx(intervals({"acc": 0.75}, once)["acc"])


def test_error_rates_are_drawn_by_utterance_in_the_unit_of_the_metric():
    words = {"target_words": [["a", "b"], ["c"], ["d", "e", "f"]] * 20, "pred_words": [["a", "x"], ["c"], ["d"]] * 20}
    low, high = intervals({"wer": 50.0}, words)["wer"]
    assert 30 < low < 50 < high < 70
    phones = {"groundtruth": ["AH B", "K"] * 30, "hypothesis": ["AH", "K"] * 30}
    low, high = intervals({"per": 1 / 3}, phones)["per"]
    assert 0.2 < low < 1 / 3 < high < 0.5


def test_slots_have_an_interval_of_f1_and_of_the_errors_in_values():
    s3prl_ext.install()
    from s3prl.downstream.ctc.metric import slot_type_f1, slot_value_cer

    right, wrong = "PLAY B-song HELLO E-song NOW", "PLAY B-song HALLO E-song NOW"
    missed, none = "PLAY HELLO NOW", "PLAY NOW"
    records = {"groundtruth": [right, right, right, none] * 10, "hypothesis": [right, wrong, missed, none] * 10}
    values = {name: metric(*reversed(list(records.values()))) for name, metric in (
        ("slot_type_f1", slot_type_f1), ("slot_value_cer", slot_value_cer))}  # fmt: skip
    found = intervals(values, records)
    for name, value in values.items():
        assert found[name][0] < value < found[name][1], name


def test_diarization_is_drawn_by_recording_and_not_by_batch():
    records = {"der": [0.1, 0.3] * 10, "acc": [0.9] * 20}
    assert intervals({"der": 0.2, "acc": 0.9}, records) == {}
    low, high = intervals({"der": 0.2, "acc": 0.9}, records | {"recording": list("ab") * 10})["der"]
    assert 0.1 < low < 0.2 < high < 0.3


@pytest.mark.parametrize(
    ("values", "records"),
    [
        ({"acc": 0.9}, clips(45, 15)),  # the clips say 0.75
        ({"acc": 0.75}, {"acc": [1.0, 0.5]}),  # nobody knows of what
        ({"wer": 0.0}, {"target_words": [["a"]], "pred_words": [["a"]]}),  # one utterance
        ({"wer": 100.0}, {"target_words": [[], []], "pred_words": [[], []]}),  # nothing to count
        ({"loss": 1.0, "unheard_of": 2.0}, clips(1, 1)),
    ],
)
def test_no_interval_where_the_utterances_do_not_give_the_value(values, records):
    assert intervals(values, records) == {}


def test_ends_that_a_task_reports_are_taken():
    assert intervals({"wer": 5.0, "wer_low": 4.0, "wer_high": 6.0}, {}) == {"wer": (4.0, 6.0)}
