"""``runner.checkpoint_upstream``: layers are computed twice, and every number is the same."""

from __future__ import annotations

import copy

import pytest
import torch

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import UsageError
from tests.support import factories
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
    weights = {
        f"{entry.name}.{name}": value
        for entry in runner.all_entries
        for name, value in entry.model.state_dict().items()
    }
    return losses, weights, sum(calls), runner


@pytest.mark.parametrize("upstream", ["hubert_local", "hf_hubert_custom"])
@pytest.mark.parametrize("tuning", METHODS, ids=lambda tuning: tuning["method"])
def test_a_run_with_layers_computed_again_is_the_run_without(
    build, tmp_path, hubert_ckpt, hubert_folder, upstream, tuning
):
    ckpt = hubert_ckpt if upstream == "hubert_local" else hubert_folder
    plain = trained(build, tmp_path / "plain", upstream, ckpt, tuning)
    again = trained(build, tmp_path / "again", upstream, ckpt, tuning, checkpoint_upstream=True)
    assert_same(plain, again)


def assert_same(plain, again):
    assert plain[0] == again[0] and plain[1].keys() == again[1].keys()
    assert [name for name in plain[1] if not torch.equal(plain[1][name], again[1][name])] == []
    assert plain[2] > 0 and again[2] == 2 * plain[2]


@pytest.mark.parametrize("tuning", [METHODS[1], METHODS[2]], ids=lambda tuning: tuning["method"])
def test_running_statistics_of_a_layer_move_once_per_step(build, tmp_path, tuning):
    folder = factories.speech_family_folder(tmp_path / "conformer", family="Wav2Vec2Conformer", stable_norm=True)
    runs = [
        trained(build, tmp_path / str(again), "hf_speech_custom", str(folder), tuning, checkpoint_upstream=again)
        for again in (False, True)
    ]
    assert_same(*runs)
    moved = {int(value) for name, value in runs[0][1].items() if name.endswith("num_batches_tracked")}
    assert moved == {2 if tuning["method"] == "full" else 0}


def test_a_deep_copy_has_layers_of_its_own(build, tmp_path, hubert_folder):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    made = build(args, task_config("ks", tuning={"method": "full"}, checkpoint_upstream=True)).upstream.model
    other = copy.deepcopy(made)
    for found in (made, other):
        for layer in find_encoder(found).layers:
            assert layer.forward.layer is layer.forward.forward.__self__ is layer


@pytest.mark.parametrize(("method", "sentence"), [("prefix", "cannot be combined with tuning.method prefix")])
def test_what_does_not_fit_is_refused(build, tmp_path, hubert_folder, method, sentence):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    with pytest.raises(UsageError, match=sentence):
        build(args, task_config("ks", tuning={"method": method}, checkpoint_upstream=True))


def test_an_upstream_that_does_not_train_is_left_alone(build, tmp_path, hubert_folder):
    args = make_args(tmp_path, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder)
    made = build(args, task_config("ks", tuning={"method": "frozen"}, checkpoint_upstream=True)).upstream.model
    assert "forward" not in vars(find_encoder(made).layers[0])
