"""s3prl's own commands as processes of their own: listing, merging, child-tuning, a clone's folder, several ranks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s3prl_ext import plugin
from s3prl_ext.models.hashing import state_sha256
from tests.support import factories, python_process

ADAMW = "config.optimizer={'name':'TorchOptim','torch_optim_name':'AdamW','lr':0.01,'weight_decay':0.1}"
CHILD = "config.tuning={'method':'child','mask':'fisher','density':0.05,'fisher':{'max_batches':2}}"
KS = ("-d", "speech_commands", "-c", "ks/mini")

# Run by torchrun: notes on every rank which weights were chosen and what they are in the end.
RANK_SCRIPT = """
import os, sys
import torch
import s3prl_ext
s3prl_ext.install()
from s3prl_ext import run_downstream
from s3prl.utility.helper import get_model_state
from s3prl_ext.training import run, runner

rank = os.environ["RANK"]
choose_masks, train = run.choose_masks, runner.Runner.train

def choose_and_note(*arguments):
    chosen = choose_masks(*arguments)
    torch.save(chosen.at(chosen.densities[0]), f"mask-{rank}.pt")
    return chosen

def train_and_note(self):
    train(self)
    states = {entry.name: get_model_state(entry.model) for entry in self.all_entries}
    torch.save(states, f"states-{rank}.pt")

run.choose_masks, runner.Runner.train = choose_and_note, train_and_note
run_downstream.main(sys.argv[1:])
"""


@pytest.fixture
def run_python(corpora, tmp_path):
    """Run a Python of its own in an empty folder, with the corpus variables set."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return lambda *arguments, **options: python_process.run(folder, *map(str, arguments), **options)


@pytest.fixture
def merge_file(tmp_path) -> Path:
    """A merge of two tiny models: a HuBERT folder `target` and a BERT folder `source`."""
    target = factories.hubert_folder(tmp_path / "target")
    source = factories.bert_folder(tmp_path / "source")
    path = tmp_path / "merge.yaml"
    path.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 0.5\n")
    return path


def checkpoint(exp: Path, step: int) -> dict:
    return torch.load(exp / f"states-{step}.ckpt", weights_only=True)


# -- the listing ---------------------------------------------------------------------------------------------------


def test_help_lists_every_upstream_of_ours(run_python):
    result = run_python("-m", "s3prl.run_downstream", "-h")
    listed = set(re.findall(r"'(\w+)'", re.sub(r"\s", "", result.stdout)))
    assert "merged_attention" in plugin.upstream_names() and len(plugin.upstream_names()) > 3
    assert set(plugin.upstream_names()) <= listed
    assert {"fbank", "hubert", "hf_hubert_custom"} <= listed


def test_switched_off_command_is_stock(run_python):
    """``S3PRL_EXT_AUTOLOAD=0`` gives the output of an interpreter that reads no start-up file at all."""
    command = ("-m", "s3prl.run_downstream", "-h")
    off = run_python(*command, hook=False, check=False)
    packages = str(Path(find_spec("s3prl").origin).parents[1])
    bare = run_python("-S", *command, check=False, PYTHONPATH=packages)
    assert off.returncode == bare.returncode
    assert last_line(off) == last_line(bare)
    for name in plugin.upstream_names():
        assert name not in off.stdout + off.stderr
    if off.returncode != 0:  # torchaudio, huggingface_hub or transformers are too new for s3prl
        assert "Error" in last_line(off) and "s3prl_ext" not in off.stderr


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return (result.stderr.strip() or result.stdout.strip()).splitlines()[-1]


# -- merging and child-tuning --------------------------------------------------------------------------------------


def test_merging_nothing_trains_like_the_target(run_python, succeed, merge_file, tmp_path):
    """With lambda = 0 the head, trained by the stock command, is bitwise the one trained on the target itself."""
    flags = ["-m", "train", *KS, "-o", "config.runner.total_steps=3"]
    merged, plain = tmp_path / "merged", tmp_path / "plain"
    upstream = ["-u", "merged_attention", "-g", f"{merge_file},,lambda=0"]
    run_python("-m", "s3prl.run_downstream", *flags, *upstream, "-p", merged)
    succeed(*flags, "-u", "hf_hubert_custom", "-k", tmp_path / "target", "-p", plain)
    ours, theirs = checkpoint(merged, 3), checkpoint(plain, 3)
    for part in ("Featurizer", "Downstream"):
        assert set(ours[part]) == set(theirs[part])
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in ours[part])
    results = [json.loads((exp / "result.json").read_text())["metrics"] for exp in (merged, plain)]
    assert results[0] == results[1]

    half = tmp_path / "half"  # and lambda matters
    succeed(*flags, "-u", "merged_attention", "-g", merge_file, "-p", half)
    different = checkpoint(half, 3)["Downstream"]
    assert any(not torch.equal(different[name], theirs["Downstream"][name]) for name in different)


@pytest.mark.slow
def test_child_network_of_a_merge(run_python, merge_file, tmp_path):
    """With lambda = 1, weights outside the child network are the source's Q, K, V and the target's rest, bitwise."""
    exp = tmp_path / "exp"
    run_python(
        "-m", "s3prl.run_downstream", "-m", "train", "-u", "merged_attention", "-g", f"{merge_file},,lambda=1", *KS,
        "-p", exp, "-o", f"config.runner.total_steps=4,,{CHILD},,{ADAMW}",
    )  # fmt: skip
    states = checkpoint(exp, 4)
    assert "Upstream" not in states
    base, mask, values = merged_by_hand(tmp_path), states["UpstreamDelta"]["indices"], states["UpstreamDelta"]["values"]
    target = weights_of_merge(f"{merge_file},,lambda=1")
    assert set(base) == {name.removeprefix("model.") for name in target}
    assert all(torch.equal(target[f"model.{name}"], base[name]) for name in base), "what the delta stands on"
    moved = sum(int((base[n.removeprefix("model.")].view(-1)[i.long()] != values[n]).sum()) for n, i in mask.items())
    assert 0 < moved <= sum(len(entries) for entries in mask.values())
    assert states["UpstreamDelta"]["base_sha256"] == state_sha256(target)


