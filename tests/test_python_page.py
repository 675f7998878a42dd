"""The page and notebook "In Python": the notebook is the page, and its cells run one after another."""

from __future__ import annotations

import re

import pytest
import torch

from tests.support import notebook, stories


def test_the_notebook_is_the_page():
    assert notebook.NOTEBOOK.read_text(encoding="utf-8") == notebook.notebook(), "run python -m tests.support.notebook"


def test_its_cells_run(mini_superb, tmp_path, monkeypatch, capsys):
    (tmp_path / "mini").symlink_to(mini_superb)
    code = "\n\n".join(text for kind, text in notebook.cells() if kind == "code")
    stories.run_python(code, tmp_path, {**stories.OFFLINE, "SPEECH_COMMANDS": "set on the page"}, monkeypatch)
    output = capsys.readouterr().out
    assert "3 hidden states of (1, 48, 32)" in output
    assert re.search(r"^\d+ weights in the child network, by the Fisher information of the split train$", output, re.M)
    weights = torch.tensor([float(number) for number in re.search(r"tensor\(\[(.*)\]\)", output)[1].split(",")])
    assert len(weights) == 3 and weights.sum() == pytest.approx(1.0, abs=1e-3)
    first, *_, last = re.findall(r"^(\d+) \{'layer_00': ([\d.]+)", output, re.M)
    assert first == ("0", "0.1") and last[0] == "20" and last[1] != "0.1", "lambda was learnt"
    label, probability = output.splitlines()[-1].rsplit(" ", 1)
    assert label and 0 < float(probability) <= 1
