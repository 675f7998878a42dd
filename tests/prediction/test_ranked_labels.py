"""The most probable labels of a recording as a table, from what a head says of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from s3prl_ext.prediction.classification import IntentDecoder, LabelDecoder
from s3prl_ext.prediction.decoder import Inputs, Options
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure
from s3prl_ext.prediction.writing import Formatter

CLIP = Recording("a.wav", np.zeros(16000, np.float32))
VALUES = {"action": ["go", "stop"], "place": ["here", "there"]}


def table(decoder: LabelDecoder, *probabilities: float) -> list[dict[str, str]]:
    """Return the rows that the CSV has of one recording, and of one that failed."""
    to_text = Formatter("csv", decoder, [Path("a.wav")])
    result = decoder.join(CLIP, [(0, 16000)], [np.array(probabilities)])
    text = to_text.header() + to_text(result) + to_text(Failure("b.wav", "b.wav does not exist: check the path."))
    return list(csv.DictReader(text.splitlines()))


def labels(**options) -> LabelDecoder:
    return LabelDecoder(Inputs({}, {}, 4, 160, Options(**options)), nn.Identity(), ["yes", "no", "up"])


def intents(**options) -> IntentDecoder:
    return IntentDecoder(Inputs({}, {}, 4, 160, Options(**options)), nn.Identity(), VALUES)


def test_each_of_the_most_probable_labels_has_a_row():
    first, second, failed = table(labels(top=2), 0.3, 0.1, 0.6)
    assert first == {"file": "a.wav", "rank": "1", "label": "up", "probability": "0.6", "error": ""}
    assert second == first | {"rank": "2", "label": "yes", "probability": "0.3"}
    assert failed["error"] and not failed["rank"]


def test_of_an_intent_each_row_has_the_slots_of_its_label():
    rows = table(intents(top=3), 0.1, 0.2, 0.4, 0.3)[:3]
    assert [(row["action"], row["place"]) for row in rows] == [("stop", "here"), ("stop", "there"), ("go", "there")]
    assert all(row["label"] == f"{row['action']} / {row['place']}" for row in rows)


@pytest.mark.parametrize("top", [None, 1])
def test_one_label_has_a_row_without_a_rank(top):
    row, _ = table(labels(top=top), 0.3, 0.1, 0.6)
    assert row == {"file": "a.wav", "label": "up", "probability": "0.6", "error": ""}
    row, _ = table(intents(top=top), 0.1, 0.2, 0.4, 0.3)
    assert list(row) == ["file", "label", "probability", "action", "place", "error"] and row["place"] == "here"


def test_a_task_may_have_fewer_labels_than_are_asked_for():
    assert [row["rank"] for row in table(labels(top=9), 0.3, 0.1, 0.6)[:-1]] == ["1", "2", "3"]
