"""The vocabulary of a recogniser: a head is scored, and trains on, with the tokens that it was trained with."""

from __future__ import annotations

import shutil

import pytest
import torch

from s3prl_ext.configs import shipped_dir
from s3prl_ext.errors import DataError
from s3prl_ext.training import checkpoint
from tests.support.experiments import make_args, task_config

# task -> (-d, section and key of its vocabulary, file, what its tokens are called)
TASKS = {
    "pr": ("ctc", ("text", "vocab_file"), "pr/phoneme.txt", "tokens"),
    "sf": ("ctc", ("text", "vocab_file"), "sf/character.txt", "characters"),
    "asr": ("asr", ("datarc", "dict_path"), "asr/char.dict", "characters"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_reordered_vocabulary_is_noticed(build, tmp_path, task):
    downstream, (section, key), name, kind = TASKS[task]
    vocabulary = tmp_path / "vocabulary"
    shutil.copy(shipped_dir("downstream_configs") / name, vocabulary)
    config = task_config(task, total_steps=1)
    config["downstream_expert"][section][key] = str(vocabulary)
    flags = {"upstream": "fbank_no_cmvn", "downstream": downstream}
    build(make_args(tmp_path / "exp", **flags), config).train()
    path = tmp_path / "exp" / "states-1.ckpt"

    def again(mode: str):
        return build(
            make_args(tmp_path / "exp", mode=mode, past_exp=str(path), init_ckpt=str(path), **flags),
            checkpoint.load(path)["Config"],
        )

    assert again("train").changed_settings == []
    lines = vocabulary.read_text().splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    vocabulary.write_text("".join(lines))
    for mode in ("evaluate", "train"):
        with pytest.raises(
            DataError, match=rf"output \d+ of the head in .*states-1.ckpt \({kind}\) is '.+', but '.+' by"
        ):
            again(mode)


def test_a_checkpoint_of_an_earlier_version_without_its_tokens_goes_on(build, tmp_path):
    flags = {"upstream": "fbank_no_cmvn", "downstream": "ctc"}
    build(make_args(tmp_path / "exp", **flags), task_config("pr", total_steps=1)).train()
    path = tmp_path / "exp" / "states-1.ckpt"
    config = checkpoint.load(path)["Config"]
    assert config["downstream_expert"].pop("labels")["tokens"][0] == "SIL"
    states = checkpoint.load(path)
    states["Config"] = config
    torch.save(states, path)
    runner = build(make_args(tmp_path / "exp", past_exp=str(path), init_ckpt=str(path), **flags), config)
    assert runner.changed_settings == []
