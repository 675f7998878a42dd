"""The shipped task files of ljspeech and vctk: complete, accepted, with the paper's values."""

from __future__ import annotations

import re

import pytest

from s3prl_ext.configs import expand_variables, load_yaml, shipped_dir
from s3prl_ext.downstreams.recognition.config import DataConfig, HeadConfig, parse
from s3prl_ext.errors import UsageError
from s3prl_ext.tasks import named
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.task_file import RunnerConfig, check_top_level
from s3prl_ext.training.tuning_config import TuningConfig

FILES = [(task, preset) for task in ("ljspeech", "vctk") for preset in ("mam", "mini")]


@pytest.mark.parametrize(("task", "preset"), FILES)
def test_file_is_accepted_and_explains_its_variables(task, preset, monkeypatch):
    path = shipped_dir("downstream_configs") / task / f"{preset}.yaml"
    raw, text = load_yaml(path), path.read_text()
    monkeypatch.delenv(task.upper(), raising=False)
    with pytest.raises(UsageError, match=rf"datarc.path needs the environment variable {task.upper()}"):
        expand_variables(raw)
    monkeypatch.setenv(task.upper(), "/corpus")
    config = expand_variables(raw)
    check_top_level(config)
    RunnerConfig.from_config(config)
    data, _ = parse(config["downstream_expert"])
    assert data.path == "/corpus" and f"\n# {task.upper()}: " in text
    assert set(re.findall(r"-d (\w+)", text)) == {task}


@pytest.mark.parametrize(("task", "epochs", "split"), [("ljspeech", 2, "chapter"), ("vctk", 1, "speaker")])
def test_mam_has_the_fine_tuning_of_the_paper(task, epochs, split, monkeypatch):
    """MAM, section 4.2: AdamW, 1e-5, 2 epochs on LJ Speech and 1 on VCTK, batch 32, CTC."""
    monkeypatch.setenv(task.upper(), "/corpus")
    config = expand_variables(load_yaml(shipped_dir("downstream_configs") / task / "mam.yaml"))
    data, head = parse(config["downstream_expert"])
    run = RunnerConfig.from_config(config)
    assert config["optimizer"] == {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1e-5}
    assert run.epochs == epochs and run.gradient_accumulate_steps * data.train_batch_size == 32
    assert TuningConfig.from_config(config, METHODS).method == "full"
    assert data == DataConfig("/corpus", split, "mam", "error", 4, data.train_batch_size, 1)
    assert head == HeadConfig("target")
    assert named(task).preset == f"{task}/mam"
