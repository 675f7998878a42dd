"""What a resumed run may change, what is recorded of it, and that its result is of the step that it names."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.result_rows import rows_of
from s3prl_ext.evaluation.scored_runs import facts_of, runs_of
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.training.checkpoint import Checkpoint, Extension
from s3prl_ext.training.resume import changed_settings
from tests.support import result_files
from tests.support.experiments import make_args, task_config

CHILD = {"method": "child", "mask": "random", "density": 0.05, "lr": 1.0e-3}


def resumed(folder: Path, **changes):
    return make_args(folder, past_exp=str(folder), init_ckpt=str(RunFolder(folder).latest()), **changes)


def stopped(build, folder: Path, step: int, config, **changes) -> None:
    args = make_args(folder, **changes)
    args.until = step
    build(args, config).train()


def result(folder: Path, name: str = "result.json"):
    return json.loads((folder / name).read_text())


def test_a_run_that_is_shortened_is_scored_where_it_ends(build, tmp_path):
    stopped(build, tmp_path, 5, task_config(total_steps=20, eval_step=2, save_step=100))
    build(resumed(tmp_path), task_config(total_steps=4, eval_step=2, save_step=100)).train()
    ours = result(tmp_path)
    assert ours["step"] == 5 and [row["step"] for row in ours["history"]] == [2, 4, 5]
    build(resumed(tmp_path, mode="evaluate", evaluate_split="dev"), task_config(total_steps=4)).evaluate()
    again = result(tmp_path, "result-dev.json")
    assert again["step"] == 5 and ours["metrics"]["dev"] == again["metrics"]["dev"]
    assert checkpoint.load(tmp_path / "states-5.ckpt")["S3prlExt"]["history"][-1]["step"] == 5
    build(resumed(tmp_path), task_config(total_steps=4, eval_step=2)).train()
    assert result(tmp_path)["history"] == ours["history"], "it is scored once"


def test_the_seed_stays(build, tmp_path):
    stopped(build, tmp_path, 1, task_config())
    for mode in ("train", "evaluate"):
        with pytest.raises(UsageError, match=r"was trained with seed 1337, and args.seed is 9: .* with --seed"):
            build(resumed(tmp_path, seed=9, mode=mode), task_config())
    args = resumed(tmp_path, upstream_layer_selection=0, override="args.upstream_layer_selection=0")
    with pytest.raises(UsageError, match="was trained with upstream_layer_selection None, and .* is 0: .* with -l"):
        build(args, task_config())


def test_other_settings_are_recorded_with_their_step(build, tmp_path):
    config = task_config(total_steps=3, eval_step=1)
    stopped(build, tmp_path, 1, config)
    config["downstream_expert"]["datarc"] |= {"batch_size": 2, "num_workers": 1}
    stopped_again = resumed(tmp_path)
    stopped_again.until = 2
    build(stopped_again, config).train()
    assert result(tmp_path, "at-2.json")["changed_settings"][0]["step"] == 1
    config["runner"] |= {"gradient_clipping": 0.5, "total_steps": 4, "log_step": 1}
    build(resumed(tmp_path), config).train()
    changes = [
        {"step": 1, "settings": {"downstream_expert.datarc.batch_size": [8, 2]}},
        {"step": 2, "settings": {"runner.gradient_clipping": [1.0, 0.5]}},
    ]
    assert result(tmp_path)["changed_settings"] == changes
    assert checkpoint.load(tmp_path / "states-4.ckpt")["S3prlExt"]["changed_settings"] == changes
    build(resumed(tmp_path, mode="evaluate"), config).evaluate()
    assert result(tmp_path, "result-test.json")["changed_settings"] == changes
    build(make_args(tmp_path / "constant", seed=2), config).train()
    runs = [run for path in (tmp_path, tmp_path / "constant") for run in runs_of(read_record(path / "result.json"))]
    assert "changed_settings" not in result(tmp_path / "constant")
    assert len(rows_of(runs, "acc")) == 2, "the same settings from the beginning are another run"
    assert runs[0].facts["changed_on_resume"].startswith("batch_size 8, then 2 from step 1 on; gradient_clipping")


@pytest.mark.parametrize(
    ("first", "second"), [(CHILD, {"lr": 1.0e-5}), ({"method": "full", "lr": 1.0e-3}, {"layer_decay": 0.9})]
)
def test_learning_rates_of_section_tuning_stay(build, tmp_path, hubert_ckpt, first, second):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    build(make_args(tmp_path, **upstream), task_config(tuning=first, total_steps=1)).train()
    with pytest.raises(UsageError, match=r"other learning rates \(tuning .*lr: 0.001.* in the checkpoint, .* here\)"):
        build(resumed(tmp_path, **upstream), task_config(tuning=first | second))
    build(resumed(tmp_path, **upstream, mode="evaluate"), task_config(tuning=first | second))


def test_the_schedule_stays(build, tmp_path):
    config = task_config(total_steps=4) | {"scheduler": {"name": "linear_schedule_with_warmup", "num_warmup_steps": 2}}
    stopped(build, tmp_path, 1, config)
    with pytest.raises(UsageError, match=r"another scheduler \(scheduler.name: linear_.* in the checkpoint, \(nothing"):
        build(resumed(tmp_path), task_config(total_steps=4))


def test_features_given_with_o_are_the_users(build, tmp_path, hubert_ckpt):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    given = {"override": "config.runner.log_step=1,,args.upstream_feature_selection='hidden_states'"}
    for name, more, chosen in (("given", given, "hidden_states"), ("not", {}, "last_hidden_state")):
        runner = build(make_args(tmp_path / name, **upstream, **more), task_config(tuning={"method": "full"}))
        assert runner.args.upstream_feature_selection == chosen


def test_scores_of_a_part_of_a_split_are_said_to_be(build, tmp_path, caplog):
    config = task_config(total_steps=1, evaluate_ratio=0.1)
    config["downstream_expert"]["datarc"]["eval_batch_size"] = 1
    build(make_args(tmp_path), config).train()
    build(resumed(tmp_path, mode="evaluate"), config).evaluate()
    assert "runner.evaluate_ratio is 0.1: only that share of the batches of 'test' is scored" in caplog.text


def test_a_moved_corpus_and_what_saves_memory_are_no_change(tmp_path):
    """Of the corpus a resumed run compares the hash; a checkpoint without one has only its path."""
    config = task_config("ks")
    places = ("speech_commands_root", "speech_commands_test_root")
    config["downstream_expert"]["datarc"] |= dict.fromkeys(places, "/old")
    moved = copy.deepcopy(config)
    moved["runner"] |= {"cache_folder": "/b", "checkpoint_upstream": True}
    path = "downstream_expert.datarc.speech_commands_root"
    moved["downstream_expert"]["datarc"]["speech_commands_root"] = "/new"
    args = make_args(tmp_path, past_exp="exp")
    ckpt = Checkpoint(tmp_path / "states-5.ckpt", step=5, config=config, extension=Extension(data={"sha256": "a" * 64}))
    assert changed_settings(ckpt, moved, args) == []
    (row,) = changed_settings(replace(ckpt, extension=Extension()), moved, args)
    assert list(row["settings"]) == [path]
    of_earlier_version = {
        "runner.cache_folder": ["/a", "/b"],
        "runner.checkpoint_upstream": [None, True],
        path: ["/a", "/b"],
    }
    for settings, said in ((of_earlier_version, None), ({"runner.amp": [None, "fp16"]}, "amp None, then fp16 from")):
        record = result_files.content(
            {"acc": 0.5}, downstream="speech_commands", changed_settings=[{"step": 5, "settings": settings}]
        )
        found = facts_of(read_record(result_files.write(tmp_path, record))).get("changed_on_resume")
        assert found == said if said is None else found.startswith(said)


def test_the_folder_of_a_cache_decides_nothing(build, tmp_path):
    """Seeds with caches on two disks are one row, and a run that is resumed on another machine has not changed."""
    for seed, disk in ((1, "job1"), (2, "job2")):
        options = {"cache": "features", "cache_folder": str(tmp_path / disk)}
        config = task_config(tuning={"method": "frozen"}, total_steps=2, eval_step=2, **options)
        stopped(build, tmp_path / f"seed{seed}", 1, config, seed=seed)
        config["runner"]["cache_folder"] = str(tmp_path / "of_another_machine")
        build(resumed(tmp_path / f"seed{seed}", seed=seed), config).train()
    results = [read_record(tmp_path / f"seed{seed}" / "result.json") for seed in (1, 2)]
    assert all(record["changed_settings"] is None for record in results)
    assert len(rows_of([run for record in results for run in runs_of(record)], "acc")) == 1
