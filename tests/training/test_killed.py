"""Killed with SIGKILL at any point, a run that is resumed ends bitwise as if nothing had happened."""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from s3prl_ext.child_tuning import delta
from s3prl_ext.mini_superb import ALL, variables
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.writing import written
from tests.support import forked
from tests.training.test_race_runs import assert_same_run, newest, same

KILLED = -9
RACE = (
    "config.tuning={'method':'child','density':[0.05,0.01],'fisher':{'max_batches':4}},,config.early_stop={'ratio':0.34},,"
    "config.runner.total_steps=6,,config.runner.eval_step=3,,config.runner.save_step=2,,config.runner.evaluate_ratio=0.3"
)
FULL = (
    "config.tuning={'method':'full'},,config.runner.total_steps=4,,config.runner.eval_step=2,,config.runner.save_step=3"
)
CHILD = FULL.replace("'method':'full'", "'method':'child','density':0.05,'fisher':{'max_batches':3}")
WORKERS = ",,config.downstream_expert.datarc.num_workers=2,,config.runner.gradient_accumulate_steps=2"
OPTIONS = {"race": RACE, "full": FULL, "child": CHILD, "workers": FULL + WORKERS, "Fisher workers": CHILD + WORKERS}


@pytest.fixture(scope="module")
def corpora(mini_superb) -> dict[str, str]:
    return {name: str(value) for name, value in variables(ALL, mini_superb).items()}


@pytest.fixture(scope="module")
def start(corpora, hubert_ckpt):
    """Start a command on keyword spotting in a folder; further flags and `before` as for :class:`forked.Command`."""

    def run(folder: Path, kind: str, *flags, before=None) -> forked.Command:
        command = ["-m", "train", "-u", "hubert_local", "-k", hubert_ckpt, "-d", "speech_commands", "-c", "ks/mini"]
        return forked.Command(
            [*command, "-p", folder, "-o", OPTIONS[kind], *flags], folder.with_suffix(".log"), corpora, before
        )

    return run


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """An uninterrupted run of each kind: its folder, and the files that appeared, in order."""
    made: dict[str, tuple[Path, list[str]]] = {}

    def make(kind: str) -> tuple[Path, list[str]]:
        if kind not in made:
            folder = tmp_path_factory.mktemp("whole") / kind
            names = folder.with_suffix(".files")
            command = start(folder, kind, before=forked.SaveFisherOften(forked.CountFiles(names)))
            assert command.wait() == 0, command.output[-3000:]
            made[kind] = folder, [str(Path(name).relative_to(folder)) for name in names.read_text().splitlines()]
        return made[kind]

    return make


def resume(start, folder: Path, kind: str) -> None:
    command = start(folder, kind, "-a")
    assert command.wait() == 0, command.output[-3000:]


def assert_same_end(folder: Path, expected: Path) -> None:
    """Compare all that a run leaves, but for times and logs."""
    assert_same_run(newest(folder), newest(expected))
    assert kept(folder) == kept(expected)
    if (expected / "dev-best.ckpt").is_file():
        assert_same_run(checkpoint.load(folder / "dev-best.ckpt"), checkpoint.load(expected / "dev-best.ckpt"))
    if (expected / "delta.safetensors").is_file():
        ours, theirs = (delta.load(f / "delta.safetensors") for f in (folder, expected))
        assert same(dict(ours.bits), dict(theirs.bits)) and same(dict(ours.task), dict(theirs.task))
        assert ours.info["step"] == theirs.info["step"] and ours.info["metrics"] == theirs.info["metrics"]
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (folder, expected))
    for key in ("step", "metrics", "history", "race", "candidate", "trainable"):
        assert ours[key] == theirs[key], key
    assert not list(folder.rglob(".*")), "no part of a file is left"


def kept(folder: Path) -> list[str]:
    """Return the names of all files that carry no time; an older ``states-N.ckpt`` may be left until the next one."""
    kinds = (".ckpt", ".safetensors", ".png", ".partial", ".json")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in kinds]
    return sorted(name for name in names if "states-" not in name)


def die_and_resume(start, folder: Path, kind: str, before) -> None:
    command = start(folder, kind, before=before)
    assert command.wait() == KILLED, command.output[-3000:]
    resume(start, folder, kind)


def test_in_the_fisher_pass(start, whole, tmp_path):
    before = forked.SaveFisherOften(forked.AtLoss(1 + 3))  # one loss says what the task reports
    command = start(tmp_path / "exp", "race", before=before)
    assert command.wait() == KILLED and (tmp_path / "exp" / "fisher.partial").is_file()
    again = start(tmp_path / "exp", "race")
    assert again.wait() == 2 and "already holds an experiment (states-0.ckpt): resume it with -a" in again.sentence
    resume(start, tmp_path / "exp", "race")
    assert_same_end(tmp_path / "exp", whole("race")[0])


