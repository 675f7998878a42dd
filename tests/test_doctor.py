"""s3prl-ext doctor: a whole installation passes, a broken one ends with the remedy."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import s3prl_ext
from s3prl_ext import doctor, plugin
from s3prl_ext.tasks import TASKS, UNAVAILABLE, Task
from s3prl_ext.transformers_models import CHECKED_VERSIONS


@pytest.fixture(autouse=True)
def installed():
    """doctor installs the plug-in; do it before, so that the tests do not depend on their order."""
    s3prl_ext.install()


def only(monkeypatch, versions: dict[str, str | None]) -> None:
    """Pretend that the given distributions have these versions, or are missing (None)."""
    found = doctor._version

    monkeypatch.setattr(doctor, "_version", lambda name: versions[name] if name in versions else found(name))


def test_whole_installation_passes(capsys, monkeypatch, tmp_path):
    corpus = tmp_path / "-".join(["a-long-name"] * 12)  # which no line breaks
    corpus.mkdir()
    monkeypatch.setenv("VOXCELEB1", str(corpus))
    monkeypatch.setenv("VCTK", str(tmp_path / "absent"))
    monkeypatch.delenv("ESC50", raising=False)
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert metadata.version("torch") in output and "(from s3prl)" in output
    assert all(shim.name in output for shim in plugin.SHIMS)
    assert ",," not in output
    assert "-u merged_attention" in output and "-c ks/superb" in output
    assert re.search(rf"VoxCeleb1 \(sid, asv\):\s+{re.escape(str(corpus))}\n", output)
    assert "VCTK (vctk): missing folder" in output and "ESC-50 (esc50): unset" in output
    assert output.rstrip().endswith("No problems found.")


def test_both_distributions_of_s3prl_are_a_problem(capsys, monkeypatch):
    only(monkeypatch, {"espnet-s3prl": "2026.5.14"})
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "2026.5.14 (from espnet-s3prl)" in output
    assert "pip uninstall s3prl espnet-s3prl" in output


def test_missing_dependency_is_a_problem(capsys, monkeypatch):
    only(monkeypatch, {"pandas": None})
    monkeypatch.setattr(doctor, "_importable", lambda module: module != "pandas")
    assert doctor.main([]) == 1
    assert "pandas is not installed: `pip install pandas`." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (CHECKED_VERSIONS[0], None),
        ("5.1.0", "; 5.1.0 lies between them and was not run"),
        ("4.49.0", "; 4.49.0 is OUTSIDE of these"),
        ("6.0.0.dev0", "; 6.0.0.dev0 is OUTSIDE of these"),
    ],
)
def test_versions_of_transformers_whose_features_were_compared(capsys, monkeypatch, version, said):
    only(monkeypatch, {"transformers": version})
    assert doctor.main([]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert ", ".join(CHECKED_VERSIONS) in output
    assert said in output if said else f"{version} is" not in output and f"{version} lies" not in output


def test_the_pinned_version_was_compared_and_the_oldest_allowed_one_too():
    root = Path(__file__).parents[1]
    pinned = re.search(r"^transformers==(.+)$", (root / "constraints.txt").read_text(), re.MULTILINE)[1]
    oldest = re.search(r'"transformers>=(.+)"', (root / "pyproject.toml").read_text())[1]
    assert pinned in CHECKED_VERSIONS and CHECKED_VERSIONS[0] == oldest


def test_failing_import_of_s3prl_is_a_problem(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "S3PRL_MODULES", ("s3prl_of_another_world",))
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "s3prl_of_another_world does not import" in output
    assert "pip install s3prl_of_another_world" in output


def test_missing_task_files_are_a_problem(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("s3prl_ext.configs.PACKAGE_DIR", tmp_path / "package")
    assert doctor.main([]) == 1
    assert "'downstream_configs' is missing" in capsys.readouterr().out


def test_switched_off_hook_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_AUTOLOAD", "0")
    assert doctor.main([]) == 0
    assert "switched off" in capsys.readouterr().out


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--help"])
    assert stopped.value.code == 0
    assert "example:\n  s3prl-ext doctor\n" in capsys.readouterr().out


def rows_of_tasks(monkeypatch) -> dict[str, str]:
    """Return what doctor says of each task."""
    rows: dict[str, str] = {}
    report = doctor.Report(lambda text: None)
    monkeypatch.setattr(report, "table", lambda title, table: rows.update(table))
    doctor.tasks(report)
    assert not report.problems
    return {name: text.partition(": ")[2] for name, text in rows.items()}


def test_every_task_says_what_it_needs(monkeypatch, tmp_path):
    for task in TASKS:
        for variable in task.variables:
            monkeypatch.delenv(variable, raising=False)
    rows = rows_of_tasks(monkeypatch)
    assert set(rows) == {task.name for task in TASKS if task.preset} | set(UNAVAILABLE)
    assert rows["speech_translation"].startswith("cannot run: its data, model and beam search are fairseq's")
    assert rows["er"] == "needs IEMOCAP, the folder of IEMOCAP"
    monkeypatch.setenv("IEMOCAP", str(tmp_path))
    assert rows_of_tasks(monkeypatch)["er"] == f"needs the file or folder {tmp_path}/meta_data"
    (tmp_path / "meta_data").mkdir()
    assert rows_of_tasks(monkeypatch)["er"] == "runs"
    monkeypatch.setattr(Task, "lacks", lambda task: ["kitchen-sink"] if task.name == "er" else [])
    assert rows_of_tasks(monkeypatch)["er"] == "needs the extra superb (kitchen-sink): pip install 's3prl_ext[superb]'"
