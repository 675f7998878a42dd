"""Speaker verification on recordings: what the scores count against, and what of a recording is heard."""

from __future__ import annotations

import numpy as np
import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.prediction.decoder import Inputs, Options
from s3prl_ext.prediction.recordings import from_samples
from s3prl_ext.prediction.results import Failure, VoiceResult
from s3prl_ext.prediction.verification import VoiceDecoder
from s3prl_ext.tasks.record import LABELS
from tests.support.experiments import task_config


def decoder(**options) -> VoiceDecoder:
    section = task_config("asv")["downstream_expert"] | {LABELS: {"speakers": ["a", "b"]}}
    return VoiceDecoder(Inputs({}, section, 80, 160, Options(**options)))


def voice(name: str, *embedding: float) -> VoiceResult:
    return VoiceResult(name, 1.0, (), np.array(embedding))


def test_scores_count_against_the_first_recording():
    missing = Failure("missing.wav", "missing.wav does not exist: check the path.")
    given = [voice("a.wav", 0, 1), missing, voice("b.wav", 0.6, 0.8)]
    first, failed, other = decoder().together(iter(given))
    assert (first.score, first.against, other.score, other.against) == (1, "a.wav", 0.8, "a.wav") and failed is missing


def test_there_is_no_score_where_the_first_recording_fails():
    missing = Failure("missing.wav", "missing.wav does not exist: check the path.")
    results = decoder().together(iter([missing, voice("a.wav", 0, 1), voice("b.wav", 0.6, 0.8)]))
    with pytest.raises(DataError, match=r"no score without the first recording, .* missing.wav does not exist: check"):
        next(results)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * 16000), np.float32)


def heard(samples: np.ndarray) -> np.ndarray:
    """Return what the model hears of a recording, with a window of 2 s."""
    two_seconds = decoder(window=2.0)
    ((start, end),) = two_seconds.windows(samples)
    return two_seconds.prepare(samples[start:end])


def test_a_window_of_silence_before_the_first_sound_is_not_heard():
    assert np.array_equal(heard(np.concatenate([silence(3), sound(1)])), heard(sound(1)))
    with pytest.raises(DataError, match=r"without a sound of 0.1 s or more"):
        decoder().windows(silence(3))


@pytest.mark.parametrize("pairs", [[(1.5, 0.5)], [(1, 1), (1, 1), (1, 1)], [(1.2, 0.3), (0.3, 2.5), (1.2, 0)]])
def test_a_window_holds_the_sound_that_comes_first(pairs):
    recording = np.concatenate([part for loud, still in pairs for part in (silence(still), sound(loud))])
    whole, window = decoder().prepare(recording), heard(recording)
    assert np.array_equal(window, whole[: len(window)])
    assert len(window) == len(whole) if len(whole) <= 32000 else 32000 - 1600 <= len(window) <= 32000


def test_a_recording_of_more_sound_than_a_window_says_so():
    two_seconds, recording = decoder(window=2.0), from_samples(np.concatenate([silence(3), sound(3)]), 16000)
    result = two_seconds.join(recording, two_seconds.windows(recording.samples), [np.ones(2)])
    assert result.notes == ("the first 2 s of sound count: raise --window for more",)
    still = from_samples(np.concatenate([silence(3), sound(1), silence(1)]), 16000)
    assert not two_seconds.join(still, two_seconds.windows(still.samples), [np.ones(2)]).notes
