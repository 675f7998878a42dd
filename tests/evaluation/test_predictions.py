"""Prediction files and the comparison of two systems."""

from __future__ import annotations

import json

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.predictions import Prediction, compare, read_predictions, write_predictions
from s3prl_ext.evaluation.significance import mcnemar_exact


def write(path, wrong, clips=40, label="dog"):
    """Write predictions in which the clips of the given numbers are wrong."""
    rows = [Prediction(f"clip-{i:02d}", label, "cat" if i in wrong else label) for i in range(clips)]
    write_predictions(path, rows)
    return path


def test_lines_are_json_and_read_back(tmp_path):
    path = write(tmp_path / "predictions-test.jsonl", wrong={1}, clips=3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {"clip": "clip-01", "label": "dog", "prediction": "cat", "right": False}
    assert [row["right"] for row in rows] == [True, False, True]
    assert [one.right for one in read_predictions(path)] == [True, False, True]
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays"


def test_comparison_counts_clips_and_states_both_units(tmp_path):
    first = write(tmp_path / "a", wrong={0, 1, 2, 3, 4, 5})
    second = write(tmp_path / "b", wrong={0, 9})
    found = compare(first, second)
    assert (found.first_errors, found.second_errors) == (6, 2)
    assert (found.only_first_right, found.only_second_right) == (1, 5)
    assert found.p == mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert found.difference == pytest.approx(-0.1)
    assert found.interval[0] < -0.1 < found.interval[1]
    text = str(found)
    assert "15.00 % -> 5.00 %: -10.00 %" in text and "-4 of 40 clips (2.50 % is one clip)" in text
    assert "5 clips gained, 1 lost" in text and "McNemar p = 0.219" in text


def test_the_interval_can_draw_whole_source_recordings(tmp_path):
    """One recording of three has all its clips wrong: with it drawn twice or not at all the error is 2/3 or 0."""
    names = [f"4-{source}-{take}-0.wav" for source in ("100", "200", "300") for take in "ABCD"]
    for name, wrong in (("a", "100"), ("b", "none")):
        rows = [Prediction(clip, "dog", "cat" if f"-{wrong}-" in clip else "dog") for clip in names]
        write_predictions(tmp_path / name, rows)
    assert compare(tmp_path / "a", tmp_path / "b", over="source").interval == pytest.approx((-1.0, 0.0))
    assert compare(tmp_path / "a", tmp_path / "b").interval[0] > -0.7


def test_order_of_lines_does_not_matter(tmp_path):
    first, second = write(tmp_path / "a", wrong={0, 1}), write(tmp_path / "b", wrong={1, 7})
    shuffled = tmp_path / "c"
    shuffled.write_text("".join(reversed(second.read_text().splitlines(keepends=True))))
    assert compare(first, second) == compare(first, shuffled)


def test_files_that_cannot_be_compared_are_refused(tmp_path):
    whole = write(tmp_path / "whole", wrong=set())
    with pytest.raises(DataError, match=r"different clips or labels"):
        compare(whole, write(tmp_path / "short", wrong=set(), clips=39))
    with pytest.raises(DataError, match=r"different clips or labels"):
        compare(whole, write(tmp_path / "labels", wrong=set(), label="crow"))
    with pytest.raises(DataError, match="no predictions at"):
        compare(whole, tmp_path / "missing")
    (tmp_path / "twice").write_text(whole.read_text().splitlines(keepends=True)[0] * 2)
    with pytest.raises(DataError, match="a clip occurs twice|a clip twice"):
        read_predictions(tmp_path / "twice")
    (tmp_path / "other").write_text('{"clip": "a"}\n')
    with pytest.raises(DataError, match="line 1 of"):
        read_predictions(tmp_path / "other")
