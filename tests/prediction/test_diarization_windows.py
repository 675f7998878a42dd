"""Speakers of a long recording keep their numbers across windows, and long features fit their frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3prl_ext.prediction.decoder import Inputs, Options
from s3prl_ext.prediction.diarization import TurnDecoder, _fit
from s3prl_ext.prediction.recordings import Recording

FRAME = 160


@pytest.fixture
def decoder() -> TurnDecoder:
    import s3prl_ext

    s3prl_ext.install()
    section = {
        "datarc": {"num_speakers": 3, "chunk_size": 200, "frame_shift": FRAME},
        "modelrc": {"rnn_layers": 0, "hidden_size": 4},
    }
    return TurnDecoder(Inputs({}, section, 4, FRAME, Options(median=1)))


def test_speakers_are_matched(decoder):
    rng = np.random.default_rng(0)
    samples = np.zeros(1234 * FRAME + 50, np.float32)
    cut = decoder.windows(samples)
    assert len(cut) > 5 and cut[-1][1] == 1234 * FRAME
    truth = np.repeat(rng.uniform(0, 1, (124, 3)), 10, axis=0)[:1234]
    pieces = [truth[start // FRAME : end // FRAME][:, rng.permutation(3)] for start, end in cut]
    result = decoder.join(Recording("a.wav", samples), cut, pieces)
    first = [[np.array_equal(pieces[0][:, i], truth[:200, j]) for j in range(3)].index(True) for i in range(3)]
    assert np.array_equal(result.scores, truth[:, first]), "all windows in the order of the first"
    assert "overlapping windows" in result.notes[0]


def test_turns_are_where_the_scores_are_high(decoder):
    scores = np.zeros((100, 3), np.float32)
    scores[10:30, 0], scores[20:40, 2], scores[90:100, 0] = 0.9, 0.8, 0.7
    samples = np.zeros(100 * FRAME, np.float32)
    result = decoder.join(Recording("a b.wav", samples), [(0, len(samples))], [scores])
    assert result.turns == (("speaker1", 0.1, 0.3), ("speaker3", 0.2, 0.4), ("speaker1", 0.9, 1.0))
    assert result.rttm().splitlines()[0] == "SPEAKER a_b 1 0.100 0.200 <NA> <NA> speaker1 <NA> <NA>"
    assert result.rows()[1] == {"file": "a b.wav", "speaker": "speaker3", "start": 0.2, "end": 0.4}


@pytest.mark.parametrize(("frames", "wanted"), [(100, 100), (103, 100), (97, 100), (50, 100), (49, 100)])
def test_features_fit_as_in_s3prl(decoder, frames, wanted):
    from s3prl.downstream.diarization.expert import DownstreamExpert

    features = torch.randn(frames, 4, generator=torch.Generator().manual_seed(0))
    expert = DownstreamExpert.__new__(DownstreamExpert)
    theirs, _ = expert._match_length(features[None], torch.zeros(1, wanted, 3))
    mine = _fit(features, wanted)
    assert mine.shape == (wanted, 4) and torch.equal(mine, theirs[0])
