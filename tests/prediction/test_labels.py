"""Names of intents and slots: kept in checkpoints, else taken from the corpus, else a sentence that says what to set."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.configs import expand_known
from s3prl_ext.errors import DataError
from s3prl_ext.prediction import load
from s3prl_ext.training import checkpoint
from tests.support import prediction_runs as runs


def forget_labels(ckpt) -> dict:
    """Make a checkpoint one that says nothing of its labels, as s3prl's own; returns them."""
    states = torch.load(ckpt, weights_only=False)
    labels = states["Config"]["downstream_expert"].pop("labels")
    torch.save(states, ckpt)
    return labels


@pytest.mark.parametrize(
    ("task", "variable", "file"),
    [("ic", "FLUENT_SPEECH_COMMANDS", "train_data.csv"), ("sf", "AUDIO_SNIPS", "slots.txt")],
)
def test_labels(build, tmp_path, monkeypatch, task, variable, file):
    ckpt = runs.train(build, task, tmp_path)
    stored = load(ckpt)
    labels = forget_labels(ckpt)
    from_corpus = load(ckpt)
    if task == "ic":
        assert stored.decoder.values == from_corpus.decoder.values == labels
        assert all(len(set(values)) > 1 for values in labels.values())
    else:
        assert stored.decoder.expert.tokenizer.slots == from_corpus.decoder.expert.tokenizer.slots
        assert labels["slots"] == [mark[2:] for mark in stored.decoder.expert.tokenizer.slots[::2]]
    monkeypatch.delenv(variable)
    with pytest.raises(DataError, match=rf"set {variable} to the folder of the corpus, of which only {file} is read"):
        load(ckpt)
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="are not stored in this run and .* was not found"):
        load(ckpt)


def test_a_run_with_stored_labels_is_resumed_and_evaluated(build, tmp_path):
    ckpt = runs.train(build, "sf", tmp_path)
    before = checkpoint.load(ckpt)["Config"]["downstream_expert"]
    metrics, runner = runs.evaluate(build, ckpt, "sf")
    assert runner.config["downstream_expert"]["labels"] == before["labels"]
    assert "wer" in metrics and before["corpus"]["path"] == "${AUDIO_SNIPS}"


def test_known_variables(monkeypatch):
    monkeypatch.setenv("HERE", "/here")
    monkeypatch.delenv("NOWHERE", raising=False)
    section = {"a": ["${HERE}/x", 3, None], "b": {"c": "${NOWHERE}/y", "d": "${NOWHERE:-z}"}}
    assert expand_known(section) == {"a": ["/here/x", 3, None], "b": {"c": "${NOWHERE}/y", "d": "z"}}
