"""Bad input ends with one sentence, the right exit status and nothing half-written."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ext.mini_superb import TRAINED
from tests.support import factories

USAGE, DATA = 2, 1
# task -> pattern of its training clips below the corpus folder
CLIPS = {
    "ks": "speech_commands_v0.01/[!_]*/*.wav",
    "ic": "wavs/speakers/*/train*.wav",
    "sid": "dev/wav/*/*/*.wav",
    "asr": "train-clean-100/*/*/*.flac",
    "pr": "train-clean-100/*/*/*.flac",
    "sf": "train/*.wav",
    "sd": "train/wav/*.wav",
    "asv": "dev/wav/*/*/*.wav",
    "se": "train/noisy/wav/*.wav",
    "ss": "train-100/mix_clean/wav/*.wav",
    "ood": "es/clips/*.wav",
    "er": "Session*/sentences/wav/*/*.wav",
    "esc50": "audio/*.wav",
    "ljspeech": "wavs/*.wav",
    "vctk": "wav48_silence_trimmed/*/*.flac",
}


CONVERTED = ("ks", "asv", "esc50", "ljspeech", "vctk")  # tasks that bring audio to 16 kHz mono themselves


def train_flags(task: str, exp: Path, override: str = "", upstream: tuple[object, ...] = ("-u", "fbank")) -> list:
    """Return the flags that train two steps on a miniature corpus."""
    flags = ["-m", "train", *upstream, "-d", TRAINED[task].task.downstream, "-c", f"{task}/mini", "-p", exp]
    return [*flags, "-o", f"config.runner.total_steps=2{override}"]


def assert_nothing_written(exp: Path) -> None:
    """Require that an experiment folder is missing or holds neither checkpoints and results nor parts of them."""
    left = [path.name for path in exp.glob("*") if "ckpt" in path.name or path.name.startswith(("result", "."))]
    assert not left, left


@pytest.fixture
def refused(command) -> Callable[..., str]:
    """Run flags that must fail with a status, without a checkpoint in `exp`; return the error sentence."""

    def run(code: int, exp: Path, *flags: object) -> str:
        outcome = command(*flags)
        assert outcome.code == code, outcome.err[-2000:]
        assert_nothing_written(exp)
        return outcome.sentence

    return run


@pytest.fixture
def own_corpus(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Give a task a corpus of its own to spoil: a copy whose files are links, to be replaced and never written into."""

    def copy(task: str) -> Path:
        layout = TRAINED[task]
        folder = tmp_path / layout.folder
        shutil.copytree(corpora / layout.folder, folder, copy_function=os.link)
        for table in folder.rglob("wav.scp"):
            replace_text(table, lambda text: text.replace(str(corpora), str(tmp_path)))
        monkeypatch.setenv(layout.task.variable, str(folder))
        return folder

    return copy


def replace_text(path: Path, change: Callable[[str], str]) -> None:
    """Write the changed text of a file to a new file in its place."""
    text = change(path.read_text())
    path.unlink()
    path.write_text(text)


def replace_clips(folder: Path, task: str, samples: np.ndarray, rate: int = 16000) -> None:
    """Put the same audio, float [time] or [time, channels], in the place of every training clip of a task."""
    clips = sorted(folder.glob(CLIPS[task]))
    assert len(clips) >= 8, clips
    for clip in clips:
        clip.unlink()
    soundfile.write(clips[0], samples, rate)
    for clip in clips[1:]:
        os.link(clips[0], clip)


