"""Speaker verification on recordings: what the scores count against, and what of a recording is heard."""

from __future__ import annotations

import numpy as np
import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.prediction.decoder import Inputs, Options
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
