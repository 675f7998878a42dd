"""What a command takes until it has answered: CPU seconds of whole processes, next to those of ``import torch``.

``python -m benchmarks.commands``: an import of torch, one of HuBERT's code in transformers, ``--help`` of each command,
an evaluation of a keyword spotter on ``fbank``, and the prediction of one clip by one and by a tuned HuBERT of two
layers with random weights. Both are trained for two steps on the miniature corpus first. Each command is run ``--runs``
times, in turn, after once that does not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import s3prl_ext
from benchmarks import measure
from s3prl_ext.cli import COMMANDS

TASK = ["-d", "speech_commands", "-c", "ks/mini", "--device", "cpu"]
STEPS = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=2"
CHILD = "config.tuning={'method':'child','density':0.01,'mask':'random'}"


def ours(*arguments: str) -> list[str]:
    """Return the command line of ``s3prl-ext`` in this Python."""
    return [str(Path(sys.executable).with_name("s3prl-ext")), *arguments]


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command and return the CPU seconds of its process and of those that it started.

    Raises:
        RuntimeError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_model(folder: Path) -> None:
    """Write a HuBERT of two layers with random weights as a transformers folder."""
    s3prl_ext.install()
    import torch
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = HubertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    HubertModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)


def trained_commands(folder: Path, recordings: Path | None, environment: dict[str, str]) -> dict[str, list[str]]:
    """Make a corpus and train two keyword spotters; return the commands that use them, by name.

    Adds the variable of the corpus to `environment`.
    """
    corpus = folder / "corpus"
    source = ["--recordings", str(recordings)] if recordings else []
    cpu_seconds(ours("prepare", "mini_superb", "--tasks", "ks", "--out", str(corpus), *source), environment)
    environment["SPEECH_COMMANDS"] = str(corpus / "speech_commands")
    make_model(folder / "hubert")
    clip = next((corpus / "speech_commands" / "speech_commands_test_set_v0.01").rglob("*.wav"))
    commands = {}
    for name, upstream, override in (
        ("fbank", ["-u", "fbank_no_cmvn"], STEPS),
        ("a tuned HuBERT", ["-u", "hf_hubert_custom", "-k", str(folder / "hubert")], f"{STEPS},,{CHILD}"),
    ):
        run = folder / upstream[1]
        cpu_seconds(ours("run", "-m", "train", *upstream, *TASK, "-p", str(run), "-o", override), environment)
        checkpoint = str(run / "states-2.ckpt")
        commands[f"run -m evaluate, {name}"] = ours("run", "-m", "evaluate", "-e", checkpoint, "-t", "test")
        commands[f"predict of one clip, {name}"] = ours("predict", checkpoint, str(clip), "--device", "cpu")
    return commands


def main() -> None:
    """Run every command in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each command (default 3)")
    parser.add_argument("--recordings", type=Path, help="folder of recordings to make the corpus of (default: speech "
                        "is synthesised)")  # fmt: skip
    flags = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    hubert = "import s3prl_ext; s3prl_ext.install(); from transformers import HubertModel"
    commands = {"import torch": [sys.executable, "-c", "import torch"], "HuBERT's code": [sys.executable, "-c", hubert]}
    commands |= {f"{name} --help": ours(name, "--help") for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        commands |= trained_commands(Path(folder), flags.recordings, environment)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(flags.runs + 1):
            for name, command in commands.items():
                seconds = cpu_seconds(command, environment)
                if run:
                    times[name].append(seconds)
    torch = statistics.median(times["import torch"])
    rows = {name: {"cpu_s": statistics.median(found), "times_import_torch": statistics.median(found) / torch}
            for name, found in times.items()}  # fmt: skip
    measure.report("commands", rows, runs=flags.runs)


if __name__ == "__main__":
    main()
