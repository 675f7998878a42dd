"""Our training loop against s3prl's own: the same losses, bitwise, up to and including the first evaluation."""

from __future__ import annotations

import pytest
import torch

from tests.support.experiments import make_args, record_losses, task_config


@pytest.mark.parametrize(
    ("task", "downstream", "upstream"),
    [
        ("ks", "speech_commands", "fbank"),
        ("ks", "speech_commands", "hubert_local"),
        pytest.param("asr", "asr", "hf_hubert_custom", marks=pytest.mark.slow),
        ("sd", "diarization", "fbank"),
    ],
)
def test_losses_equal_stock_loop(build, tmp_path, hubert_ckpt, hubert_folder, task, downstream, upstream):
    ckpt = {"hubert_local": hubert_ckpt, "hf_hubert_custom": hubert_folder}.get(upstream)
    config = task_config(task, eval_step=4, save_step=4, gradient_accumulate_steps=2)
    seen, finals = [], []
    for stock in (True, False):
        args = make_args(
            tmp_path / f"stock_{stock}", downstream=downstream, upstream=upstream, upstream_ckpt=ckpt,
            upstream_trainable=ckpt is not None,
        )  # fmt: skip
        runner = build(args, config, stock=stock)
        losses = record_losses(runner)
        runner.train()
        seen.append(losses)
        finals.append(torch.load(tmp_path / f"stock_{stock}" / "states-4.ckpt", map_location="cpu"))
    stock_states, ours = finals
    assert len(seen[0]) > 8, "eight training batches and an evaluation were expected"
    assert seen[0] == seen[1]
    assert set(stock_states) <= set(ours), "every key of s3prl's checkpoint"
    for name in ("Featurizer", "Downstream", "Upstream"):
        for key, value in stock_states.get(name, {}).items():
            assert torch.equal(value, ours[name][key]), f"{name}.{key}"


def test_losses_differ_for_another_seed(build, tmp_path):
    seen = []
    for seed in (1, 2):
        runner = build(make_args(tmp_path / str(seed), seed=seed), task_config(total_steps=2))
        losses = record_losses(runner)
        runner.train()
        seen.append(losses)
    assert seen[0] != seen[1]
