"""A head given with -i reads the features that it was trained on, or is refused; nothing else tells layers apart."""

from __future__ import annotations

import logging

import pytest

from s3prl_ext.commands.export import main as export
from s3prl_ext.errors import UsageError
from tests.support.experiments import make_args, task_config


@pytest.fixture
def trained(build, tmp_path, hubert_folder):
    """A head on the last hidden state, as checkpoint, delta and exported head."""
    upstream = {"upstream": "hf_speech_custom", "upstream_ckpt": hubert_folder}
    config = task_config(tuning={"method": "frozen"}, eval_step=2)
    build(make_args(tmp_path / "run", **upstream), config).train()
    assert export(["--delta", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    return upstream, config


FILES = ("run/dev-best.ckpt", "run/delta.safetensors", "out/head.ckpt")


def _args(tmp_path, upstream, file, mode="evaluate", **changes):
    args = make_args(tmp_path / "again", mode=mode, evaluate_split="dev", **upstream, **changes)
    args.init_ckpt = str(tmp_path / file)
    return args


@pytest.mark.parametrize("file", FILES)
def test_other_features_are_refused_and_the_same_are_taken(build, tmp_path, trained, file):
    upstream, config = trained
    plain = {key: value for key, value in config.items() if key != "tuning"}
    for changes, now in (({}, "hidden_states"), ({"upstream_layer_selection": 1}, "hidden_states, layer 1")):
        with pytest.raises(UsageError, match=f"was trained on last_hidden_state, but would read {now}: give the -s"):
            build(_args(tmp_path, upstream, file, **changes), plain)
    for changes in (
        {"upstream_feature_selection": "last_hidden_state"},
        {"upstream_layer_selection": -1},  # of all hidden states the last
    ):
        build(_args(tmp_path, upstream, file, **changes), plain)
    build(_args(tmp_path, upstream, file), config)  # the method decides about the features


def test_a_training_may_begin_with_it_and_says_so(build, tmp_path, trained, caplog):
    upstream, config = trained
    plain = {key: value for key, value in config.items() if key != "tuning"}
    with caplog.at_level(logging.WARNING):
        build(_args(tmp_path, upstream, FILES[0], mode="train"), plain)
    assert "was trained on last_hidden_state, but would read hidden_states; training continues" in caplog.text
