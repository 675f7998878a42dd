"""Errors of single utterances from the files that tasks leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.utterance_counts import utterance_counts


def files(folder: Path, predicted: tuple[str, list[str]], truth: tuple[str, list[str]]) -> Path:
    """Write two files, each given by its name and its lines."""
    folder.mkdir(exist_ok=True)
    for name, lines in (predicted, truth):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def test_labels_of_keyword_spotting_and_intents(tmp_path):
    ks = files(
        tmp_path / "ks", ("test_predict.txt", ["yes-a yes", "no-b up"]), ("test_truth.txt", ["yes-a yes", "no-b no"])
    )
    assert utterance_counts(ks, "test", {"acc": 0.5, "loss": 1.0}, ks) == {
        ("yes-a", "yes"): (0, 1),
        ("no-b", "no"): (1, 1),
    }
    ic = files(tmp_path / "ic", ("dev_predict.csv", ["a,on,light,kitchen"]), ("dev_truth.csv", ["a,on,light,none"]))
    assert utterance_counts(ic, "dev", {"acc": 0.0}, ic) == {("a", "on,light,none"): (1, 1)}


def test_texts_of_speech_and_phoneme_recognition(tmp_path):
    asr = files(
        tmp_path / "a", ("test-clean-noLM-hyp.ark", ["u1 A X", "u2 "]), ("test-clean-noLM-ref.ark", ["u1 A B", "u2 C"])
    )
    found = utterance_counts(asr, "test-clean", {"wer": 200 / 3, "uer": 1.0}, asr)
    assert found == {("u1", "A B"): (1, 2), ("u2", "C"): (1, 1)}
    pr = files(tmp_path / "p", ("test-hyp.ark", ["u1 AH0 B"]), ("test-ref.ark", ["u1 AH0 B K"]))
    assert utterance_counts(pr, "test", {"per": 1 / 3}, pr) == {("u1", "AH0 B K"): (1, 3)}


def test_only_line_ends_divide_texts(tmp_path):
    asr = files(
        tmp_path, ("test-noLM-hyp.ark", ["u1 A\x85 X", "u2 C"]), ("test-noLM-ref.ark", ["u1 A\u2028 B", "u2 C"])
    )
    assert utterance_counts(asr, "test", {"wer": 100 / 3}, asr) == {("u1", "A\u2028 B"): (1, 2), ("u2", "C"): (0, 1)}


def test_draws_of_one_clip_are_no_utterances(tmp_path):
    ks = files(tmp_path / "ks", ("dev_predict.txt", ["a yes", "a no"]), ("dev_truth.txt", ["a yes", "a yes"]))
    assert utterance_counts(ks, "dev", {"acc": 0.5}, ks) is None
    assert utterance_counts(ks, "test", {"acc": 0.5}, ks) is None, "no file"
    assert utterance_counts(ks, "dev", {"der": 0.5}, ks) is None, "no metric of these files"


@pytest.mark.parametrize(
    ("predicted", "value", "said"),
    [(["a yes"], 0.5, "another evaluation"), (["b yes"], 1.0, "name different clips"), ([], 1.0, "different clips")],
)
def test_files_of_another_evaluation_are_named(tmp_path, predicted, value, said):
    ks = files(tmp_path / "ks", ("test_predict.txt", predicted), ("test_truth.txt", ["a yes"]))
    with pytest.raises(DataError, match=said) as error:
        utterance_counts(ks, "test", {"acc": value}, ks / "result.json")
    assert "test_predict.txt" in str(error.value)
