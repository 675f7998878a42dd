"""What the measurements share: a place to work in, commands in their own processes, what counts as the same outcome."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from s3prl_ext import cli
from s3prl_ext.child_tuning import delta
from s3prl_ext.training import checkpoint
from tests.support import factories
from tests.support.forked import Command

KS = ["-d", "speech_commands", "-c", "ks/mini"]
STEPS = (
    "config.runner.total_steps=6,,config.runner.eval_step=3,,config.runner.save_step=2,,"
    "config.runner.evaluate_ratio=0.2,,config.runner.max_keep=2"
)
CHILD = "config.tuning={'method':'child','density':0.05,'fisher':{'max_batches':6}},," + STEPS
GENERIC = "S3PRL_EXT_DEBUG"  # in a sentence for an error that nobody foresaw
SECONDS = 300.0  # no command here takes so long


@dataclass(frozen=True)
class Figure:
    """What a measurement prints last.

    Attributes:
        text: the figure, as a sentence.
        bad: how many trials did not end as they should.
    """

    text: str
    bad: int


@dataclass
class Place:
    """A folder for one measurement, with tiny models and miniature corpora.

    Attributes:
        folder: empty at first.
        variables: of the environment, which name the corpora.
        hubert: a transformers HuBERT with a CTC head.
        bert: a transformers BERT of the same width.
        trials: how many to do.
        minutes: start no trial later than this.
        draw: the source of what is random.
    """

    folder: Path
    variables: dict[str, str]
    hubert: Path
    bert: Path
    trials: int
    minutes: float
    draw: random.Random
    started: float = field(default_factory=time.monotonic)

    @property
    def merge(self) -> Path:
        """The description of a merge of the two models."""
        return self.hubert.parent / "merge.yaml"

    def numbers(self) -> Iterator[int]:
        """Count trials until all are done or the time is up."""
        for number in itertools.count(1):
            if number > self.trials or time.monotonic() - self.started > 60 * self.minutes:
                return
            yield number

    def start(
        self,
        flags: Sequence[Any],
        log: Path,
        before: Callable[[], None] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Command:
        """Start ``s3prl-ext`` in a process of its own."""
        log.unlink(missing_ok=True)
        return Command(flags, log, self.variables | dict(variables or {}), before, main=cli.main)

    def succeed(self, flags: Sequence[Any], name: str, before: Callable[[], None] | None = None) -> float:
        """Run a command that must end with 0; return the seconds that it took."""
        started = time.monotonic()
        command = self.start(flags, self.folder / f"{name}.log", before)
        if command.wait(SECONDS):
            raise RuntimeError(f"{name} does not even work undisturbed: {command.output[-3000:]}")
        return time.monotonic() - started

    def train(self, folder: Path, options: str = CHILD) -> list[Any]:
        """Return the command that trains keyword spotting on the HuBERT."""
        return ["run", "-m", "train", "-u", "hf_hubert_custom", "-k", self.hubert, *KS, "-p", folder, "-o", options]


def make_place(work: Path, name: str, trials: int, minutes: float, seed: int) -> Place:
    """Return the place of a measurement; models and corpora are made once and kept in `work`."""
    work = work.absolute()
    hubert, bert, mini = work / "hubert", work / "bert", work / "mini"
    if not (work / "merge.yaml").is_file():
        work.mkdir(parents=True, exist_ok=True)
        factories.hubert_folder(hubert, ctc=True)
        factories.bert_folder(bert)
        models = f"target: {{upstream: hf_hubert_custom, ckpt: {hubert}}}\nsource: {{model: {bert}}}\n"
        (work / "merge.yaml").write_text(models + "lambda: 0.1\n")
    if not (mini / "env.sh").is_file():
        command = Command(["prepare", "mini_superb", "--out", mini], work / "prepare.log", {}, main=cli.main)
        if command.wait(600):
            raise SystemExit(command.output[-2000:])
    variables = dict(re.findall(r"^export (\w+)=(\S+)$", (mini / "env.sh").read_text(), re.MULTILINE))
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "S3PRL_EXT_TARGET": str(hubert)}
    shutil.rmtree(work / name, ignore_errors=True)
    (work / name).mkdir()
    return Place(work / name, variables, hubert, bert, trials, minutes, random.Random(seed))


def finish(command: Command, seconds: float = SECONDS) -> int | None:
    """Wait for a command; return its exit status, or None where it was still running and had to be ended."""
    try:
        return command.wait(seconds)
    except AssertionError:
        return None


def sentence_problem(command: Command, code: int | None) -> str:
    """Return what is wrong with how a command ended: it should succeed, or say in one sentence of its own why not."""
    output = command.output
    sentences = [line for line in output.splitlines() if line.startswith("s3prl-ext: ")]
    if code is None:
        return "it did not end"
    if code not in (0, 1, 2) or "Traceback (most recent" in output:
        return f"code {code}: {output[-500:]}"
    if code and (len(sentences) != 1 or GENERIC in sentences[0]) and "usage:" not in output:
        return f"code {code} with {sentences or output[-300:]}"
    return ""


def hidden(folder: Path) -> list[str]:
    """List what begins with a dot below a folder: locks, and files that are not finished."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def same(a: Any, b: Any) -> bool:
    """Tell whether two nested values are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        if not (isinstance(b, torch.Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)):
            return False
        return a.numel() == 0 or all_bytes(a).equal(all_bytes(b))
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or repr(a) == repr(b) == "nan"


def all_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, in the order of its elements."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def states(path: Path) -> dict[str, Any]:
    """Read a checkpoint without what differs between equal runs: arguments and times."""
    found = checkpoint.load(path)
    found.pop("Args", None)
    extension = found.get(checkpoint.EXTENSION_KEY, {})
    found[checkpoint.EXTENSION_KEY] = {k: v for k, v in extension.items() if not re.search("spent|seconds", k.lower())}
    return found


def run_differences(folder: Path, whole: Path) -> list[str]:
    """Compare two trainings bit by bit: last and best checkpoint, delta, results, names of files."""
    names = {p.name for p in whole.iterdir()} - {"delta.safetensors", "result.json"}
    names = {name for name in names if not name.startswith(("args_", "config_", "events.", "merge_"))}
    problems = [f"{name} is missing" for name in sorted(names) if not (folder / name).exists()]
    for name in sorted(n for n in names if n.endswith(".ckpt") and (folder / n).exists()):
        ours, theirs = states(folder / name), states(whole / name)
        problems += [f"{name}: {key} differs" for key in {*ours, *theirs} if not same(ours.get(key), theirs.get(key))]
    if (whole / "delta.safetensors").is_file():
        a, b = (delta.load(path / "delta.safetensors") for path in (folder, whole))
        fields = ("base_sha256", "indices", "bits", "added", "task")
        problems += [f"delta: {name} differs" for name in fields if not same(getattr(a, name), getattr(b, name))]
    results = [json.loads((path / "result.json").read_text()) for path in (folder, whole)]
    keys = ("step", "metrics", "history", "race", "candidate", "trainable")
    return problems + [f"result.json: {key} differs" for key in keys if results[0].get(key) != results[1].get(key)]
