"""``s3prl-ext doctor``: what is installed, which shims act and why, which upstreams, tasks and corpora there are."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import platform
import re
import site
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from s3prl_ext import __version__, _autoload, extensions, plugin
from s3prl_ext.compat.shim import STATES
from s3prl_ext.configs import UnsetVariable, expand_variables, load_yaml, shipped_dir, value_at
from s3prl_ext.errors import DataError, sentence
from s3prl_ext.run_flags import preset_path
from s3prl_ext.tasks import TASKS, UNAVAILABLE, Task, corpus_variables, known, remedy
from s3prl_ext.transformers_models import CHECKED_VERSIONS

# distribution -> module that it provides
DEPENDENCIES = {
    "torch": "torch",
    "torchaudio": "torchaudio",
    "transformers": "transformers",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "editdistance": "editdistance",
    "pyyaml": "yaml",
    "soundfile": "soundfile",
    "tensorboardX": "tensorboardX",
    "pandas": "pandas",
    "h5py": "h5py",
    "tqdm": "tqdm",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "jiwer": "jiwer",
}

LINE_WIDTH = 120

S3PRL_DISTRIBUTIONS = ("s3prl", "espnet-s3prl")

# modules of s3prl that a SUPERB run imports; importing them lets every shim show whether it is needed
S3PRL_MODULES = (
    "s3prl.hub",
    "s3prl.downstream.runner",
    *dict.fromkeys(module for task in TASKS if not task.lacks() for module in task.modules),
)


class Report:
    """Writes headed tables of two columns and collects what is broken.

    Attributes:
        problems: one sentence each: what is broken and what to do.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.problems: list[str] = []

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Write a heading and the rows, the first column as wide as its longest entry."""
        width = max((len(name) for name, _ in rows), default=0)
        self.write(f"{title}\n")
        for name, text in rows or [("none", "")]:
            lines = textwrap.wrap(text, LINE_WIDTH - width - 4, break_long_words=False, break_on_hyphens=False) or [""]
            for label, line in zip([name] + [""] * len(lines), lines):
                self.write(f"  {label:{width}s}  {line}".rstrip() + "\n")
        self.write("\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns 1 if something is broken, 0 otherwise.

    Args:
        argv: flags; None takes them from the command line.
    """
    parser = argparse.ArgumentParser(
        prog="s3prl-ext doctor",
        description="Check this installation: versions, start-up hook, shims, upstreams, tasks, extensions, devices,\n"
        "corpora. Exit status 1: something is broken, and the last lines say what to do.",
        epilog="example:\n  s3prl-ext doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    report = Report(sys.stdout.write)
    for section in (versions, start_up_hook, shims, upstreams, tasks, added, devices, corpora):
        section(report)
    if report.problems:
        report.write("Broken\n" + "".join(f"  {problem}\n" for problem in report.problems))
        return 1
    report.write("No problems found.\n")
    return 0


def versions(report: Report) -> None:
    """Show the versions of everything that matters; a missing dependency is a problem."""
    rows = [("python", platform.python_version()), ("s3prl_ext", f"{__version__} ({Path(__file__).parent})")]
    found = {name: version for name in S3PRL_DISTRIBUTIONS if (version := _version(name))}
    rows.append(
        ("s3prl", ", ".join(f"{version} (from {name})" for name, version in found.items()) or "no distribution")
    )
    if len(found) > 1:
        report.problems.append(
            "s3prl and espnet-s3prl are both installed and overwrite each other's files: "
            "`pip uninstall s3prl espnet-s3prl`, then `pip install s3prl`."
        )
    for distribution, module in DEPENDENCIES.items():
        version = _version(distribution)
        rows.append((distribution, version or "missing"))
        if version is None and not _importable(module):
            report.problems.append(f"{distribution} is not installed: `pip install {distribution}`.")
    rows.append(("features", checked_features(_version("transformers") or "none")))
    report.table("Versions", rows)


def checked_features(version: str) -> str:
    """Return the versions of transformers whose features were compared, and how `version` compares with them."""
    numbers = [_numbers(known) for known in CHECKED_VERSIONS]
    listed = f"of transformers' speech models equal those of 4.57.6 under {', '.join(CHECKED_VERSIONS)}"
    if version in CHECKED_VERSIONS:
        return listed
    if min(numbers) < _numbers(version) < max(numbers):
        return f"{listed}; {version} lies between them and was not run"
    return (
        f"{listed}; {version} is OUTSIDE of these and may give others: install one of them, or run "
        "tests/upstreams/test_golden_features.py of the repository first"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def start_up_hook(report: Report) -> None:
    """Show whether the stock s3prl commands meet the plug-in by themselves."""
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    hooks = [folder for folder in folders if Path(folder, "s3prl_ext.pth").is_file()]
    switched_off = os.environ.get(_autoload.SWITCH) == "0"
    rows = [
        ("s3prl_ext.pth", ", ".join(hooks) or "absent: use `s3prl-ext run`, or `pip install` the package"),
        (_autoload.SWITCH, "0: switched off, use `s3prl-ext run`" if switched_off else "not 0: switched on"),
    ]
    report.table("Start-up hook (python -m s3prl.run_downstream)", rows)


def shims(report: Report) -> None:
    """Import what a run imports, then show which shims act and why; a failing import is a problem."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured):
            plugin.install()
            for module in S3PRL_MODULES:
                importlib.import_module(module)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever an import raises belongs in the report)
        report.problems.append(f"{_first_missing()} does not import: {sentence(error)}{_remedy(error)}")
    rows = []
    for shim in plugin.SHIMS:
        state = STATES.get(shim.name, "not reached")
        rows.append((shim.name, f"active: {shim.reason}" if state == "active" else state))
    report.table("Shims", rows)


def upstreams(report: Report) -> None:
    """Show the upstreams that this package gives to s3prl."""
    hub = sys.modules.get("s3prl.hub")
    rows = []
    for name in plugin.upstream_names():
        there = plugin.is_registered(name)
        rows.append((name, "-u " + name if there else "not registered"))
        if hub is not None and not there:
            report.problems.append(
                f"the upstream '{name}' is not registered: s3prl has this name, rename the YAML file."
            )
    report.table("Upstreams", rows)


def tasks(report: Report) -> None:
    """Show every task with its task files for ``-c``, and what it needs here to run."""
    rows = []
    try:
        root = shipped_dir("downstream_configs")
        for task in (task for task in known() if task.preset):
            presets = sorted(path.stem for path in (root / task.name).glob("*.yaml"))
            flags = "  ".join([f"-d {task.downstream}", *(f"-c {task.name}/{preset}" for preset in presets)])
            rows.append((task.name, f"{flags}: {state_of(task)}"))
    except DataError as error:
        report.problems.append(str(error))
    shown = {task.downstream for task in known() if task.preset}
    rows += [(name, f"-d {name}") for name in plugin.downstream_names() if name not in shown]
    rows += [(name, f"-d {name}: cannot run: {reason}") for name, reason in UNAVAILABLE.items()]
    report.table("Tasks", rows)


def state_of(task: Task) -> str:
    """Return ``runs``, or what a task lacks to run with its preset: an extra, a variable, a file."""
    lacking = task.lacks()
    if lacking:
        extra = "the extra superb " if task in TASKS else ""
        return f"needs {extra}({', '.join(lacking)}): {remedy(task)}"
    unset = [name for name in task.variables if name == task.variable and not os.environ.get(name)]
    if unset:
        return f"needs {unset[0]}, the folder of {task.variables[unset[0]]}"
    try:
        section = expand_variables(load_yaml(preset_path(str(task.preset)))["downstream_expert"])
    except UnsetVariable as error:
        return f"needs {error.name}, the {task.variables.get(error.name, 'path in its task file')}"
    paths = [path for read in task.reads for path in _paths(section, read.key)]
    missing = next((path for path in paths if not Path(path).exists()), None)
    return f"needs the file or folder {missing}" if missing else "runs"


def _paths(section: Any, key: str) -> list[str]:
    """Return the paths at a dotted key of a section."""
    value = value_at(section, key)
    return [path for path in (value if isinstance(value, list) else [value]) if isinstance(path, str)]


def added(report: Report) -> None:
    """Show what extensions registered; one that could not be loaded is a problem."""
    rows: dict[str, list[str]] = {extension: [] for extension in extensions.failures}
    for entry in extensions.registered:
        rows.setdefault(entry.owner, []).append(f"{entry.kind} {entry.name}")
    report.table("Extensions", [(owner, ", ".join(names) or "nothing") for owner, names in rows.items()])
    for extension, reason in extensions.failures.items():
        report.problems.append(f"the extension {extension} cannot be loaded: {reason}")


def devices(report: Report) -> None:
    """Show the processors that torch can use."""
    try:
        import torch
    except (ImportError, OSError) as error:
        report.problems.append(f"torch does not import: {sentence(error)}")
        return
    rows = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used by torch")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        rows.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"))
    if len(rows) == 1:
        rows.append(("cuda", "none"))
    report.table("Devices", rows)


def corpora(report: Report) -> None:
    """Show which corpus variables are set, and whether their folders exist."""
    rows = []
    for variable, corpus in corpus_variables().items():
        folder = os.environ.get(variable)
        state = "unset" if not folder else folder if Path(folder).is_dir() else f"missing folder: {folder}"
        rows.append((variable, f"{corpus}: {state}"))
    report.table("Corpus variables", rows)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _first_missing() -> str:
    """Name the module of :data:`S3PRL_MODULES` that could not be imported."""
    return next((module for module in S3PRL_MODULES if module not in sys.modules), "s3prl")


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        distribution = error.name.partition(".")[0]
        return f" Install it: `pip install {distribution}`."
    return ""


if __name__ == "__main__":
    sys.exit(main())
