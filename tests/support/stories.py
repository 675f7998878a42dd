"""A folder in which the commands of a page run one after another, as they stand.

Stand-ins lie in it under the names that the pages use, and trainings are shortened; all else is what a user gets.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from s3prl_ext import cli
from tests.support import forked
from tests.support.documentation import ROOT, experiments, files
from tests.support.shortened import Shortened
from tests.support.stand_ins import STAND_IN_HUBERT, STAND_INS

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass
class Place:
    """A folder in which the commands of a page run one after another, with the environment that they set up.

    Attributes:
        folder: the folder.
        mini: the miniature corpora, which ``s3prl-ext prepare mini_superb --out mini`` has made.
        shown: files that the page shows, written when a command names them.
        variables: environment variables.
        paths: more places to import from.
    """

    folder: Path
    mini: Path
    shown: Mapping[str, str]
    variables: dict[str, str]
    paths: tuple[str, ...] = ()

    @classmethod
    def for_page(cls, page: Path, folder: Path, mini: Path) -> Place:
        """Return a new folder for the commands of a page, the corpora of ``. mini/env.sh`` set."""
        place = cls(folder, mini, files(page), dict(OFFLINE))
        (folder / "recipes").symlink_to(ROOT / "recipes")
        (folder / "mini").symlink_to(mini)
        place.source(". mini/env.sh")
        return place

    def supply(self, text: str) -> None:
        """Make the stand-ins and shown files that a text names and that are not there yet."""
        for name, make in STAND_INS.items():
            if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w-]|\.\w)", text) and not (self.folder / name).exists():
                make(self.folder / name, self.mini)
        for name, content in self.shown.items():
            path = self.folder / name
            if (Path(name).name in text or "my_extension" in text) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
                self.supply(content)
        read = re.sub(r"-p exp/\w+", "", text)
        for name in re.findall(r"\bexp/(\w+)", re.sub(r"\bexp(?=\s)", "exp/ks", read)):
            if not (self.folder / "exp" / name).exists():
                self._make_experiment(experiments()[name])

    def _make_experiment(self, line: str) -> None:
        """Run a command of another page, after what stands before it there."""
        if re.search("demo/hubert|tiny_minilm", line) and not (self.folder / "demo" / "hubert").exists():
            for before in ("python recipes/demo/make_hubert.py demo/hubert", "export S3PRL_EXT_TARGET=demo/hubert"):
                self.run(before)
        self.run(line)

    def run(self, text: str) -> str:
        """Run one line; return its output.

        Raises:
            AssertionError: it fails.
        """
        text = text.replace("/path/to/SpeechCommands", str(self.mini / "speech_commands"))
        text = text.replace("/path/to/libri2mix", str(self.mini / "libri2mix_diarization"))
        self.supply(text)
        if "mam_beats" in text:
            self.supply("google/vit-base-patch16-224-in21k")
        if "large_ls960" in text:  # the corpus and the models of the preset
            self.supply("facebook/hubert-large-ls960-ft bert-large-uncased LJSpeech-1.1")
            self.variables["LJSPEECH"] = str(self.folder / "LJSpeech-1.1")
        words = shlex.split(text)
        if words[:2] == ["python", "recipes/demo/make_hubert.py"]:  # tests/test_demo.py runs it
            STAND_IN_HUBERT(self.folder / words[2], self.mini)
            return ""
        if words[0] in (".", "export"):
            return self.source(text)
        if words[0] == "s3prl-ext":
            return self.forked(words[1:])
        if words[:2] == ["pip", "install"]:
            return self.install(Path(words[-1]))
        return self.process(words)

    def source(self, text: str) -> str:
        """Take over the variables that a shell line sets."""
        done = subprocess.run(
            ["bash", "-euc", f"set -a; {text}; env -0"],
            cwd=self.folder, env={"PATH": os.environ["PATH"], **self.variables}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = dict(row.split("=", 1) for row in done.stdout.split("\0") if "=" in row)
        self.variables |= {name: value for name, value in found.items() if re.fullmatch(r"[A-Z][A-Z0-9_]+", name)}
        self.variables = {k: v for k, v in self.variables.items() if k not in ("PATH", "PWD", "OLDPWD", "SHLVL")}
        return done.stdout

    def forked(self, flags: list[str]) -> str:
        """Run ``s3prl-ext`` in a forked process."""
        log = self.folder / "output.log"
        log.unlink(missing_ok=True)
        command = forked.Command(flags, log, self.variables, Shortened(self.folder, self.paths), main=cli.main)
        assert command.wait() == 0, command.output[-3000:]
        self._complete_checkpoints()
        return command.output

    def process(self, words: list[str]) -> str:
        """Run a program, this Python's commands first in the path."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            words, cwd=self.folder, env={**os.environ, **self.variables, "PATH": path}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return done.stdout

    def install(self, project: Path) -> str:
        """Do what ``pip install -e PROJECT`` does to a package without requirements: metadata, and a place in the path."""
        target = self.folder / "site"
        target.mkdir()
        code = f"from setuptools import build_meta; build_meta.prepare_metadata_for_build_editable({str(target)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=self.folder / project, capture_output=True, check=True)
        self.paths = (str(self.folder / project), str(target))
        return ""

    def _complete_checkpoints(self) -> None:
        """Give a run that was cut short the best checkpoint that it would have: s3prl saves none at a score of zero."""
        for folder in {path.parent for path in (self.folder / "exp").glob("**/states-*.ckpt")}:
            for name in ("dev-best.ckpt", "dev-clean-best.ckpt", "best-states-dev.ckpt"):
                if not (folder / name).exists():
                    shutil.copy(max(folder.glob("states-*.ckpt"), key=os.path.getmtime), folder / name)


class Story:
    """The commands of a page: each one runs once, after those before it that it may need.

    Args:
        place: where they run.
        lines: the commands.
        left_out: lines that do not run, unless they are asked for.
    """

    def __init__(self, place: Place, lines: list[str], left_out: Callable[[str], bool]) -> None:
        self.place, self.lines, self.left_out = place, lines, left_out
        self._outcomes: dict[int, str | AssertionError] = {}

    def reach(self, number: int) -> str:
        """Run the commands up to a number; return the output of the last one."""
        for earlier, line in enumerate(self.lines[: number + 1]):
            if earlier in self._outcomes or (earlier < number and self.left_out(line)):
                continue
            try:
                self._outcomes[earlier] = self.place.run(line)
            except AssertionError as error:
                self._outcomes[earlier] = error
        outcome = self._outcomes[number]
        if isinstance(outcome, AssertionError):
            raise outcome
        return outcome


def run_python(text: str, folder: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an example of a page in this process, in `folder`."""
    monkeypatch.chdir(folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    torch.manual_seed(0)
    exec(compile(text, "example", "exec"), module.__dict__)
