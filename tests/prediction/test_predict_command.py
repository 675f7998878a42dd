"""``s3prl-ext predict``: files of all kinds, formats, exit statuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ext.cli import main as cli
from s3prl_ext.commands.predict import main
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.prediction import load
from tests.support import prediction_runs as runs

RATE = 16000
AUDIO = ("se", "ss")  # tasks that give audio
LABELLED = ("ks", "ic", "sid", "er", "esc50")  # tasks that give a label per recording


@pytest.fixture
def clips(mini_superb, tmp_path) -> Path:
    """The five files: 44.1 kHz stereo, 8 kHz, 0.1 s, more than three minutes, text."""
    speech = [soundfile.read(path)[0] for path in sorted((mini_superb / TRAINED["asr"].folder).rglob("*.flac"))]
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    wide = np.interp(np.arange(0, len(speech[0]), RATE / 44100), np.arange(len(speech[0])), speech[0])
    soundfile.write(folder / "a_stereo.wav", np.stack([wide, 0.5 * wide], 1), 44100)
    soundfile.write(folder / "b_8k.wav", speech[1][::2], 8000)
    soundfile.write(folder / "c_short.flac", speech[0][8000:9600], RATE)
    parts = [np.concatenate([one, rng.normal(0, 1e-4, RATE // 2)]) for one in speech]
    soundfile.write(folder / "d_long.flac", np.resize(np.concatenate(parts), 200 * RATE), RATE)
    (folder / "e_text.txt").write_text("These are words, no sounds.\n")
    return folder


def jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("task", [name for name, row in TRAINED.items() if row.task.decoder])
def test_the_five_files(build, clips, tmp_path, task, capsys, hubert_folder):
    upstream = {"upstream": "hf_hubert_custom", "upstream_ckpt": hubert_folder} if task in ("asr", "sd", "vctk") else {}
    tuning = {"method": "frozen"} if task == "vctk" else None
    runs.train(build, task, tmp_path / "exp", tuning, **upstream)
    out = tmp_path / "out.jsonl"
    audio = ["--write-audio", str(tmp_path / "audio")] if task in AUDIO else []
    assert main([str(tmp_path / "exp"), *map(str, sorted(clips.iterdir())), "--out", str(out), *audio]) == 1
    stereo, telephone, short, long, text = jsonl(out)
    assert set(text) == {"file", "error"} and "e_text.txt cannot be read as audio" in text["error"]
    assert text["error"] in capsys.readouterr().err
    assert stereo["notes"] == ["2 channels averaged", "resampled from 44100 Hz to 16000 Hz"]
    assert telephone["notes"] == ["resampled from 8000 Hz to 16000 Hz"]
    given = [stereo, telephone, long]
    if task == "asv":  # which cuts silence out
        assert "is 0.100 s long: without a sound of 0.1 s or more" in short["error"]
    else:
        assert short["seconds"] == 0.1 and short["notes"] == []
        given.append(short)
    assert long["seconds"] == 200 and len(long["notes"]) == 1 and "window" in long["notes"][0]
    for row in given:
        if task in LABELLED:
            assert row["label"] and 0 < row["probability"] <= 1
        elif task == "asv":
            assert len(row["embedding"]) == 64 and -1 <= row["score"] <= 1.001 and row["against"] == stereo["file"]
        elif task == "sd":
            assert all(0 <= turn["start"] < turn["end"] <= row["seconds"] + 0.02 for turn in row["turns"])
        elif task in AUDIO:
            for source in row["sources"]:
                samples, rate = soundfile.read(source["written"], dtype="float32")
                assert rate == RATE and samples.shape == (round(row["seconds"] * RATE),) and np.isfinite(samples).all()
        else:
            assert isinstance(row["text"], str)
    if task in LABELLED:
        pieces = long["windows"]
        assert pieces[0]["start"] == 0 and pieces[-1]["end"] == 200
        assert all(0 < row["probability"] <= 1 for row in pieces)
    elif task == "asv":
        assert stereo["score"] == pytest.approx(1) and "the first 150 s of sound count" in long["notes"][0]
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"no score without the first recording, .*empty contains no audio file"):
            main([str(tmp_path / "exp"), str(tmp_path / "empty"), stereo["file"], telephone["file"]])
    elif task == "sd":
        assert long["turns"]
    elif task in AUDIO:
        names = {"se": {"clean": "a_stereo.wav"}, "ss": {"s1": "a_stereo_s1.wav", "s2": "a_stereo_s2.wav"}}[task]
        assert {row["source"]: Path(row["written"]).name for row in stereo["sources"]} == names
        assert len(list((tmp_path / "audio").iterdir())) == 4 * len(names)
    else:
        assert long["text"] == " ".join(row["text"] for row in long["segments"] if row["text"])
        assert all(row["end"] - row["start"] <= 40 for row in long["segments"])


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder for what is trained once for all tests of this file, each of which works on a copy."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def keywords(build, kept, tmp_path) -> Path:
    if not (kept / "ks").exists():
        runs.train(build, "ks", kept / "ks")
    return Path(shutil.copytree(kept / "ks", tmp_path / "ks"))


@pytest.fixture
def words(mini_superb) -> Path:
    """A folder with six spoken keywords and nothing else."""
    return mini_superb / TRAINED["ks"].folder / "speech_commands_test_set_v0.01" / "stop"


def test_text_goes_to_standard_output_alone(keywords, words, capsys):
    capsys.readouterr()
    assert cli(["predict", str(keywords), str(words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = load(keywords)
    assert lines == [str(model.predict(path)) for path in sorted(words.iterdir())]
    assert [line.split("\t")[0] for line in lines] == [str(path) for path in sorted(words.iterdir())]


def test_the_most_probable_labels(keywords, words, capsys):
    (first, *_) = sorted(words.iterdir())
    capsys.readouterr()
    assert main([str(keywords), str(first), "--top", "3", "--format", "jsonl"]) == 0
    row = json.loads(capsys.readouterr().out)
    falling = [one["probability"] for one in row["top"]]
    assert len(falling) == 3 and falling == sorted(falling, reverse=True)
    assert row["top"][0] == {"label": row["label"], "probability": row["probability"]}
    assert main([str(keywords), str(first), "--top", "3"]) == 0
    _, *pairs = capsys.readouterr().out.strip().split("\t")
    assert pairs[::2] == [one["label"] for one in row["top"]]


def test_tables(build, keywords, words, tmp_path):
    out = tmp_path / "table.csv"
    assert main([str(keywords), str(words), str(tmp_path / "missing.wav"), "--out", str(out)]) == 1
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "probability", "error"]
    assert len(rows) == len(list(words.iterdir())) + 1
    assert [bool(row["label"]) for row in rows] == [True] * (len(rows) - 1) + [False]
    assert rows[-1]["error"].endswith("missing.wav does not exist: check the path.")
    runs.train(build, "ic", tmp_path / "ic")
    assert main([str(tmp_path / "ic"), str(words), "--out", str(out), "--overwrite"]) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label"] == " / ".join([row["action"], row["object"], row["location"]]) for row in rows)


def test_batches_of_equal_length_change_nothing(keywords, words, tmp_path):
    for path in words.iterdir():
        soundfile.write(tmp_path / path.name, soundfile.read(path)[0][:8000], RATE)
    files = [*sorted(tmp_path.glob("*.wav")), tmp_path / "missing.wav"]
    model = load(keywords)
    alone, together = list(model.predict_files(files)), list(model.predict_files(files, batch_size=4))
    assert [one.file for one in alone] == [one.file for one in together] == [str(path) for path in files]
    for one, other in zip(alone[:-1], together[:-1], strict=True):
        assert one.label == other.label and one.probability == pytest.approx(other.probability, abs=1e-5)
    assert alone[-1] == together[-1] and len(files) > 5


def test_a_clip_without_a_frame_spoils_no_batch(keywords, words, tmp_path):
    soundfile.write(tmp_path / "tiny.wav", np.full(20, 0.1), RATE)
    files = [*sorted(words.iterdir())[:2], tmp_path / "tiny.wav"]
    first, second, tiny = load(keywords).predict_files(files, batch_size=8)
    assert first.label and second.label
    assert "tiny.wav is 0.001 s long, too short for this model" in tiny.error
    with pytest.raises(DataError, match="too short for this model"):
        load(keywords).predict(tmp_path / "tiny.wav")


def test_from_python(keywords, words):
    path = min(words.iterdir())
    model = load(keywords)
    result = model.predict(path)
    samples, rate = soundfile.read(path, dtype="float32")
    assert model.predict(samples, rate).probability == result.probability
    assert str(result) == f"{path}\t{result.label}\t{result.probability:.4f}"


def test_empty_and_missing_inputs(keywords, words, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"empty contains no audio file \(no file\)"):
        main([str(keywords), str(empty)])
    (empty / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"contains no audio file \(only 1 other files\)"):
        main([str(keywords), str(empty)])
    capsys.readouterr()
    assert main([str(keywords), str(empty), str(words)]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(list(words.iterdir()))
    assert (
        "contains no audio file" in shown.err
        and f"{len(list(words.iterdir()))} of {len(list(words.iterdir())) + 1} inputs gave a result" in shown.err
    )


def test_nothing_half_written_is_left(keywords, words, tmp_path, monkeypatch):
    out = tmp_path / "results" / "out.jsonl"
    with pytest.raises(UsageError, match="there is no folder"):
        main([str(keywords), str(words), "--out", str(out)])
    out.parent.mkdir()
    out.write_text(before := '{"file": "a.wav", "label": "yes"}\n')
    with pytest.raises(DataError):
        main([str(tmp_path / "no_run"), str(words), "--out", str(out), "--overwrite"])
    monkeypatch.setattr(
        "s3prl_ext.prediction.model.Model._results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        main([str(keywords), str(words), "--out", str(out), "--overwrite"])
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"] and out.read_text() == before


TABLES = {
    "transcripts.tsv": "clip1.wav\thello\n", "manifest.jsonl": '{"file": "x.wav", "text": "hi", "duration": 2}\n',
    "reference.rttm": "SPEAKER rec1 1 0.0 1.0 <NA> <NA> a <NA> <NA>\n", "notes.txt": "hello\n",
    "results.csv": "file,label,probability,error\n",
}  # fmt: skip


def test_a_file_is_replaced_only_where_that_is_asked_for(keywords, words, tmp_path):
    clip = sorted(words.iterdir())[0]
    odd = tmp_path / "clip.bin"  # a recording of any suffix
    odd.write_bytes(clip.read_bytes())
    ckpt = next(keywords.glob("*best*.ckpt"))
    for path in (clip, odd, ckpt):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="--out .* (would replace a file that|is there already, and is not)"):
            main([str(keywords), str(clip), str(odd), "--out", str(path), "--overwrite"])
        assert path.read_bytes() == before
    with pytest.raises(UsageError, match="/dev/null is there already"):
        main([str(keywords), str(clip), "--out", "/dev/null", "--overwrite"])
    for name, text in TABLES.items():
        out = tmp_path / name
        out.write_text(text)
        with pytest.raises(UsageError, match=f"{name} is there already: name another file, or .* with --overwrite"):
            main([str(keywords), str(clip), "--out", str(out)])
        assert out.read_text() == text
    for name in ("notes.txt", "results.csv", "manifest.jsonl"):
        assert main([str(keywords), str(clip), "--out", str(tmp_path / name), "--overwrite"]) == 0
        assert str(clip) in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--device", "nonsense"], "--device nonsense is not a device of torch"),
        (["--format", "rttm"], "rttm is for speaker diarization"),
        (["--median", "3"], "--median is not supported for -d speech_commands"),
        (["--write-audio", "there"], "--write-audio is not supported for -d speech_commands: drop it"),
        (["--queries", "a.wav"], "--queries is not supported for -d speech_commands: drop it"),
    ],
)
def test_wrong_flags(keywords, words, flags, sentence):
    with pytest.raises(UsageError, match=sentence):
        main([str(keywords), str(words), *flags])


def test_text_that_s3prl_would_evaluate_is_refused(keywords, words, tmp_path):
    states = torch.load(max(keywords.glob("states-*.ckpt")), weights_only=False)
    states["Config"]["downstream_expert"]["modelrc"]["select"] = "__import__('os').system('true')"
    torch.save(states, tmp_path / "states-1.ckpt")
    with pytest.raises(UsageError, match="modelrc.select must be a name, got"):
        main([str(tmp_path / "states-1.ckpt"), str(words)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"select": "FrameLevl"}, UsageError, "unknown model of the head .modelrc.select. 'FrameLevl'; did you mean 'FrameLevel'"),
        ({"select": "os"}, UsageError, "unknown model of the head .modelrc.select. 'os'"),
        ({"projector_dim": -1}, DataError, "cannot be built as section downstream_expert of the task file with .*states-1.ckpt"),
        ({"projector_dim": "x"}, DataError, "cannot be built as section downstream_expert"),
        (None, DataError, "cannot be built .*KeyError: 'modelrc'"),
    ],
)  # fmt: skip
def test_a_head_that_the_task_file_does_not_describe(keywords, words, tmp_path, change, error, message):
    states = torch.load(max(keywords.glob("states-*.ckpt")), weights_only=False)
    section = states["Config"]["downstream_expert"]
    if change is None:
        section.pop("modelrc")
    else:
        section["modelrc"] |= change
    torch.save(states, tmp_path / "states-1.ckpt")
    with pytest.raises(error, match=message):
        main([str(tmp_path / "states-1.ckpt"), str(words)])


def test_rttm(build, mini_superb, tmp_path, capsys):
    from scipy.signal import medfilt

    runs.train(build, "sd", tmp_path / "sd")
    (first, *_) = sorted((mini_superb / TRAINED["sd"].folder / "test").rglob("*.wav"))
    for name in ("one two.wav", "x/same.wav", "y/same.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(first.read_bytes())
    inputs = [str(tmp_path / name) for name in ("one two.wav", "x", "y")]
    assert main([str(tmp_path / "sd"), *inputs, "--out", str(tmp_path / "turns.rttm"), "--median", "1"]) == 0
    rows = [line.split() for line in (tmp_path / "turns.rttm").read_text().splitlines()]
    assert rows and all(len(row) == 10 and row[0] == "SPEAKER" for row in rows)
    assert len({row[1] for row in rows}) == 3 and rows[0][1] == "one_two"
    model = load(tmp_path / "sd")
    result = model.predict(first)
    marked = medfilt((result.scores > 0.5).astype(float), (11, 1)).sum()
    assert sum(end - start for _, start, end in result.turns) == pytest.approx(marked * result.frame_seconds)
    capsys.readouterr()
    assert main([str(tmp_path / "sd"), str(first), "--threshold", "0.999999"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= len(result.turns)
