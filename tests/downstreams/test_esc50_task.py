"""``-d esc50`` through the Runner, with a tiny BEATs and ViT: the head protocols, splits, predictions, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import s3prl_ext
from s3prl_ext.child_tuning import delta
from s3prl_ext.cli import main
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.esc50 import CLASSES as ALL_CLASSES
from s3prl_ext.corpora.esc50 import read_clips
from s3prl_ext.downstreams.esc50.config import default_class_map
from s3prl_ext.downstreams.esc50.heads import fit_linear, read_class_map
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.predictions import compare, read_predictions
from s3prl_ext.mini_superb.esc50 import write_corpus
from s3prl_ext.mini_superb.source import MiniBuild
from tests.support import factories
from tests.support.experiments import make_args

CLASSES, CLIPS = 3, 2


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A tiny BEATs and a ViT of its size, a merge of the two, and the corpus."""
    folder = tmp_path_factory.mktemp("models")
    beats = factories.beats_ckpt(folder / "beats.pt")
    vit = factories.vit_folder(folder / "vit")
    merge = folder / "merge.yaml"
    merge.write_text(f"target: {{upstream: beats_local, ckpt: {beats}}}\nsource: {{model: {vit}}}\nlambda: 0.3\n")
    corpus = folder / "ESC-50-master"
    write_corpus(corpus, MiniBuild(corpus), CLASSES, CLIPS)
    return {"beats": str(beats), "merge": str(merge), "corpus": str(corpus)}


@pytest.fixture
def run(models, monkeypatch):
    """Build a Runner and train or evaluate; return it."""
    monkeypatch.setenv("ESC50", models["corpus"])
    s3prl_ext.install()
    from s3prl_ext.training.runner import Runner

    def start(expdir: Path, preset: str = "mam", merged: bool | float = False, **changes: Any) -> Any:
        config = load_yaml(shipped_dir("downstream_configs") / "esc50" / f"{preset}.yaml")
        config["downstream_expert"]["datarc"] |= {"num_workers": 0}
        config["downstream_expert"]["head"] |= changes.pop("head", {})
        config["downstream_expert"] |= changes.pop("expert", {})
        config["runner"] |= changes.pop("runner", {})
        config |= {"tuning": changes.pop("tuning", config.get("tuning"))}
        config = {name: section for name, section in config.items() if section is not None}
        if merged is False:
            upstream = {"upstream": "beats_local", "upstream_ckpt": models["beats"]}
        else:
            model_config = f"{models['merge']},,lambda={0.3 if merged is True else merged}"
            upstream = {"upstream": "merged_attention", "upstream_model_config": model_config}
        args = make_args(expdir, downstream="esc50", **{**upstream, **changes})
        torch.manual_seed(args.seed)
        runner = Runner(args, config)
        getattr(runner, args.mode)()
        return runner

    return start


@pytest.fixture
def base(run, models, tmp_path) -> Path:
    """A copy of the folder of a head fitted on the unmerged BEATs, which is fitted once for all tests of this file."""
    kept = Path(models["corpus"]).parent / "base"
    if not kept.exists():
        run(kept)
    return Path(shutil.copytree(kept, tmp_path / "base"))


def metrics(folder: Path, split: str = "test", name: str | None = None) -> dict[str, float]:
    content = json.loads((folder / (name or f"result-{split}.json")).read_text())
    return {key: row["value"] for key, row in content["metrics"][split].items()}


def test_fitted_head_is_the_optimum_on_the_features_of_the_training_folds(run, base):
    states = torch.load(base / "dev-best.ckpt", weights_only=False)
    assert states["Step"] == 1, "18 clips in batches of 32: one pass is one step"
    facts = json.loads((base / "head.json").read_text())
    assert facts["l2"] in (0.1, 1, 10, 100, 1000) and facts["zero_shot"] is False
    from s3prl import hub

    upstream = hub.beats_local(ckpt=states["Args"].upstream_ckpt).eval()
    train = json.loads((base / "splits.json").read_text())["train"]

    clips = {clip.name: clip for clip in read_clips(Path(os.environ["ESC50"]))}
    with torch.no_grad():
        wavs = [torch.from_numpy(read_audio(clips[name].path)) for name in train]
        pooled = upstream(wavs)["last_hidden_state"].mean(1)
    weight, bias = fit_linear(pooled, torch.tensor([clips[name].target for name in train]), facts["l2"])
    assert torch.allclose(states["Downstream"]["head.weight"], weight, atol=1e-4)
    assert torch.allclose(states["Downstream"]["head.bias"], bias, atol=1e-3)


