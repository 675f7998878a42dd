"""A race through the Runner: equal starts, the winner is the run it would have been alone, resume anywhere, deltas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s3prl_ext.child_tuning import delta, mask_files
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.run_folder import MASK_FILE, RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.training.racing.candidates import candidates_of
from s3prl_ext.training.racing.race import Race
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.selection.lottery_pass import LotteryPass
from s3prl_ext.training.train_state import TrainState
from tests.support.experiments import interrupt_at_loss, make_args, task_config

TOTAL, CUT = 6, 2
RACE = {"ratio": CUT / TOTAL, "keep": 1}


def config_of(density, race=RACE, method="child", **more):
    section = {"method": method, **more}
    if density is not None:
        section |= {"mask": "fisher", "fisher": {"max_batches": 2}, "density": density}
    config = task_config(tuning=section, total_steps=TOTAL, eval_step=3, save_step=3)
    if race:
        config["early_stop"] = race
    return config


def newest(folder: Path) -> dict:
    return checkpoint.load(RunFolder(folder).numbered()[-1])


def same(a, b) -> bool:
    """Compare nested values, tensors by their bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a: dict, b: dict) -> None:
    for key in ("Step", "Epoch", "UpstreamDelta", "Featurizer", "Downstream", "Optimizer"):
        assert same(a.get(key), b.get(key)), key
    for key in ("position", "history", "scaler", "bad_steps"):
        assert same(a["S3prlExt"][key], b["S3prlExt"][key]), key


@pytest.fixture
def upstream(hubert_ckpt):
    return {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}


def resumed(folder: Path, upstream: dict):
    args = make_args(folder, **upstream)
    args.init_ckpt = str(RunFolder(folder).numbered()[-1])
    args.past_exp = str(folder)
    return args


@pytest.fixture
def raced(build, tmp_path, upstream):
    """An uninterrupted race of two densities; its folder."""
    build(make_args(tmp_path / "race", **upstream), config_of([0.05, 0.01])).train()
    return tmp_path / "race"


def test_the_winner_is_the_run_it_would_have_been_alone(build, tmp_path, upstream, raced):
    record = json.loads((raced / "race" / "race.json").read_text())
    assert record["chosen"] in ("density=0.05", "density=0.01") and record["cut"] == CUT
    assert record["steps_of_all_candidates"] == 2 * CUT + TOTAL - CUT
    for density in (0.05, 0.01):
        alone = config_of(density, race=None)
        folder = tmp_path / f"alone-{density}"
        if record["chosen"] != f"density={density:g}":  # the loser stopped at the comparison
            alone["runner"] |= {"save_step": CUT, "max_keep": 9}
        build(make_args(folder, **upstream), alone).train()
        if record["chosen"] == f"density={density:g}":
            assert_same_run(newest(folder), newest(raced))
            ours, theirs = (delta.load(f / "delta.safetensors") for f in (raced, folder))
            assert same(dict(ours.bits), dict(theirs.bits)) and ours.info["candidate"] == record["chosen"]
        else:
            assert_same_run(
                checkpoint.load(folder / f"states-{CUT}.ckpt"), newest(raced / "race" / f"density={density:g}")
            )
    result = json.loads((raced / "result.json").read_text())
    assert result["candidate"] == record["chosen"] and result["race"]["metric"] == "acc"
    assert (raced / "race.png").stat().st_size > 5000


@pytest.mark.parametrize("at", [1, 2, 4, 6, 9])
def test_resumed_anywhere_it_ends_the_same(build, tmp_path, upstream, raced, at):
    folder = tmp_path / "stopped"
    runner = build(make_args(folder, **upstream), config_of([0.05, 0.01]))
    interrupt_at_loss(runner, at)
    try:
        runner.train()
    except (StoppedByUser, KeyboardInterrupt):  # the latter before the first step
        if RunFolder(folder).numbered():
            runner = build(resumed(folder, upstream), config_of([0.05, 0.01]))
        else:
            runner = build(make_args(folder, **upstream), config_of([0.05, 0.01]))
        runner.train()
    assert_same_run(newest(folder), newest(raced))
    ours, theirs = (json.loads((f / "race" / "race.json").read_text()) for f in (folder, raced))
    assert ours == theirs


