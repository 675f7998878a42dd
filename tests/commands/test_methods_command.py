"""``s3prl-ext methods``: the figures of AD-TUNING's table, and upstreams that a method does not fit."""

from __future__ import annotations

import re

import pytest

from s3prl_ext.cli import main
from s3prl_ext.commands.methods import main as command
from s3prl_ext.errors import UsageError
from s3prl_ext.training.methods import METHODS
from tests import factories


def figures(capsys, *flags):
    assert command([str(flag) for flag in flags]) == 0
    out = capsys.readouterr().out
    return dict(re.findall(r"^\| ([a-z][\w ,.]*?) +\| ([\d,]+|-) +\|", out, re.MULTILINE)), out


def test_figures_of_the_base_model(capsys):
    counts, out = figures(capsys)
    expected = {
        "frozen": "0", "weighted_sum": "0", "full": "90,170,496", "child, density 0.1": "8,505,702",
        "child, density 0.01": "850,570", "child, density 0.001": "85,057", "houlsby": "599,424",
        "adapter_bias": "18,444", "lora": "294,912", "prefix": "99,840", "cnn_adapter": "4,200,448",
        "chapter": "4,799,872", "bitfit": "102,912",
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected
    assert {name.partition(",")[0] for name in expected} == set(METHODS)
    assert "HuBERT base: 94,371,712 weights" in out and "AD-TUNING, Table 2, LoRA" in out


def test_an_upstream_is_measured_and_unfit_methods_say_why(capsys, tmp_path):
    counts, out = figures(capsys, "-u", "beats_local", "-k", factories.beats_ckpt(tmp_path / "beats.pt"))
    assert counts["houlsby"] == f"{2 * (2 * 32 * 32 + 32 + 32):,}" and counts["cnn_adapter"] == "-"
    assert "does not fit: cnn_adapter needs convolution blocks on the waveform" in out


def test_unsuitable_flags(capsys):
    with pytest.raises(UsageError, match="give one of the two"):
        command(["-u", "fbank", "--dims", "base"])
    with pytest.raises(UsageError, match="hubert_local cannot be built with no -k"):
        command(["-u", "hubert_local"])
    with pytest.raises(SystemExit) as stop:
        main(["methods", "-u", "huber_local"])
    assert stop.value.code == 2 and "did you mean 'hubert_local'" in capsys.readouterr().err
