"""Commands run in this process, on miniature corpora and tiny models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from s3prl_ext import run_downstream
from s3prl_ext.errors import show_errors_as_sentences
from s3prl_ext.mini_superb import ALL, variables
from tests.support import factories


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one error sentence on stderr; fails where there is none, several, or a traceback."""
        assert "Traceback" not in self.err, self.err[-2000:]
        (line,) = [line for line in self.err.splitlines() if line.startswith("s3prl-ext: ")]
        assert self.err.rstrip().endswith(line), self.err[-2000:]
        assert "S3PRL_EXT_DEBUG" not in line, f"only the name of an exception: {line}"
        return line.removeprefix("s3prl-ext: ")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the file lists that speaker identification keeps."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def corpora(mini_superb: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature corpora, with their variables set as `. env.sh` sets them."""
    for name, value in variables(ALL, mini_superb).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    return mini_superb


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run ``run_downstream`` with flags in this process; errors become sentences and exit statuses as in a shell."""
    monkeypatch.setattr(sys, "argv", sys.argv)

    def run(*flags: object) -> Outcome:
        capsys.readouterr()
        code: object = 0
        try:
            run_downstream.main([str(flag) for flag in flags])
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            show_errors_as_sentences(False)
        captured = capsys.readouterr()
        assert isinstance(code, int), code
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def succeed(command: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Run ``run_downstream`` and require that it exits with 0."""

    def run(*flags: object) -> Outcome:
        outcome = command(*flags)
        assert outcome.code == 0, outcome.err[-2000:]
        return outcome

    return run


@pytest.fixture(scope="session")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Flags of each tested upstream: log-mel features, and tiny models of 2 layers and 32 dimensions, plain and merged."""
    folder = tmp_path_factory.mktemp("models")
    target, source = factories.hubert_local_ckpt(folder / "hubert.pt"), factories.bert_folder(folder / "bert")
    merge = f"target: {{upstream: hubert_local, ckpt: {target}}}\nsource: {{model: {source}}}\nlambda: 0.2\n"
    (folder / "merge.yaml").write_text(merge)
    return {
        "fbank": ["-u", "fbank"],
        "hubert_local": ["-u", "hubert_local", "-k", str(target)],
        "merged": ["-u", "merged_attention", "-g", str(folder / "merge.yaml")],
        "hf_hubert_custom": ["-u", "hf_hubert_custom", "-k", str(factories.hubert_folder(folder / "hubert"))],
    }


@pytest.fixture(scope="session")
def base_weights(upstreams: dict[str, list[str]]) -> Callable[[str], dict[str, torch.Tensor]]:
    """Return the weights of a tiny upstream as s3prl loads them, before any training."""

    def load(name: str) -> dict[str, torch.Tensor]:
        from s3prl import hub

        return getattr(hub, name)(ckpt=upstreams[name][-1]).state_dict()

    return load