def test_a_race_whose_winner_trains_on_counts_its_steps(build, tmp_path, upstream, raced):
    longer = config_of([0.05, 0.01])
    longer["runner"]["total_steps"] = TOTAL + 4
    build(resumed(raced, upstream), longer).train()
    result = json.loads((raced / "result.json").read_text())
    assert result["step"] == TOTAL + 4 and result["race"]["steps_of_all_candidates"] == 2 * CUT + TOTAL + 4 - CUT
    assert json.loads((raced / "race" / "race.json").read_text()) == result["race"]


RUNGS = {"rungs": [2, 4], "eta": 2}  # 3 candidates to step 2, 2 to step 4, 1 to the end


def test_over_rungs_too_everyone_trains_as_alone(build, tmp_path, upstream, steps):
    densities = [0.05, 0.01, 0.2]
    build(make_args(tmp_path / "rungs", **upstream), config_of(densities, race=RUNGS)).train()
    record = json.loads((tmp_path / "rungs" / "race" / "race.json").read_text())
    first, second = record["comparisons"]
    assert (first["step"], second["step"]) == (2, 4) == tuple(record["rungs"])
    assert first["best"] != second["best"] == [record["chosen"]] and set(first["best"]) == set(second["compared"])
    assert record["steps_of_all_candidates"] == len(steps) == 3 * 2 + 2 * 2 + 2
    assert (tmp_path / "rungs" / "race.png").stat().st_size > 5000
    result = json.loads((tmp_path / "rungs" / "result.json").read_text())
    assert result["race"] == record and result["candidate"] == record["chosen"]
    for density in densities:
        name, folder = f"density={density:g}", tmp_path / f"alone-{density}"
        alone = config_of(density, race=None)
        alone["runner"] |= {"save_step": 2, "max_keep": 9}
        build(make_args(folder, **upstream), alone).train()
        reached = 2 if name not in first["best"] else 4
        assert_same_run(checkpoint.load(folder / f"states-{reached}.ckpt"), newest(tmp_path / "rungs" / "race" / name))
        if name == record["chosen"]:
            assert_same_run(newest(folder), newest(tmp_path / "rungs"))


@pytest.mark.slow
def test_stopped_in_any_rung_it_ends_the_same(build, tmp_path, upstream):
    config = config_of([0.05, 0.01, 0.2], race=RUNGS)
    build(make_args(tmp_path / "whole", **upstream), config).train()
    for at in (3, 8, 12):  # losses: in the first rung, in the second, after it
        folder = tmp_path / f"stopped-{at}"
        runner = build(make_args(folder, **upstream), config)
        interrupt_at_loss(runner, at + 2)  # two batches of the Fisher pass come first
        with pytest.raises(StoppedByUser):
            runner.train()
        build(resumed(folder, upstream), config).train()
        assert_same_run(newest(folder), newest(tmp_path / "whole"))
        ours, theirs = (json.loads((f / "race" / "race.json").read_text()) for f in (folder, tmp_path / "whole"))
        assert ours == theirs


@pytest.mark.parametrize(
    ("densities", "at"),  # one loss for the metrics, two of the pass for 0.01, one of each step and each evaluation
    [([1.0, 0.01], 2), ([0.01, 1.0], 8)],
)
def test_a_candidate_of_all_weights_goes_on_after_each_comparison(build, tmp_path, upstream, densities, at):
    config, folder = config_of(densities, race=RACE | {"evaluations": 2}), tmp_path / "race"
    config["runner"]["evaluate_ratio"] = 1e-9  # one batch
    runner = build(make_args(folder, **upstream), config)
    interrupt_at_loss(runner, at)
    with pytest.raises(StoppedByUser):
        runner.train()
    assert newest(folder / "race" / "density=1")["Step"] == 1
    build(resumed(folder, upstream), config).train()
    assert mask_files.load(folder / MASK_FILE)[0].densities == (0.01,), "density 1 leaves nothing to choose"
    chosen = json.loads((folder / "race" / "race.json").read_text())["chosen"]
    alone = config_of(float(chosen.removeprefix("density=")), race=None) | {"runner": config["runner"]}
    build(make_args(tmp_path / "alone", **upstream), alone).train()
    ours, theirs = newest(folder), newest(tmp_path / "alone")
    assert all(same(ours.get(key), theirs.get(key)) for key in ("Step", "Upstream", "UpstreamDelta", "Downstream"))