# -- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"-u": "huberrt"}, ["upstream", "'huberrt'", "did you mean 'hubert'"]),
        ({"-d": "speech_comands"}, ["task", "'speech_comands'", "did you mean 'speech_commands'"]),
        ({"-c": "ks/supreb"}, ["task file", "'ks/supreb'", "did you mean 'ks/superb'"]),
        ({"-c": "/nowhere/config.yaml"}, ["no such task file (-c)", "/nowhere/config.yaml", "ks/superb"]),
        ({"-e": "/nowhere/states-2.ckpt"}, ["-e", "/nowhere/states-2.ckpt", "no such checkpoint"]),
        ({"-i": "/nowhere/states-2.ckpt"}, ["-i", "/nowhere/states-2.ckpt", "no such checkpoint"]),
        ({"-o": "config.runner.total_stps=2"}, ["'total_stps'", "did you mean 'total_steps'"]),
        ({"-o": "config.runner.total_steps=0"}, ["runner.total_steps", "at least 1", "0"]),
        ({"-o": "config.tuning={'method':'chld'}"}, ["tuning", "'chld'", "did you mean 'child'"]),
        ({"-o": "config.tuning={'method':'child','densty':0.1}"}, ["tuning", "'densty'", "did you mean 'density'"]),
        ({"-o": "config.tuning={'method':'child','density':2}"}, ["tuning.density", "(0, 1]", "2"]),
        ({"-o": "config.runner.total_steps"}, ["-o", "'config.runner.total_steps'", "KEY=VALUE"]),
        ({"-o": "config.tuning={'method':'child','density':0.1}"}, ["no encoder layers", "use a transformer upstream"]),
        ({"--hub": "huggingface"}, ["--hub huggingface", "-u hf_hubert_custom"]),
        ({"--push_to_hf_hub": "True"}, ["--push_to_hf_hub", "hf upload"]),
    ],
    ids=lambda value: "".join("".join(pair) for pair in value.items()) if isinstance(value, dict) else "",
)
def test_wrong_names_and_values(corpora, refused, tmp_path, changes, parts):
    exp = tmp_path / "exp"
    flags = {"-m": "train", "-u": "fbank", "-d": "speech_commands", "-c": "ks/mini", "-p": str(exp)}
    flags["-o"] = "config.runner.total_steps=2"
    sentence = refused(USAGE, exp, *[part for pair in (flags | changes).items() for part in pair])
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(("text", "parts"), [
    ("runner: [1, 2", ["config.yaml", "not readable as YAML"]),
    ("- runner", ["config.yaml", "mapping"]),
    ("runer: {total_steps: 2}\n", ["'runer'", "did you mean 'runner'"]),
])  # fmt: skip
def test_wrong_task_file(corpora, refused, tmp_path, text, parts):
    config, exp = tmp_path / "config.yaml", tmp_path / "exp"
    config.write_text(text)
    sentence = refused(USAGE, exp, "-m", "train", "-u", "fbank", "-d", "speech_commands", "-c", config, "-p", exp)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize("task", TRAINED)
def test_missing_corpus_variable(corpora, refused, tmp_path, monkeypatch, task):
    variable, exp = TRAINED[task].task.variable, tmp_path / "exp"
    monkeypatch.delenv(variable)
    sentence = refused(USAGE, exp, *train_flags(task, exp))
    assert f"environment variable {variable}, which is not set" in sentence and f"export {variable}=" in sentence
    assert not exp.exists()


def test_existing_experiment_is_not_overwritten(corpora, command, succeed, tmp_path):
    exp = tmp_path / "exp"
    succeed(*train_flags("ks", exp))
    before = {path.name: path.read_bytes() for path in exp.iterdir()}
    outcome = command(*train_flags("ks", exp))
    assert outcome.code == USAGE
    assert f"{exp} already holds an experiment" in outcome.sentence and "args.overwrite=True" in outcome.sentence
    assert {path.name: path.read_bytes() for path in exp.iterdir()} == before
    succeed(*train_flags("ks", exp, ",,args.overwrite=True,,config.runner.total_steps=3"))
    assert [path.name for path in exp.glob("states-*")] == ["states-3.ckpt"]


def test_merge_of_different_widths(corpora, refused, tmp_path):
    target = factories.hubert_folder(tmp_path / "hubert", width=32)
    source = factories.bert_folder(tmp_path / "bert", width=64)
    merge = tmp_path / "merge.yaml"
    merge.write_text(
        f"target: {{upstream: hf_hubert_custom, ckpt: {target}}}\nsource: {{model: {source}}}\nlambda: 0.1\n"
    )
    exp = tmp_path / "exp"
    sentence = refused(USAGE, exp, *train_flags("ks", exp, upstream=("-u", "merged_attention", "-g", merge)))
    assert "32" in sentence and "64" in sentence, sentence


