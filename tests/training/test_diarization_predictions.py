"""Predictions of diarization: those of one evaluation from its beginning to its end, and the result that is theirs."""

from __future__ import annotations

import json

import pytest
import torch

from s3prl_ext.commands.report_figures import diarization_scores
from s3prl_ext.errors import StoppedByUser
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.training.results.evaluation import evaluate
from tests.support.experiments import make_args, task_config


def test_an_evaluation_that_is_stopped_or_partial_leaves_no_mixture(build, tmp_path):
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="diarization")
    runner = build(args, task_config("sd"))
    folder = tmp_path / "exp" / "scoring" / "predictions"

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    runner.evaluate()
    of_first, record = files(), read_record(tmp_path / "exp" / "result-test.json")
    assert len(of_first) > 2 and record["predictions_sha256"]
    for parameter in runner.downstream.model.parameters():
        torch.nn.init.normal_(parameter)
    seen: list[int] = []

    def stop_at_the_third() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise StoppedByUser("stopped")

    with pytest.raises(StoppedByUser):
        evaluate(runner.models, "test", 1337, check_stop=stop_at_the_third)
    assert files() == of_first, "an evaluation that did not end changes nothing"
    assert not list((tmp_path / "exp").glob(".*predictions*"))
    evaluate(runner.models, "dev", 1337)
    assert files() == of_first, "dev is not written"

    left_out: list[str] = []
    if pytest.importorskip("pyannote.metrics"):
        assert len(diarization_scores(runs_of(record), [record], left_out)) == 1 and not left_out
    evaluate(runner.models, "test", 1337)  # ended, and its result could not be written
    assert files().keys() == of_first.keys() and files() != of_first
    assert not diarization_scores(runs_of(record), [record], left_out)
    assert "are not of the evaluation that it reports" in left_out[0] and "evaluate test again" in left_out[0]
    evaluate(runner.models, "test", 1337, ratio=1e-9)
    assert len(files()) == 1, "nothing of an earlier evaluation is left"


def test_the_frame_shift_of_another_upstream_is_noticed(build, tmp_path):
    pytest.importorskip("pyannote.metrics")
    build(make_args(tmp_path / "exp", mode="evaluate", downstream="diarization"), task_config("sd")).evaluate()
    path = tmp_path / "exp" / "result-test.json"
    record, left_out = read_record(path), []
    (tmp_path / "exp" / "frame_shift").write_text("320\n")  # as an evaluation that was just begun writes it
    assert not diarization_scores(runs_of(record), [record], left_out) and len(left_out) == 1
    content = json.loads(path.read_text())
    del content["predictions_sha256"]
    path.write_text(json.dumps(content))
    old = read_record(path)
    assert diarization_scores(runs_of(old), [old], []), "a result of 0.1.0 has no digest"