def test_a_child_network_of_whole_tensors_is_tracked(build, tmp_path, upstream):
    names = ["*.layers.0.final_layer_norm.weight", "*.layers.0.final_layer_norm.bias"]  # ones and zeros
    config = task_config(total_steps=1, tuning={"method": "child", "mask": "magnitude", "density": 0.5} | {
        "eligible": names})  # fmt: skip
    runner = build(make_args(tmp_path / "exp", **upstream), config)
    base = {name: value.clone() for name, value in runner.upstream.model.state_dict().items()}
    runner.train()
    states = newest(tmp_path / "exp")
    (name,) = states["UpstreamDelta"]["indices"]
    assert name.endswith("layers.0.final_layer_norm.weight") and "Upstream" not in states
    tuned = dict(runner.upstream.model.state_dict())
    assert not torch.equal(tuned[name], base[name])
    runner.tuned.revert()
    assert same(dict(runner.upstream.model.state_dict()), base)
    del states["UpstreamDelta"]  # as it was stored once
    checkpoint.save(states | {"Upstream": tuned}, tmp_path / "exp" / "states-1.ckpt")
    config["runner"]["total_steps"] = 2
    with pytest.raises(DataError, match=r"states-1.ckpt does not hold which weights its child network trains"):
        build(resumed(tmp_path / "exp", upstream), config).train()


def test_checkpoints_and_deltas_are_small_and_evaluate(build, raced, upstream):
    state = newest(raced)
    assert "Upstream" not in state and state["UpstreamDelta"]["indices"]
    args = make_args(raced, mode="evaluate", **upstream)
    args.init_ckpt, args.past_exp = str(raced / "dev-best.ckpt"), str(raced)
    runner = build(args, config_of([0.05, 0.01]))
    tuned = {name: value.clone() for name, value in runner.upstream.model.state_dict().items()}
    runner.evaluate()
    made = delta.load(raced / "delta.safetensors")
    assert made.info["checkpoint"] == "dev-best.ckpt" and set(made.task) == {"Featurizer", "Downstream"}
    base = build(make_args(raced.parent / "fresh", **upstream), task_config()).upstream.model.state_dict()
    made.check_base(base)
    made.toggle(base)
    assert same(dict(base), tuned)


def test_another_base_is_refused(build, raced, tmp_path):
    from tests.support import factories

    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=7) or tmp_path / "other.pt"
    args = make_args(raced, mode="evaluate", upstream="hubert_local", upstream_ckpt=str(other))
    args.init_ckpt, args.past_exp = str(raced / "dev-best.ckpt"), str(raced)
    with pytest.raises(DataError, match="another upstream"):
        build(args, config_of([0.05, 0.01]))


def test_the_base_comes_back_bitwise(build, tmp_path, upstream):
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(0.05, race=None))
    before = {name: value.clone() for name, value in runner.upstream.model.state_dict().items()}
    runner.train()
    assert not same(dict(runner.upstream.model.state_dict()), before)
    runner.tuned.revert()
    assert same(dict(runner.upstream.model.state_dict()), before)


@pytest.fixture
def steps(monkeypatch):
    """A list that grows with every optimizer step of the process."""
    done, train_step = [], TrainState.train_step
    monkeypatch.setattr(TrainState, "train_step", lambda *arguments: done.append(1) or train_step(*arguments))
    return done


def test_two_are_kept_to_the_end(build, tmp_path, upstream, steps):
    race = RACE | {"keep": 2, "metric": "per"}
    runner = build(make_args(tmp_path / "exp", **upstream), config_of([0.05, 0.01, 0.2], race=race))
    with pytest.raises(UsageError, match="does not report per") as caught:
        runner.train()
    assert "acc" in str(caught.value)
    race["metric"] = "acc"
    build(make_args(tmp_path / "two", **upstream), config_of([0.05, 0.01, 0.2], race=race)).train()
    record = json.loads((tmp_path / "two" / "race" / "race.json").read_text())
    assert record["steps_of_all_candidates"] == len(steps) == 3 * CUT + 2 * (TOTAL - CUT)
    assert newest(tmp_path / "two")["Step"] == TOTAL


def test_methods_and_rates_race_too(build, tmp_path, upstream):
    config = config_of(None, method=["lora", "houlsby"], rank=[2, 4])
    build(make_args(tmp_path / "methods", **upstream), config).train()
    assert newest(tmp_path / "methods")["UpstreamDelta"]["added"]
    record = json.loads((tmp_path / "methods" / "race" / "race.json").read_text())
    assert record["entrants"] == ["method=lora,rank=2", "method=lora,rank=4", "method=houlsby"]
    (winner,) = (c.tuning for c in candidates_of(config["tuning"]) if c.name == record["chosen"])
    alone = config_of(None, **winner, race=None)
    build(make_args(tmp_path / "alone", **upstream), alone).train()
    assert_same_run(newest(tmp_path / "methods"), newest(tmp_path / "alone"))
    build(make_args(tmp_path / "rates", **upstream), config_of(None, method="full", lr=["1e-4", "1e-5"])).train()
    chosen = json.loads((tmp_path / "rates" / "race" / "race.json").read_text())["chosen"]
    alone = config_of(None, method="full", lr=float(chosen.removeprefix("lr=")), race=None)
    build(make_args(tmp_path / "full", **upstream), alone).train()
    assert same(newest(tmp_path / "rates")["Upstream"], newest(tmp_path / "full")["Upstream"])


def test_a_child_network_races_an_adapter(build, tmp_path, upstream, steps):
    section = {"method": ["child", "lora"], "density": 0.05, "rank": 2}
    build(make_args(tmp_path / "race", **upstream), config_of(**section)).train()
    record = json.loads((tmp_path / "race" / "race" / "race.json").read_text())
    assert record["entrants"] == ["method=child", "method=lora"]
    assert record["steps_of_all_candidates"] == len(steps) == 2 * CUT + TOTAL - CUT
    method = record["chosen"].removeprefix("method=")
    alone = {"density": 0.05} if method == "child" else {"density": None, "rank": 2}
    build(make_args(tmp_path / "alone", **upstream), config_of(method=method, race=None, **alone)).train()
    assert_same_run(newest(tmp_path / "race"), newest(tmp_path / "alone"))
    states = newest(tmp_path / "race" / "race" / "method=lora")["UpstreamDelta"]
    assert states["added"] and not states["indices"]


MASK_RACE = {
    "method": "child",
    "density": [0.05, 0.01],  # in the file before the masks: their candidates alternate
    "mask": ["fisher", "lottery", "random"],
    "fisher": {"max_batches": 2},
    "lottery": {"steps": 2},
}


def test_masks_race_in_one_file_each_chosen_once(build, tmp_path, upstream, monkeypatch, caplog):
    passes = []
    for kind in (FisherPass, LotteryPass):
        monkeypatch.setattr(kind, "scores", lambda self, scores=kind.scores: passes.append(type(self)) or scores(self))
    config = config_of(None) | {"tuning": MASK_RACE}
    with caplog.at_level("INFO"):
        build(make_args(tmp_path / "race", **upstream), config).train()
    assert passes == [FisherPass, LotteryPass], "one pass for both densities"
    assert "and a Fisher pass of 2 batches and a dense phase of 2 steps" in caplog.text
    record = json.loads((tmp_path / "race" / "race" / "race.json").read_text())
    assert len(record["entrants"]) == 6
    (winner,) = (c.tuning for c in candidates_of(config["tuning"]) if c.name == record["chosen"])
    build(make_args(tmp_path / "alone", **upstream), config_of(None, race=None) | {"tuning": winner}).train()
    assert_same_run(newest(tmp_path / "race"), newest(tmp_path / "alone"))
    if winner["mask"] != "random":
        ours, theirs = (mask_files.load(tmp_path / f / MASK_FILE)[0].at(winner["density"]) for f in ("race", "alone"))
        assert same(ours, theirs), "the file of the winner's choice"
    folder = tmp_path / "stopped"
    runner = build(make_args(folder, **upstream), config)
    interrupt_at_loss(runner, 2 + CUT + 5)  # in the third candidate at the latest, after the dense phase
    with pytest.raises(StoppedByUser):
        runner.train()
    build(resumed(folder, upstream), config).train()
    assert_same_run(newest(folder), newest(tmp_path / "race"))


