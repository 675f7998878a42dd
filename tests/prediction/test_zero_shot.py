"""Recognition with a model's own head: predict takes an evaluation without a checkpoint, and writes its transcripts."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.prediction import load
from tests.downstreams.test_librispeech_zeroshot import _config, root  # noqa: F401
from tests.downstreams.test_recognition import corpus, hubert_ctc, merge_file, runner, task_file  # noqa: F401
from tests.support import factories
from tests.support.experiments import make_args, task_config


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    """A tiny Whisper."""
    return factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "tiny", seed=3)


def evaluated(expdir: Path, config: dict, **args) -> Path:
    """Score the test split without a checkpoint, one clip at a time; return the folder."""
    config["downstream_expert"]["datarc"]["eval_batch_size"] = 1
    config["downstream_expert"]["head"]["init"] = "target"
    given = {"downstream": "ljspeech", "upstream_feature_selection": "last_hidden_state", "mode": "evaluate"} | args
    runner(make_args(expdir, **given), config).evaluate()
    return expdir


def check_equal(run: Path, clips: Path) -> None:
    """Require that folder and result give the transcripts that the evaluation wrote, which are not all empty."""
    rows = {row.id: row.hypothesis for row in read_transcripts(run / "transcripts-test.jsonl")}
    files = {path.stem.removesuffix("_mic1"): path for path in clips.rglob("*") if path.suffix in (".wav", ".flac")}
    for path in (run, run / "result-test.json"):
        model = load(path, device="cpu")
        assert {name: model.predict(files[name]).text for name in rows} == rows
    assert any(rows.values()) and len(rows) > 1


def test_a_ctc_head(corpus, hubert_ctc, tmp_path):
    args = {"upstream": "hf_hubert_custom", "upstream_ckpt": str(hubert_ctc)}
    run = evaluated(tmp_path / "exp", task_file(corpus), **args)
    check_equal(run, corpus)
    result = json.loads((run / "result-test.json").read_text())
    for change in ({"error": "it failed"}, {"mode": "train"}, {"args": result["args"] | {"init_ckpt": "a.ckpt"}}):
        (run / "result-test.json").write_text(json.dumps(result | change))
        with pytest.raises(DataError, match="is not the evaluation of a task that needs no checkpoint: name the"):
            load(run / "result-test.json")
        with pytest.raises(DataError, match="contains no checkpoint and no delta"):
            load(run)


def test_an_adapter_that_has_not_been_trained_is_refused(corpus, hubert_ctc, tmp_path):
    args = {"upstream": "hf_hubert_custom", "upstream_ckpt": str(hubert_ctc)}
    run = evaluated(tmp_path / "exp", task_file(corpus, tuning="prefix"), **args)
    with pytest.raises(DataError, match="is not the evaluation of a task that needs no checkpoint: name the"):
        load(run / "result-test.json")


def test_a_merged_upstream(corpus, merge_file, tmp_path):
    text = Path(merge_file).read_text().replace("lambda: 0", "lambda: 0.3")
    Path(merge_file).write_text(text)
    run = evaluated(tmp_path / "exp", task_file(corpus), upstream="merged_attention", upstream_model_config=merge_file)
    check_equal(run, corpus)
    Path(merge_file).write_text(text.replace("0.3", "0.4"))
    with pytest.raises(DataError, match="another lambda"):
        load(run, device="cpu")


def test_the_decoder_of_a_whisper(corpus, whisper, tmp_path):
    args = {"upstream": "whisper_local", "upstream_ckpt": str(whisper)}
    check_equal(evaluated(tmp_path / "exp", task_file(corpus), **args), corpus)


def test_librispeech(root, whisper, tmp_path):
    args = {"upstream": "whisper_local", "upstream_ckpt": str(whisper), "downstream": "librispeech_zeroshot"}
    split = {"train": [], "dev": [], "test": ["test-other"]}
    check_equal(evaluated(tmp_path / "exp", _config(root, split=split), **args), root)


def test_vctk(whisper, tmp_path):
    vctk, speakers = tmp_path / "VCTK-Corpus-0.92", ("p225", "p226")
    for number, speaker in enumerate(speakers * 2):
        text = vctk / "txt" / speaker / f"{speaker}_{number:03d}.txt"
        clip = vctk / "wav48_silence_trimmed" / speaker / f"{speaker}_{number:03d}_mic1.flac"
        for path in (text, clip):
            path.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("Six spoons")
        soundfile.write(clip, np.random.default_rng(number).normal(0, 0.1, 6400 + 3200 * number), 16000)
    config, split = task_config("vctk"), {"train": [], "dev": ["p226"], "test": ["p225"]}
    config["downstream_expert"]["datarc"] |= {"path": str(vctk), "split": split}
    args = {"upstream": "whisper_local", "upstream_ckpt": str(whisper), "downstream": "vctk"}
    check_equal(evaluated(tmp_path / "exp", config, **args), vctk)
