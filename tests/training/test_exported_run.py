"""A task trained by the runner is exported, and the plain model is the tuned upstream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3prl_ext.commands.export import main as export
from s3prl_ext.configs import load_yaml
from s3prl_ext.deltas import TaskSwitch, TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.run_downstream import complete
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.upstream_settings import stated_settings
from tests.support import experiments, factories
from tests.support import tuned as made

CHILD = {"method": "child", "mask": "magnitude", "density": 0.05}
LORA = {"method": "lora", "rank": 2}


@pytest.mark.parametrize("tuning", [CHILD, LORA], ids=lambda t: t["method"])
def test_train_export_load(build, hubert_ckpt, tmp_path, tuning):
    config = experiments.task_config("ks", tuning, total_steps=2, eval_step=2, save_step=2)
    config["optimizer"]["lr"] = 1.0e-2
    args = experiments.make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    runner = build(args, config)
    runner.train()
    tuned = made.features(runner.upstream.model)
    base = made.build("hubert_local", Path(hubert_ckpt))
    assert not made.same(made.features(base), tuned)
    for number, source in enumerate((tmp_path / "exp", tmp_path / "exp" / "states-2.ckpt")):
        out = tmp_path / f"out{number}"
        assert export(["--delta", str(source), "--out", str(out)]) == 0
        assert made.same(made.features(made.build("hubert_local", out / Path(hubert_ckpt).name)), tuned)
        switch = TaskSwitch(base, {"ks": source})
        switch.switch("ks")
        assert made.same(made.features(base), tuned)
        switch.switch(None)
    record = json.loads((tmp_path / "out0" / "export.json").read_text())
    assert record["model"]["source"] == "delta.safetensors" and record["info"]["metrics"]["dev"]["acc"] > 0


@pytest.mark.parametrize("best", [True, False])
def test_the_folder_of_a_full_run_is_exported(build, hubert_ckpt, tmp_path, best):
    config = experiments.task_config("ks", {"method": "full"}, total_steps=2, eval_step=2, save_step=2)
    args = experiments.make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    runner = build(args, config)
    runner.train()
    if not best:
        (tmp_path / "exp" / "dev-best.ckpt").unlink()
    assert export(["--delta", str(tmp_path / "exp"), "--out", str(tmp_path / "out")]) == 0
    written = made.build("hubert_local", tmp_path / "out" / Path(hubert_ckpt).name)
    assert made.same(made.features(written), made.features(runner.upstream.model))
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["model"]["source"] == ("dev-best.ckpt" if best else "states-2.ckpt")


@pytest.mark.parametrize("tuning", [LORA, {"method": "bitfit"}], ids=lambda t: t["method"])
def test_a_merge_and_an_adapter_are_folded_together(build, hubert_ckpt, tmp_path, tuning):
    source = factories.bert_folder(tmp_path / "bert")
    merge = {
        "target": {"upstream": "hubert_local", "ckpt": hubert_ckpt},
        "sources": [{"model": str(source), "lambda": 0.2}],
    }
    (tmp_path / "merge.yaml").write_text(json.dumps(merge))
    config = experiments.task_config("ks", tuning, total_steps=2, eval_step=2, save_step=2)
    config["optimizer"]["lr"] = 1.0e-2
    flags = {"upstream": "merged_attention", "upstream_model_config": str(tmp_path / "merge.yaml")}
    runner = build(experiments.make_args(tmp_path / "exp", **flags), config)
    merged = made.features(runner.upstream.model)
    runner.train()
    tuned = made.features(runner.upstream.model)
    assert not made.same(tuned, merged)
    for number, delta in enumerate((tmp_path / "exp", tmp_path / "exp" / "states-2.ckpt")):
        out = tmp_path / f"out{number}"
        assert export(["--delta", str(delta), "--out", str(out)]) == 0
        assert made.same(made.features(made.build("hubert_local", out / Path(hubert_ckpt).name)), tuned)
    evaluated = experiments.make_args(
        tmp_path / "exp", mode="evaluate", init_ckpt=str(tmp_path / "exp" / "states-2.ckpt"), **flags
    )
    assert made.same(made.features(build(evaluated, config).upstream.model), tuned)


def test_a_model_that_lacks_a_weight(build, tmp_path):
    """Models fine-tuned elsewhere often lack the mask embedding; transformers draws it anew at each loading."""
    folder = factories.wav2vec2_folder(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["masked_spec_embed"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = experiments.task_config("ks", CHILD, total_steps=2, eval_step=2, save_step=2)
    args = experiments.make_args(tmp_path / "exp", upstream="hf_wav2vec2_custom", upstream_ckpt=str(folder))
    runner = build(args, config)
    runner.train()
    assert export(["--delta", str(tmp_path / "exp" / "states-2.ckpt"), "--out", str(tmp_path / "out")]) == 0
    assert made.same(
        made.features(made.build("hf_wav2vec2_custom", tmp_path / "out")), made.features(runner.upstream.model)
    )


def test_the_exported_head_scores_the_same_on_the_exported_model(build, hubert_ckpt, tmp_path):
    config = experiments.task_config("ks", CHILD, total_steps=2, eval_step=2, save_step=2)
    args = experiments.make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    build(args, config).train()
    export(["--delta", str(tmp_path / "exp" / "states-2.ckpt"), "--out", str(tmp_path / "out")])
    scores = []
    for stock in (False, True):
        args = experiments.make_args(
            tmp_path / f"check{stock}", mode="evaluate", upstream="hubert_local", init_ckpt=str(tmp_path / "out" / "head.ckpt"),
            upstream_ckpt=str(tmp_path / "out" / Path(hubert_ckpt).name), evaluate_split="dev",
        )  # fmt: skip
        runner = build(args, load_yaml(tmp_path / "out" / "task.yaml"), stock=stock)
        runner.evaluate()
        scores.append((tmp_path / f"check{stock}" / "dev_predict.txt").read_text())
    assert scores[0] == scores[1]
    trained = torch.load(tmp_path / "exp" / "states-2.ckpt", weights_only=False)["Downstream"]
    assert all(torch.equal(runner.downstream.model.state_dict()[name], value) for name, value in trained.items())
    assert scores[0] == (tmp_path / "exp" / "dev_predict.txt").read_text()


def evaluated(build, out: Path, task_file: Path, expdir: Path, **upstream) -> None:
    """Build an evaluation of the head in a folder of ``export``."""
    args = experiments.make_args(expdir, mode="evaluate", init_ckpt=str(out / "head.ckpt"), **upstream)
    build(args, load_yaml(task_file))


def test_the_exported_head_says_what_a_checkpoint_says(build, hubert_ckpt, tmp_path):
    """Its data and splits, and its upstream: the base that was tuned would give a score without a word."""
    exp, out = tmp_path / "exp", tmp_path / "out"
    config = experiments.task_config("ks", CHILD, total_steps=2, eval_step=2, save_step=2)
    args = experiments.make_args(exp, upstream="hubert_local", upstream_ckpt=hubert_ckpt, seed=3)
    build(args, config).train()
    assert export(["--delta", str(exp / "states-2.ckpt"), "--out", str(out)]) == 0
    run, head = Checkpoint.read(exp / "states-2.ckpt"), Checkpoint.read(out / "head.ckpt")
    assert head.extension.data == run.extension.data and head.extension.data["splits_sha256"]
    assert head.extension.splits_rule == run.extension.splits_rule
    task_file, model = out / "task.yaml", str(out / Path(hubert_ckpt).name)
    evaluated(build, out, task_file, tmp_path / "check", upstream="hubert_local", upstream_ckpt=model)
    with pytest.raises(DataError, match=r"head\.ckpt was made from another upstream"):
        evaluated(build, out, task_file, tmp_path / "check", upstream="hubert_local", upstream_ckpt=hubert_ckpt)
    with pytest.raises(DataError, match=r"head\.ckpt was trained with -u hubert_local, not with -u fbank"):
        evaluated(build, out, task_file, tmp_path / "check")
    with pytest.raises(UsageError, match=r"head\.ckpt: this is the head of an export, not a run: give it with -i"):
        complete(["-m", "train", "-e", str(out / "head.ckpt")])
    assert "-t test --seed 3 -p exp/check" in (out / "README.md").read_text(), "it draws weights that files lack"


def test_the_exported_head_knows_the_settings_of_its_upstream(build, hubert_folder, tmp_path):
    exp, out = tmp_path / "exp", tmp_path / "out"
    flags = {"upstream": "hf_hubert_custom", "upstream_ckpt": hubert_folder}
    config = experiments.task_config("ks", CHILD, total_steps=1, eval_step=1, save_step=1)
    runner = build(experiments.make_args(exp, **flags), config)
    runner.train()
    assert export(["--delta", str(exp), "--out", str(out)]) == 0
    assert Checkpoint.read(out / "head.ckpt").extension.upstream_settings == stated_settings(runner.upstream.model)
    flags["upstream_ckpt"] = str(out)
    evaluated(build, out, out / "task.yaml", tmp_path / "check", **flags)
    settings = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(settings | {"num_attention_heads": 1}))
    with pytest.raises(DataError, match=r"head\.ckpt was made with other settings of the upstream"):
        evaluated(build, out, out / "task.yaml", tmp_path / "check", **flags)


@pytest.mark.parametrize(("tuning", "kind"), [(LORA, "peft"), (CHILD, "task_vector")])
def test_the_head_next_to_a_change_is_not_scored_without_it(build, hubert_folder, tmp_path, tuning, kind):
    exp, out, tuned = tmp_path / "exp", tmp_path / "out", tmp_path / "tuned"
    flags = {"upstream": "hf_hubert_custom", "upstream_ckpt": hubert_folder}
    config = experiments.task_config("ks", tuning, total_steps=2, eval_step=2, save_step=2)
    config["optimizer"]["lr"] = 1.0e-2
    build(experiments.make_args(exp, **flags), config).train()
    assert export(["--delta", str(exp), "--out", str(out), "--format", kind]) == 0
    assert export(["--delta", str(exp), "--out", str(tuned)]) == 0
    run, head = Checkpoint.read(exp / "states-2.ckpt"), Checkpoint.read(out / "head.ckpt")
    assert head.extension.data == run.extension.data
    assert head.extension.upstream_settings == run.extension.upstream_settings
    evaluated(build, out, out / "task.yaml", tmp_path / "check", **flags | {"upstream_ckpt": str(tuned)})
    with pytest.raises(DataError, match=r"head\.ckpt is the head of a tuned upstream, and this is the untuned one"):
        evaluated(build, out, out / "task.yaml", tmp_path / "check", **flags)


@pytest.mark.parametrize("name, option", [("beats_local", "tokens=all"), ("whisper_local", "window=30")])
def test_the_options_of_the_upstream_go_with_the_export(build, tmp_path, name, option):
    """Other features of the same width would give other predictions, and nothing would say so."""
    make = {"beats_local": factories.beats_ckpt, "whisper_local": factories.whisper_folder}[name]
    model = make(tmp_path / ("model.pt" if name == "beats_local" else "model"))
    config = experiments.task_config("ks", CHILD, total_steps=2, eval_step=2, save_step=2)
    args = experiments.make_args(
        tmp_path / "exp", upstream=name, upstream_ckpt=str(model), upstream_model_config=option
    )
    build(args, config).train()
    assert export(["--delta", str(tmp_path / "exp"), "--out", str(tmp_path / "out")]) == 0
    wavs = [torch.randn(6000, generator=torch.Generator().manual_seed(0))]
    features = []
    for trained in (TrainedTask.read(tmp_path / "exp"), TrainedTask.read_export(tmp_path / "out")):
        upstream = trained.build().eval()
        with torch.no_grad():
            features.append(upstream(wavs)["hidden_states"])
    assert all(torch.equal(a, b) for a, b in zip(*features, strict=True))
    assert (
        f"-u {name} -k {'.' if model.is_dir() else model.name} -g {option}"
        in (tmp_path / "out" / "README.md").read_text()
    )


@pytest.mark.parametrize("source", ["delta.safetensors", "dev-best.ckpt"])
def test_the_card_has_the_score_of_a_later_evaluation(build, hubert_ckpt, tmp_path, caplog, source):
    config = experiments.task_config("ks", CHILD, total_steps=2, eval_step=2, save_step=2)
    config["optimizer"]["lr"] = 1.0e-2
    flags = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt}
    exp = tmp_path / "exp"
    build(experiments.make_args(exp, **flags), config).train()
    build(experiments.make_args(exp, mode="evaluate", init_ckpt=str(exp / source), **flags), config).evaluate()
    assert export(["--delta", str(exp / source), "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    value = json.loads((exp / "result-test.json").read_text())["metrics"]["test"]["acc"]["value"]
    assert record["model"]["evaluations"]["test"]["acc"][0] == value
    assert "left out of the model card" not in caplog.text