def test_training_twice_gives_the_same_head_bitwise(run, base, tmp_path):
    run(tmp_path / "again", seed=99)
    first, second = (
        torch.load(p / "dev-best.ckpt", weights_only=False)["Downstream"] for p in (base, tmp_path / "again")
    )
    assert torch.allclose(first["head.weight"], second["head.weight"], atol=1e-6)
    assert metrics(base, name="result.json") == metrics(tmp_path / "again", name="result.json")


def test_head_on_lambda_zero_repeats_the_unmerged_predictions(run, base, tmp_path):
    run(tmp_path / "zero", merged=0.0, mode="evaluate", head={"ckpt": str(base / "dev-best.ckpt")})
    found = compare(base / "predictions-test.jsonl", tmp_path / "zero" / "predictions-test.jsonl")
    assert (found.only_first_right, found.only_second_right, found.p) == (0, 0, 1.0)
    facts = json.loads((tmp_path / "zero" / "head.json").read_text())
    assert facts["zero_shot"] is True and facts["protocol"] == "fitted on the frozen unmerged upstream"
    assert facts["upstream"] == "beats_local" and facts["ckpt"] == str(base / "dev-best.ckpt")


def test_zero_shot_on_merged_features_needs_no_training(run, base, tmp_path):
    runner = run(tmp_path / "merged", merged=True, mode="evaluate", head={"ckpt": str(base / "dev-best.ckpt")})
    stored = torch.load(base / "dev-best.ckpt", weights_only=False)["Downstream"]
    assert torch.equal(runner.downstream.model.head.weight, stored["head.weight"])
    values = metrics(tmp_path / "merged")
    assert values["error"] == pytest.approx(100 * (1 - values["acc"]))
    assert values["error_low"] <= values["error"] <= values["error_high"]
    assert values["loss"] != pytest.approx(metrics(base, name="result.json")["loss"]), "merging changes the features"
    rows = read_predictions(tmp_path / "merged" / "predictions-test.jsonl")
    assert len(rows) == CLASSES * CLIPS
    assert sum(row.right for row in rows) / len(rows) == pytest.approx(values["acc"])
    assert not list((tmp_path / "merged").glob("*.ckpt"))


def test_head_refitted_on_merged_features_says_so(run, tmp_path):
    run(tmp_path / "refit", merged=True)
    assert json.loads((tmp_path / "refit" / "head.json").read_text())["zero_shot"] is False
    run(tmp_path / "evaluated", merged=0.0, mode="evaluate", head={"ckpt": str(tmp_path / "refit" / "dev-best.ckpt")})
    facts = json.loads((tmp_path / "evaluated" / "head.json").read_text())
    assert facts["zero_shot"] is False and facts["protocol"] == "fitted on merged or tuned features"


def test_head_fitted_at_lambda_zero_counts_as_unmerged(run, tmp_path):
    run(tmp_path / "base", merged=0.0)
    run(tmp_path / "exp", merged=True, mode="evaluate", head={"ckpt": str(tmp_path / "base" / "dev-best.ckpt")})
    assert json.loads((tmp_path / "exp" / "head.json").read_text())["zero_shot"] is True


@pytest.mark.parametrize("flag", ["-e", "-i"])
def test_a_sweep_with_a_head_of_the_unmerged_upstream_is_zero_shot(flag, base, models, tmp_path):
    head = str(base / "dev-best.ckpt")
    task = [] if flag == "-e" else ["-d", "esc50", "-c", "esc50/mam"]
    command = [
        "sweep",
        "-g",
        models["merge"],
        *task,
        flag,
        head,
        "--lambda",
        "0.3",
        "--test",
        "none",
        "--device",
        "cpu",
    ]
    assert main([*command, "-p", str(tmp_path / "sweep")]) == 0
    files = sorted((tmp_path / "sweep" / "arms").glob("*/head.json"))
    assert [file.parent.name for file in files] == ["all_lambda_0.3", "target"]
    for file in files:
        facts = {"protocol": "fitted on the frozen unmerged upstream", "zero_shot": True, "ckpt": head}
        assert json.loads(file.read_text()) == facts


def test_best_checkpoint_evaluates_to_the_same_score(run, base, tmp_path):
    run(base, mode="evaluate", init_ckpt=str(base / "dev-best.ckpt"))
    assert metrics(base) == metrics(base, name="result.json")