# -- corpora -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TRAINED)
def test_missing_corpus_root(corpora, refused, tmp_path, monkeypatch, task):
    root, exp = tmp_path / "nowhere", tmp_path / "exp"
    monkeypatch.setenv(TRAINED[task].task.variable, str(root))
    sentence = refused(DATA, exp, *train_flags(task, exp))
    assert str(root) in sentence, sentence


@pytest.mark.parametrize("task", TRAINED)
def test_missing_clips(own_corpus, refused, tmp_path, task):
    folder, exp = own_corpus(task), tmp_path / "exp"
    missing = sorted(folder.glob(CLIPS[task]))
    for clip in missing:
        clip.unlink()
    sentence = refused(DATA, exp, *train_flags(task, exp))
    if task == "ks":  # its clips are whatever lies in the folders
        assert "fewer than one batch" in sentence and "lower the batch size" in sentence, sentence
    else:
        assert str(folder) in sentence or any(clip.stem in sentence for clip in missing), sentence


@pytest.mark.parametrize("task", TRAINED)
def test_unreadable_clips(own_corpus, refused, tmp_path, task):
    folder, exp = own_corpus(task), tmp_path / "exp"
    for clip in folder.glob(CLIPS[task]):
        clip.unlink()
        clip.write_bytes(b"RIFF no audio at all")
    sentence = refused(DATA, exp, *train_flags(task, exp))
    assert ("cannot be read" in sentence or "cannot read" in sentence) and str(folder) in sentence, sentence


@pytest.mark.parametrize(
    ("task", "upstream"), zip(TRAINED, itertools.cycle(["fbank", "hubert_local", "hf_hubert_custom"]), strict=False)
)
def test_clips_shorter_than_a_frame(own_corpus, refused, upstreams, tmp_path, task, upstream):
    folder, exp = own_corpus(task), tmp_path / "exp"
    replace_clips(folder, task, np.zeros(100))
    if task in ("se", "ss"):  # a clip and its references are equally long, and no reference is silent
        for clip in folder.rglob("*.wav"):
            clip.unlink()
            soundfile.write(clip, np.full(100, 0.1), 16000)
    for table in folder.glob("len_for_bucket/train*.csv"):  # ASR batches by the lengths written there
        replace_text(table, lambda text: "".join(f"{x.rpartition(',')[0]},\n" for x in text.splitlines()))
    sentence = refused(DATA, exp, *train_flags(task, exp, upstream=tuple(upstreams[upstream])))
    if task == "asv":  # which cuts silence out first
        assert "longer than 8000 samples" in sentence and "min_sec" in sentence, sentence
        return
    if task == "sd":  # whose tables say how long a recording is
        assert "lasts 0.01 s, but" in sentence and "reco2dur" in sentence, sentence
        return
    assert "100 samples" in sentence and "less than one frame" in sentence, sentence


@pytest.mark.parametrize(
    ("task", "audio"),
    zip([task for task in TRAINED if task not in CONVERTED], itertools.cycle([(2, 16000), (1, 44100)]), strict=False),
)
def test_wrong_audio_format(own_corpus, refused, tmp_path, task, audio):
    channels, rate = audio
    folder, exp = own_corpus(task), tmp_path / "exp"
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (4 * rate, channels)).squeeze()
    replace_clips(folder, task, noise, rate)
    sentence = refused(DATA, exp, *train_flags(task, exp))
    plural = "s" if channels > 1 else ""
    assert f"{channels} channel{plural} at {rate} Hz" in sentence and "sox" in sentence, sentence
    assert str(folder) in sentence, "the file is named"


def test_keyword_spotting_converts_audio_itself(own_corpus, succeed, tmp_path):
    folder = own_corpus("ks")
    replace_clips(folder, "ks", np.random.default_rng(0).uniform(-0.1, 0.1, (44100, 2)), 44100)
    succeed(*train_flags("ks", tmp_path / "exp"))
    assert (tmp_path / "exp" / "states-2.ckpt").is_file()


@pytest.mark.parametrize("end", ["", " "], ids=["bare", "space"])
@pytest.mark.parametrize("task", ["asr", "pr"])
def test_empty_transcript(own_corpus, refused, tmp_path, task, end):
    folder, exp = own_corpus(task), tmp_path / "exp"
    names = []
    for table in folder.glob("train-clean-100/*/*/*.trans.txt"):
        names += [line.split()[0] for line in table.read_text().splitlines()]
        replace_text(table, lambda text: "".join(f"{line.split()[0]}{end}\n" for line in text.splitlines()))
    sentence = refused(DATA, exp, *train_flags(task, exp))
    assert "empty transcript" in sentence or "no transcript" in sentence, sentence
    assert any(name in sentence for name in names) and "complete its .trans.txt" in sentence, sentence


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(corpora, succeed, tmp_path) -> Path:
    """An experiment of two steps with log-mel features."""
    succeed(*train_flags("ks", tmp_path / "trained"))
    return tmp_path / "trained"


@pytest.mark.parametrize("size", [0, 100, 0.5])
@pytest.mark.parametrize("how", ["-e folder", "-e file", "-i", "-a"])
def test_truncated_checkpoint(trained, command, tmp_path, how, size):
    path = trained / "states-2.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    broken = path.read_bytes()
    flags = {
        "-e folder": ["-m", "evaluate", "-e", trained],
        "-e file": ["-m", "train", "-e", path, "-o", "config.runner.total_steps=4"],
        "-i": ["-m", "evaluate", "-u", "fbank", "-d", "speech_commands", "-c", "ks/mini", "-i", path,
               "-p", tmp_path / "exp"],
        "-a": [*train_flags("ks", trained, ",,config.runner.total_steps=4"), "-a"],
    }  # fmt: skip
    outcome = command(*flags[how])
    assert outcome.code == DATA, outcome.err[-2000:]
    assert "states-2.ckpt" in outcome.sentence and "truncated" in outcome.sentence, outcome.sentence
    assert path.read_bytes() == broken and list(trained.glob("states-*")) == [path]


def test_file_of_another_kind_as_checkpoint(trained, command, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    outcome = command("-m", "evaluate", "-e", tmp_path / "other.ckpt")
    assert outcome.code == DATA, outcome.err[-2000:]
    assert "other.ckpt" in outcome.sentence and "not an s3prl downstream checkpoint" in outcome.sentence


def test_checkpoint_of_another_upstream(trained, refused, upstreams, tmp_path):
    exp = tmp_path / "exp"
    sentence = refused(
        DATA, exp, "-m", "evaluate", *upstreams["hubert_local"], "-d", "speech_commands", "-c", "ks/mini",
        "-i", trained / "states-2.ckpt", "-p", exp,
    )  # fmt: skip
    assert "trained with -u fbank, not with -u hubert_local" in sentence


def test_checkpoint_of_another_size(corpora, succeed, refused, upstreams, tmp_path):
    narrow = ["-u", "hubert_local", "-k", factories.hubert_local_ckpt(tmp_path / "narrow.pt", width=16)]
    succeed(*train_flags("ks", tmp_path / "trained", upstream=tuple(narrow)))
    exp = tmp_path / "exp"
    sentence = refused(
        DATA, exp, "-m", "evaluate", *upstreams["hubert_local"], "-d", "speech_commands", "-c", "ks/mini",
        "-i", tmp_path / "trained" / "states-2.ckpt", "-p", exp,
    )  # fmt: skip
    assert "states-2.ckpt was made from another upstream" in sentence and "-k" in sentence, sentence


def test_debug_variable_shows_the_traceback(corpora, command, tmp_path, monkeypatch):
    from s3prl_ext.errors import UsageError

    monkeypatch.setenv("S3PRL_EXT_DEBUG", "1")
    with pytest.raises(UsageError, match="did you mean 'hubert'"):
        command(*train_flags("ks", tmp_path / "exp", upstream=("-u", "huberrt")))
