"""Emotion recognition: the seed of a run decides its head, not its dev split."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.result_rows import rows_of
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.evaluation.utterance_comparison import check_utterances
from s3prl_ext.evaluation.utterance_counts import utterance_counts
from s3prl_ext.tasks import named
from tests.support.experiments import make_args, task_config


def built(build, folder, seed, **datarc):
    config = task_config("er")
    config["downstream_expert"]["datarc"] |= datarc
    return build(make_args(folder, downstream="emotion", seed=seed), config).downstream.model


def test_runs_of_two_seeds_share_the_dev_split_and_not_the_head(build, tmp_path):
    first, second = (built(build, tmp_path / str(seed), seed) for seed in (1, 2))
    size = len(first.train_dataset.dataset)
    drawn = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    assert first.train_dataset.indices + first.dev_dataset.indices == drawn, "as s3prl draws it"
    assert second.dev_dataset.indices == first.dev_dataset.indices
    assert not torch.equal(first.projector.weight, second.projector.weight)
    again = built(build, tmp_path / "again", 1)
    assert torch.equal(first.projector.weight, again.projector.weight)


def test_each_fold_tests_on_its_session(build, tmp_path):
    for number in (2, 5):
        expert = built(build, tmp_path / str(number), 1, test_fold=f"fold{number}")
        tested = {row["path"].split("/")[0] for row in expert.test_dataset.meta_data}
        trained = {row["path"].split("/")[0] for row in expert.train_dataset.dataset.meta_data}
        assert tested == {f"Session{number}"} and len(trained) == 4 and not tested & trained


def test_an_unknown_fold_is_refused(build, tmp_path):
    with pytest.raises(UsageError, match="unknown fold .*'fold6'"):
        built(build, tmp_path, 1, test_fold="fold6")


def test_runs_of_two_folds_make_one_row(build, tmp_path):
    runs = []
    for fold in ("fold1", "fold3"):
        config = task_config("er", total_steps=1)
        config["downstream_expert"]["datarc"]["test_fold"] = fold
        build(make_args(tmp_path / fold, upstream="fbank_no_cmvn", downstream="emotion"), config).train()
        runs += runs_of(read_record(tmp_path / fold / "result.json"))
    assert [run.fold for run in runs] == ["fold1", "fold3"] and [run.seed for run in runs] == [
        "1337, fold1",
        "1337, fold3",
    ]
    (row,) = rows_of(runs, "acc")
    assert len(row.runs) == 2 and row.missing_folds == ["fold2", "fold4", "fold5"]
    assert all(check_utterances(run) is None and utterance_counts(run.utterances, "dev", run.values, run.source, named("er"))
               for run in runs)  # fmt: skip
