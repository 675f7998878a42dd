"""A checkpoint as a typed object holds what its file does, and nothing is lost on the way."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import torch

from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.training import checkpoint
from s3prl_ext.training.checkpoint import Checkpoint, Extension
from s3prl_ext.training.run_spec import RunSpec

WHOLE = Checkpoint(
    step=3,
    epoch=1,
    args=Namespace(upstream="hubert", seed=0, upstream_layer_selection=0, upstream_trainable=True),
    config={"runner": {"total_steps": 4}},
    optimizer={"state": {}},
    scheduler={"last_epoch": 3},
    weights={"Featurizer": {"weights": torch.zeros(3)}, "Downstream": {"weight": torch.ones(2)}},
    changes=Delta("hash", {"w": torch.tensor([1], dtype=torch.int32)}, values={"w": torch.ones(1)}),
    processes=2,
    extension=Extension(
        upstream_sha256="hash", candidate="density=0.1", history=[{"step": 2, "split": "dev", "acc": 0.5}],
        evaluation_due=True, positions=[{"epoch": 1}, {"epoch": 2}], bad_steps=1, usage={"seconds": 2.0},
        lambda_curve={"steps": torch.tensor([1])},
    ),
    is_ours=True,
    weights_step=3,
)  # fmt: skip


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "states-3.ckpt"
    checkpoint.save(WHOLE.stored(), path)
    stored = torch.load(path, weights_only=False)["S3prlExt"]
    assert stored["position"] == {"epoch": 1} and {"spent", "lambda", "positions"} < set(stored), "names of 0.1.0"
    found = Checkpoint.read(path)
    assert found and not Checkpoint() and found.path == path
    assert str(replace(found, path=None)) == str(WHOLE)  # tensors have no truth value


def test_one_position_and_no_extension(tmp_path):
    one = replace(WHOLE.extension, positions=[{"epoch": 1}])
    assert "positions" not in one.stored() and Extension.from_stored(one.stored()).positions == [{"epoch": 1}]
    assert Extension.from_stored({"of_a_later_version": 1}) == Extension()
    foreign = Checkpoint.of(tmp_path, {"Step": 5, "Downstream": {}})
    assert (foreign.step, foreign.is_ours, foreign.extension) == (5, False, Extension())


def test_flags_of_a_run():
    spec = RunSpec.of(WHOLE.args)
    assert spec.flags("upstream", "upstream_layer_selection", "seed", "upstream_trainable", "downstream") == [
        "-u", "hubert", "-l", "0", "--seed", "0", "-f",
    ]  # fmt: skip
    assert "upstream_trainable" not in spec.stored()
    assert list(spec.differences(RunSpec(upstream="fbank", seed=0))) == [("-u", "hubert", "fbank")]
    last = RunSpec(upstream_feature_selection="hidden_states", upstream_layer_selection=-1)
    assert last.features == "last_hidden_state"
    assert not list(last.differences(RunSpec(upstream_feature_selection="last_hidden_state")))
