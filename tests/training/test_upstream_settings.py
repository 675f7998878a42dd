"""The files next to the weights of an upstream decide its features too: other ones are another upstream."""

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
from s3prl_ext.training.selection.pass_facts import SETTINGS, differences, facts_of
from s3prl_ext.training.selection.scoring_pass import _difference
from s3prl_ext.training.selection.shared_scores import SharedScores
from s3prl_ext.training.upstream_settings import KEY, VERSION, check_settings, stated_settings
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
