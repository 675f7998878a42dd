"""``s3prl-ext methods``: the figures of AD-TUNING's table, and upstreams that a method does not fit."""

from __future__ import annotations

import re

import pytest

from s3prl_ext import adapters
from s3prl_ext.cli import main
from s3prl_ext.commands.methods import main as command
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.training.methods import METHODS
from tests.support import factories


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
    assert counts["chapter"] == "-" and out.count("does not fit: cnn_adapter and chapter need convolution blocks") == 2


@pytest.mark.parametrize("upstream", ["hubert_local", "hf_hubert_custom"])
def test_counts_of_a_model_of_the_user(capsys, tmp_path, upstream):
    from tests.support.tuned import build, write_model

    ckpt = write_model(upstream, tmp_path)
    counts, out = figures(capsys, "-u", upstream, "-k", ckpt)
    model = build(upstream, ckpt)
    sizes = adapters.dimensions(model)
    assert all(counts[name] == f"{adapters.count(name, sizes):,}" for name in adapters.ADAPTERS)
    assert f"{upstream}: {sum(p.numel() for p in model.parameters()):,} weights" in out
    folds = dict(re.findall(r"^\| (\w+) .*\| (yes|no) +\|", out, re.MULTILINE))
    assert {name: folds[name] for name in adapters.ADAPTERS} == {
        name: "yes" if name in ("lora", "bitfit") else "no" for name in adapters.ADAPTERS
    }


def test_figures_of_the_large_model(capsys):
    counts, out = figures(capsys, "--dims", "large")
    expected = {
        "child, density 0.1": "30,231,245", "houlsby": "1,598,208", "adapter_bias": "49,176", "lora": "786,432",
        "prefix": "256,000", "cnn_adapter": "4,210,176", "chapter": "5,808,384", "bitfit": "272,384",
    }  # fmt: skip
    assert {name: counts[name] for name in expected} == expected and "HuBERT large: 315,438,720 weights" in out


def test_an_upstream_that_takes_no_method(capsys, tmp_path):
    counts, out = figures(capsys, "-u", "fbank")
    assert {name for name, count in counts.items() if count != "-"} == {"frozen", "weighted_sum"}
    assert out.count("does not fit: the upstream has no encoder that adapters know") == len(adapters.ADAPTERS)
    merge = tmp_path / "merge.yaml"
    target, source = factories.hubert_folder(tmp_path / "target"), factories.bert_folder(tmp_path / "source")
    merge.write_text(f"target: {{model: {target}}}\nsources: [{{model: {source}, lambda: 0.2}}]\nlearnable: true\n")
    counts, out = figures(capsys, "-u", "merged_attention", "-g", merge)
    assert counts["lora"] == "-" and "does not fit: tuning.method 'lora' does not train lambda" in out


def test_unsuitable_flags(capsys, tmp_path):
    with pytest.raises(UsageError, match="give one of the two"):
        command(["-u", "fbank", "--dims", "base"])
    with pytest.raises(UsageError, match="-u hubert_local cannot be built without a model: .* with -k"):
        command(["-u", "hubert_local"])
    with pytest.raises(UsageError, match="-k belongs to an upstream: name it with -u"):
        command(["-k", "hubert.pt"])
    with pytest.raises(UsageError, match="-k nothing.pt: no such file"):
        command(["-u", "hubert_local", "-k", "nothing.pt"])
    with pytest.raises(DataError, match="no such model folder: ./nothing"):
        command(["-u", "hf_hubert_custom", "-k", "./nothing"])
    other = factories.wavlm_local_ckpt(tmp_path / "wavlm.pt")
    with pytest.raises(
        DataError, match=r"wavlm.pt is not a converted checkpoint for -u hubert_local: it lacks task_cfg: convert"
    ):
        command(["-u", "hubert_local", "-k", str(other)])
    with pytest.raises(SystemExit) as stop:
        main(["methods", "-u", "huber_local"])
    assert stop.value.code == 2 and "did you mean 'hubert_local'" in capsys.readouterr().err
