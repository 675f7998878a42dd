"""Whisper base itself, which ``make test-real`` fetches: its states, transcripts, child networks, merges, keyword spotting."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

import s3prl_ext
from s3prl_ext import cli, run_downstream
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.downstreams.recognition.config import HeadConfig
from s3prl_ext.downstreams.recognition.whisper_head import read_whisper
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.mini_superb import variables
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE, UpstreamExpert
from s3prl_ext.upstreams.windows import number_of_states
from tests.downstreams.test_recognition import runner
from tests.downstreams.test_whisper_recognition import _args, _of_transformers

s3prl_ext.install()

pytestmark = pytest.mark.real

RECIPES = shipped_dir("recipes")
SENTENCES = 3  # of those that the demo speaks

# What transformers' own generate wrote of the released model, greedy, on clips of S3PRL_EXT_DATA.
TRANSCRIPTS = {
    "librispeech/audio/test-other_resemblyzer/1998-15444-0006.flac": "In a case of attempted suicide by poisoning, is it "
    "the duty of the doctor to inform the police?",
    "librispeech/audio/test-other_resemblyzer/3080-5032-0005.flac": "In earnest, we have had such a skirmish and upon so "
    "foolish an occasion as I cannot tell which is strangers.",
    "ljspeech/audio/LJ001-0026.flac": "On the whole, the type of this book may be considered the Neplu Ultra of Gothic type.",
    "ljspeech/audio/LJ050-0131.flac": "unless a system is established for the frequent formal review of activities there "
    "under. In this regard,",
    "vctk/audio/p226_024.flac": "This is a very common type of bow, one showing mainly red and yellow, with little or no "
    "green or blue.",
    "vctk/audio/p227_022.flac": "The actual primary rainbow observed is said to be the effect of superimposition of a number "
    "of bows.",
}


@pytest.fixture(scope="module")
def whisper() -> Path:
    return Path(os.environ["WHISPER_BASE"]).absolute()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """LJ Speech's layout with the demo's sentences, a few of them test."""
    pytest.importorskip("espeakng_loader")
    script = importlib.util.spec_from_file_location("demo_make_sentences", RECIPES / "demo" / "make_sentences.py")
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("lj") / "LJSpeech-1.1"
    module.write_sentences(folder)
    ids = sorted(path.stem for path in (folder / "wavs").iterdir())
    splits = {"train": ids[SENTENCES:], "dev": [], "test": ids[:SENTENCES]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


def spoken(corpus: Path) -> list:
    """Return the samples of the test sentences."""
    return [read_audio(path) for path in sorted((corpus / "wavs").iterdir())[:SENTENCES]]


def test_its_weights_and_those_that_a_child_network_chooses_among(whisper):
    from transformers import WhisperForConditionalGeneration

    whole = WhisperForConditionalGeneration.from_pretrained(whisper)
    assert sum(p.numel() for p in whole.parameters()) == 72_593_920
    chosen = eligible_parameters(UpstreamExpert(whisper))
    assert sum(p.numel() for p in chosen.values()) == 18_912_256


def test_padded_to_30_s_its_states_are_those_of_transformers(whisper, corpus):
    from transformers import WhisperFeatureExtractor, WhisperModel

    wavs = spoken(corpus)
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    mel = extractor(wavs, sampling_rate=16000, return_tensors="pt").input_features
    with torch.no_grad():
        output = (
            WhisperModel.from_pretrained(whisper, dtype=torch.float32).eval().encoder(mel, output_hidden_states=True)
        )
        found = UpstreamExpert(whisper, padded=True).eval()([torch.from_numpy(wav) for wav in wavs])["hidden_states"]
    expected = [*output.hidden_states[:-1], output.last_hidden_state]
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        for clip, wav in enumerate(wavs):
            count = number_of_states(len(wav), DOWNSAMPLE_RATE)
            assert torch.allclose(ours[clip, :count], theirs[clip, :count], rtol=0, atol=1e-5)


@pytest.mark.data
def test_transcripts_of_recordings_are_those_of_the_released_model(whisper, recordings):
    upstream, decoder = UpstreamExpert(whisper).eval(), read_whisper(whisper, 512, HeadConfig("target"))
    written = {}
    for name in TRANSCRIPTS:
        padded = torch.from_numpy(decoder.pad(read_audio(recordings / name)))
        with torch.no_grad():
            states = upstream([padded])["last_hidden_state"]
        written[name] = decoder.decode(list(states), None)[0].text
    assert written == TRANSCRIPTS


def test_transcripts_of_a_merge_are_those_of_its_export_in_transformers(whisper, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("LJSPEECH", str(corpus))
    monkeypatch.setenv("WHISPER_BASE", str(whisper))
    merge = ("-u", "mam_whisper_base_encoder_decoder", "-g", "lambda=0.1")
    assert cli.main(["merge", *merge, "--out", str(tmp_path / "merged")]) == 0
    config = load_yaml(shipped_dir("downstream_configs") / "ljspeech" / "mini.yaml")
    config["downstream_expert"]["head"] = {"init": "target"}
    config["downstream_expert"]["datarc"] |= {"text_rule": "identity", "eval_batch_size": 1}
    args = _args(tmp_path / "exp", None, upstream=merge[1], upstream_ckpt=None, upstream_model_config=merge[3])
    runner(args, config).evaluate("test")
    found = [row.hypothesis for row in read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")]
    assert found == _of_transformers(tmp_path / "merged", spoken(corpus))
    assert found != _of_transformers(whisper, spoken(corpus)), "at 0.1 the merge is heard"


def test_keywords_are_spotted_by_a_linear_head(whisper, tmp_path, monkeypatch):
    """The demo's frozen row: 96.5 % of 144 clips after 60 steps; chance is 8.3 %."""
    pytest.importorskip("espeakng_loader")
    assert cli.main(["prepare", "mini_superb", "--tasks", "ks", "--out", str(tmp_path / "mini")]) == 0
    for name, value in variables(("ks",), tmp_path / "mini").items():
        monkeypatch.setenv(name, value)
    exp, frozen = tmp_path / "exp", "config.tuning={'method':'weighted_sum'}"
    flags = [
        "-u",
        "whisper_local",
        "-k",
        str(whisper),
        "-d",
        "speech_commands",
        "-c",
        str(RECIPES / "demo" / "ks.yaml"),
    ]
    run_downstream.main(["-m", "train", *flags, "-p", str(exp), "-o", frozen, "--device", "cpu"])
    run_downstream.main(["-m", "evaluate", "-e", str(exp / "dev-best.ckpt"), "-t", "test", "--device", "cpu"])
    result = json.loads((exp / "result-test.json").read_text())
    assert result["items"]["test"] == 144
    assert result["metrics"]["test"]["acc"]["value"] > 0.85
