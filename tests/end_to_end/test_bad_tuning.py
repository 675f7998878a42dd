"""Bad input of child networks, races and resumed runs: one sentence, the right exit status, nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3prl_ext.configs import shipped_dir
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.training import train_state
from s3prl_ext.training.selection import scoring_pass
from tests.end_to_end.test_bad_input import replace_text
from tests.support import factories

USAGE, DATA = 2, 1
KS = ("-d", "speech_commands", "-c", "ks/mini")
FISHER = {"method": "child", "density": 0.05, "fisher": {"max_batches": 2}}
RANDOM = {"method": "child", "density": 0.05, "mask": "random"}
RACE = FISHER | {"density": [0.05, 0.01]}


def settings(tuning: dict | None = None, early_stop: dict | None = None, **runner: object) -> str:
    """Return the value of ``-o`` for a short run."""
    options = {f"runner.{key}": value for key, value in ({"total_steps": 2, "evaluate_ratio": 0.3} | runner).items()}
    options |= {"tuning": tuning} if tuning is not None else {}
    options |= {"early_stop": early_stop} if early_stop is not None else {}
    return ",,".join(f"config.{key}={value}" for key, value in options.items())


@pytest.fixture
def train(corpora, command, upstreams, tmp_path) -> Callable:
    """Train keyword spotting in ``exp``; return the outcome."""

    def run(override: str, *flags: object, upstream: tuple = (), task: tuple = KS):
        upstream = upstream or tuple(upstreams["hubert_local"])
        return command("-m", "train", *upstream, *task, "-p", tmp_path / "exp", "-o", override, *flags)

    return run


@pytest.fixture
def spoilt(tmp_path) -> tuple:
    """Flags of an upstream with one weight that is not a number."""
    path = factories.hubert_local_ckpt(tmp_path / "spoilt.pt")
    states = torch.load(path, weights_only=False)
    name = next(name for name in states["model_weight"] if name.endswith("fc1.weight"))
    states["model_weight"][name][0, 0] = float("nan")
    torch.save(states, path)
    return "-u", "hubert_local", "-k", path


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (settings(RACE | {"density": [0.1, 2]}, {"ratio": 0.5}), ["tuning.density must be in (0, 1], got 2"]),
        (settings(RACE | {"density": [0.1, "0.1"]}, {"ratio": 0.5}), ["tuning.density names a candidate twice"]),
        (settings(RACE), ["tuning makes 2 candidates", "add early_stop"]),
        (settings(RACE, {"ratio": 2}), ["early_stop.ratio must be in (0, 1], got 2"]),
        (settings(FISHER, {"ratio": 2}), ["early_stop.ratio must be in (0, 1], got 2"]),
        (settings(RACE, {"ratio": 0.5, "metric": "accc"}), ["'accc'", "did you mean 'acc'"]),
        (settings(RACE, {"ratio": 0.5, "metric": "per"}), ["task ks does not report per", "loss, acc"]),
        (settings(RACE, {"ratio": 0.5, "split": "devv"}), ["no split 'devv'"]),
        (settings(RACE | {"eligible": ["nothing.*"]}, {"ratio": 0.5}), ["'nothing.*' matches no weight"]),
        (settings({"method": "lora", "rank": [4, 99]}, {"ratio": 0.5}), ["rank 99 is above 32, the width of q_proj"]),
        ("config.optimizer.reserve_p=[0.1,3]", ["tuning.density must be in (0, 1], got 3"]),
        (settings(FISHER) + ",,config.earlystop={'ratio':0.1}", ["'earlystop'", "did you mean 'early_stop'"]),
    ],
    ids=lambda value: None if isinstance(value, str) else value[0][:40],
)
def test_sections(train, tmp_path, override, parts):
    outcome = train(override)
    assert outcome.code == USAGE, outcome.err[-2000:]
    assert all(part in outcome.sentence for part in parts), outcome.sentence
    assert not (tmp_path / "exp").exists()


KNOWN = "Known: fc1, fc2, k_proj, out_proj, q_proj, v_proj"


@pytest.mark.parametrize(
    ("upstream", "tuning", "parts"),
    [
        ("hubert", {"method": "lora", "projections": ["q_prj"]}, ["'q_prj'; did you mean 'q_proj'?", KNOWN]),
        ("hubert", {"method": "lora", "projections": "q"}, ["unknown projection 'q'", KNOWN]),
        ("hubert", {"method": "lora", "layers": [0, 7]}, ["no layer 7; its layers are 0-1"]),
        ("hubert", {"method": "houlsby", "layers": "encoder"}, ["'encoder' is neither a layer index nor a range"]),
        ("hubert", {"method": "lora", "rank": 0}, ["rank must be a whole number of at least 1, got 0"]),
        ("hubert", {"method": "lora", "rank": 33}, ["rank 33 is above 32", "choose at most 32"]),
        ("hubert", {"method": "houlsby", "bottleneck": 33}, ["bottleneck 33 is above the width 32"]),
        ("hubert", {"method": "prefix", "lenght": 5}, ["unknown key 'lenght'; did you mean 'length'?"]),
        ("hubert", {"method": "bitfit", "rank": 3}, ["tuning.rank belongs to method lora, not to bitfit"]),
        ("hubert", {"method": "lora+houlsby"}, ["unknown method 'lora+houlsby'"]),
        ("beats", {"method": "chapter"}, ["chapter need convolution blocks", "(BEATs)", "choose houlsby"]),
        ("fbank", {"method": "lora"}, ["no encoder that adapters know", "use frozen"]),
    ],
)
def test_adapters(train, tmp_path, upstreams, upstream, tuning, parts):
    flags = {
        "hubert": upstreams["hubert_local"],
        "beats": ["-u", "beats_local", "-k", factories.beats_ckpt(tmp_path / "beats.pt")],
        "fbank": upstreams["fbank"],
    }[upstream]
    outcome = train(settings(tuning), upstream=tuple(flags))
    assert outcome.code == USAGE and all(part in outcome.sentence for part in parts), outcome.sentence
    assert not (tmp_path / "exp").exists()


# -- data and numbers that give nothing to train on --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "valid"])
def test_empty_split(corpora, train, tmp_path, monkeypatch, split):
    folder = Path(shutil.copytree(corpora / LAYOUTS["ic"].folder, tmp_path / "ic"))
    replace_text(folder / "data" / f"{split}_data.csv", lambda text: text.splitlines()[0] + "\n")
    monkeypatch.setenv(LAYOUTS["ic"].task.variable, str(folder))
    outcome = train(settings(RACE, {"ratio": 0.5}), task=("-d", "fluent_commands", "-c", "ic/mini"))
    name = "dev" if split == "valid" else split
    assert outcome.code == DATA and f"split '{name}' is empty" in outcome.sentence
    assert not (tmp_path / "exp").exists()


def test_all_scores_are_zero(train, tmp_path, monkeypatch):
    """The task reads the input of the first encoder block: no gradient reaches the blocks."""
    monkeypatch.setattr(scoring_pass, "SAVE_SECONDS", -1.0)
    outcome = train(settings(FISHER | {"eligible": ["*encoder.layers.*"]}), "-l", "0")
    assert outcome.code == DATA and "all scores are zero" in outcome.sentence
    assert "Use features of a later layer" in outcome.sentence
    assert not (tmp_path / "exp").exists()


def test_loss_is_not_a_number_in_the_fisher_pass(train, spoilt, tmp_path):
    outcome = train(settings(FISHER), upstream=spoilt)
    assert outcome.code == DATA and "the loss of batch 0 of the Fisher pass is nan" in outcome.sentence


def test_gradient_is_not_a_number(train, spoilt, tmp_path, monkeypatch):
    monkeypatch.setattr(train_state, "MAX_BAD_STEPS", 5)
    outcome = train(settings(RANDOM, total_steps=50, save_step=2), upstream=spoilt)
    assert outcome.code == DATA and "not finite for 5 consecutive steps, up to step 5" in outcome.sentence
    assert "no checkpoint is from before them" in outcome.sentence
    assert [path.name for path in (tmp_path / "exp").glob("*.ckpt")] == ["states-4.ckpt"]


def test_a_candidate_that_diverges_loses(train, tmp_path, monkeypatch):
    monkeypatch.setattr(train_state, "MAX_BAD_STEPS", 3)
    override = settings({"method": "full", "lr": ["1e-4", "1e30"]}, {"ratio": 0.5}, total_steps=12)
    outcome = train(override)
    assert outcome.code == 0, outcome.err[-2000:]
    record = json.loads((tmp_path / "exp" / "race" / "race.json").read_text())
    assert record["chosen"] == "lr=0.0001" and record["scores"]["lr=1e+30"]["6"]["acc"] is None
    assert json.loads((tmp_path / "exp" / "result.json").read_text())["step"] == 12


# -- resumed under other circumstances ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("config.tuning.mask=fisher", ["{method: child, density: 0.05, mask: random}", "mask: fisher}"]),
        ("config.tuning.density=0.1", ["density: 0.05", "density: 0.1"]),
        ("config.tuning={'method':'lora'}", ["the task file says {method: lora}"]),
        ("args.downstream=asr", ["was trained with -d speech_commands, not with -d asr"]),
        ("args.upstream=wav2vec2_local", ["was trained with -u hubert_local, not with -u wav2vec2_local"]),
        ("args.upstream_ckpt=OTHER", ["was made from another upstream"]),
        ("config.optimizer.torch_optim_name=SGD", ["optimizer.torch_optim_name: Adam in the checkpoint, SGD here"]),
        ("config.optimizer.lr=0.03", ["optimizer.lr: ", "0.03 here", "start a new experiment with -i"]),
    ],
    ids=["mask", "density", "method", "task", "upstream", "base", "optimizer", "learning_rate"],
)
def test_another_setting_is_refused(train, command, tmp_path, override, parts):
    assert train(settings(RANDOM)).code == 0
    exp = tmp_path / "exp"
    before = {path.name: path.read_bytes() for path in exp.glob("*.ckpt")}
    other = str(factories.hubert_local_ckpt(tmp_path / "other.pt", seed=3))
    outcome = command(
        "-m", "train", "-e", exp, "-o", override.replace("OTHER", other) + ",,config.runner.total_steps=4"
    )
    assert outcome.code in (USAGE, DATA) and all(part in outcome.sentence for part in parts), outcome.sentence
    assert {path.name: path.read_bytes() for path in exp.glob("*.ckpt")} == before


@pytest.fixture
def trained(train, tmp_path) -> Path:
    """The folder of two steps of training, and beside it a task file with another batch size."""
    assert train(settings(RANDOM)).code == 0
    text = (shipped_dir("downstream_configs") / "ks" / "mini.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("batch_size: 8", "batch_size: 4"))
    return tmp_path / "exp"


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["runner.total_steps: 2 in the checkpoint, 4 here"]),
        (["-k", "OTHER"], ["-k: ", "hubert.pt in the checkpoint, ", "other.pt here"]),
        (["-u", "wav2vec2_local"], ["-u: hubert_local in the checkpoint, wav2vec2_local here"]),
        (["-d", "fluent_commands"], ["-d: speech_commands in the checkpoint, fluent_commands here"]),
        (["--seed", "7"], ["--seed: 1337 in the checkpoint, 7 here"]),
        (["-c", "FILE"], ["downstream_expert.datarc.batch_size: 8 in the checkpoint, 4 here"]),
        (["-c", "ks/superb"], ["runner.log_step: 20 in the checkpoint, 100 here", "and 3 more"]),
    ],
    ids=lambda value: " ".join(value) if not value or value[0].startswith("-") else None,
)
def test_a_resumed_command_says_what_the_first_one_said(train, trained, tmp_path, flags, parts):
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=3)
    flags = [{"OTHER": other, "FILE": tmp_path / "other.yaml"}.get(flag, flag) for flag in flags]
    before = {path.name: path.read_bytes() for path in trained.glob("*")}
    # s3prl ignores the task file of a resumed run: without -o the total_steps of the present one would be lost
    short = tmp_path / "short.yaml"
    text = (shipped_dir("downstream_configs") / "ks" / "mini.yaml").read_text()
    short.write_text(text.replace("total_steps: 200", "total_steps: 4"))
    override = settings(RANDOM) if flags else "config.tuning=" + str(RANDOM) + ",,config.runner.evaluate_ratio=0.3"
    outcome = train(override, "-a", *(flags or ["-c", short]))
    assert outcome.code == USAGE and "was trained with different settings" in outcome.sentence, outcome.err[-2000:]
    assert all(part in outcome.sentence for part in parts), outcome.sentence
    assert {path.name: path.read_bytes() for path in trained.glob("*")} == before


def test_what_a_checkpoint_does_not_do_is_refused_with_e_too(command, trained):
    for mode in ("train", "evaluate"):
        outcome = command("-m", mode, "-e", trained, "-u", "wav2vec2_local")
        assert outcome.code == USAGE and "-u: hubert_local in the checkpoint, wav2vec2_local here" in outcome.sentence
    outcome = command("-m", "evaluate", "-e", trained, "-c", "ks/superb")
    assert outcome.code == USAGE and "runner.total_steps: 2 in the checkpoint" in outcome.sentence


def test_what_o_does_not_change_is_not_offered(train, trained, tmp_path):
    text = (shipped_dir("downstream_configs") / "ks" / "mini.yaml").read_text()
    (tmp_path / "faster.yaml").write_text(re.sub(r"\n  lr: \S+", "\n  lr: 0.5", text))
    outcome = train(settings(RANDOM), "-a", "-c", tmp_path / "faster.yaml")
    assert outcome.code == USAGE and "optimizer.lr: " in outcome.sentence and "0.5 here" in outcome.sentence
    assert " -o " not in outcome.sentence and "with -i to begin at these weights" in outcome.sentence


def test_the_first_command_goes_on(train, trained, tmp_path, upstreams, monkeypatch):
    """Also from another folder, with a moved model that is named twice, and with more steps."""
    monkeypatch.chdir(tmp_path)
    moved = shutil.copy(upstreams["hubert_local"][-1], tmp_path / "moved.pt")
    more = settings(RANDOM, total_steps=3) + f",,args.upstream_ckpt='{moved}'"
    outcome = train(more, "-a", upstream=("-u", "hubert_local", "-k", "moved.pt"))
    assert outcome.code == 0 and (trained / "states-3.ckpt").is_file(), outcome.err[-2000:]


@pytest.mark.parametrize("change", ["fewer", "longer"])
def test_other_data_is_refused(corpora, train, tmp_path, monkeypatch, change):
    folder = tmp_path / "speech_commands"
    shutil.copytree(corpora / LAYOUTS["ks"].folder, folder, copy_function=os.link)
    monkeypatch.setenv(LAYOUTS["ks"].task.variable, str(folder))
    assert train(settings(RANDOM)).code == 0
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setenv(LAYOUTS["ks"].task.variable, str(moved))
    assert train(settings(RANDOM, total_steps=3), "-a").code == 0, "the place does not matter"
    clip = min(moved.glob("speech_commands_v0.01/yes/*.wav"))
    content = clip.read_bytes()
    clip.unlink()
    if change == "longer":
        clip.write_bytes(content + b"\0\0")
    outcome = train(settings(RANDOM, total_steps=4), "-a")
    assert outcome.code == DATA and "states-3.ckpt was trained on other data: " in outcome.sentence
    assert "speech_commands_root" in outcome.sentence and "restore the corpus" in outcome.sentence
    assert sorted(path.name for path in (tmp_path / "exp").glob("*.ckpt")) == ["dev-best.ckpt", "states-3.ckpt"]
    clip.unlink(missing_ok=True)
    clip.write_bytes(content)
    assert train(settings(RANDOM, total_steps=4), "-a").code == 0


@pytest.mark.parametrize(("before", "now", "part"), [
    (2, {}, "by 2 processes, and now there is 1 process without torchrun: resume it with torchrun --nproc_per_node 2"),
    (2, {"LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "by 2 processes, and now there are 4 processes"),
    (None, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "by 1 process without torchrun, and now there are 2 processes"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["-a", "-e"])
def test_another_number_of_processes_is_refused(train, command, tmp_path, monkeypatch, before, now, part, how):
    assert train(settings()).code == 0
    (path,) = (tmp_path / "exp").glob("states-*.ckpt")
    if before:
        torch.save(torch.load(path, weights_only=False) | {"WorldSize": before}, path)
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    outcome = train(settings(total_steps=4), "-a") if how == "-a" else command("-m", "train", "-e", tmp_path / "exp")
    assert outcome.code == USAGE and part in outcome.sentence, outcome.sentence
