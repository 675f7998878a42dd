"""``runner.checkpoint_upstream``: layers are computed twice, and every number is the same."""

from __future__ import annotations

import copy

import pytest
import torch

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import UsageError
from tests.support.experiments import make_args, record_losses, task_config

METHODS = [
    {"method": "child", "density": 0.02, "mask": "random"},
    {"method": "full"},
    {"method": "lora"},
    {"method": "houlsby"},
]


def trained(build, folder, upstream, ckpt, tuning, **runner):
    args = make_args(folder, upstream=upstream, upstream_ckpt=ckpt)
    runner = build(args, task_config("ks", tuning=tuning, total_steps=2, eval_dataloaders=[], **runner))
    layer = find_encoder(runner.upstream.model).layers[0]
    calls: list[bool] = []
    inner = (layer.self_attn if hasattr(layer, "self_attn") else layer.attention).register_forward_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    losses = record_losses(runner)
    runner.train()
    inner.remove()
    weights = [p.detach().clone() for entry in runner.all_entries for p in entry.model.parameters()]
    return losses, weights, sum(calls), runner


@pytest.mark.parametrize("upstream", ["hubert_local", "hf_hubert_custom"])
@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning["method"])
def test_a_run_with_layers_computed_again_is_the_run_without(
    build, tmp_path, hubert_ckpt, hubert_folder, upstream, tuning
):
    ckpt = hubert_ckpt if upstream == "hubert_local" else hubert_folder
    plain = trained(build, tmp_path / "plain", upstream, ckpt, tuning)
    again = trained(build, tmp_path / "again", upstream, ckpt, tuning, checkpoint_upstream=True)
    assert plain[0] == again[0] and all(map(torch.equal, plain[1], again[1]))
    assert plain[2] > 0 and again[2] == 2 * plain[2]


def test_a_deep_copy_has_layers_of_its_own(build, tmp_path, hubert_folder):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    made = build(args, task_config("ks", tuning={"method": "full"}, checkpoint_upstream=True)).upstream.model
    other = copy.deepcopy(made)
    for found in (made, other):
        for layer in find_encoder(found).layers:
            assert layer.forward.forward.__self__ is layer


@pytest.mark.parametrize(("method", "sentence"), [("prefix", "cannot be combined with tuning.method prefix")])
def test_what_does_not_fit_is_refused(build, tmp_path, hubert_folder, method, sentence):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    with pytest.raises(UsageError, match=sentence):
        build(args, task_config("ks", tuning={"method": method}, checkpoint_upstream=True))


def test_an_upstream_that_does_not_train_is_left_alone(build, tmp_path, hubert_folder):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    made = build(args, task_config("ks", tuning={"method": "frozen"}, checkpoint_upstream=True)).upstream.model
    assert "forward" not in vars(find_encoder(made).layers[0])