def test_what_cannot_race_is_refused(build, tmp_path, upstream):
    with pytest.raises(UsageError, match="different features"):
        build(make_args(tmp_path / "a", **upstream), config_of(None, method=["lora", "full"]))
    with pytest.raises(UsageError, match="early_stop"):
        build(make_args(tmp_path / "b", **upstream), config_of([0.1, 0.01], race=None))


def stopped_after_the_first(build, folder, upstream, config, monkeypatch):
    """Leave a race when its second candidate is about to train."""
    run = Race._run
    with monkeypatch.context() as patch:

        def once(self, number, step, phase):
            if number == 1:
                raise StoppedByUser("stopped.")
            return run(self, number, step, phase)

        patch.setattr(Race, "_run", once)
        with pytest.raises(StoppedByUser):
            build(make_args(folder, **upstream), config).train()


def random_race(**runner):
    config = task_config(tuning={"method": "child", "mask": "random", "density": [0.1, 0.05]}, **runner)
    return config | {"early_stop": {"ratio": 0.5}}


def test_candidates_are_scored_and_trained_alike(build, tmp_path, upstream, monkeypatch):
    """The rest of an interrupted race has the settings of its start, whatever -o says."""
    stopped_after_the_first(build, tmp_path, upstream, random_race(), monkeypatch)
    for change, key in (
        ({"evaluate_ratio": 0.5}, "runner.evaluate_ratio"),
        ({"gradient_accumulate_steps": 2}, "runner.gradient_accumulate_steps"),
    ):
        with pytest.raises(UsageError, match=rf"began with other settings \({key}: .* in the checkpoint, .* here"):
            build(resumed(tmp_path, upstream), random_race(**change))
    with pytest.raises(UsageError, match=r"states-0.ckpt is the start of a race, of which nothing is trained"):
        args = resumed(tmp_path, upstream)
        args.mode = "evaluate"
        build(args, random_race())
    with pytest.raises(DataError, match="this is the start of a race, of which nothing is trained"):
        TrainedTask.read(tmp_path)
    build(resumed(tmp_path, upstream), random_race(save_step=1, log_step=1)).train()
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 4


def test_dev_chooses_in_whatever_order_splits_are_named(build, tmp_path, upstream, caplog):
    build(make_args(tmp_path / "both", **upstream), random_race(eval_dataloaders=["test", "dev"])).train()
    assert json.loads((tmp_path / "both" / "race" / "race.json").read_text())["split"] == "dev"
    assert "too good" not in caplog.text
    build(make_args(tmp_path / "test", **upstream), random_race(eval_dataloaders=["test"])).train()
    assert json.loads((tmp_path / "test" / "race" / "race.json").read_text())["split"] == "test"
    assert "compared on test, the split that is reported, so that its score is too good: add dev" in caplog.text
    caplog.clear()
    named = random_race()
    named["early_stop"]["split"] = "test"
    build(make_args(tmp_path / "named", **upstream), named).train()
    assert "compared on test, the split that is reported" in caplog.text


def test_a_run_begun_with_a_winner_is_no_race(build, tmp_path, upstream):
    build(make_args(tmp_path / "race", **upstream), random_race()).train()
    own = json.loads((tmp_path / "race" / "race" / "race.json").read_text())["chosen"]
    begin = {"init_ckpt": str(tmp_path / "race" / "states-4.ckpt")}
    with pytest.raises(UsageError, match=r"was trained with tuning .*: give the same section, or begin without -i"):
        build(make_args(tmp_path / "list", **upstream, **begin), random_race())
    tuning = {"method": "child", "mask": "random", "density": float(own.removeprefix("density="))}
    build(make_args(tmp_path / "own", **upstream, **begin), task_config(tuning=tuning)).train()
    found = json.loads((tmp_path / "own" / "result.json").read_text())
    assert found["candidate"] is None and found["race"] is None and found["step"] == 4
