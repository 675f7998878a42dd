"""An experiment that was copied, also from a machine whose folders cannot be made here, continues next to its checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from s3prl_ext.mini_superb import ALL, variables
from s3prl_ext.training import checkpoint
from tests.support import forked

SHORT = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.evaluate_ratio=0.2"


@pytest.fixture(scope="module")
def trained(mini_superb, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "exp"
    flags = ["-m", "train", "-u", "fbank", "-d", "speech_commands", "-c", "ks/mini", "-p", folder, "-o", SHORT]
    command = forked.Command(flags, folder.with_suffix(".log"), corpora_of(mini_superb))
    assert command.wait() == 0, command.output[-3000:]
    return folder


def corpora_of(mini_superb: Path) -> dict[str, str]:
    return {name: str(value) for name, value in variables(ALL, mini_superb).items()}


def copied(trained: Path, to: Path, made_in: str) -> Path:
    """Copy an experiment and let its checkpoints say that they were made in `made_in`."""
    shutil.copytree(trained, to)
    for path in to.glob("*.ckpt"):
        states = checkpoint.load(path)
        states["Args"].expdir = made_in
        torch.save(states, path)
    return to


@pytest.mark.parametrize("name", ["plain", "a\\x41b", "it's, a = b,,c", "new\nline"])
def test_it_evaluates_and_goes_on_beside_its_file(trained, mini_superb, tmp_path, name):
    elsewhere = "/proc/nope/exp" if name == "plain" else str(tmp_path / "old" / "exp")
    folder = copied(trained, tmp_path / "here" / name, elsewhere)
    commands = (
        ["-m", "evaluate", "-e", folder / "states-2.ckpt"],
        ["-m", "train", "-e", folder, "-o", "config.runner.total_steps=3"],
    )
    for number, flags in enumerate(commands):
        command = forked.Command(flags, tmp_path / f"{number}.log", corpora_of(mini_superb))
        assert command.wait() == 0, command.output[-3000:]
    assert {"result-test.json", "states-3.ckpt"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]
    assert not Path(elsewhere).parent.exists()
    assert checkpoint.load(folder / "states-3.ckpt")["Args"].expdir == str(folder)


def test_args_expdir_still_wins(trained, mini_superb, tmp_path):
    folder = copied(trained, tmp_path / "here", "/proc/nope/exp")
    wanted = tmp_path / "wanted"
    flags = ["-m", "evaluate", "-e", folder / "states-2.ckpt", "-o", f"args.expdir='{wanted}'"]
    command = forked.Command(flags, tmp_path / "log", corpora_of(mini_superb))
    assert command.wait() == 0, command.output[-3000:]
    assert (wanted / "result-test.json").is_file() and not (folder / "result-test.json").exists()
