"""The Python example of the page for practitioners runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from s3prl_ext.corpora.mini_superb import LAYOUTS
from tests.prediction import runs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "practitioners.md"


def test_three_lines_of_python(build, mini_superb, tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in example.splitlines() if line]) == 3
    runs.train(build, "ks", tmp_path / "exp" / "ks")
    clip = next((mini_superb / LAYOUTS["ks"].folder).rglob("yes/*.wav"))
    shutil.copy(clip, tmp_path / "clip.wav")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(example, "example", "exec"), {})  # noqa: S102
    file, label, probability = capsys.readouterr().out.strip().split("\t")
    assert file == "clip.wav" and label and 0 < float(probability) <= 1
