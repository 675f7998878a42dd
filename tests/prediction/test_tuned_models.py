"""Whatever holds a trained task gives the model that was trained: checkpoint, delta, run folder, export, any method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ext.commands.export import main as export
from s3prl_ext.compat.sox import apply_effects_tensor
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction import load
from s3prl_ext.prediction.decoder import Options
from tests.support import factories
from tests.support.experiments import make_args, task_config

NOISE = np.random.default_rng(0).normal(0, 0.1, (3, 12000)).astype(np.float32)
EVERYTHING = Options(top=12)

METHODS = {
    "frozen": {"method": "frozen"},
    "weighted_sum": {"method": "weighted_sum"},
    "full": {"method": "full"},
    "child": {"method": "child", "mask": "magnitude", "density": 0.05},
    "houlsby": {"method": "houlsby", "bottleneck": 4},
    "lora": {"method": "lora", "rank": 2},
    "prefix": {"method": "prefix", "length": 2},
    "bitfit": {"method": "bitfit"},
    "race": {"method": "child", "mask": "magnitude", "density": [0.05, 0.2]},
}


def trained(build, folder: Path, tuning: dict | None, steps: int = 3, **args):
    """Train keyword spotting so far that the upstream has moved; returns the Runner, its models in eval mode."""
    config = task_config("ks", tuning, total_steps=steps, eval_step=steps, save_step=steps)
    if tuning and isinstance(tuning.get("density"), list):
        config["early_stop"] = {"ratio": 0.4, "keep": 1}
    config["optimizer"]["lr"] = 1.0e-2
    runner = build(make_args(folder, **args), config)
    runner.train()
    for module in runner.models.unwrapped().modules():
        module.eval()
    return runner


@torch.no_grad()
def expected(runner) -> list[list[float]]:
    """Return the probabilities of all classes for each clip of NOISE, computed with the Runner's own models."""
    from s3prl.downstream.speech_commands.dataset import EFFECTS

    models, rows = runner.models.unwrapped(), []
    for clip in NOISE:
        wav = apply_effects_tensor(torch.from_numpy(clip)[None], 16000, EFFECTS)[0][0]
        (features,) = models.features([wav])
        projected = models.downstream.projector(features[None])
        scores, _ = models.downstream.model(projected, torch.tensor([len(features)]))
        rows.append(torch.softmax(scores[0], 0).tolist())
    return rows


def found(model) -> list[list[float]]:
    """Return the same of a loaded model."""
    rows = []
    for clip in NOISE:
        top = dict(model.predict(clip).top)
        rows.append([top[label] for label in model.decoder.labels])
    return rows


def check(path: Path, rows: list[list[float]], **options) -> None:
    assert found(load(path, device="cpu", options=EVERYTHING, **options)) == [
        pytest.approx(row, abs=1e-6) for row in rows
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_tuning_method(build, hubert_ckpt, tmp_path, method):
    runner = trained(build, tmp_path, METHODS[method], upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    rows = expected(runner)
    assert np.ptp(rows, axis=0).max() > 1e-4, "the clips differ"
    check(tmp_path / "states-3.ckpt", rows)
    check(tmp_path, rows)
    if method == "full":
        assert not (tmp_path / "delta.safetensors").exists()
        return
    check(tmp_path / "delta.safetensors", rows)
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    check(tmp_path, rows)


QUICK = ("ast", "w2v-bert")


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in factories.SPEECH_FAMILIES],
)
def test_every_family(build, tmp_path, family):
    folder = factories.SPEECH_FAMILIES[family](tmp_path / family)
    run = tmp_path / "run"
    runner = trained(build, run, METHODS["child"], upstream="hf_speech_custom", upstream_ckpt=str(folder))
    rows = expected(runner)
    check(run, rows)
    assert export(["--delta", str(run), "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out", rows)


def test_trained_as_s3prl_does_it(build, hubert_ckpt, tmp_path):
    args = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt, "upstream_feature_normalize": True}
    runner = trained(build, tmp_path, None, upstream_trainable=True, **args)
    check(tmp_path / "states-3.ckpt", expected(runner))


