"""Every method through the Runner on miniature Speech Commands: train, resume, evaluate."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from s3prl_ext import adapters
from s3prl_ext.errors import UsageError
from s3prl_ext.training.methods import METHODS, prepare_upstream
from s3prl_ext.training.tuning_config import TuningConfig
from tests.adapters.models import build as build_upstream
from tests.support.experiments import make_args, task_config

UPSTREAMS = ["hubert_local", "hf_hubert_custom"]


@pytest.fixture
def upstream(request, hubert_ckpt, hubert_folder):
    name = request.param
    return {"upstream": name, "upstream_ckpt": hubert_ckpt if name == "hubert_local" else hubert_folder}


def weights(expdir, step):
    states = torch.load(expdir / f"states-{step}.ckpt", map_location="cpu", weights_only=True)
    parts = {"Upstream": states["UpstreamDelta"]["added"], **{p: states[p] for p in ("Featurizer", "Downstream")}}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


# Each method on one of the upstreams, in turn; the marker `slow` brings the others.
@pytest.mark.parametrize(("method", "upstream"), [
    pytest.param(method, upstream, marks=[pytest.mark.slow] * ((row + column) % 2), id=f"{method}-{upstream}")
    for row, method in enumerate(adapters.ADAPTERS) for column, upstream in enumerate(UPSTREAMS)
], indirect=["upstream"])  # fmt: skip
def test_train_resume_evaluate(build, tmp_path, upstream, method):
    def config(steps):
        return task_config(tuning={"method": method, "lr": 1e-2}, total_steps=steps, eval_step=2, save_step=2)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runner = build(make_args(whole, **upstream), config(4))
    before = copy.deepcopy(adapters.base_state(runner.upstream.model))
    assert runner.args.upstream_feature_selection == "hidden_states" and hasattr(runner.featurizer.model, "weights")
    runner.train()
    model = runner.upstream.model
    own = adapters.inserted(model)[method].names
    assert all(torch.equal(t, before[n]) for n, t in adapters.base_state(model).items()), "the upstream stays as it was"
    assert json.loads((whole / "result.json").read_text())["trainable"]["Upstream"] == adapters.count(
        method, adapters.dimensions(model)
    )

    build(make_args(parts, **upstream), config(2)).train()
    resumed = make_args(parts, past_exp=str(parts), init_ckpt=str(parts / "states-2.ckpt"), **upstream)
    build(resumed, config(4)).train()
    tuned, again = weights(whole, 4), weights(parts, 4)
    assert set(tuned) == set(again) and all(torch.equal(tuned[n], again[n]) for n in tuned)
    first = weights_of_fresh(build, tmp_path, upstream, config(4))
    moved = [name for name in own if not torch.equal(tuned[f"Upstream.{name}"], first[name])]
    assert set(own) - set(moved) <= {name for name in own if name.endswith("k_proj.bias")}

    args = make_args(whole, mode="evaluate", init_ckpt=str(whole / "states-4.ckpt"), **upstream)
    evaluator = build(args, config(4))
    evaluator.evaluate()
    state = adapters.adapter_state(evaluator.upstream.model)
    assert all(torch.equal(state[name], tuned[f"Upstream.{name}"]) for name in own)
    assert (whole / "result-test.json").is_file()


def weights_of_fresh(build, tmp_path, upstream, config):
    return adapters.adapter_state(build(make_args(tmp_path / "fresh", **upstream), config).upstream.model)


def test_heads_start_equal_whatever_the_method(build, tmp_path, hubert_ckpt):
    heads = []
    for method in ("weighted_sum", "houlsby", "prefix"):
        args = make_args(tmp_path / method, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
        heads.append(build(args, task_config(tuning={"method": method})).downstream.model.state_dict())
    assert all(torch.equal(heads[0][n], other[n]) for other in heads[1:] for n in other)


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("method", adapters.ADAPTERS)
def test_mixed_precision(build, tmp_path, hubert_ckpt, method, amp):
    args = make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    runner = build(args, task_config(tuning={"method": method}, amp=amp, total_steps=2))
    runner.train()
    state = adapters.adapter_state(runner.upstream.model)
    assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in state.values())


def tuning(**section):
    return TuningConfig.from_config({"tuning": section}, METHODS)


def test_options_reach_the_method():
    chosen = tuning(method="lora", rank=4, alpha=8, projections=["q_proj", "fc1"], layers="0-1").adapter
    assert (chosen.rank, chosen.alpha, chosen.projections, chosen.layers) == (4, 8.0, ("q_proj", "fc1"), (0, 1))
    assert tuning(method="chapter", param_matched=True).adapter.param_matched
    assert tuning(method="full").adapter is None


@pytest.mark.parametrize(
    "section, message",
    [
        ({"method": "lora", "rnak": 4}, "unknown key 'rnak'; did you mean 'rank'"),
        ({"method": "lora", "rank": 0}, "tuning.rank must be a whole number of at least 1"),
        ({"method": "lora", "rnak": 4}, "Known: alpha, lambda_lr, layers, lr, method, projections, rank, upstream_lr"),
        ({"method": "houlsby", "rank": 8}, "tuning.rank belongs to method lora, not to houlsby; remove it"),
        ({"method": "full", "bottleneck": 8}, "tuning.bottleneck belongs to method houlsby or chapter, not to full"),
        ({"method": "cnn_adapter", "layers": 1}, "layers belongs to method houlsby, adapter_bias, lora or chapter"),
        ({"method": "bitfit", "rank": 1}, "tuning.rank belongs to method lora, not to bitfit"),
        ({"method": "prefix", "density": 0.1}, "tuning.density belongs to method child, not to prefix"),
        ({"method": "lora", "rank": 0, "rats": 1}, "unknown key 'rats'.*rank must be a whole number"),
    ],
)
def test_unsuitable_sections_are_refused(section, message):
    with pytest.raises(UsageError, match=message):
        tuning(**section)


def test_preparing_twice_inserts_once(tmp_path):
    model = build_upstream("s3prl-hubert", tmp_path)
    prepare_upstream(model, tuning(method="chapter"))
    state, trained = set(model.state_dict()), {n for n, p in model.named_parameters() if p.requires_grad}
    prepare_upstream(model, tuning(method="chapter"))
    assert set(model.state_dict()) == state
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained
