"""The task librispeech_zeroshot: a Whisper's decoder and a CTC head on LibriSpeech's layout, its parts as splits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import s3prl_ext
from s3prl_ext.cli import main as cli
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.transcripts import read_transcripts
from tests.downstreams.test_recognition import runner, transformers_transcripts
from tests.downstreams.test_whisper_recognition import _of_transformers
from tests.support import factories
from tests.support.experiments import make_args

s3prl_ext.install()

PARTS = {"train-clean-100": "19-198", "test-clean": "61-70968", "test-other": "1688-142285"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """LibriSpeech without a dev part, four utterances in each of the others: tones in noise of 0.4 to 1 s."""
    root, rng = tmp_path_factory.mktemp("libri") / "LibriSpeech", np.random.default_rng(0)
    for place, (part, chapter) in enumerate(PARTS.items()):
        folder = root / part / chapter.replace("-", "/")
        folder.mkdir(parents=True)
        for number in range(4):
            time = np.arange(6400 + 3200 * number) / 16000
            wav = 0.3 * np.sin(2 * np.pi * 150 * 1.5 ** (4 * place + number) * time)
            soundfile.write(folder / f"{chapter}-{number:04d}.flac", wav + rng.normal(0, 0.02, len(time)), 16000)
        lines = [f"{chapter}-{number:04d} DON'T STOP {'ABCD'[number]}\n" for number in range(4)]
        (folder / f"{chapter}.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "tiny", seed=3)


def _config(root, preset="zero_shot", head=None, **datarc):
    config = load_yaml(shipped_dir("downstream_configs") / "librispeech_zeroshot" / f"{preset}.yaml")
    config["downstream_expert"]["datarc"] |= {"path": str(root), "num_workers": 0, "text_rule": "identity"} | datarc
    config["downstream_expert"]["head"] |= head or {}
    return config


def _evaluate(expdir, upstream, ckpt, config, split="test"):
    args = make_args(
        expdir, upstream=upstream, upstream_ckpt=str(ckpt), downstream="librispeech_zeroshot", mode="evaluate",
        evaluate_split=split, upstream_feature_selection="last_hidden_state",
    )  # fmt: skip
    runner(args, config).evaluate()
    return read_transcripts(expdir / f"transcripts-{split}.jsonl")


def _wavs(root, rows):
    return [read_audio(next(root.rglob(f"{row.id}.flac"))) for row in rows]


@pytest.mark.parametrize("beams", [1, 3])
def test_transcripts_of_a_whisper_equal_transformers_and_its_wer_has_an_interval(root, folder, tmp_path, beams):
    config = _config(root, head={"beams": beams}, eval_batch_size=4)
    rows = _evaluate(tmp_path / "exp", "whisper_local", folder, config, "test-other")
    assert [row.id for row in rows] == [f"1688-142285-{number:04d}" for number in range(4)]
    assert [row.hypothesis for row in rows] == _of_transformers(folder, _wavs(root, rows), num_beams=beams)
    metrics = json.loads((tmp_path / "exp" / "result-test-other.json").read_text())["metrics"]["test-other"]
    assert metrics["wer_low"]["value"] <= metrics["wer"]["value"] <= metrics["wer_high"]["value"]


def test_a_ctc_head_transcribes_too(root, tmp_path):
    hubert = factories.hubert_folder(tmp_path / "hubert", ctc=True, seed=3, width=32)
    weights = load_file(hubert / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(weights["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, hubert / "model.safetensors", metadata={"format": "pt"})
    rows = _evaluate(tmp_path / "exp", "hf_hubert_custom", hubert, _config(root))
    expected = transformers_transcripts(hubert, _wavs(root, rows), 1)
    assert [row.hypothesis for row in rows] == expected and all(expected)


def test_compare_takes_two_of_its_transcripts(root, folder, tmp_path, capsys):
    other = factories.whisper_folder(tmp_path / "other", seed=4)
    for name, model in (("a", folder), ("b", other)):
        _evaluate(tmp_path / name, "whisper_local", model, _config(root, text_rule="mam"))
    files = [str(tmp_path / name / "transcripts-test.jsonl") for name in "ab"]
    assert cli(["compare", *files, "--intervals-over", "utterance"]) == 0
    assert "4 utterances" in capsys.readouterr().out


def test_a_split_without_its_folder_is_named_only_when_it_is_asked_for(root, folder, tmp_path):
    with pytest.raises(DataError, match="the split 'dev' of LibriSpeech is empty: .* has nothing of dev-clean"):
        _evaluate(tmp_path / "exp", "whisper_local", folder, _config(root), "dev")
    with pytest.raises(UsageError, match="no split 'test-cleen'"):
        _evaluate(tmp_path / "exp", "whisper_local", folder, _config(root), "test-cleen")


@pytest.mark.parametrize(
    "split, sentence",
    [
        ({"train": ["a"], "test": ["b"]}, "datarc.split lacks dev; it may be empty"),
        ({"train": "a", "dev": [], "test": []}, "datarc.split must be a rule, a file, or a list of names"),
        (["a"], "datarc.split must be a rule, a file, or a list of names"),
        (None, "datarc.split is missing"),
    ],
)
def test_lists_are_checked(root, folder, tmp_path, split, sentence):
    with pytest.raises(UsageError, match=sentence):
        _evaluate(tmp_path / "exp", "whisper_local", folder, _config(root, split=split))


def test_a_fresh_head_trains_on_the_miniature_corpus(mini_superb, tmp_path):
    config = _config(mini_superb / "librispeech", "mini", text_rule="mam")
    config["runner"] |= {"total_steps": 2, "eval_step": 2, "save_step": 2, "log_step": 1}
    args = make_args(tmp_path / "exp", upstream="fbank", downstream="librispeech_zeroshot")
    runner(args, config).train()
    assert (tmp_path / "exp" / "dev-best.ckpt").is_file()
    splits = json.loads((tmp_path / "exp" / "splits.json").read_text())
    assert splits["corpus"] == "LibriSpeech" and [len(splits[name]) for name in ("train", "dev", "test")] == [48, 8, 8]


def test_predict_cuts_what_is_longer_than_the_window_of_a_whisper_at_a_pause(root, folder, tmp_path, capsys):
    """The tiny model's window is 2 s; a clip within it is written as the evaluation writes it."""
    config = _config(root, split={"train": ["train-clean-100"], "dev": ["test-other"], "test": ["test-clean"]})
    config["runner"] = {"total_steps": 1, "eval_step": 1, "save_step": 1, "log_step": 1, "eval_dataloaders": ["dev"]}
    config["runner"] |= {"gradient_clipping": 1, "gradient_accumulate_steps": 1, "max_keep": 1}
    args = make_args(tmp_path / "exp", upstream="whisper_local", upstream_ckpt=str(folder), upstream_trainable=True,
                     upstream_feature_selection="last_hidden_state", downstream="librispeech_zeroshot")  # fmt: skip
    runner(args, config).train()
    rows = {row.id: row.hypothesis for row in read_transcripts(tmp_path / "exp" / "transcripts-dev.jsonl")}
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.1, 56000)
    long[24000:28000] = 0
    soundfile.write(tmp_path / "long.wav", long, 16000)
    files = [str(next(root.rglob(f"{id}.flac"))) for id in rows]
    capsys.readouterr()
    assert cli(["predict", str(tmp_path / "exp"), *files, str(tmp_path / "long.wav"), "--format", "jsonl"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["text"] for one in found[:-1]] == list(rows.values()) and any(rows.values())
    (first, second) = found[-1]["segments"]
    assert 1.5 < first["end"] < 1.75 and first["end"] == second["start"] and second["end"] == 3.5


def test_a_sweep_chooses_lambda_on_dev_and_a_report_shows_it(root, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIBRISPEECH", str(root))
    (tmp_path / "merge.yaml").write_text(
        f"target: {{model: {folder}}}\nsource: {{model: {folder}, prefix: decoder}}\nlambda: 0.1\n"
    )
    options = "config.downstream_expert.datarc.text_rule='mam',,config.downstream_expert.datarc.num_workers=0"
    options += ",,config.downstream_expert.datarc.split.dev=['test-other']"
    options += ",,config.downstream_expert.datarc.split.test-other=[]"
    flags = ["-u", "merged_attention", "-g", str(tmp_path / "merge.yaml"), "-d", "librispeech_zeroshot", "-o", options]
    exp = tmp_path / "sweep"
    assert cli(["sweep", *flags, "--lambda", "0,0.5", "-p", str(exp), "--device", "cpu"]) == 0
    found = json.loads((exp / "sweep.json").read_text())
    assert found["settings"]["task"] == "librispeech_zeroshot" and len(found["results"]) >= 3
    assert cli(["report", str(exp), "--out", str(tmp_path / "report")]) == 0
    assert "## librispeech_zeroshot, test: WER (%)" in (tmp_path / "report" / "report.md").read_text()
