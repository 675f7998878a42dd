"""SUPERB's diarization error rate against cases computed by hand and frame by frame."""

from __future__ import annotations

import warnings

import h5py
import numpy as np
import pytest
from scipy.signal import medfilt

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.diarization_scoring import (
    MEDIANS,
    THRESHOLDS,
    Setting,
    Turn,
    error_rate,
    error_rates,
    read_rttm,
    score_runs,
    smoothed,
    turns,
)
from tests.support.reference import diarization_by_frames

pytest.importorskip("pyannote.metrics", reason="the extra sd is not installed")


A, B = Turn(0.0, 10.0, "a"), Turn(5.0, 10.0, "b")


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ([Turn(0, 10, "x"), Turn(5, 10, "y")], [A, B], (0, 0, 0)),
        ([Turn(0, 8, "x")], [A], (0.2, 0, 0)),
        ([Turn(0, 12, "x")], [A], (0, 0.2, 0)),
        ([Turn(0, 10, "x")], [A, B], (5 / 15, 0, 0)),  # overlapped speech counts
        ([Turn(0, 10, "x")], [Turn(0, 5, "a"), Turn(5, 10, "b")], (0, 0, 0.5)),
        ([], [A], (1, 0, 0)),
        ([Turn(0.01, 10, "x")], [A], (0.001, 0, 0)),  # no collar
    ],
)
def test_hand_made_cases(hypothesis, reference, expected):
    rate = error_rate({"r": (hypothesis, reference)})
    assert (rate.miss, rate.false_alarm, rate.confusion) == pytest.approx(expected)
    assert rate.der == pytest.approx(sum(expected))


def test_recordings_are_summed_before_they_are_divided():
    rate = error_rate({"long": ([], [Turn(0, 9, "a")]), "short": ([Turn(0, 1, "x")], [Turn(0, 1, "a")])})
    assert rate.der == pytest.approx(0.9)


def test_random_turns_equal_the_count_of_frames():
    rng = np.random.default_rng(0)
    probabilities = rng.random((2, 120, 2))
    hypothesis, reference = (turns(p, Setting(0.5, 11), 1600) for p in probabilities)
    assert hypothesis and reference
    total = sum(turn.end - turn.start for turn in reference)
    rate = error_rate({"r": (hypothesis, reference)})
    assert (rate.miss, rate.false_alarm, rate.confusion) == pytest.approx(
        [seconds / total for seconds in diarization_by_frames(hypothesis, reference)]
    )


def test_turns_above_the_threshold_in_rounded_seconds():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.6], [0.2, 0.6], [0.9, 0.0]])
    assert turns(probabilities, Setting(0.5, 1), 320) == [
        Turn(0.0, 0.02, "0"), Turn(0.06, 0.08, "0"), Turn(0.02, 0.06, "1")
    ]  # fmt: skip
    assert turns(probabilities, Setting(0.3, 1), 320)[0] == Turn(0.0, 0.04, "0")
    lone = np.zeros((40, 1))
    lone[20] = 1.0
    assert turns(lone, Setting(0.5, 1), 160) and turns(lone, Setting(0.5, 11), 160) == []


def test_every_setting_is_scored_and_other_recordings_are_refused():
    probabilities = {"r": np.array([[0.45], [0.45], [0.9]])}
    rates = error_rates(probabilities, {"r": [Turn(0, 0.3, "a")]}, 1600)
    assert set(rates) == {Setting(t, m) for t in THRESHOLDS for m in MEDIANS}
    assert rates[Setting(0.4, 1)].der == pytest.approx(0) and rates[Setting(0.5, 1)].der == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="differ in 2 recordings, such as other"):
        error_rates(probabilities, {"other": [Turn(0, 1, "a")]}, 1600)


def folder(path, frames):
    """Write a run's folder with one recording ``r`` of 0.3 s; returns it and its reference turns."""
    (path / "scoring" / "predictions").mkdir(parents=True)
    with h5py.File(path / "scoring" / "predictions" / "r.h5", "w") as file:
        file["T_hat"] = np.array(frames)[:, None]
    (path / "frame_shift").write_text("1600\n")
    (path / "rttm").write_text("SPEAKER r 1 0.00 0.30 <NA> <NA> speaker_a <NA>\n")
    return path, path / "rttm"


def test_the_lowest_on_test_and_the_setting_of_dev(tmp_path):
    test = folder(tmp_path / "test", [0.45, 0.45, 0.45])
    dev = folder(tmp_path / "dev", [0.35, 0.35, 0.9])
    score = score_runs(*test, *dev)
    assert score.rate.der == pytest.approx(0) and score.setting == Setting(0.3, 1) and score.recordings == 1
    assert score.dev_setting == Setting(0.3, 1) and score.dev_chosen.der == pytest.approx(0)
    alone = score_runs(*test)
    assert alone.rate == score.rate and alone.dev_chosen is None


def test_dev_may_choose_another_threshold_than_the_lowest_on_test(tmp_path):
    test = folder(tmp_path / "test", [0.45, 0.45, 0.9])
    path, rttm = folder(tmp_path / "dev", [0.65, 0.45, 0.45])
    rttm.write_text("SPEAKER r 1 0.00 0.10 <NA> <NA> a <NA>\n")  # on dev only the first frame is speech
    score = score_runs(*test, path, rttm)
    assert score.setting.threshold == 0.3 and score.dev_setting == Setting(0.5, 1)
    assert score.rate.der == pytest.approx(0) and score.dev_chosen.der == pytest.approx(2 / 3)


def test_what_is_missing_is_named(tmp_path):
    test = folder(tmp_path / "test", [0.9])
    with pytest.raises(DataError, match="contains no predictions"):
        score_runs(tmp_path, test[1])
    with pytest.raises(DataError, match="cannot be read"):
        score_runs(test[0], tmp_path / "none")
    (tmp_path / "bad").write_text("SPEAKER r 1 x 1 <NA> <NA> a <NA>\n")
    with pytest.raises(DataError, match="line 1 of .* is not a speaker turn"):
        read_rttm(tmp_path / "bad")
    (test[0] / "scoring" / "predictions" / "r.h5").write_text("no")
    with pytest.raises(DataError, match="not a prediction of the diarization task"):
        score_runs(*test)


@pytest.mark.filterwarnings("error")
def test_a_recording_shorter_than_the_filter_is_no_warning():
    probabilities = np.array([[0.9, 0.1]] * 4)
    assert turns(probabilities, Setting(0.5, 11), 320) == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for frames, median in ((4, 3), (40, 11), (501, 11)):
            active = np.random.default_rng(frames).random((frames, 2)) > 0.5
            assert np.array_equal(smoothed(active, median), medfilt(active.astype(float), (median, 1)))
