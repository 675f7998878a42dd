"""More than the weights decides the features of an upstream: its files, and -g. Other settings are another upstream."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.training.selection.pass_facts import SETTINGS, differences, facts_of, same_settings
from s3prl_ext.training.selection.scoring_pass import _difference
from s3prl_ext.training.selection.shared_scores import SharedScores
from s3prl_ext.training.upstream_settings import KEY, VERSION, check_settings, stated_settings
from tests.support import factories
from tests.support import tuned as made
from tests.support.experiments import make_args, task_config

CHILD = {"method": "child", "mask": "random", "density": 0.05}
CHANGES = [
    ("config.json", "num_attention_heads", 1, "HubertConfig.num_attention_heads 1 instead of 2"),
    ("preprocessor_config.json", "do_normalize", False, "preprocessing.do_normalize False instead of True"),
]


@pytest.fixture
def folder(hubert_folder, tmp_path) -> Path:
    return Path(shutil.copytree(hubert_folder, tmp_path / "hub"))


def edit(folder: Path, file: str, **changes) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def upstream(folder: Path):
    from s3prl import hub

    return hub.hf_hubert_custom(str(folder)).eval()


def args_of(exp: Path, folder: Path, **changes) -> Namespace:
    return make_args(exp, upstream="hf_hubert_custom", upstream_ckpt=str(folder), **changes)


def resumed(exp: Path, folder: Path, **changes) -> Namespace:
    return args_of(exp, folder, past_exp=str(exp), init_ckpt=str(RunFolder(exp).latest()), **changes)


@pytest.mark.parametrize(("file", "key", "value", "said"), CHANGES, ids=["config", "preprocessing"])
def test_other_settings_of_the_same_weights_are_refused(build, folder, tmp_path, file, key, value, said):
    exp = tmp_path / "exp"
    args = args_of(exp, folder)
    args.until = 1
    build(args, task_config(total_steps=2, tuning=CHILD)).train()
    build(resumed(exp, folder), task_config(total_steps=2, tuning=CHILD)).train()
    stored = json.loads((exp / "result.json").read_text())[KEY]
    assert stored[said.split()[0]] != value and stored[VERSION]
    TrainedTask.read(exp / "delta.safetensors").build()
    edit(folder, file, **{key: value})
    for mode in ("train", "evaluate"):
        with pytest.raises(DataError, match=rf"states-2.ckpt was made with other settings of the upstream \({said}\)"):
            build(resumed(exp, folder, mode=mode), task_config(total_steps=4, tuning=CHILD))
    for trained in ("delta.safetensors", "states-2.ckpt"):
        with pytest.raises(DataError, match=rf"{trained} was made with other settings of the upstream \({said}\): put"):
            TrainedTask.read(exp / trained).build()


def test_a_whole_tuned_upstream_is_of_its_settings_too(build, folder, tmp_path):
    exp = tmp_path / "exp"
    build(args_of(exp, folder), task_config(total_steps=1, tuning={"method": "full"})).train()
    edit(folder, "preprocessor_config.json", do_normalize=False)
    with pytest.raises(DataError, match="do_normalize False instead of True"):
        build(resumed(exp, folder, mode="evaluate"), task_config(total_steps=1, tuning={"method": "full"}))


def test_files_of_earlier_versions_say_nothing(build, folder, tmp_path):
    exp = tmp_path / "exp"
    build(args_of(exp, folder), task_config(total_steps=1)).train()
    states = checkpoint.load(exp / "states-1.ckpt")
    del states["S3prlExt"][KEY]
    checkpoint.save(states, exp / "states-1.ckpt")
    edit(folder, "preprocessor_config.json", do_normalize=False)
    build(resumed(exp, folder), task_config(total_steps=2)).train()


def test_an_update_of_transformers_refuses_nothing(folder, caplog):
    now = stated_settings(upstream(folder))
    assert now[VERSION] and now["HubertConfig.num_attention_heads"] == 2
    older = {key: value for key, value in now.items() if key != "HubertConfig.layer_norm_eps"} | {"HubertConfig.new": 1}
    check_settings(older, now, "exp/states-2.ckpt")
    assert not caplog.records, "what only one version knows is not compared"
    other = now | {VERSION: "1.0", "HubertConfig.num_attention_heads": 4}
    check_settings(other, now, "exp/states-2.ckpt")
    [record] = caplog.records
    assert "HubertConfig.num_attention_heads 2 instead of 4" in record.message and "than 1.0" in record.message
    with pytest.raises(DataError, match="num_attention_heads 2 instead of 4"):
        check_settings(other | {VERSION: now[VERSION]}, now, "exp/states-2.ckpt")


def test_what_has_no_effect_is_no_setting(folder, tmp_path):
    before = stated_settings(upstream(folder))
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    edit(moved, "config.json", transformers_version="4.1", torch_dtype="float16", id2label={"0": "x"}, use_cache=False)
    model = upstream(moved).to(torch.float64).train()
    model.model.set_attn_implementation("eager")
    assert stated_settings(model) == before
    assert stated_settings(torch.nn.Linear(2, 2)) == {}


def test_scores_of_a_pass_belong_to_their_preprocessing(folder, tmp_path):
    tuning = SimpleNamespace(
        mask="fisher", has_pass=True, fisher=SimpleNamespace(stored=lambda: {"warm_lr": 0}, warm_head=0)
    )
    args = args_of(tmp_path, folder)

    def facts():
        model = upstream(folder)
        models = SimpleNamespace(modules=lambda: [model])
        return facts_of(models, dict(model.named_parameters()), tuning, args, {}, {"sha256": "x"})

    first = facts()
    assert SharedScores(tmp_path, facts()).path == SharedScores(tmp_path, first).path
    edit(folder, "preprocessor_config.json", do_normalize=False)
    assert SharedScores(tmp_path, facts()).path != SharedScores(tmp_path, first).path
    trained = vars(args) | {"config": {}}
    assert differences(first, trained | {KEY: first[SETTINGS][0]}) == differences(first, trained) == []
    assert differences(facts(), trained | {KEY: first[SETTINGS][0]}) == ["settings of the upstream"]
    assert _difference(SETTINGS, first[SETTINGS], facts()[SETTINGS]).startswith("other settings of the upstream")
    before = [{}, {}, first[SETTINGS][0]]
    assert not same_settings(before, facts()[SETTINGS] * 3) and same_settings(before[:2], facts()[SETTINGS] * 2)
    assert same_settings(None, facts()[SETTINGS])


def rewritten(ckpt: Path, section: str, **changes) -> Path:
    """Write a checkpoint of s3prl with the same weights and other entries in one section of its settings."""
    content = torch.load(ckpt, weights_only=False)
    content[section] = content[section] | changes
    torch.save(content, ckpt.with_name("other.pt"))
    return ckpt.with_name("other.pt")


CHECKPOINTS = [
    ("hubert_local", "task_cfg", {"normalize": True}, "normalize True instead of False"),
    ("hubert_local", "model_cfg", {"encoder_attention_heads": 1}, "num_heads 1 instead of 2"),
    ("wav2vec2_local", "task_cfg", {"normalize": True}, "normalize True instead of False"),
    ("wav2vec2_local", "model_cfg", {"layer_norm_first": True}, "layer_norm_first True instead of False"),
    ("wavlm_local", "cfg", {"normalize": True}, "normalize True instead of False"),
    ("wavlm_local", "cfg", {"max_distance": 40}, "max_distance 40 instead of 80"),
    ("beats_local", "cfg", {"max_distance": 40}, "max_distance 40 instead of 800"),
    ("beats_local", "cfg", {"deep_norm": False}, "deep_norm False instead of True"),
]


@pytest.mark.parametrize(("upstream", "section", "change", "said"), CHECKPOINTS)
def test_settings_inside_a_checkpoint_are_of_its_upstream(upstream, section, change, said, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    before = stated_settings(made.build(upstream, ckpt))
    now = stated_settings(made.build(upstream, rewritten(ckpt, section, **change)))
    with pytest.raises(DataError, match=rf"x.ckpt was made with other settings of the upstream \({said}"):
        check_settings(before, now, "x.ckpt")


@pytest.mark.parametrize(
    ("upstream", "section", "change"),
    [
        ("hubert_local", "task_cfg", {"data": "/elsewhere", "labels": ["km"], "max_sample_size": 9, "random_crop": False}),
        ("hubert_local", "model_cfg", {"dropout": 0.3, "mask_prob": 0.1, "encoder_layerdrop": 0.2, "skip_masked": True}),
        ("wav2vec2_local", "task_cfg", {"data": "/elsewhere", "labels": "ltr", "enable_padding": True}),
        ("wav2vec2_local", "model_cfg", {"dropout_input": 0.3, "mask_channel_prob": 0.1, "feature_grad_mult": 0.2}),
        ("wavlm_local", "cfg", {"attention_dropout": 0.3, "mask_length": 5, "encoder_layerdrop": 0.2, "data": "/x"}),
        ("beats_local", "cfg", {"dropout": 0.3, "encoder_layerdrop": 0.2, "predictor_dropout": 0.0}),
    ],
)  # fmt: skip
def test_what_says_nothing_about_features_is_no_setting_of_a_checkpoint(upstream, section, change, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    before = stated_settings(made.build(upstream, ckpt))
    other = made.build(upstream, rewritten(ckpt, section, **change)).train()
    assert before and stated_settings(other) == before


def test_training_settings_of_transformers_are_no_settings(folder, tmp_path):
    before = stated_settings(upstream(folder))
    edit(folder, "config.json", hidden_dropout=0.3, attention_dropout=0.3, mask_time_prob=0.1, layerdrop=0.2)
    assert stated_settings(upstream(folder)) == before


def test_a_head_of_another_window_is_refused(build, tmp_path):
    folder = str(factories.whisper_folder(tmp_path / "whisper"))
    config = task_config(total_steps=1, eval_step=1, save_step=1, tuning={"method": "weighted_sum"})

    def args(name: str, window: str | None, **changes) -> Namespace:
        changes |= {"upstream": "whisper_local", "upstream_ckpt": folder, "upstream_model_config": window}
        return make_args(tmp_path / name, **changes)

    build(args("exp", "window=30"), config).train()
    ckpt = str(tmp_path / "exp" / "states-1.ckpt")
    build(args("same", "window=30", mode="evaluate", init_ckpt=ckpt), config).evaluate()
    with pytest.raises(DataError, match=r"\(options.window clip instead of 30\): put .* and give the -g of then"):
        build(args("other", None, mode="evaluate", init_ckpt=ckpt), config)


def test_an_option_is_refused_whichever_version_of_transformers_read_the_files():
    before = {VERSION: "4.0", "options.window": "clip", "WhisperConfig.scale_embedding": True}
    now = {VERSION: "5.0", "options.window": 30, "WhisperConfig.scale_embedding": False}
    with pytest.raises(DataError, match=r"other settings of the upstream \(options.window 30 instead of clip\)"):
        check_settings(before, now, "x.ckpt")


def test_beats_with_other_tokens_is_refused_but_not_with_other_gradients(tmp_path):
    ckpt = made.write_model("beats_local", tmp_path)
    before = stated_settings(made.build("beats_local", ckpt))
    check_settings(before, stated_settings(made.build("beats_local", ckpt, "gradient_decay=checkpoint")), "x.ckpt")
    with pytest.raises(DataError, match="options.tokens all instead of pooled"):
        check_settings(before, stated_settings(made.build("beats_local", ckpt, "tokens=all")), "x.ckpt")


@pytest.mark.parametrize(
    ("name", "before", "now", "said"),
    [
        ("fbank", "num_mel_bins: 80", "num_mel_bins: 40", "config.kaldi.fbank.num_mel_bins 40 instead of 80"),
        ("mel", "log: true", "log: false", "config.input.log False instead of True"),
    ],
)
def test_the_file_of_a_filter_bank_is_its_settings(name, before, now, said, tmp_path):
    import s3prl.upstream.baseline
    from s3prl import hub

    text = (Path(s3prl.upstream.baseline.__file__).parent / f"{name}.yaml").read_text().replace("True", "true")
    assert before in text
    settings = []
    for number, one in enumerate((text, text.replace(before, now, 1))):
        (tmp_path / f"{number}.yaml").write_text(one)
        settings.append(stated_settings(hub.baseline_local(model_config=str(tmp_path / f"{number}.yaml"))))
    with pytest.raises(DataError, match=rf"other settings of the upstream \({said}\)"):
        check_settings(*settings, "x.ckpt")


def test_what_earlier_versions_did_not_store_is_not_compared(tmp_path):
    ckpt = made.write_model("wavlm_local", tmp_path)
    now = stated_settings(made.build("wavlm_local", ckpt))
    for before in (None, {}, {"transformers": "5.23.0"}):
        check_settings(before, now, "x.ckpt")


def test_heads_and_featurizers_state_nothing(tmp_path):
    from s3prl.upstream.interfaces import Featurizer

    featurizer = Featurizer(
        made.build("hubert_local", made.write_model("hubert_local", tmp_path)), upstream_device="cpu"
    )
    assert stated_settings(featurizer) == {}
