"""Hashes of data: the same for the same content in every process, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ext.downstreams.recognition.config import HeadConfig
from s3prl_ext.downstreams.recognition.whisper_head import read_whisper
from s3prl_ext.mini_superb import ALL, TRAINED, variables
from s3prl_ext.models.fingerprint import settings_sha256
from s3prl_ext.sweeps.fingerprint import data_sha256
from s3prl_ext.tasks import named
from tests.support import factories, python_process
from tests.support.experiments import make_args, task_config

BATCH = ([np.arange(3.0), torch.ones(2)], ["a", "b"], [1, np.int64(2)], {"x": None, "y": (True, b"c", 0.5)})


def test_iterators_are_read():
    samples = [(np.ones(3), 1, "a"), (np.zeros(3), 2, "b")]
    as_lists = [tuple(map(list, [[column] for column in zip(*samples, strict=True)]))]
    assert data_sha256([zip(*samples)]) == data_sha256([list(zip(*samples))]) != data_sha256(as_lists)
    assert data_sha256([zip(*samples)]) != data_sha256([zip(*reversed(samples))])


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, Path("x"), lambda: None], ids=["object", "set", "path", "function"]
)
def test_a_type_that_is_not_known_is_named(value):
    with pytest.raises(TypeError, match=rf"object of type {type(value).__module__}.*{type(value).__name__}"):
        data_sha256([([np.ones(2)], value)])


def test_every_entry_counts():
    found = {
        data_sha256([BATCH]),
        data_sha256([BATCH, BATCH]),
        data_sha256([BATCH[:3]]),
        data_sha256([(*BATCH[:3], {})]),
    }
    assert len(found) == 4


SCRIPT = """
import json, pathlib, s3prl_ext
s3prl_ext.install()
from tests.sweeps.test_fingerprint import sha256_of_tasks
pathlib.Path("hashes.json").write_text(json.dumps(sha256_of_tasks(pathlib.Path("exp"))))
"""


def sha256_of_tasks(folder: Path) -> dict[str, str]:
    """Return the hash of what each task is compared on by a sweep, from its miniature corpus."""
    from s3prl_ext import randomness
    from s3prl_ext.training.runner import Runner

    found = {}
    for name, row in TRAINED.items():
        if row.task.lacks():
            continue
        config = task_config(name)
        config.pop("tuning", None)
        runner = Runner(make_args(folder / name, downstream=row.task.downstream), config)
        with randomness.preserved(1337):
            found[name] = data_sha256(runner.downstream.model.get_dataloader(named(name).dev))
    return found


def test_two_processes_find_the_same_hash_of_every_task(mini_superb, tmp_path, monkeypatch):
    for name, value in {**variables(ALL, mini_superb), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    here = sha256_of_tasks(tmp_path / "here")
    python_process.run(tmp_path, "-c", SCRIPT)
    assert here == json.loads((tmp_path / "hashes.json").read_text()) and set(here) == {
        name for name, row in TRAINED.items() if not row.task.lacks()
    }


def test_settings_of_a_whisper_are_those_of_its_files(tmp_path):
    folder = factories.whisper_folder(tmp_path / "whisper")

    class Task(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recognizer = read_whisper(folder, 32, HeadConfig("target"))
            self.head, self.decisive = self.recognizer.head, self.recognizer.decisive

    first = settings_sha256(Task())
    assert settings_sha256(Task()) == first
    for name, change in (
        ("generation_config.json", {"suppress_tokens": [5]}),
        ("config.json", {"decoder_attention_heads": 1}),
    ):
        text = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(text) | change))
        assert settings_sha256(Task()) != first, name
        (folder / name).write_text(text)
    text = (folder / "tokenizer.json").read_text()
    content = json.loads(text)
    vocabulary = content["model"]["vocab"]
    one, other = [token for token in vocabulary if len(token) == 1][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert settings_sha256(Task()) != first, "tokenizer"
