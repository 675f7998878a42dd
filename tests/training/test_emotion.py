"""Emotion recognition: the seed of a run decides its head, not its dev split."""

from __future__ import annotations

import json
import os
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.result_rows import rows_of
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.evaluation.utterance_comparison import check_utterances
from s3prl_ext.evaluation.utterance_counts import utterance_counts
from s3prl_ext.tasks import named
from s3prl_ext.training import checkpoint
from s3prl_ext.writing import write_json
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


def test_lists_that_number_their_emotions_differently_are_refused(trained):
    change, again = trained
    change(
        lambda content: renumbered(content) if len({row["path"][:8] for row in content["meta_data"]}) == 1 else content
    )
    with pytest.raises(DataError, match="train_meta_data.json numbers its emotions neu 0, .* has neu 3"):
        again("evaluate")


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


@pytest.fixture
def trained(build, tmp_path):
    """Return what changes the lists of a fold, and what builds a run of the checkpoint that was trained with them."""
    lists = tmp_path / "lists"
    config = task_config("er", total_steps=1)
    config["downstream_expert"]["datarc"]["meta_data"] = str(lists)
    flags = {"upstream": "fbank_no_cmvn", "downstream": "emotion"}

    def change(spoil) -> None:
        for path in (lists / "Session1").glob("*.json"):
            write_json(path, spoil(json.loads(path.read_text())))

    def again(mode: str = "train", begins: bool = False, file: str = "states-1.ckpt", **datarc):
        path = tmp_path / "exp" / file
        stored = {} if begins else {"past_exp": str(path)}
        args = make_args(tmp_path / ("new" if begins else "exp"), mode=mode, init_ckpt=str(path), **flags, **stored)
        used = deepcopy(config if begins else checkpoint.load(path)["Config"])
        used["downstream_expert"]["datarc"] |= datarc
        return build(args, used)

    shutil.copytree(Path(os.environ["IEMOCAP"]) / "meta_data", lists)
    build(make_args(tmp_path / "exp", **flags), config).train()
    return change, again


def backwards(content: dict) -> dict:
    return content | {"meta_data": content["meta_data"][::-1]}


def renumbered(content: dict) -> dict:
    return content | {"labels": {name: 3 - index for name, index in content["labels"].items()}}


def test_a_training_goes_on_with_its_own_lists_alone(trained, caplog):
    change, again = trained
    again(), again("evaluate")
    assert "other lists" not in caplog.text
    change(backwards)
    with pytest.raises(DataError, match="states-1.ckpt was trained with other lists of train, dev and test .*with -i"):
        again()
    again("evaluate")
    assert "clips that it was trained on may be scored" in caplog.text


def test_lists_that_an_earlier_version_hashed_are_not_compared(trained, tmp_path, caplog):
    change, again = trained
    path = tmp_path / "exp" / "states-1.ckpt"
    states = checkpoint.load(path)
    del states[checkpoint.EXTENSION_KEY]["splits_rule"]
    torch.save(states, path)
    change(backwards)
    again(), again("evaluate")
    assert "other lists" not in caplog.text


def test_a_head_whose_outputs_are_numbered_otherwise_is_not_scored(trained, caplog):
    change, again = trained
    change(renumbered)
    with pytest.raises(DataError, match=r"output 0 of the head in .*states-1.ckpt \(emotions\) is 'neu', but 'sad' by"):
        again("evaluate")
    again(begins=True)
    assert "but 'sad' by the corpus as it is now; training begins with it anyway" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("test_fold", "fold2"), ("valid_ratio", 0.5)])
def test_a_checkpoint_goes_with_its_own_fold_alone(trained, caplog, key, value):
    _, again = trained
    message = rf"states-1.ckpt was trained with downstream_expert.datarc.{key} \S+, and now it is {value}, so that"
    for asked in ({}, {"mode": "evaluate"}, {"mode": "evaluate", "begins": True}):
        with pytest.raises(UsageError, match=message):
            again(**asked, **{key: value})
    assert "training begins with it anyway" not in caplog.text
    again(begins=True, **{key: value})
    assert f"now it is {value}" in caplog.text and "training begins with it anyway" in caplog.text


def test_the_fold_of_a_delta_and_of_s3prls_own_checkpoint_is_known(trained, tmp_path):
    """Stock s3prl leaves the fold of ``-v`` out of the task file, and hashes no lists."""
    _, again = trained
    path = tmp_path / "exp" / "states-1.ckpt"
    states = checkpoint.load(path)
    del states[checkpoint.EXTENSION_KEY]
    states["Config"]["downstream_expert"]["datarc"]["test_fold"] = None
    torch.save(states, path)
    again("evaluate", begins=True)
    for file in (path.name, "delta.safetensors"):
        with pytest.raises(UsageError, match=f"{file} was trained with .*test_fold fold1, and now it is fold2"):
            again("evaluate", begins=True, file=file, test_fold="fold2")
    states["Args"].downstream_variant = "fold2"
    torch.save(states, path)
    with pytest.raises(UsageError, match="test_fold fold2, and now it is fold1"):
        again("evaluate", begins=True)