def weights_of_merge(model_config: str) -> dict[str, torch.Tensor]:
    """Return the weights of a merged upstream as it is built."""
    from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention

    return merged_attention(model_config=model_config).state_dict()


def merged_by_hand(folder: Path) -> dict[str, torch.Tensor]:
    """Return the target's weights with the query, key and value matrices of the source."""
    weights = load_file(folder / "target" / "model.safetensors")
    source = load_file(folder / "source" / "model.safetensors")
    for layer in range(2):
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            matrix = source[f"encoder.layer.{layer}.attention.self.{theirs}.weight"]
            weights[f"encoder.layers.{layer}.attention.{ours}.weight"] = matrix
    return weights


def test_script_inside_a_clone(run_python, upstreams, corpora, tmp_path):
    """``cd CLONE/s3prl; python run_downstream.py`` trains with a child network, and evaluates."""
    clone = tmp_path / "clone" / "s3prl"
    clone.mkdir(parents=True)
    shutil.copy(Path(find_spec("s3prl").origin).parent / "run_downstream.py", clone)
    python_process.run(
        clone, "run_downstream.py", "-m", "train", *upstreams["hubert_local"], *KS, "-p", "result/ks",
        "-o", f"config.runner.total_steps=2,,{CHILD}",
    )  # fmt: skip
    assert checkpoint(clone / "result" / "ks", 2)["UpstreamDelta"]["indices"]
    python_process.run(clone, "run_downstream.py", "-m", "evaluate", "-e", "result/ks")
    result = json.loads((clone / "result" / "ks" / "result-test.json").read_text())
    assert result["step"] == 2 and 0 <= result["metrics"]["test"]["acc"]["value"] <= 1


@pytest.mark.slow
def test_stock_command_reports_errors_as_sentences(run_python, tmp_path):
    exp = tmp_path / "exp"
    result = run_python("-m", "s3prl.run_downstream", "-m", "train", "-u", "huberrt", *KS, "-p", exp, check=False)
    assert result.returncode == 2 and not exp.exists()
    assert "Traceback" not in result.stderr and "did you mean 'hubert'" in last_line(result)


# -- several ranks, interruption -----------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.slow
def test_two_ranks_train_the_same_child_network(run_python, upstreams, tmp_path):
    exp, script = tmp_path / "exp", tmp_path / "elsewhere" / "rank.py"
    script.write_text(RANK_SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    flags = ["-m", "train", *upstreams["hubert_local"], *KS, "-p", exp]
    result = run_python(*torchrun, script, *flags, "-o", f"config.runner.total_steps=3,,{CHILD},,{ADAMW}", check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [path.name for path in exp.glob("states-*.ckpt")] == ["states-3.ckpt"]
    masks = [torch.load(script.parent / f"mask-{rank}.pt", weights_only=True) for rank in (0, 1)]
    stored = checkpoint(exp, 3)["UpstreamDelta"]["indices"]
    assert set(masks[0]) == set(masks[1]) == set(stored)
    assert all(torch.equal(masks[0][n], masks[1][n]) and torch.equal(masks[0][n].int(), stored[n]) for n in stored)
    ends = [torch.load(script.parent / f"states-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for part in ("Upstream", "Featurizer", "Downstream"):
        for name in ends[0][part]:
            if name != "best_score":  # only the first rank evaluates
                assert torch.equal(ends[0][part][name], ends[1][part][name]), name
    assert json.loads((exp / "result.json").read_text())["step"] == 3


@pytest.mark.slow
def test_torchrun_of_our_module_and_of_the_stock_one(run_python, tmp_path):
    for module in ("s3prl_ext.run_downstream", "s3prl.run_downstream"):
        exp = tmp_path / module
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", "-m", module]
        flags = ["-m", "train", "-u", "fbank", *KS, "-p", exp, "-o", "config.runner.total_steps=2"]
        result = run_python(*torchrun, *flags, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        assert checkpoint(exp, 2)["WorldSize"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("module", ["s3prl_ext.run_downstream", "s3prl.run_downstream"])
def test_interrupt_saves_and_resumes(module, corpora, succeed, tmp_path):
    exp = tmp_path / "exp"
    flags = ["-m", "train", "-u", "fbank", *KS, "-p", str(exp), "-o"]
    override = "config.runner.save_step=5,,config.runner.log_step=5,,config.runner.total_steps="
    process = subprocess.Popen(
        [sys.executable, "-m", module, *flags, f"{override}1000000"], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list(exp.glob("states-*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err[-2000:]
    assert "Traceback" not in err and "interrupted: step " in err and "resume with -a" in err
    (saved,) = exp.glob("states-*.ckpt")
    step = torch.load(saved, weights_only=True)["Step"]
    assert step >= 5 and f"step {step} is saved" in err
    assert not list(exp.glob(".*")), "no temporary file is left"
    succeed(*flags, f"{override}{step + 2}", "-a")
    assert checkpoint(exp, step + 2)["Step"] == step + 2
