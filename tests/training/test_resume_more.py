"""Resuming under awkward circumstances: repeated interrupts, moved folders, other settings, mixed precision, epochs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from s3prl_ext.child_tuning import delta
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint, train_state
from tests.support.experiments import interrupt_at_loss, make_args, task_config


def resumed(expdir: Path, ckpt: str, **changes):
    return make_args(expdir, past_exp=str(expdir), init_ckpt=str(expdir / ckpt), **changes)


def accuracies(runner, *values):
    """Let the evaluations of a keyword spotting give these, one after another."""
    log, given = runner.downstream.model.log_records, iter(values)

    def log_records(mode, records, **others):
        if mode == "dev":
            records["acc"] = [next(given)]
        return log(mode, records=records, **others)

    runner.downstream.model.log_records = log_records


def test_evaluation_interrupted_twice(build, tmp_path):
    config = task_config(total_steps=4, eval_step=2, save_step=4)
    build(make_args(tmp_path / "whole"), config).train()
    for attempt, number in enumerate((4, 2)):  # in the evaluation after step 2, and again when it is repeated
        args = make_args(tmp_path / "parts") if attempt == 0 else resumed(tmp_path / "parts", "states-2.ckpt")
        runner = build(args, config)
        interrupt_at_loss(runner, number)
        with pytest.raises(StoppedByUser):
            runner.train()
    build(resumed(tmp_path / "parts", "states-2.ckpt"), config).train()
    states = [torch.load(tmp_path / run / "states-4.ckpt", weights_only=True) for run in ("whole", "parts")]
    for key, value in states[0]["Downstream"].items():
        assert torch.equal(value, states[1]["Downstream"][key]), key


def test_an_earlier_checkpoint_supersedes_later_ones(build, tmp_path):
    config = task_config(total_steps=6, eval_step=2, save_step=6)
    build(make_args(tmp_path / "exp"), config).train()
    states = torch.load(tmp_path / "exp" / "states-6.ckpt", weights_only=True)
    checkpoint.save(states | {"Step": 2}, tmp_path / "exp" / "dev-best.ckpt")
    build(resumed(tmp_path / "exp", "dev-best.ckpt"), task_config(total_steps=4, save_step=4)).train()
    assert [p.name for p in RunFolder(tmp_path / "exp").numbered()] == ["states-4.ckpt"]


def test_a_stop_after_going_back_goes_on_from_there_and_not_from_the_branch_that_was_left(build, tmp_path):
    """With several numbered checkpoints kept the newest of them is of the left branch."""
    config, folder = task_config(total_steps=6, eval_step=2, save_step=2), tmp_path / "exp"
    config["runner"]["max_keep"] = 3
    args = make_args(folder)
    args.until = 5
    build(args, config).train()
    build(resumed(folder, "states-5.ckpt"), config).train()
    left = {path.name: path.read_bytes() for path in RunFolder(folder).numbered()}
    back = resumed(folder, sorted(left)[0])
    back.until = 5
    assert sorted(left) == ["states-4.ckpt", "states-5.ckpt", "states-6.ckpt"] and (folder / "at-5.json").is_file()
    build(back, config).train()
    assert [path.name for path in RunFolder(folder).numbered()] == ["states-4.ckpt", "states-5.ckpt"]
    assert (folder / "states-6.ckpt.step-6").read_bytes() == left["states-6.ckpt"]
    assert (folder / "states-5.ckpt.step-5").read_bytes() == left["states-5.ckpt"]
    assert len(list(folder.glob("at-5.json*"))) == 2


def test_what_is_of_a_later_step_than_the_run_goes_on_from_is_set_aside(build, tmp_path, hubert_ckpt, caplog):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    tuning = {"method": "child", "mask": "random", "density": 0.05}
    config, folder = task_config(tuning=tuning, total_steps=2, eval_step=1, save_step=1), tmp_path / "exp"
    config["runner"]["max_keep"] = 5
    runner = build(make_args(folder, **upstream), config)
    accuracies(runner, 0.2, 0.3)
    runner.train()
    build(resumed(folder, "dev-best.ckpt", mode="evaluate", evaluate_split="test", **upstream), config).evaluate()
    left = {name: (folder / name).read_bytes() for name in ("dev-best.ckpt", "delta.safetensors", "result-test.json")}
    runner = build(resumed(folder, "states-1.ckpt", **upstream), config)
    accuracies(runner, 0.1)
    runner.train()
    for name, content in left.items():
        assert not (folder / name).exists() and (folder / f"{name}.step-2").read_bytes() == content
        assert (
            f"{folder / name} is of step 2, but the run goes on from step 1: it is kept as {name}.step-2" in caplog.text
        )
    content = json.loads((folder / "result.json").read_text())
    assert content["kept"] == [] and [row["acc"] for row in content["history"]] == [0.2, 0.1]
    assert "none of the 2 evaluations is better than the best before the step from which" in caplog.text
    assert RunFolder(folder).representative(prefer_delta=True).name == "states-2.ckpt"

    runner = build(resumed(folder, "states-1.ckpt", **upstream), config)
    accuracies(runner, 0.25)
    runner.train()
    assert (
        checkpoint.load(folder / "dev-best.ckpt")["Step"] == delta.load(folder / "delta.safetensors").info["step"] == 2
    )
    assert len(list(folder.glob("result.json.step-2*"))) == 2, "nothing that was set aside is replaced"
    args = make_args(folder, **upstream)
    args.overwrite = True
    build(args, task_config(total_steps=1)).train()
    assert not list(folder.glob("*.step-*"))


def test_older_checkpoints_are_removed_but_never_the_newest(tmp_path):
    for step in (2, 4, 6, 8):
        (tmp_path / f"states-{step}.ckpt").write_bytes(b"")
    RunFolder(tmp_path).remove_older(tmp_path / "states-6.ckpt", keep=2)
    assert [p.name for p in RunFolder(tmp_path).numbered()] == ["states-4.ckpt", "states-6.ckpt"]


def test_epochs_survive_the_checkpoint(build, tmp_path):
    config = task_config(total_steps=None, epochs=1)
    build(make_args(tmp_path / "exp"), config).train()
    (ckpt,) = RunFolder(tmp_path / "exp").numbered()
    stored = checkpoint.load(ckpt)["Config"]
    assert stored["runner"].get("total_steps") is None and stored["runner"]["epochs"] == 1
    build(resumed(tmp_path / "exp", ckpt.name, mode="evaluate"), stored).evaluate("dev")


def test_loss_scale_of_fp16_is_restored(build, tmp_path):
    config = task_config(total_steps=4, amp="fp16", save_step=2)
    config["runner"]["max_keep"] = 2
    build(make_args(tmp_path / "exp"), config).train()
    for step in (2, 4):
        scaler = checkpoint.load(tmp_path / "exp" / f"states-{step}.ckpt")["S3prlExt"]["scaler"]
        assert scaler["_growth_tracker"] == step or scaler["scale"] < 65536.0
    runner = build(resumed(tmp_path / "exp", "states-2.ckpt"), config)
    runner.train()
    again = checkpoint.load(tmp_path / "exp" / "states-4.ckpt")["S3prlExt"]["scaler"]
    assert again == scaler


def test_another_tuning_section_is_refused(build, tmp_path, hubert_ckpt):
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    tuning = {"method": "child", "mask": "random", "density": 0.05}
    build(make_args(tmp_path / "exp", **upstream), task_config(tuning=tuning, total_steps=1)).train()
    for other in ({**tuning, "density": 0.5}, {"method": "full"}, None):
        with pytest.raises(UsageError, match=r"was trained with tuning \{method: child.*density: 0.05\}"):
            build(resumed(tmp_path / "exp", "states-1.ckpt", **upstream), task_config(tuning=other))


def test_overwriting_deletes_nothing_before_the_new_run_is_built(build, tmp_path):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    args = make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt="nothing.pt")
    args.overwrite = True
    with pytest.raises(UsageError, match="no such file"):
        build(args, task_config())
    assert (tmp_path / "exp" / "states-1.ckpt").is_file() and (tmp_path / "exp" / "result.json").is_file()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runner": {"eval_dataloaders": ["dev", "devv"]}}, "no split 'devv'"),
        ({"early_stop": {"split": "devv"}}, "no split 'devv'"),
        ({"early_stop": {"metric": "per"}}, "does not report per"),
        ({"early_stop": {"rungs": [1, 9999]}}, "rungs must be below its end"),
        ({}, "split 'dev' is empty"),
    ],
)
def test_a_run_that_is_refused_overwrites_nothing(build, tmp_path, monkeypatch, change, message):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    before = contents(tmp_path / "exp")
    config = task_config(total_steps=None, epochs=1)
    config["runner"] |= change.get("runner", {})
    if "early_stop" in change:
        config |= {"tuning": {"method": ["frozen", "weighted_sum"]}, "early_stop": change["early_stop"]}
    args = make_args(tmp_path / "exp", upstream_feature_selection="last_hidden_state")
    args.overwrite = True
    runner = build(args, config)
    if not change:
        whole = runner.downstream.model.get_dataloader
        monkeypatch.setattr(
            runner.downstream.model, "get_dataloader", lambda split, **more: [] if split == "dev" else whole(split)
        )
    with pytest.raises((UsageError, DataError), match=message):
        runner.train()
    assert contents(tmp_path / "exp") == before


@pytest.mark.parametrize("name", ["states-1.ckpt", "race/density=0.1/states-1.ckpt"])
def test_a_run_does_not_overwrite_what_it_begins_with(build, tmp_path, name):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1)).train()
    source = tmp_path / "exp" / name
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        shutil.copy(tmp_path / "exp" / "states-1.ckpt", source)
    args = make_args(tmp_path / "exp", init_ckpt=str(source))
    args.overwrite = True
    with pytest.raises(UsageError, match=r"-i .*states-1.ckpt is in the experiment that args.overwrite=True deletes"):
        build(args, task_config())
    kept = tmp_path / "exp" / "kept" / "states-1.ckpt"
    kept.parent.mkdir()
    shutil.copy(source, kept)
    args.init_ckpt = str(kept)
    build(args, task_config(total_steps=2)).train()
    assert kept.is_file() and not source.exists() and (tmp_path / "exp" / "states-2.ckpt").is_file()


def test_infinite_gradient_skips_the_step(build, tmp_path):
    runner = build(make_args(tmp_path / "exp"), task_config(total_steps=3, save_step=1))
    weight = runner.downstream.model.projector.weight
    seen = []

    def spoil(gradient):
        seen.append(1)
        if len(seen) == 2:
            gradient = gradient.clone()
            gradient[0, 0] = float("inf")
        return gradient

    weight.register_hook(spoil)
    runner.train()
    assert len(seen) == 3 and all(torch.isfinite(p).all() for p in runner.downstream.model.parameters())


def test_a_checkpoint_from_before_a_row_of_bad_gradients_is_kept(build, tmp_path, monkeypatch):
    monkeypatch.setattr(train_state, "MAX_BAD_STEPS", 5)
    config = task_config(total_steps=20, save_step=2, max_keep=1)
    runner = build(make_args(tmp_path / "exp"), config)
    steps = []

    def spoil(gradient):
        steps.append(1)
        return gradient if len(steps) < 6 else torch.full_like(gradient, float("nan"))

    runner.downstream.model.projector.weight.register_hook(spoil)
    sound = tmp_path / "exp" / "states-4.ckpt"
    with pytest.raises(DataError, match=f"5 consecutive steps, up to step 10; .*{sound} is from before them and kept"):
        runner.train()
    assert [path.name for path in RunFolder(tmp_path / "exp").numbered()] == ["states-4.ckpt", "states-8.ckpt"]
    build(resumed(tmp_path / "exp", "states-4.ckpt"), config).train()  # without the fault
    assert [path.name for path in RunFolder(tmp_path / "exp").numbered()] == ["states-20.ckpt"]


def test_memory_that_never_suffices_ends_the_run(build, tmp_path, monkeypatch):
    runner = build(make_args(tmp_path / "exp"), task_config(total_steps=2))

    def too_large(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner.downstream.model, "forward", too_large)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.raises(DataError, match="100 consecutive batches did not fit"):
        runner.train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": {"name": "TorchOptm", "lr": 1}},
            r"unknown optimizer.name 'TorchOptm'; did you mean 'TorchOptim'",
        ),
        ({"optimizer": {"name": "TorchOptim", "torch_optim_name": "Adm", "lr": 1}}, "did you mean 'Adam'"),
        ({"optimizer": {"name": "TorchOptim", "torch_optim_name": "LBFGS", "lr": 1}}, "optim_name 'LBFGS'"),
        pytest.param(
            {"optimizer": {"name": "TorchOptim", "torch_optim_name": "Muon", "lr": 1}},
            "rejected.*Muon only supports 2D",
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on"),
        ),
        ({"optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": "abc"}}, "lr must be a number"),
        ({"optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": "inf"}}, "lr must be a finite number"),
        ({"optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": -1}}, "optimizer: .*learning rate: -1"),
        (
            {"optimizer": {"name": "ChildnetAdamW", "lr": 1, "foo": 3}},
            "optimizer: ChildnetAdamW .*'foo'.*correct its keys",
        ),
        ({"scheduler": {"name": "linear_schedule"}}, "linear_schedule_with_warmup"),
        ({"scheduler": {"name": "linear_schedule_with_warmup"}}, "scheduler: .*num_warmup_steps"),
        ({"tuning": None}, "must be a mapping"),
        ({"tuning": {"method": "child", "density": 0.1, "fisher": 5}}, "tuning.fisher must be a mapping"),
        ({"tuning": {"method": "child", "density": 0.1, "eligible": 5}}, "tuning.eligible must be a list"),
        ({"tuning": {"method": "child", "density": 0.1, "eligible": []}}, "tuning.eligible is empty"),
        ({"tuning": {"method": "child", "density": 0.1, "mask": "random", "fisher": {"max_batches": 2}}}, "remove it"),
        ({"tuning": {"method": "full"}}, "no weights that tuning.method 'full' could train"),
    ],
)
def test_wrong_sections_are_refused_before_training(build, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        build(make_args(tmp_path / "exp"), task_config() | change)


@pytest.mark.parametrize("value", [None, []])
def test_an_empty_list_of_splits_scores_none(value):
    from s3prl_ext.training.task_file import RunnerConfig

    assert RunnerConfig.from_config({"runner": {"total_steps": 1, "eval_dataloaders": value}}).eval_dataloaders == ()
    assert RunnerConfig.from_config({"runner": {"total_steps": 1}}).eval_dataloaders == ("dev",)


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        ({"eval_dataloaders": 5}, "must be a list of names"),
        ({"evaluate_ratio": 3}, "evaluate_ratio must be in"),
        ({"fp16": "False"}, "fp16 must be true or false"),
        ({"total_steps": float("inf")}, "must be a whole number of at least 1, got inf"),
        ({"gradient_clipping": float("nan")}, "must be a finite number"),
    ],
)
def test_wrong_runner_values(build, tmp_path, runner, message):
    with pytest.raises(UsageError, match=message):
        build(make_args(tmp_path / "exp"), task_config(**runner))


def test_numeric_strings_are_numbers(build, tmp_path):
    config = task_config(total_steps="2e0")
    config["optimizer"]["lr"] = "1e-3"
    build(make_args(tmp_path / "exp"), config).train()
    assert (tmp_path / "exp" / "states-2.ckpt").is_file()


@pytest.mark.parametrize(("task", "downstream"), [("ks", "speech_commands"), ("asr", "asr"), ("sd", "diarization")])
def test_unknown_split_is_named_before_training(build, tmp_path, task, downstream):
    config = task_config(task, eval_dataloaders=["devv"])
    runner = build(make_args(tmp_path / "exp", downstream=downstream), config)
    with pytest.raises(UsageError, match="no split 'devv'"):
        runner.train()
    assert not RunFolder(tmp_path / "exp").numbered()


def test_no_evaluation_split_still_gives_a_result(build, tmp_path):
    build(make_args(tmp_path / "exp"), task_config(total_steps=1, eval_dataloaders=[])).train()
    assert (tmp_path / "exp" / "result.json").is_file()


def test_a_folder_that_cannot_be_written_is_named_with_its_cause(tmp_path):
    with pytest.raises(DataError, match=r"writer/states-1\.ckpt: No such file or directory; earlier checkpoints"):
        checkpoint.save({"Step": 1}, tmp_path / "writer" / "states-1.ckpt")  # its name is no sign of a full disk


def test_another_learning_rate_is_refused_and_the_same_one_otherwise_written_is_not(build, tmp_path):
    config = task_config(total_steps=1)
    config["optimizer"]["lr"] = "1e-3"
    build(make_args(tmp_path / "exp"), config).train()
    config = task_config(total_steps=2)
    config["optimizer"]["lr"] = 0.03
    with pytest.raises(UsageError, match=r"another optimizer \(optimizer.lr: 0.001 in the checkpoint, 0.03 here\)"):
        build(resumed(tmp_path / "exp", "states-1.ckpt"), config)
    config["optimizer"]["lr"] = 0.001
    build(resumed(tmp_path / "exp", "states-1.ckpt"), config).train()


def test_what_a_section_tuning_leaves_to_others_may_change_on_resume(build, tmp_path, hubert_ckpt):
    """The released Fisher pass divides by the accumulated batches and clips as the training; the mask is in the file."""
    upstream = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    tuning = {"method": "child", "density": 0.05, "fisher": {"preset": "official", "max_batches": 2}}
    build(make_args(tmp_path / "exp", **upstream), task_config(tuning=tuning, total_steps=1)).train()
    before = delta_entries(tmp_path / "exp")
    changed = task_config(tuning=tuning, total_steps=2, gradient_accumulate_steps=2, gradient_clipping=0.5)
    build(resumed(tmp_path / "exp", "states-1.ckpt", **upstream), changed).train()
    assert delta_entries(tmp_path / "exp") == before
    begin = make_args(tmp_path / "begin", **upstream, init_ckpt=str(tmp_path / "exp" / "states-2.ckpt"))
    build(begin, changed)
    with pytest.raises(UsageError, match="was trained with tuning"):
        build(
            resumed(tmp_path / "exp", "states-2.ckpt", **upstream),
            task_config(tuning=tuning | {"fisher": {"max_batches": 2}}, total_steps=3),
        )


def delta_entries(folder):
    """Return which entries the last checkpoint of a child network holds."""
    changes = checkpoint.load(RunFolder(folder).latest())["UpstreamDelta"]
    return {name: indices.tolist() for name, indices in changes["indices"].items()}
