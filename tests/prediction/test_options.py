"""What may be chosen at prediction: which values are taken, and what a model makes of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from s3prl_ext.commands.predict import main
from s3prl_ext.errors import UsageError
from s3prl_ext.prediction.decoder import Inputs, Options
from s3prl_ext.prediction.model import Model
from s3prl_ext.prediction.transcription import RecognitionDecoder


@pytest.mark.parametrize("window", ["1.9", "-3", "nan", "inf", "-inf"])
def test_a_window_is_a_number_of_seconds(window, tmp_path):
    with pytest.raises(UsageError, match=f"--window must be a number of seconds, 2 or more, got {window}; to cut"):
        main([str(tmp_path / "no_run"), str(tmp_path / "no_clip.wav"), f"--window={window}"])


@pytest.mark.parametrize(
    ("reads", "window", "seconds"), [(30, None, 30), (30, 40.0, 30), (30, 12.5, 12.5), (None, None, 40), (None, 60.0, 60)]
)  # fmt: skip
def test_no_window_is_longer_than_what_a_model_reads_at_once(reads, window, seconds):
    expert = SimpleNamespace(recognizer=SimpleNamespace(longest=reads and reads * 16000))
    assert RecognitionDecoder(Inputs({}, {}, 4, 160, Options(window=window)), expert).longest == seconds * 16000


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_holds_a_window(size):
    with pytest.raises(UsageError, match=f"batch_size must be at least 1, got {size}"):
        Model.__new__(Model).predict_files(["a.wav"], batch_size=size)