def test_a_head_is_put_on_merges_of_the_model_that_it_was_fitted_on_alone(run, base, models, tmp_path):
    other = factories.beats_ckpt(tmp_path / "other.pt", seed=5)
    merge = Path(models["merge"]).read_text()
    (tmp_path / "other.yaml").write_text(merge.replace(models["beats"], str(other)))
    lambdas = f"{tmp_path / 'other.yaml'},,lambda=0.3"
    head = {"ckpt": str(base / "dev-best.ckpt")}
    merged = {"upstream": "merged_attention", "upstream_ckpt": None, "upstream_model_config": lambdas}
    for upstream in (merged, {"upstream_ckpt": str(other)}):
        with pytest.raises(DataError, match=r"dev-best.ckpt was fitted on another upstream \(hash \w{12}\) than the"):
            run(tmp_path / "exp", mode="evaluate", head=head, **upstream)
    with pytest.raises(DataError, match="was fitted on another upstream"):
        run(tmp_path / "ft", preset="mam_ft", head=head, **merged)

    run(tmp_path / "refit", **merged)  # on merged features of the other one
    refit = {"ckpt": str(tmp_path / "refit" / "dev-best.ckpt")}
    run(tmp_path / "same", mode="evaluate", head=refit, **merged)
    with pytest.raises(DataError, match="was fitted on another upstream"):
        run(tmp_path / "exp", mode="evaluate", head=refit, merged=True)


def test_a_sweep_takes_a_head_of_its_target_alone(base, models, tmp_path, capsys):
    other = factories.beats_ckpt(tmp_path / "other.pt", seed=5)
    (tmp_path / "other.yaml").write_text(Path(models["merge"]).read_text().replace(models["beats"], str(other)))
    command = ["sweep", "-d", "esc50", "-c", "esc50/mam", "--lambda", "0.3", "--test", "none", "--device", "cpu"]
    command += ["-o", f"config.downstream_expert.head.ckpt='{base / 'dev-best.ckpt'}'"]
    assert main([*command, "-g", models["merge"], "-p", str(tmp_path / "right")]) == 0
    with pytest.raises(SystemExit, match="1"):
        main([*command, "-g", str(tmp_path / "other.yaml"), "-p", str(tmp_path / "wrong")])
    assert "was fitted on another upstream" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


def test_head_of_another_fold_is_refused(run, base, tmp_path):
    for ckpt in ({"head": {"ckpt": str(base / "dev-best.ckpt")}}, {"init_ckpt": str(base / "dev-best.ckpt")}):
        with pytest.raises(DataError, match=r"another split .*training clips may be among the present test clips"):
            run(tmp_path / "other", mode="evaluate", expert={"fold": 2}, **ckpt)
        assert not list((tmp_path / "other").iterdir())


def test_fine_tuning_moves_upstream_and_head(run, base, tmp_path):
    head = {"ckpt": str(base / "dev-best.ckpt")}
    run(tmp_path / "ft", preset="mam_ft", merged=True, head=head, runner={"epochs": 2, "eval_step": 1, "save_step": 2})
    states = torch.load(tmp_path / "ft" / "states-2.ckpt", weights_only=False)
    start = torch.load(base / "dev-best.ckpt", weights_only=False)["Downstream"]["head.weight"]
    moved = (states["Downstream"]["head.weight"] - start).abs().max()
    assert 0 < moved < 5e-3, "it starts at the fitted head and moves by about the learning rate a step"
    assert "Upstream" in states
    assert json.loads((tmp_path / "ft" / "head.json").read_text())["zero_shot"] is False


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A tiny BEATs with a classifier of AudioSet's labels."""
    mids = sorted({mid for row in read_class_map(default_class_map()) for mid in row})
    path = factories.beats_ckpt(tmp_path / "tuned.pt", finetuned_model=True, predictor_class=len(mids))
    torch.save(torch.load(path, weights_only=True) | {"label_dict": dict(enumerate(mids))}, path)
    return path


def test_classifier_of_a_tuned_beats_is_evaluated_through_the_class_map(run, tuned, tmp_path):
    mids = list(torch.load(tuned, weights_only=True)["label_dict"].values())
    run(tmp_path / "exp", preset="audioset", mode="evaluate", upstream_ckpt=str(tuned))
    facts = json.loads((tmp_path / "exp" / "head.json").read_text())
    assert facts == {"protocol": "audioset class map", "zero_shot": True, "ckpt": str(tuned)}
    from s3prl import hub

    upstream = hub.beats_local(ckpt=str(tuned)).eval()
    clips = {clip.name: clip for clip in read_clips(Path(os.environ["ESC50"]))}
    rows = read_predictions(tmp_path / "exp" / "predictions-test.jsonl")
    index = [[mids.index(mid) for mid in row] for row in read_class_map(default_class_map())]
    for row in rows[:3]:
        wav = torch.from_numpy(read_audio(clips[row.clip].path))
        with torch.no_grad():
            probabilities = upstream.class_probabilities([wav])[0]
        best = max(range(50), key=lambda target: max(probabilities[i].item() for i in index[target]))
        assert row.prediction == ALL_CLASSES[best]


