"""Child networks chosen again during a run: what changes, what is stored, resumed anywhere, raced, exported as a delta."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from s3prl_ext.child_tuning import delta, masks
from s3prl_ext.commands import export
from s3prl_ext.errors import StoppedByUser, UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.selection import reselection
from tests.support.experiments import interrupt_at_loss, make_args, task_config
from tests.training.test_race_runs import assert_same_run, newest, same

TOTAL, EVERY = 6, 2
FISHER = {"method": "child", "density": 0.05, "fisher": {"max_batches": 2}, "reselect_every": EVERY}
GRADUAL = FISHER | {"mask": "magnitude", "density": 0.02, "gradual": {"start": 0.2, "until": 0.6}}
del GRADUAL["fisher"]


def config_of(tuning, **race):
    config = task_config(tuning=tuning, total_steps=TOTAL, eval_step=3, save_step=3, max_keep=9)
    config["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1.0e-2, "weight_decay": 0.1}
    return config | ({"early_stop": race} if race else {})


@pytest.fixture
def upstream(hubert_ckpt):
    return {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}


@pytest.fixture
def chosen(monkeypatch):
    """A list of the masks that runs choose again."""
    found, choose = [], reselection.choose_mask
    monkeypatch.setattr(reselection, "choose_mask", lambda *a: found.append(choose(*a)) or found[-1])
    return found


def resume(build, folder, upstream, config):
    args = make_args(folder, **upstream)
    args.init_ckpt, args.past_exp = str(RunFolder(folder).numbered()[-1]), str(folder)
    return build(args, config)


@pytest.mark.parametrize(
    "options", [{}, {"clip_scope": "all"}, {"unit": "row", "density": 0.2}], ids=["", "all", "row"]
)
def test_what_changed_is_the_union_of_all_that_was_chosen(build, tmp_path, upstream, chosen, options):
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(FISHER | options))
    before = copy.deepcopy(runner.upstream.model.state_dict())
    runner.train()
    state = newest(tmp_path / "exp")
    assert len(chosen) == TOTAL // EVERY - 1, "not after the last step"
    first = torch.load(tmp_path / "exp" / "states-3.ckpt", weights_only=False)["UpstreamDelta"]["indices"]
    union = {n: set(i.tolist()) for n, i in state["UpstreamDelta"]["indices"].items()}
    assert all(set(i.tolist()) <= union[n] for mask in (*chosen, first) for n, i in mask.items())
    size = sum(map(len, union.values()))
    assert masks.count(chosen[0]) < size, "entries enter"
    moved = {n: torch.nonzero((before[n] != t).reshape(-1)) for n, t in runner.upstream.model.state_dict().items()}
    assert all({int(i) for i in m} <= union.get(n, set()) for n, m in moved.items())
    assert sum(map(len, moved.values())) > 0.9 * size, "and nearly all of them keep a tuned value"
    members = state["S3prlExt"]["members"]
    assert sum(int((m > 0).sum()) for m in members.values()) == masks.count(chosen[-1])
    assert all(
        torch.equal(state["UpstreamDelta"]["indices"][n][m > 0].int(), chosen[-1].get(n, torch.zeros(0)).int())
        for n, m in members.items()
    )
    made = delta.load(tmp_path / "exp" / "delta.safetensors")
    runner.tuned.revert()
    after = runner.upstream.model.state_dict()
    assert all(torch.equal(before[n], t) for n, t in after.items()), "the base comes back bitwise"
    made.check_base(after)


@pytest.mark.parametrize("tuning", [FISHER, GRADUAL], ids=["fisher", "gradual"])
def test_stopped_anywhere_and_resumed_it_is_bitwise_the_same_run(build, tmp_path, upstream, tuning):
    config = config_of(tuning)
    build(make_args(tmp_path / "whole", **upstream), config).train()
    for at in (3, 4, 5, 6, 8) if tuning is FISHER else (2, 3, 5):  # with fisher the losses of three passes count too
        folder = tmp_path / f"stopped-{at}"
        runner = build(make_args(folder, **upstream), config)
        interrupt_at_loss(runner, at)
        with pytest.raises(StoppedByUser, match="is saved; resume with -a"):
            runner.train()
        resume(build, folder, upstream, config).train()
        assert_same_run(newest(folder), newest(tmp_path / "whole"))
        assert same(newest(folder)["S3prlExt"]["members"], newest(tmp_path / "whole")["S3prlExt"]["members"]), at
        ours, theirs = (delta.load(f / "delta.safetensors") for f in (folder, tmp_path / "whole"))
        assert same(dict(ours.bits), dict(theirs.bits)) and same(dict(ours.indices), dict(theirs.indices))


def test_choosing_the_same_again_is_the_run_that_never_does(build, tmp_path, upstream):
    """Magnitudes of a run whose rate is next to nothing never change their order: bitwise the fixed child network."""
    tuning = {"method": "child", "mask": "magnitude", "density": 0.05, "lr": 1e-12}
    for folder, more in (("fixed", {}), ("chosen", {"reselect_every": 2})):
        build(make_args(tmp_path / folder, **upstream), config_of(tuning | more)).train()
    a, b = (newest(tmp_path / folder) for folder in ("fixed", "chosen"))
    for key in ("UpstreamDelta", "Featurizer", "Downstream"):
        assert same(a[key], b[key]), key


def test_the_density_follows_its_course(build, tmp_path, upstream, chosen):
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(GRADUAL))
    total = sum(len(runner.upstream.model.get_parameter(n).reshape(-1)) for n in eligible(runner))
    runner.train()
    first = masks.count(torch.load(tmp_path / "exp" / "states-3.ckpt", weights_only=False)["UpstreamDelta"]["indices"])
    assert first >= round(0.2 * total), "the start"
    expected = [0.02 + 0.18 * max(0.0, 1 - step / 3.6) ** 3 for step in (2, 4)]
    assert [masks.count(mask) for mask in chosen] == [round(density * total) for density in expected]
    growing = GRADUAL | {"density": 0.2, "gradual": {"start": 0.02, "until": 0.3}}
    chosen.clear()
    build(make_args(tmp_path / "growing", **upstream), config_of(growing)).train()
    assert [masks.count(mask) for mask in chosen] == [round(0.2 * total)] * 2


def test_what_is_kept_as_the_best_has_the_density_of_the_task_file(build, tmp_path, upstream):
    config, folder = config_of(GRADUAL | {"gradual": {"start": 0.5, "until": 0.6}}), RunFolder(tmp_path / "exp")
    config["runner"] |= {"eval_step": 1, "eval_dataloaders": ["dev"]}
    args = make_args(folder.path, **upstream)
    args.until = 4
    build(args, config).train()
    assert not folder.best() and not folder.delta.exists()
    assert newest(folder.path)["S3prlExt"]["density"] == pytest.approx(0.02 + 0.48 * (1 - 2 / 3.6) ** 3)
    export.main(["--delta", str(folder.path / "states-4.ckpt"), "--out", str(tmp_path / "exported")])
    card = [line.replace(" ", "") for line in (tmp_path / "exported" / "README.md").read_text().splitlines()]
    assert [line for line in card if line.startswith("|density")] == ["|density|0.06214,onthewayto0.02|"]
    runner = resume(build, folder.path, upstream, config)
    runner.train()
    total = sum(parameter.numel() for parameter in eligible(runner).values())
    history = json.loads(folder.result().read_text())["history"]
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    shares = [0.5, 0.5, *[0.02 + 0.48 * (1 - 2 / 3.6) ** 3] * 2]
    assert [row.pop("density") for row in history[:4]] == pytest.approx(shares, abs=1 / total)
    assert all("density" not in row for row in history)
    found = delta.load(folder.delta)
    assert (
        found.info["step"] > 4
        and found.info["density"] == 0.02
        and set(found.info["metrics"]["dev"]) == {"acc", "loss"}
    )
    assert sum(int(members.sum()) for members in found.members.values()) == round(0.02 * total)
    assert torch.load(folder.path / "dev-best.ckpt", weights_only=False)["Step"] == found.info["step"]


def eligible(runner):
    from s3prl_ext.child_tuning.eligible import eligible_parameters

    return eligible_parameters(runner.upstream.model)


def test_dense_at_first_and_sparse_at_the_end(build, tmp_path, upstream, chosen):
    tuning = GRADUAL | {"gradual": {"start": 1.0, "until": 0.3}}
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(tuning))
    before = copy.deepcopy(runner.upstream.model.state_dict())
    runner.train()
    assert len(runner.child) == masks.count(chosen[-1]) < 0.03 * masks.count(runner.tuned.indices)
    assert not all(torch.equal(before[n], t) for n, t in runner.upstream.model.state_dict().items())
    runner.tuned.revert()
    assert all(torch.equal(before[n], t) for n, t in runner.upstream.model.state_dict().items())


def test_they_race_masks_and_sizes_and_the_winner_is_the_run_alone(build, tmp_path, upstream):
    tuning = {
        "method": "child", "mask": ["magnitude", "lottery"], "density": 0.05, "lottery": {"steps": 2}, "reselect_every": [2, 3],
    }  # fmt: skip
    config = config_of(tuning, ratio=0.5, keep=1)
    build(make_args(tmp_path / "race", **upstream), config).train()
    names = {p.name for p in (tmp_path / "race" / "race").iterdir() if p.is_dir()}
    assert names == {"mask=magnitude,reselect_every=2", "mask=magnitude,reselect_every=3", "mask=lottery"}
    winner = newest(tmp_path / "race")
    chosen = winner["S3prlExt"]["candidate"]
    alone = {"method": "child", "mask": chosen.split("=")[1].split(",")[0], "density": 0.05}
    alone |= {"lottery": {"steps": 2}} if "lottery" in chosen else {"reselect_every": int(chosen[-1])}
    build(make_args(tmp_path / "alone", **upstream), config_of(alone)).train()
    assert_same_run(winner, newest(tmp_path / "alone"))


def test_it_reads_other_utterances_each_time(build, tmp_path, upstream, monkeypatch):
    seeds = []
    monkeypatch.setattr(reselection, "choose_mask", lambda *a: seeds.append(a[0].seed) or dict(runner.child.mask))
    runner = build(make_args(tmp_path / "exp", **upstream), config_of(FISHER))
    runner.train()
    assert len(set(seeds)) == len(seeds) == 2 and isinstance(runner.child, reselection.ChangingChildNetwork)


@pytest.mark.parametrize(
    ("every", "until", "length", "message"),
    [
        (1000, 0.5, {}, "at a density of 0.2, not at tuning.density 0.02: its course takes 3 of 6 steps, .* never chosen"),
        (2, 0.75, {}, "of 0.02025, not at .* its course takes 4.5 of 6 steps, .* for the last time after step 4; give"),
        (2, 0.75, {"total_steps": None, "epochs": 0.1}, "of 0.02025, not at .* of 6 steps, .* after step 4; give"),
        (2, 1.0, {}, "smaller tuning.reselect_every .now 2. or gradual.until, or more steps"),
    ],
)  # fmt: skip
def test_a_density_that_is_never_reached_is_refused(build, tmp_path, upstream, every, until, length, message):
    config = config_of(GRADUAL | {"reselect_every": every, "gradual": {"start": 0.2, "until": until}})
    config["runner"] |= length
    with pytest.raises(UsageError, match=message):
        runner = build(make_args(tmp_path / "exp", **upstream), config)
        steps_of(runner, TOTAL)
        runner.train()


def steps_of(runner, steps):
    """Let the epochs of a task file be so many steps."""
    runner._steps_of_epochs = lambda epochs: steps


def test_a_run_that_is_resumed_with_another_length_ends_at_its_density_too(build, tmp_path, upstream):
    config = config_of(GRADUAL | {"gradual": {"start": 0.2, "until": 0.5}})
    config["runner"]["total_steps"] = 12
    args = make_args(tmp_path / "exp", **upstream)
    args.until = 3
    build(args, config).train()
    config["runner"]["total_steps"] = 4
    with pytest.raises(
        UsageError, match="its course takes 6 of 12 steps that the run had before, .* after step 2; give"
    ):
        resume(build, tmp_path / "exp", upstream, config).train()
    config["runner"]["total_steps"] = 6
    runner = resume(build, tmp_path / "exp", upstream, config)
    runner.train()
    total = sum(parameter.numel() for parameter in eligible(runner).values())
    assert len(runner.child) == round(0.02 * total)


@pytest.mark.parametrize("length", [{"total_steps": 3}, {"total_steps": None, "epochs": 0.1}], ids=["steps", "epochs"])
def test_a_run_too_short_to_choose_again_says_so(build, tmp_path, upstream, caplog, length):
    config = config_of(FISHER | {"mask": "magnitude", "reselect_every": 3})
    del config["tuning"]["fisher"]
    config["runner"] |= length
    runner = build(make_args(tmp_path / "exp", **upstream), config)
    steps_of(runner, 3)
    runner.train()
    assert caplog.text.count("tuning.reselect_every 3 has no effect in a run of 3 steps: its child network") == 1


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"reselect_every": 0}, r"tuning\.reselect_every must be a whole number of at least 1"),
        ({"density": 1}, "leaves nothing to choose again"),
        ({"reselect_every": None, "gradual": {"start": 0.1}}, "add reselect_every"),
        ({"gradual": {"until": 0.1}}, r"tuning\.gradual\.start is missing"),
        (
            {"mask": "lottery", "fisher": None},
            "tuning.reselect_every belongs to mask fisher, random, magnitude or snip",
        ),
        ({"mask": "random", "redraw": True, "fisher": None}, "leave out tuning.reselect_every"),
    ],
)
def test_wrong_settings_are_refused(build, tmp_path, upstream, tuning, message):
    with pytest.raises(UsageError, match=message):
        build(make_args(tmp_path / "exp", **upstream), config_of(FISHER | tuning))