@pytest.mark.parametrize("at", [1, 3, 4], ids=["Fisher pass", "its end", "first step"])
@pytest.mark.parametrize("flags", [(), ("-a",)], ids=["same", "-a"])
def test_stopped_early_the_same_command_goes_on(start, whole, tmp_path, at, flags):
    command = start(tmp_path / "exp", "child", before=forked.AtLoss(at, signal.SIGINT))
    assert command.wait() == 130, command.output[-3000:]
    if at < 4:
        assert "interrupted in the Fisher pass: " in command.sentence
        assert "rerun with -a to resume" in command.sentence
    else:
        assert "step 1 is saved; resume with -a" in command.sentence
    again = start(tmp_path / "exp", "child", *flags)
    if at == 4 and not flags:
        assert again.wait() == 2 and "already holds an experiment (states-1.ckpt): resume it with -a" in again.output
        return
    assert again.wait() == 0, again.output[-3000:]
    assert_same_end(tmp_path / "exp", whole("child")[0])


@pytest.mark.parametrize(
    ("kind", "at", "sentence"),
    [("workers", 3, "step 2 is saved; resume with -a"), ("Fisher workers", 3, "3 of 3 batches are saved in ")],
)
def test_a_signal_to_all_its_processes_stops_a_run_with_workers_in_order(start, tmp_path, kind, at, sentence):
    command = start(tmp_path / "exp", kind, before=forked.GroupAtLoss(at))
    assert command.wait() == 130, command.output[-3000:]
    assert sentence in command.sentence and not list((tmp_path / "exp").glob("*failed.json"))
    resume(start, tmp_path / "exp", kind)
    assert json.loads((tmp_path / "exp" / "result.json").read_text())["step"] == 4


@pytest.mark.parametrize(
    ("name", "occurrence", "options"),
    [
        ("race/race.json", 1, {"half": True}),  # the first candidate's score is lost, its checkpoint is not
        ("dev-best.ckpt", 2, {"after": True}),  # the delta beside it is still the older one
        ("states-6.ckpt", 1, {"after": True}),  # all is trained, nothing is reported
    ],
)
def test_while_a_file_is_written(start, whole, tmp_path, name, occurrence, options):
    folder, files = whole("race")
    places = [number for number, file in enumerate(files, 1) if file == name]
    before = forked.SaveFisherOften(forked.AtFile(places[occurrence - 1], **options))
    die_and_resume(start, tmp_path / "exp", "race", before)
    assert_same_end(tmp_path / "exp", folder)


def test_with_a_best_checkpoint_alone(start, whole, tmp_path):
    folder, files = whole("full")
    assert files[0] == "dev-best.ckpt"
    die_and_resume(start, tmp_path / "exp", "full", forked.AtFile(1, after=True))
    assert_same_end(tmp_path / "exp", folder)


def killed_by_size(path: Path) -> None:
    """Write weights, and die of the first write beyond a thousand bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with written(path) as temporary:
        save_file({"a": torch.zeros(1000)}, temporary)


def test_while_weights_are_written(tmp_path):
    (tmp_path / "race" / "first").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "race" / "first"):
        process = multiprocessing.get_context("fork").Process(
            target=killed_by_size, args=(folder / "masks.safetensors",)
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGXFSZ
        assert len(list(folder.glob(".*"))) == 2, "our part and one that safetensors writes before it renames"
    (tmp_path / ".notes").touch()
    RunFolder(tmp_path).remove_parts()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".notes"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 24))
def test_at_every_file_of_a_race(start, whole, tmp_path, number):
    folder, files = whole("race")
    assert len(files) == 23
    disturbance = forked.AtFile(number, half=True) if number % 2 else forked.AtFile(number, after=True)
    die_and_resume(start, tmp_path / "exp", "race", forked.SaveFisherOften(disturbance))
    assert_same_end(tmp_path / "exp", folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_at_a_random_moment_twice(start, whole, tmp_path, seed):
    draw = random.Random(seed)
    kind = draw.choice(["race", "race", "full"])
    folder, _ = whole(kind)
    for flags in ((), ("-a",)):
        command = start(tmp_path / "exp", kind, *flags)
        time.sleep(draw.uniform(0.3, 3.0))
        if command.process.is_alive():
            command.kill()
        assert command.wait() in (KILLED, 0), command.output[-3000:]
    resume(start, tmp_path / "exp", kind)
    assert_same_end(tmp_path / "exp", folder)