def test_classifier_of_a_tuned_beats_reads_the_features_of_that_model_alone(run, models, tuned, tmp_path):
    def score(**changes: Any) -> None:
        run(tmp_path / "exp", preset="audioset", mode="evaluate", **changes)

    same = tmp_path / "same.pt"
    same.write_bytes(tuned.read_bytes())
    merge = tmp_path / "merge.yaml"
    merge.write_text(Path(models["merge"]).read_text().replace(models["beats"], str(tuned)))
    merged = {"upstream": "merged_attention", "upstream_ckpt": None, "upstream_model_config": str(merge)}
    for target in ({}, {"merged": True}):  # the pre-trained BEATs of the same width
        with pytest.raises(
            DataError, match=r"tuned.pt is another model than the upstream's target, .*beats.pt.*with -k"
        ):
            score(head={"ckpt": str(tuned)}, **target)
    score(head={"ckpt": str(same)}, **merged)
    assert json.loads((tmp_path / "exp" / "head.json").read_text())["ckpt"] == str(tuned)
    score(**merged)
    for features in ({"upstream_layer_selection": 1}, {"upstream_feature_normalize": True, "tuning": None}):
        with pytest.raises(UsageError, match="audioset reads the last hidden state"):
            score(upstream_ckpt=str(tuned), **features)
    other = {"upstream": "fbank", "upstream_ckpt": None, "upstream_feature_selection": "hidden_states"}
    with pytest.raises(UsageError, match="give its file with -k to -u beats_local"):
        score(head={"ckpt": str(tuned)}, **other, upstream_layer_selection=-1)