def test_checkpoints_of_s3prls_own_runner(build, corpus_variables, hubert_ckpt, tmp_path):
    config = task_config("ks", total_steps=2, eval_step=2, save_step=2)
    args = make_args(tmp_path, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    runner = build(args, config, stock=True)
    runner.train()
    states = torch.load(tmp_path / "states-2.ckpt", weights_only=False)
    assert "S3prlExt" not in states
    result = load(tmp_path / "states-2.ckpt", device="cpu").predict(NOISE[0])
    assert result.label in load(tmp_path / "states-2.ckpt", device="cpu").decoder.labels


@pytest.mark.parametrize("learnable", [False, True])
def test_merged_upstreams(build, tmp_path, learnable):
    target, source = factories.hubert_folder(tmp_path / "hubert", ctc=True), factories.bert_folder(tmp_path / "bert")
    merge = tmp_path / "my.yaml"
    merge.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 0.3\nlayers: all\n")
    model_config = f"{merge},,learnable={str(learnable).lower()}"
    tuning = {"method": "weighted_sum"}
    runner = trained(build, tmp_path / "exp", tuning, upstream="merged_attention", upstream_model_config=model_config)
    check(tmp_path / "exp" / "states-3.ckpt", expected(runner))
    with pytest.raises(DataError, match="lambda|merge"):
        load(
            tmp_path / "exp" / "states-3.ckpt",
            upstream_model_config=f"{merge},,lambda=0.1",
            upstream="merged_attention",
        )


def test_an_exported_folder_moves(build, hubert_ckpt, tmp_path):
    tuning = METHODS["child"]
    runner = trained(build, tmp_path / "exp", tuning, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    assert export(["--delta", str(tmp_path / "exp" / "states-3.ckpt"), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    check(tmp_path / "elsewhere", expected(runner))


def test_an_exported_merge(build, tmp_path):
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True, stable_norm=True)
    source = factories.bert_folder(tmp_path / "bert")
    merge = tmp_path / "my.yaml"
    merge.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 0.3\nlayers: all\n")
    args = {"upstream": "merged_attention", "upstream_model_config": str(merge)}
    runner = trained(build, tmp_path / "exp", {"method": "frozen"}, **args)
    assert export(["--delta", str(tmp_path / "exp" / "states-3.ckpt"), "--out", str(tmp_path / "out")]) == 0
    check(tmp_path / "out", expected(runner))


@pytest.mark.parametrize("tuning", ["frozen", "child"])
def test_another_upstream_is_refused(build, hubert_ckpt, tmp_path, tuning):
    trained(build, tmp_path, METHODS[tuning], upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=5)
    for path in (tmp_path / "states-3.ckpt", tmp_path / "delta.safetensors"):
        with pytest.raises(DataError, match="another upstream"):
            load(path, upstream_ckpt=str(other))


def test_a_model_that_has_moved(build, tmp_path):
    ckpt = factories.hubert_local_ckpt(tmp_path / "hubert.pt")
    runner = trained(build, tmp_path / "exp", METHODS["child"], upstream="hubert_local", upstream_ckpt=str(ckpt))
    ckpt.rename(tmp_path / "moved.pt")
    with pytest.raises(DataError, match="-k"):
        load(tmp_path / "exp")
    check(tmp_path / "exp", expected(runner), upstream_ckpt=str(tmp_path / "moved.pt"))


def test_what_is_no_run(build, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no checkpoint"):
        load(tmp_path / "empty")
    with pytest.raises(DataError, match="no such checkpoint, delta or folder of a run"):
        load(tmp_path / "nothing")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(DataError, match="is truncated or not a checkpoint"):
        load(tmp_path / "text.ckpt")


def test_another_task_is_refused(build, tmp_path):
    trained(build, tmp_path, None, upstream="fbank_no_cmvn")
    states = torch.load(tmp_path / "states-3.ckpt", weights_only=False)
    states["Args"].downstream = "speech_translation"
    torch.save(states, tmp_path / "other.ckpt")
    with pytest.raises(UsageError, match="speech_translation"):
        load(tmp_path / "other.ckpt")


def test_options_of_another_task_are_refused(build, tmp_path):
    trained(build, tmp_path, None, upstream="fbank_no_cmvn")
    with pytest.raises(UsageError, match="--threshold is not supported for -d speech_commands"):
        load(tmp_path, options=Options(threshold=0.4))
    for wrong in ({"window": 0.5}, {"top": 0}, {"threshold": 1.5}, {"median": 4}):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
            Options(**wrong)
