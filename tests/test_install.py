"""Packaging: what a wheel holds, that pip puts the start-up hook in place and takes it away again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.support.python_process import REPOSITORY

SHIPPED = [name for name in ("upstream_configs", "downstream_configs", "recipes") if (REPOSITORY / name).is_dir()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree, so that building leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("source")
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "s3prl_ext.pth",
    ):
        if (REPOSITORY / name).is_file():
            shutil.copy(REPOSITORY / name, folder)
    for name in ("s3prl_ext", *SHIPPED):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel that pip builds."""
    target = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(source))
    return next(target.glob("*.whl"))


def pip(*arguments: str) -> str:
    """Run pip of this environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def relative_files(root: Path) -> set[str]:
    """List the files below `root`, without compiled ones."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if "__pycache__" not in path.parts}


def test_wheel_holds_the_package_the_configs_and_the_hook(wheel, source):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"s3prl_ext.pth", "s3prl_ext/py.typed"} <= names
    modules = {f"s3prl_ext/{name}" for name in relative_files(source / "s3prl_ext") if name.endswith(".py")}
    assert "s3prl_ext/compat/ctc/corpus/snips.py" in modules
    assert modules <= names
    for folder in SHIPPED:
        assert {f"s3prl_ext/{folder}/{name}" for name in relative_files(source / folder)} <= names


def test_wheel_brings_no_other_top_level_name(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"s3prl_ext", "s3prl_ext.pth"}


def test_every_dependency_has_a_tested_version(wheel):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    required = {re.match(r"[\w.-]+", line)[0].lower() for line in message_from_string(text).get_all("Requires-Dist")}
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    assert {name.replace("-", "_") for name in required} - {"s3prl_ext"} <= {name.replace("-", "_") for name in pinned}


def test_sdist_holds_what_it_needs_and_no_tests(source, tmp_path):
    """The tests run from a clone: an archive with a part of them could not run them."""
    shutil.copytree(source, tmp_path / "source")
    for name in ("tests", "tests/sweeps"):
        (tmp_path / "source" / name).mkdir()
        (tmp_path / "source" / name / "test_nothing.py").write_text("")
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path / "source", capture_output=True, check=True
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if "test_" in name or name.startswith("tests")]
    assert {"setup.py", "pyproject.toml", "s3prl_ext.pth", "constraints.txt", "s3prl_ext/plugin.py"} <= names
    for folder in SHIPPED:
        assert {f"{folder}/{name}" for name in relative_files(source / folder)} <= names


def test_one_floor_of_python_everywhere(wheel):
    """The pins need it: none of them may be installed on an older Python."""
    archive = zipfile.ZipFile(wheel)
    text = archive.read(next(name for name in archive.namelist() if name.endswith("METADATA"))).decode()
    floor = message_from_string(text)["Requires-Python"].removeprefix(">=")
    for name in ("README.md", "docs/install.md", "Makefile"):
        found = re.findall(r"Python (3\.\d+) or later", (REPOSITORY / name).read_text(encoding="utf-8"))
        assert set(found) == {floor}, name
    whole = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    settings, about = whole["tool"], whole["project"]
    assert f"Programming Language :: Python :: {floor}" in about["classifiers"]
    assert settings["ruff"]["target-version"] == f"py{floor.replace('.', '')}"
    assert settings["mypy"]["python_version"] == floor
    assert f"sys.version_info >= ({floor.replace('.', ', ')})" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")


def test_editable_wheel_has_the_hook_and_reads_the_repository(source, tmp_path):
    code = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    names = zipfile.ZipFile(tmp_path / output.split()[-1]).namelist()
    assert "s3prl_ext.pth" in names
    assert not [name for name in names if name.startswith("s3prl_ext/")]
    assert min(names).startswith("__editable__")  # runs before s3prl_ext.pth, which needs it


def test_pip_installs_the_hook_and_uninstalls_it(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    code = (
        "import sys; print(any('FirstImport' in repr(finder) for finder in sys.meta_path), 's3prl_ext' in sys.modules)"
    )
    start = [str(python), "-I", "-c", code]
    assert subprocess.run(start, capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]
    pip("--python", str(python), "uninstall", "--yes", "s3prl_ext")
    result = subprocess.run(start, capture_output=True, text=True, check=True)
    assert (result.stdout.split(), result.stderr) == (["False", "False"], "")
    assert not list((tmp_path / "env").rglob("*s3prl_ext*"))
