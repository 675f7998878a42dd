"""Enhancement and separation on the device of the run, and a loss that they cannot have."""

from __future__ import annotations

import importlib
import json

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.training.upstream_checks import check_single_clips
from tests.support.experiments import make_args, task_config


@pytest.mark.parametrize("task", ["se", "ss"])
def test_masks_are_on_the_device_of_the_features(build, tmp_path, task):
    downstream = TRAINED[task].task.downstream
    runner = build(
        make_args(tmp_path / "exp", downstream=downstream, upstream="fbank"), task_config(task, total_steps=1)
    )

    for part in ("expert", "loss"):  # as where there is a GPU and --device cpu
        importlib.import_module(f"s3prl.downstream.{downstream}.{part}").device = "cuda:7"
    runner.train()
    result = json.loads((tmp_path / "exp" / "result.json").read_text())
    name = TRAINED[task].task.metrics[0]
    low, high = result["intervals"]["dev"][name]
    assert low <= result["metrics"]["dev"][name]["value"] <= high and result["metrics"]["dev"][name]["unit"] in (
        "MOS",
        "dB",
    )


@pytest.mark.parametrize("task", ["se", "ss"])
def test_a_loss_of_asteroid_is_refused(build, tmp_path, task):
    config = task_config(task)
    config["downstream_expert"]["modelrc"]["loss_type"] = "SISDR"
    args = make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream, upstream="fbank")
    with pytest.raises(UsageError, match="loss_type SISDR .* needs asteroid.*: take MSE"):
        build(args, config)


@pytest.mark.parametrize("task", ["se", "ss"])
def test_evaluations_of_several_clips_a_batch_are_refused(build, tmp_path, task):
    config = task_config(task)
    config["downstream_expert"]["loaderrc"]["eval_batchsize"] = 2
    args = make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream, upstream="fbank")
    with pytest.raises(UsageError, match="eval_batchsize must be 1, got 2: .*one clip at a time"):
        build(args, config)


@pytest.mark.parametrize(
    ("task", "section", "key", "effect"),
    [
        ("sd", "loaderrc", "eval_batchsize", "DER and accuracy are means over batches"),
        ("asv", "datarc", "eval_batch_size", "an embedding depends on the longer clips of its batch"),
    ],
)
def test_other_tasks_say_what_a_larger_batch_does_to_their_scores(caplog, task, section, key, effect):
    for size in (1, 2):
        check_single_clips(TRAINED[task].task, {section: {key: size}})
    (said,) = caplog.messages
    assert f"{section}.{key} is 2: {effect}" in said