def test_hash_split_is_recorded(run, tmp_path):
    run(tmp_path / "hash", expert={"split": "hash"})
    splits = json.loads((tmp_path / "hash" / "splits.json").read_text())
    assert splits["rule"] == "hash" and "test_fold" not in splits and len(splits["sha256"]) == 64
    assert {name: len(splits[name]) for name in ("train", "dev", "test")} == {"train": 20, "dev": 5, "test": 5}
    assert delta.load(tmp_path / "hash" / "delta.safetensors").info["data"]["splits_sha256"] == splits["sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "evaluate"}, "the head of -d esc50 is untrained"),
        ({"expert": {"fold": 7}}, "fold must be 1, 2, 3, 4 or 5"),
        ({"head": {"kind": "audioset"}}, "nothing to train"),
        ({"head": {"ckpt": "x.ckpt"}}, "head.ckpt is a fitted head"),
        ({"mode": "evaluate", "head": {"ckpt": "/nowhere/x.ckpt"}}, "no such checkpoint: /nowhere/x.ckpt"),
        ({"mode": "evaluate", "head": {"kind": "audioset"}}, "only pre-trained"),
        ({"runner": {"epochs": 2, "eval_step": 1}, "expert": {"split": "hash"}, "batch": 8}, "have not been seen"),
        ({"runner": {"eval_dataloaders": ["test", "dev"]}}, "begin with dev"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_cannot_work_is_refused(run, tmp_path, models, changes, message):
    if batch := changes.pop("batch", None):
        changes["expert"] |= {"datarc": {"esc50_root": models["corpus"], "train_batch_size": batch}}
    with pytest.raises((UsageError, DataError), match=message):
        run(tmp_path / "exp", **changes)
    assert not list(tmp_path.glob("exp/*.ckpt"))


def test_head_needs_features_that_stay_as_they_are(run, tmp_path):
    with pytest.raises(UsageError, match="weights of its layers train"):
        run(
            tmp_path / "weighted",
            upstream_feature_selection="hidden_states",
            upstream_layer_selection=None,
            tuning=None,
        )
    assert not list(tmp_path.glob("weighted/*.ckpt"))


def test_head_needs_a_frozen_upstream_and_the_same_features(run, base, tmp_path):
    with pytest.raises(UsageError, match="convex needs a frozen upstream"):
        run(tmp_path / "a", preset="mam_ft", head={"fit": "convex"})
    with pytest.raises(DataError, match="trained on last_hidden_state, but would read hidden_states, layer 1"):
        run(
            tmp_path / "b", mode="evaluate", upstream_feature_selection="hidden_states", upstream_layer_selection=1,
            head={"ckpt": str(base / "dev-best.ckpt")},
        )  # fmt: skip


def test_an_equal_score_on_dev_is_not_a_better_one(run, tmp_path):
    task = run(tmp_path / "base").downstream.model
    task.training_features = None

    def score(right: int, of: int) -> list[str]:
        records = {"prediction": [0] * of, "target": [0] * right + [1] * (of - right), "loss": [0.0] * of}
        return task.log_records(
            "dev", records | {"clip": [str(n) for n in range(of)]}, SimpleNamespace(add_scalar=lambda *_, **__: None), 1
        )

    task.best_score.fill_(0)
    assert [score(7, 10), score(7, 10), score(14, 20), score(8, 10)] == [["dev-best.ckpt"], [], [], ["dev-best.ckpt"]]


SHORT = {"total_steps": 2, "eval_step": 2, "save_step": 2}


def test_a_head_on_a_trained_weighted_sum_is_not_taken_without_its_weights(run, tmp_path):
    run(tmp_path / "base", preset="mini", runner=SHORT)
    head = {"ckpt": str(tmp_path / "base" / "dev-best.ckpt")}
    for merged in (False, 0.0):
        with pytest.raises(DataError, match=r"weighted sum of layers whose weights were trained with it.*-i with the"):
            run(tmp_path / "exp", preset="mini", mode="evaluate", head=head, merged=merged)
    run(tmp_path / "exp", preset="mini", mode="evaluate", init_ckpt=head["ckpt"], evaluate_split="dev")
    assert metrics(tmp_path / "exp", "dev") == metrics(tmp_path / "base", "dev", "result.json")


def test_a_head_on_normalised_layers_is_not_put_on_plain_ones(run, tmp_path):
    run(tmp_path / "base", preset="mini", runner=SHORT, upstream_feature_normalize=True)
    with pytest.raises(DataError, match="trained on hidden_states, normalised, but would read hidden_states: repeat"):
        run(tmp_path / "exp", preset="mini", mode="evaluate", head={"ckpt": str(tmp_path / "base" / "dev-best.ckpt")})


def test_the_last_hidden_state_has_two_names(run, tmp_path):
    target, source = factories.hubert_folder(tmp_path / "hubert"), factories.bert_folder(tmp_path / "bert")
    merge = tmp_path / "merge.yaml"
    merge.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 0\n")
    run(tmp_path / "base", upstream="hf_hubert_custom", upstream_ckpt=str(target))
    stored = torch.load(tmp_path / "base" / "dev-best.ckpt", weights_only=False)["Args"]
    assert (stored.upstream_feature_selection, stored.upstream_layer_selection) == ("hidden_states", -1)
    run(
        tmp_path / "zero", mode="evaluate", upstream="merged_attention", upstream_ckpt=None,
        upstream_model_config=str(merge), head={"ckpt": str(tmp_path / "base" / "dev-best.ckpt")},
        upstream_feature_selection="last_hidden_state",
    )  # fmt: skip
    assert metrics(tmp_path / "zero") == metrics(tmp_path / "base", name="result.json")


@pytest.mark.parametrize("preset", ["mam", "mam_ft", "audioset", "mini"])
def test_shipped_task_files_are_valid(preset):
    from s3prl_ext.downstreams.esc50.config import parse_config
    from s3prl_ext.training.methods import METHODS
    from s3prl_ext.training.task_file import RunnerConfig
    from s3prl_ext.training.tuning_config import TuningConfig

    config = load_yaml(shipped_dir("downstream_configs") / "esc50" / f"{preset}.yaml")
    parsed = parse_config(config["downstream_expert"])
    runner = RunnerConfig.from_config(config)
    assert (parsed.split, parsed.fold) == ("folds", 1) and runner.eval_dataloaders[0] == "dev"
    if preset == "mam_ft":
        assert (config["optimizer"]["torch_optim_name"], config["optimizer"]["lr"]) == ("AdamW", 1e-3)
        assert (runner.epochs, parsed.datarc.train_batch_size) == (3, 32)
        assert TuningConfig.from_config(config, METHODS).method == "full"
    if preset == "mam":
        assert parsed.head.fit == "convex" and runner.epochs == 1
