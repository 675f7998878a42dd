"""Enhancement, separation and search: cut recordings, names of files, inputs that do not fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.commands.predict import main
from s3prl_ext.corpora.overlaps import overlapping
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.prediction import load
from s3prl_ext.prediction.decoder import Options
from s3prl_ext.prediction.results import AudioResult, rttm_name
from s3prl_ext.prediction.separation import _continued
from s3prl_ext.prediction.writing import AudioFolder, distinct_names
from tests.support import prediction_runs as runs

RATE = 16000


def test_windows_whose_sources_changed_places_are_one_recording_again():
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(2, 1000)).astype(np.float32)
    audio = np.zeros((2, 0), np.float32)
    for number, (start, end) in enumerate(overlapping(1000, 300)):
        piece = whole[:, start:end][:: -1 if number % 2 else 1]
        audio = _continued(audio, piece, audio.shape[1] - start)
    assert number == 4 and np.allclose(audio, whole, atol=1e-5)


def test_an_overlap_goes_from_one_window_to_the_other():
    before, piece = np.zeros((1, 6), np.float32), np.ones((1, 6), np.float32)
    assert _continued(before, piece, 3)[0].tolist() == [0, 0, 0, 0, 0.5, 1, 1, 1, 1]


def test_names_are_distinct():
    paths = [Path(name) for name in ("a/x.wav", "b/x.wav", "b/x.flac", "y.wav", "b_x_wav.wav", "b_x/wav.wav")]
    names = distinct_names(paths)
    assert [names[str(path)] for path in paths] == ["a_x", "b_x_wav", "b_x_flac", "y", "b_x_wav_", "wav"]


def test_names_that_a_format_spells_alike_are_distinct():
    paths = [Path(name) for name in ("a b.wav", "a_b.wav", "x/c d.wav", "y/c\td.wav", "e f.wav")]
    names = list(distinct_names(paths, rttm_name).values())
    assert names == ["a_b_wav", "a_b_wav_", "x_c_d", "y_c_d", "e_f"] and list(map(rttm_name, names)) == names


def test_a_recording_is_not_replaced(tmp_path):
    clips = [tmp_path / "a.wav", tmp_path / "b.flac"]
    for clip in clips:
        clip.touch()
    with pytest.raises(UsageError, match=r"would replace the recording .*a\.wav: name another folder"):
        AudioFolder(tmp_path / "." / "..", [tmp_path.parent / clips[0].name], ["clean"])
    with pytest.raises(UsageError, match="would replace the recording"):
        AudioFolder(tmp_path, clips, ["clean"])
    AudioFolder(tmp_path, clips, ["s1", "s2"])
    with pytest.raises(UsageError, match="this is a file, name a folder"):
        AudioFolder(clips[0], clips, ["clean"])


def test_audio_is_replaced_only_where_that_is_asked_for(tmp_path):
    """Also such as predict writes: any program may have saved 16 kHz as 32-bit float."""
    clip = str(tmp_path / "a.flac")
    result = AudioResult(clip, 0.1, (), ("clean",), np.zeros((1, 1600), np.float32))
    (written,) = AudioFolder(tmp_path / "out", [Path(clip)], ["clean"])(result).written
    soundfile.write(written, np.full(1600, 0.5), RATE, subtype="FLOAT")
    with pytest.raises(UsageError, match=r"would replace .*a.wav: name another folder, or replace .* --overwrite"):
        AudioFolder(tmp_path / "out", [Path(clip)], ["clean"])
    assert soundfile.read(written)[0].max() == 0.5
    AudioFolder(tmp_path / "out", [Path(clip)], ["clean"], overwrite=True)(result)
    assert soundfile.read(written)[0].max() == 0


@pytest.mark.parametrize("task", ["se"])
def test_audio_needs_a_folder_and_a_long_recording_is_cut(task, build, mini_superb, tmp_path, capsys):
    runs.train(build, task, tmp_path / "exp")
    clips = sorted((mini_superb / LAYOUTS[task].folder / "test" / "noisy" / "wav").glob("*.wav"))
    with pytest.raises(UsageError, match="-d enhancement_stft gives audio: name a folder for it with --write-audio"):
        main([str(tmp_path / "exp"), str(clips[0])])
    long = np.concatenate([soundfile.read(clip, dtype="float32")[0] for clip in clips])
    whole, cut = (load(tmp_path / "exp", options=Options(window=w)).predict(long) for w in (None, 3.0))
    assert not whole.notes and "overlapping windows, which fade into each other" in cut.notes[0]
    assert cut.audio.shape == whole.audio.shape == (1, len(long))
    assert np.corrcoef(cut.audio[0], whole.audio[0])[0, 1] > 0.9
    capsys.readouterr()
    assert main([str(tmp_path / "exp"), str(clips[0]), "--write-audio", str(tmp_path / "new" / "audio")]) == 0
    shown = capsys.readouterr().out.rstrip("\n").split("\t")
    assert shown == [str(clips[0]), str(tmp_path / "new" / "audio" / clips[0].name)] and Path(shown[1]).is_file()


@pytest.fixture
def searched(build, corpus_variables, tmp_path) -> Path:
    flags = {"mode": "evaluate", "evaluate_split": "dev", "downstream": "quesst14_dtw", "upstream": "fbank"}
    build(runs.make_args(tmp_path / "exp", **flags), runs.task_config("qbe")).evaluate()
    return tmp_path / "exp"


@pytest.mark.parametrize("task", ["qbe"])
def test_search(task, searched, mini_superb, tmp_path, capsys):
    root = mini_superb / LAYOUTS[task].folder
    documents, out = sorted((root / "Audio").glob("*.wav"))[:3], tmp_path / "scores.csv"
    query = min((root / "dev_queries").glob("*.wav"))
    short, missing = tmp_path / "short.wav", tmp_path / "missing.wav"
    soundfile.write(short, soundfile.read(query)[0][:900], RATE)
    flags = [str(searched / "result-dev.json"), *map(str, documents), str(missing)]
    assert main([*flags, "--queries", str(query), str(short), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert f"the query {short} has 4 frames; one of fewer than 5 is not found" in said
    assert "missing.wav does not" in said and "4 of 6 inputs gave a result" in said
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    scored = [float(row["score"]) for row in rows if row["score"]]
    assert list(rows[0]) == ["file", "query", "score", "error"] and len(scored) == 3 and len(rows) == 5
    assert sum(scored) == pytest.approx(0, abs=2e-4), "from the mean over the recordings"
    assert np.std(scored) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("task", ["qbe"])
def test_search_that_cannot_work(task, searched, mini_superb, tmp_path):
    documents = sorted((mini_superb / LAYOUTS[task].folder / "Audio").glob("*.wav"))[:2]
    with pytest.raises(
        UsageError, match="-d quesst14_dtw looks for spoken queries: name their recordings with --queries"
    ):
        main([str(searched), str(documents[0])])
    with pytest.raises(DataError, match="count from the mean over the recordings of a call: give two or more"):
        load(searched, options=Options(queries=[documents[1]])).predict(documents[0])
    with pytest.raises(DataError, match="no query can be used: .*none.wav does not exist"):
        main([str(searched), *map(str, documents), "--queries", str(tmp_path / "none.wav")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder .*empty contains no audio file"):
        main([str(searched), *map(str, documents), "--queries", str(tmp_path / "empty")])


def with_settings(searched: Path, **settings: object) -> Path:
    """Write other settings into the result of an evaluation."""
    result = json.loads((searched / "result-dev.json").read_text())
    expert = result["config"]["downstream_expert"]
    expert["dtwrc"] |= {key: value for key, value in settings.items() if key in expert["dtwrc"]}
    expert |= {key: value for key, value in settings.items() if key in expert}
    (searched / "result-dev.json").write_text(json.dumps(result))
    return searched


@pytest.mark.parametrize("task", ["qbe"])
def test_distances_that_are_not_numbers_are_said(task, searched, mini_superb):
    root = mini_superb / LAYOUTS[task].folder
    documents, query = sorted((root / "Audio").glob("*.wav"))[:2], min((root / "dev_queries").glob("*.wav"))
    run = with_settings(searched, dist_method="cosine_neg_log", feature_normalization=False)
    with pytest.raises(DataError, match="the search failed .*a distance may not be a number"):
        main([str(run), *map(str, documents), "--queries", str(query)])


@pytest.mark.parametrize("task", ["qbe"])
def test_a_query_is_short_without_its_silent_frames(task, searched, mini_superb):
    root = mini_superb / LAYOUTS[task].folder
    query = min((root / "dev_queries").glob("*.wav"))
    found = load(searched, options=Options(queries=[query]))
    frames = next(iter(found._each(iter([query]), 1))).features
    most = int(frames.argmax(1).mode().values)
    found.decoder.head.silence_frame = most
    left = int((frames.argmax(1) != most).sum())
    kept = next(iter(found._each(iter([query]), 1))).features
    assert len(kept) == left < len(frames), "what the search drops does not count as length"


@pytest.mark.parametrize("task", ["qbe"])
def test_evaluations_that_do_not_stand_for_one_model(task, searched, tmp_path):
    options = Options(queries=["a.wav"])
    result = json.loads((searched / "result-dev.json").read_text())
    result["args"]["upstream_layer_selection"] = 3
    (searched / "result-test.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match=r"several models or settings \(result-dev.json, result-test.json\): name one"):
        load(searched, options=options)
    (searched / "result-test.json").write_text("{}")
    with pytest.raises(DataError, match=r"result-test.json is not the result of an evaluation \(KeyError: 'args'\)"):
        load(searched, options=options)
    result["args"]["downstream"] = "speech_commands"
    (tmp_path / "result-test.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="is not the evaluation of a task that needs no checkpoint: name the"):
        load(tmp_path / "result-test.json")
    (tmp_path / "trained").mkdir()
    (tmp_path / "result-test.json").rename(tmp_path / "trained" / "result-test.json")
    with pytest.raises(DataError, match="contains no checkpoint"):
        load(tmp_path / "trained")
