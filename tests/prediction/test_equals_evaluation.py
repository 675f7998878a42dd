"""Predictions are those that an evaluation counts, for every task, without the corpus it was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import editdistance
import h5py
import numpy as np
import pytest
import soundfile

from s3prl_ext.compat import enhancement
from s3prl_ext.compat.quesst14 import OUTPUT, scores_of
from s3prl_ext.corpora.audio import resample
from s3prl_ext.evaluation.predictions import read_predictions
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.prediction import load
from s3prl_ext.prediction.decoder import Options
from s3prl_ext.tasks import corpus_variables
from tests.support import prediction_runs as runs
from tests.support.experiments import task_config


@pytest.fixture
def scored(build, tmp_path, monkeypatch) -> Callable:
    """Train and evaluate a task, then forget where its corpus is; gives folder, metrics, dataset and model."""

    def make(task: str, **options) -> SimpleNamespace:
        ckpt = runs.train(build, task, tmp_path / "exp", **options)
        metrics, runner = runs.evaluate(build, ckpt, task)
        dataset = runner.downstream.model.get_dataloader(runs.TEST_SPLIT.get(task, "test")).dataset
        for variable in corpus_variables():
            monkeypatch.delenv(variable, raising=False)
        return SimpleNamespace(exp=tmp_path / "exp", metrics=metrics, dataset=dataset, model=load(ckpt, device="cpu"))

    return make


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def error_rate(hypotheses: dict[str, str], references: dict[str, str]) -> float:
    pairs = [(hypotheses[name].split(), references[name].split()) for name in references]
    return sum(editdistance.eval(*pair) for pair in pairs) / sum(len(reference) for _, reference in pairs)


def texts(run: SimpleNamespace, folder: Path, pattern: str) -> dict[str, str]:
    """Transcribe the files of a folder; the name of a file is its stem."""
    files = sorted(folder.rglob(pattern))
    assert len(files) > 3
    return {Path(result.file).stem: result.text for result in run.model.predict_files(files)}


def test_keywords(scored):
    run = scored("ks")
    found = runs.lines(run.exp / "test_predict.txt")
    truth = {f"{path.parent.name}-{path.name}": name for name, path in run.dataset.data}
    results = list(run.model.predict_files([path for _, path in run.dataset.data]))
    mine = {f"{Path(r.file).parent.name}-{Path(r.file).name}": r.label for r in results}
    assert mine == found and len(set(mine.values())) > 3
    assert mean(mine[name] == truth[name] for name in mine) == pytest.approx(run.metrics["acc"])
    assert all(0 < result.probability <= 1 for result in results)


def test_intents(scored):
    run = scored("ic")
    files = [Path(run.dataset.base_path, path) for path in run.dataset.df.path]
    results = list(run.model.predict_files(files))
    mine = {Path(r.file).stem: tuple(value for value, _ in r.slots.values()) for r in results}
    assert mine == runs.slot_rows(run.exp / "test_predict.csv") and len(set(mine.values())) > 2
    truth = runs.slot_rows(run.exp / "test_truth.csv")
    assert mean(mine[name] == truth[name] for name in mine) == pytest.approx(run.metrics["acc"], abs=1e-6)
    for result in results:
        assert result.label == " / ".join(value for value, _ in result.slots.values())
        assert result.probability == pytest.approx(np.prod([p for _, p in result.slots.values()]))


def test_speakers(scored):
    run = scored("sid")
    files = [Path(path) for path in run.dataset.dataset]
    results = {Path("-".join(Path(r.file).parts[-3:])).stem: r.label for r in run.model.predict_files(files)}
    assert results == runs.lines(run.exp / "test_predict.txt") and len(set(results.values())) > 1
    truth = runs.lines(run.exp / "test_truth.txt")
    assert mean(results[name] == truth[name] for name in truth) == pytest.approx(run.metrics["acc"], abs=1e-6)


def test_emotions(scored):
    run = scored("er")
    files = [Path(run.dataset.data_dir, row["path"]) for row in run.dataset.meta_data]
    mine = {Path(r.file).stem: r.label for r in run.model.predict_files(files)}
    assert mine == runs.lines(run.exp / "test_fold1_predict.txt") and set(mine.values()) <= {"neu", "hap", "ang", "sad"}
    truth = runs.lines(run.exp / "test_fold1_truth.txt")
    assert mean(mine[name] == truth[name] for name in truth) == pytest.approx(run.metrics["acc"], abs=1e-6)


def test_voices(scored):
    run = scored("asv")
    results = {r.file: r for r in run.model.predict_files(run.dataset.dataset)}
    found = runs.lines(run.exp / "test_predict.txt")
    name = lambda path: "-".join(path.split("/")[-3:]).split(".")[0]  # noqa: E731
    mine = {f"{name(a)}_{name(b)}": results[a].likeness(results[b]) for _, a, b in run.dataset.pair_table}
    assert mine == pytest.approx({pair: float(score) for pair, score in found.items()}, abs=1e-5)
    first, *others = results.values()
    assert first.score == pytest.approx(1) and all(r.score == r.likeness(first) for r in others)


def test_sounds(scored):
    run = scored("esc50")
    rows = {row.clip: row for row in read_predictions(run.exp / "predictions-test.jsonl")}
    results = {Path(r.file).stem: r.label for r in run.model.predict_files([clip.path for clip in run.dataset.clips])}
    assert results == {name: row.prediction for name, row in rows.items()} and len(set(results.values())) > 3
    assert mean(results[name] == row.label for name, row in rows.items()) == pytest.approx(run.metrics["acc"])


def test_words(scored, mini_superb):
    run = scored("asr")
    mine = texts(run, mini_superb / LAYOUTS["asr"].folder / "test-clean", "*.flac")
    assert mine == runs.lines(run.exp / "test-clean-noLM-hyp.ark") and any(mine.values())
    references = runs.lines(run.exp / "test-clean-noLM-ref.ark")
    assert 100 * error_rate(mine, references) == pytest.approx(run.metrics["wer"])


def test_phones(scored, mini_superb):
    run = scored("pr")
    mine = texts(run, mini_superb / LAYOUTS["pr"].folder / "test-clean", "*.flac")
    assert mine == runs.lines(run.exp / "test-hyp.ark") and any(mine.values())
    assert error_rate(mine, runs.lines(run.exp / "test-ref.ark")) == pytest.approx(run.metrics["per"])


def test_words_of_another_language(scored, mini_superb):
    run = scored("ood")
    table = mini_superb / LAYOUTS["ood"].folder / "es" / "test.tsv"
    rows = dict(line.split("\t") for line in table.read_text().splitlines()[1:])
    results = run.model.predict_files([table.parent / "clips" / name for name in rows])
    mine = {Path(result.file).stem: result.text for result in results}
    found = {name: " ".join(text.split()) for name, text in runs.lines(run.exp / "test-hyp.ark").items()}
    assert mine == found and any(mine.values())
    assert runs.lines(run.exp / "test-ref.ark") == {Path(name).stem: text for name, text in rows.items()}


def test_slots(scored, mini_superb):
    from s3prl.downstream.ctc.metric import parse, slot_type_f1

    run = scored("sf")
    files = sorted((mini_superb / LAYOUTS["sf"].folder / "test").glob("*.wav"))
    results = {Path(result.file).stem: result for result in run.model.predict_files(files)}
    hypotheses, references = (runs.lines(run.exp / f"test-{kind}.ark") for kind in ("hyp", "ref"))
    assert {name: result.marked for name, result in results.items()} == hypotheses
    score = slot_type_f1([results[name].marked for name in references], list(references.values()))
    assert score == pytest.approx(run.metrics["slot_type_f1"])
    for name, result in results.items():
        _, text, _, slots = parse(hypotheses[name], references[name])
        assert [f"{value}:{slot}".split() for slot, value in result.slots] == [s.split() for s in slots.split(";") if s]
        assert result.text.split() == text.split()
    assert any(result.slots for result in results.values())


@pytest.mark.parametrize("task", ["ljspeech", "vctk"])
def test_recognition(scored, task, hubert_folder):
    run = scored(task, upstream="hf_hubert_custom", upstream_ckpt=hubert_folder, tuning={"method": "frozen"})
    rows = {row.id: row for row in read_transcripts(run.exp / "transcripts-test.jsonl")}
    files = {utterance.id: utterance.audio for utterance in run.dataset.utterances}
    mine = {name: run.model.predict(path).text for name, path in files.items()}
    assert mine == {name: row.hypothesis for name, row in rows.items()} and any(mine.values())
    references = {name: row.reference for name, row in rows.items()}
    assert 100 * error_rate(mine, references) == pytest.approx(run.metrics["wer"])


@pytest.mark.parametrize("chunk", [2000, 100])  # frames; every recording is longer than 100
def test_speaker_turns(scored, monkeypatch, chunk):
    def with_chunks(*args, **kwargs):
        config = task_config(*args, **kwargs)
        config["downstream_expert"]["datarc"]["chunk_size"] = chunk
        return config

    monkeypatch.setattr(runs, "task_config", with_chunks)
    run = scored("sd")
    assert {len(found) > 1 for found in run.dataset.chunk_indices.values()} == {chunk == 100}
    for name in run.dataset.rec_list:
        result = run.model.predict(run.dataset.data.wavs[name])
        with h5py.File(run.exp / "scoring" / "predictions" / f"{name}.h5") as file:
            scores = file["T_hat"][:]
        assert np.allclose(result.scores, scores, atol=1e-5)
        assert 0.05 < (scores > 0.5).mean() < 0.95, "somebody talks, and not always"
        talks = np.zeros(scores.shape, bool)
        for speaker, start, end in result.turns:
            frames = slice(round(start / result.frame_seconds), round(end / result.frame_seconds))
            talks[frames, int(speaker[-1]) - 1] = True
        from scipy.signal import medfilt

        assert np.array_equal(talks, medfilt((scores > 0.5).astype(float), (11, 1)) > 0.5)


@pytest.mark.parametrize("task", ["se", "ss"])
def test_audio(scored, task):
    run = scored(task)
    measured = []
    for paths in run.dataset.reco2path.values():
        (mix, *clean) = (enhancement.load(path)[0] for path in paths.values())
        result = run.model.predict(next(iter(paths.values())))
        assert result.audio.shape == (len(clean), len(mix)) and result.sources == tuple(run.dataset.tgt)
        one = (mix[None], np.stack(clean), result.audio)
        measured.append(enhancement.get_metrics(*one, 16000, ["si_sdr", "stoi", "pesq"], task == "ss"))
    assert len(measured) == len(run.dataset) == 4
    for name in ("pesq", "stoi"):
        assert mean(row[name] for row in measured) == pytest.approx(run.metrics[name], rel=1e-6)
    assert mean(r["si_sdr"] - r["input_si_sdr"] for r in measured) == pytest.approx(run.metrics["si_sdr"], abs=1e-4)


@pytest.mark.parametrize(("task", "rate"), [("qbe", 16000), ("qbe", 8000)])  # QUESST14 has 8 kHz
def test_search(task, rate, build, corpus_variables, tmp_path, monkeypatch):
    flags = {"mode": "evaluate", "evaluate_split": "test", "downstream": "quesst14_dtw", "upstream": "fbank"}
    root = corpus_variables / LAYOUTS[task].folder
    if rate != 16000:
        root = Path(shutil.copytree(root, tmp_path / "corpus"))
        monkeypatch.setenv("QUESST14", str(root))
        for path in root.rglob("*.wav"):
            samples, given = soundfile.read(path, dtype="float32")
            soundfile.write(path, resample(samples, given, rate), rate)
    build(runs.make_args(tmp_path / "exp", **flags), runs.task_config(task)).evaluate()
    found = scores_of(tmp_path / "exp" / OUTPUT)
    model = load(tmp_path / "exp", options=Options(queries=sorted((root / "eval_queries").glob("*.wav"))))
    mine: dict[str, dict[str, float]] = {query: {} for query in found}
    for result in model.predict_files(sorted((root / "Audio").glob("*.wav"))):
        for query, score in result.scores:
            mine[Path(query).stem][Path(result.file).stem] = score
    assert mine == found and len(found) > 5 and all(len(rows) == 24 for rows in mine.values())
