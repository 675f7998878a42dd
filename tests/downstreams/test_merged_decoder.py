"""The decoder of a Whisper as the target of a merge: transcripts, exports, sweeps, checkpoints, what is refused."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import extract
from s3prl_ext.cli import main
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.downstreams.recognition.config import HeadConfig
from s3prl_ext.downstreams.recognition.merged_decoder import apply_merge
from s3prl_ext.downstreams.recognition.whisper_head import read_whisper
from s3prl_ext.errors import DataError, ExtError, UsageError
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert
from tests.downstreams.test_recognition import runner, task_file
from tests.downstreams.test_whisper_recognition import _args, _of_transformers, corpus, folder  # noqa: F401
from tests.support import factories
from tests.support.experiments import task_config


@pytest.fixture
def merge_file(folder, tmp_path):
    """Write a merge of the encoder into the decoder of the same file, with changes; returns its path."""

    def write(target="", source=None, more="lambda: 0.5"):
        path = tmp_path / "merge.yaml"
        source = source or f"{{model: {folder}}}"
        path.write_text(f"target: {{model: {target or folder}, prefix: decoder}}\nsource: {source}\n{more}\n")
        return str(path)

    return write


def _merged_args(expdir, config, **changes):
    return _args(expdir, None, upstream="merged_attention", upstream_ckpt=None, upstream_model_config=config, **changes)


def _head(folder, config=None, **args):
    """Return the decoder that a task transcribes with, merged as `config` says."""
    recognizer = read_whisper(folder, 32, HeadConfig("target"))
    if config is not None:
        apply_merge(recognizer, {"upstream": "merged_attention", "upstream_model_config": config} | args)
    return recognizer.head


def _transcripts(folder):
    return [row.hypothesis for row in read_transcripts(folder / "transcripts-test.jsonl")]


def test_the_merged_decoder_writes_what_the_plain_export_writes(corpus, folder, merge_file, tmp_path):
    file = merge_file()
    runner(_merged_args(tmp_path / "exp", file), task_file(corpus, text_rule="identity")).evaluate("test")
    rows = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    wavs = [read_audio(corpus / "wavs" / f"{row.id}.wav") for row in rows]
    assert main(["merge", "-g", file, "--out", str(tmp_path / "merged")]) == 0
    assert [row.hypothesis for row in rows] == _of_transformers(tmp_path / "merged", wavs)
    assert [row.hypothesis for row in rows] != _of_transformers(folder, wavs)


def test_an_export_differs_in_the_decoders_own_attention_only(folder, merge_file, tmp_path, capsys):
    from safetensors.torch import load_file

    file = merge_file(more="lambda: 0.25\nlayers: [1]")
    assert main(["merge", "-g", file, "--dry-run"]) == 0
    table = capsys.readouterr().out
    assert "model.decoder.layers.1.self_attn.v_proj.weight  model.encoder.layers.1.self_attn.v_proj.weight" in table
    assert main(["merge", "-g", file, "--out", str(tmp_path / "merged")]) == 0
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "merged"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    names = [f"model.decoder.layers.1.self_attn.{p}_proj.weight" for p in "qkv"]
    assert sorted(changed) == sorted(names)
    for name in names:
        source = before[name.replace("decoder", "encoder")]
        assert torch.equal(after[name], torch.lerp(before[name], source, 0.25))
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())["merge"]
    assert record["config"]["target"]["prefix"] == "decoder" and record["target"]["name"] == f"{folder} (decoder)"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "run -m evaluate -d ljspeech" in card and "WhisperForConditionalGeneration.from_pretrained" in card


@pytest.mark.parametrize("more", ["lambda: 0", "lambda: 0.5\nlayers: none"])
def test_lambda_zero_and_no_layer_leave_the_decoder_bitwise(folder, merge_file, more):
    plain, merged = _head(folder).state_dict(), _head(folder, merge_file(more=more)).state_dict()
    assert list(plain) == list(merged) and all(torch.equal(plain[name], merged[name]) for name in plain)


@pytest.mark.parametrize(
    "layers, more, pairs",
    [(2, "", {0: 0, 1: 1}), (3, "layer_map: linear", {0: 0, 1: 2}), (3, "layer_map: {1: 0}", {1: 0})],
)
def test_the_source_may_be_a_bert_of_equal_width(folder, merge_file, tmp_path, layers, more, pairs):
    bert = factories.bert_folder(tmp_path / "bert", width=32, layers=layers)
    merged = extract(_head(folder, merge_file(source=f"{{model: {bert}}}", more=f"lambda: 0.3\n{more}")).state_dict())
    source, target = read_attention(bert), read_attention(folder, "decoder")
    for slot, tensor in target.items():
        if slot.kind == "weight" and slot.layer in pairs:
            tensor = torch.lerp(tensor, source[slot._replace(layer=pairs[slot.layer])], 0.3)
        assert torch.equal(merged[slot], tensor), slot


def test_the_preset_merges_the_whisper_that_a_variable_names(folder, monkeypatch):
    monkeypatch.setenv("WHISPER_BASE", str(folder))
    recognizer = read_whisper(folder, 32, HeadConfig("target"))
    apply_merge(recognizer, {"upstream": "mam_whisper_base_decoder_encoder"})
    merged, target, source = (
        extract(recognizer.head.state_dict()),
        read_attention(folder, "decoder"),
        read_attention(folder),
    )
    for slot, tensor in target.items():
        expected = torch.lerp(tensor, source[slot], 0.05) if slot.kind == "weight" else tensor
        assert torch.equal(merged[slot], expected), slot


def test_the_features_are_those_of_the_unmerged_encoder(folder, merge_file):
    upstream = merged_attention(model_config=merge_file())
    plain = UpstreamExpert(folder).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in upstream.state_dict().items())
    assert upstream.merge_record["config"]["target"]["prefix"] == "decoder"


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_merges_the_decoder_and_gives_it_back(corpus, merge_file, tmp_path, monkeypatch, capsys):
    """Transcripts of arms are those of single runs; the unmerged target is scored as the baseline."""
    monkeypatch.setenv("LJSPEECH", str(corpus))
    override = (
        f"config.downstream_expert.head.init='target',,config.downstream_expert.datarc.split='{corpus}/splits.json',,"
        "config.downstream_expert.datarc.text_rule='identity'"
    )
    flags = ["-d", "ljspeech", "-c", "ljspeech/mini", "-s", "last_hidden_state", "-o", override, "--device", "cpu"]
    flags += ["-p", str(tmp_path / "sweep"), "--metric", "cer", "--test-all"]
    grid = ["--lambda", "0,0.5", "--layers", "all,1", "--noise", "none,target", "--draws", "1"]
    assert main(["sweep", "-g", merge_file(), *flags, *grid]) == 0
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert content["target"]["name"].endswith("(decoder)") and content["settings"]["merged part"] == "decoder"
    arms = {arm.name: arm for arm in (tmp_path / "sweep" / "arms").iterdir()}
    expected = {
        "target": "lambda=0", "all_lambda_0.5": "lambda=0.5", "1_lambda_0.5": "lambda=0.5,,layers=1",
        "all_noise_target_draw_0_lambda_0.5": "lambda=0.5,,noise=target",
    }  # fmt: skip
    assert expected.keys() <= arms.keys()
    seen = set()
    for name, changes in expected.items():
        args = _merged_args(tmp_path / name, f"{merge_file()},,{changes}")
        runner(args, task_file(corpus, text_rule="identity")).evaluate("test")
        assert _transcripts(arms[name]) == _transcripts(tmp_path / name), name
        seen.add(tuple(_transcripts(tmp_path / name)))
    assert len(seen) == 4

    encoder = tmp_path / "encoder.yaml"
    encoder.write_text((tmp_path / "merge.yaml").read_text().replace(", prefix: decoder", ""))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["sweep", "-g", str(encoder), *flags, "--lambda", "0.5"])
    assert "was made with another merged part" in capsys.readouterr().err


def test_arms_of_a_decoder_share_the_features_of_the_encoder(corpus, merge_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LJSPEECH", str(corpus))
    override = (
        f"config.downstream_expert.head.init='target',,config.downstream_expert.datarc.split='{corpus}/splits.json',,"
        "config.downstream_expert.datarc.text_rule='identity',,config.downstream_expert.datarc.eval_batch_size=1"
    )
    cache = f",,config.runner.cache='features',,config.runner.cache_folder='{tmp_path / 'cache'}'"
    encoded: list[int] = []
    forward = UpstreamExpert.forward
    monkeypatch.setattr(UpstreamExpert, "forward", lambda self, wavs: encoded.append(len(wavs)) or forward(self, wavs))
    texts, counts = {}, {}
    for name, more in (("plain", ""), ("kept", cache)):
        encoded.clear()
        flags = ["-d", "ljspeech", "-c", "ljspeech/mini", "-s", "last_hidden_state", "-o", override + more]
        flags += ["--device", "cpu", "-p", str(tmp_path / name), "--metric", "cer", "--test-all"]
        assert main(["sweep", "-g", merge_file(), *flags, "--lambda", "0,0.25,0.5,0.75,1"]) == 0
        arms = (tmp_path / name / "arms").iterdir()
        texts[name], counts[name] = {arm.name: _transcripts(arm) for arm in arms}, sum(encoded)
    clips = len(list((tmp_path / "cache").rglob("*.safetensors")))
    assert texts["kept"] == texts["plain"] and len(set(map(tuple, texts["kept"].values()))) > 2
    assert clips > 0 and counts["plain"] - counts["kept"] > 2 * clips


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_a_trained_merged_decoder_is_evaluated_and_predicts_from_its_checkpoint(
    corpus,
    folder,
    merge_file,
    tmp_path,
):
    from s3prl_ext.prediction.model import load

    args = _merged_args(tmp_path / "exp", merge_file(), mode="train")
    trained = runner(args, task_file(corpus, text_rule="identity"))
    before = {slot: tensor.clone() for slot, tensor in extract(trained.downstream.model.decoder.state_dict()).items()}
    assert not torch.equal(before[next(iter(before))], read_attention(folder, "decoder")[next(iter(before))])
    trained.train()
    trained.evaluate("test")
    states = tmp_path / "exp" / "states-3.ckpt"
    args = _merged_args(tmp_path / "again", merge_file(), init_ckpt=str(states))
    runner(args, task_file(corpus, text_rule="identity")).evaluate("test")
    assert _transcripts(tmp_path / "again") == _transcripts(tmp_path / "exp")
    rows = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    assert load(states, device="cpu").predict(corpus / "wavs" / f"{rows[0].id}.wav").text == rows[0].hypothesis
    with pytest.raises(DataError, match="another lambda"):
        runner(
            _merged_args(tmp_path / "other", merge_file(more="lambda: 0.4"), init_ckpt=str(states)), task_file(corpus)
        )


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_task_that_reads_features_is_refused_before_its_corpus_is_read(merge_file, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEECH_COMMANDS", str(tmp_path))
    args = _merged_args(tmp_path / "exp", merge_file(), downstream="speech_commands", mode="train")
    with pytest.raises(UsageError, match=r"changes .*\(decoder\), which -d speech_commands does not read") as caught:
        runner(args, task_config("ks"))
    assert "\n" not in str(caught.value)


def test_a_ctc_head_is_refused(corpus, merge_file, tmp_path):
    args = _merged_args(tmp_path / "exp", merge_file(), mode="train")
    with pytest.raises(UsageError, match="the task has a CTC head, so it would score the unmerged model"):
        runner(args, task_file(corpus, init="fresh"))


def test_the_decoder_of_another_model_is_refused(folder, merge_file, tmp_path):
    other = factories.whisper_folder(tmp_path / "other", seed=4)
    with pytest.raises(DataError, match="head.ckpt names another model"):
        _head(other, merge_file())


@pytest.mark.parametrize(
    "target, source, more, sentence",
    [
        ("hubert", "", "", "target.prefix: decoder belongs to a Whisper, but .* is of type 'hubert'"),
        ("", "{model: WIDE}", "", r"\(decoder\) has 2 layers of shape \(32, 32\) and source .* 2 layers of shape \(48, 48\)"),
        ("", "{model: DEEP}", "", "merging needs the same depth and width, .* or set layer_map"),
        ("", "{model: DEEP, prefix: decodr}", "", "no attention after the prefix 'decodr'; did you mean 'decoder'"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused_in_one_sentence(merge_file, tmp_path, target, source, more, sentence):
    if target:
        target = str(factories.hubert_folder(tmp_path / "hubert", width=32))
    if "WIDE" in source:
        source = source.replace("WIDE", str(factories.whisper_folder(tmp_path / "wide", width=48)))
    if "DEEP" in source:
        source = source.replace("DEEP", str(factories.whisper_folder(tmp_path / "deep", layers=3)))
    config = merge_file(target, source or None, f"lambda: 0.5\n{more}")
    with pytest.raises(ExtError, match=sentence) as caught:
        merged_attention(model_config=config)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExtError, match=sentence):
        from s3prl_ext.commands.merge import main as merge

        merge(["-g", config, "--out", str(tmp_path / "merged")])


def test_an_unknown_prefix_is_refused(merge_file, folder):
    config = Path(merge_file())
    text = config.read_text()
    config.write_text(text.replace("prefix: decoder", "prefix: decodr"))
    with pytest.raises(UsageError, match="unknown prefix 'decodr'; did you mean 'decoder'. Known: decoder, encoder"):
        merged_attention(model_config=str(config))
    config.write_text(text.replace("prefix: decoder", "prefix: encoder"))
    assert merged_attention(model_config=str(config)).merge_record["config"]["target"]["prefix"] is None
