"""Building miniature corpora: determinism, where they go, what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext import mini_superb
from s3prl_ext.commands.prepare import main as prepare_main
from s3prl_ext.configs import expand_variables, load_yaml, shipped_dir
from s3prl_ext.corpora.recordings import COLUMNS, Recordings
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb import ks
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, Voice, synthesise

pytest.importorskip("espeakng_loader")


def digests(folder: Path) -> dict[str, str]:
    """Return relative path -> hash of its content with the folder's own path taken out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha1(
            path.read_bytes().replace(str(folder).encode(), b"OUT")
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fsdd_like(folder: Path, digits: int = 10) -> Path:
    """Write a folder of recordings with fsdd alone: two speakers, ten takes of each digit."""
    from s3prl_ext.mini_superb.ks import DIGIT_WORDS

    rng = np.random.default_rng(0)
    lines = ["path\tspeaker\ttext"]
    for speaker in ("ann", "bob"):
        for take in range(10):
            for digit in range(digits):
                path = f"fsdd/audio/{digit}_{speaker}_{take}.flac"
                (folder / "fsdd/audio").mkdir(parents=True, exist_ok=True)
                soundfile.write(str(folder / path), rng.normal(0, 0.1, 4000), 16000, subtype="PCM_16")
                lines.append(f"{path}\t{speaker}\t{DIGIT_WORDS[digit]}")
    (folder / "fsdd" / "fsdd.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
def test_a_second_build_is_byte_identical_and_a_task_alone_is_the_same(mini_superb, tmp_path):
    from s3prl_ext.mini_superb import build

    build(tmp_path / "again")
    first, again = digests(mini_superb), digests(tmp_path / "again")
    assert first == again
    build(tmp_path / "one", tasks=["sf"])
    alone = {name: digest for name, digest in digests(tmp_path / "one").items() if name.startswith("audio_snips")}
    assert alone and alone.items() <= first.items()


def test_another_seed_gives_other_corpora(mini_superb, tmp_path):
    from s3prl_ext.mini_superb import build

    build(tmp_path / "mini", seed=1, tasks=["sf"])
    name = "audio_snips/all.iob.snips.txt"
    assert (tmp_path / "mini" / name).read_text() != (mini_superb / name).read_text()


@pytest.mark.data
def test_a_second_build_from_recordings_is_byte_identical_where_it_has_fewer_tasks(
    recordings, recorded_superb, tmp_path
):
    mini_superb.build(tmp_path, recordings, tasks=["ks", "asr", "sd"], overwrite=True)
    first, again = digests(recorded_superb), digests(tmp_path)
    said = {name: again.pop(name) for name in ("README.md", "env.sh")}  # which tasks there are
    assert said.keys() <= first.keys() and len(again) > 500 and again.items() <= first.items()
    assert "fsdd" in (tmp_path / "README.md").read_text()


def test_environment_file_serves_the_mini_task_files(mini_superb, monkeypatch):
    script = f". '{mini_superb}/env.sh' && env -0"
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, text=True)
    for assignment in done.stdout.split("\0"):
        name, _, value = assignment.partition("=")
        if value.startswith(str(mini_superb)):
            monkeypatch.setenv(name, value)
    paths = []
    for file in sorted(shipped_dir("downstream_configs").glob("*/mini.yaml")):
        if file.parent.name not in ("ks", "ic", "sid", "asr", "pr", "sf", "sd"):
            continue
        expanded = expand_variables(load_yaml(file)["downstream_expert"])
        paths += [value for value in _strings(expanded) if value.startswith(str(mini_superb))]
    assert len(paths) >= 12
    assert all(Path(path).exists() for path in paths)


def _strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_command_prints_one_runnable_line_per_task(tmp_path, capsys):
    out = tmp_path / "my corpora"
    assert prepare_main(["mini_superb", "--out", str(out), "--tasks", "sd,ks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -d ")[1].split()[0] for line in lines] == ["speech_commands", "diarization"]
    assert all(f"'{out}'/env.sh" in line for line in lines)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "env.sh",
        "libri2mix_diarization",
        "speech_commands",
    ]


def test_overwriting_replaces_a_build_and_keeps_experiments(tmp_path):
    out = tmp_path / "mini"
    mini_superb.build(out, tasks=["sd"])
    (out / "exp" / "sd").mkdir(parents=True)
    (out / "exp" / "sd" / "states-1.ckpt").write_text("kept")
    with pytest.raises(UsageError, match="--overwrite"):
        mini_superb.build(out, tasks=["sf"])
    mini_superb.build(out, tasks=["sf"], overwrite=True)
    assert (out / "audio_snips").is_dir() and not (out / "libri2mix_diarization").exists()
    assert (out / "exp" / "sd" / "states-1.ckpt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_a_replacement_that_fails_keeps_the_build_and_its_experiments(tmp_path, monkeypatch):
    out = tmp_path / "mini"
    mini_superb.build(out, tasks=["sd"])
    (out / "exp").mkdir()
    (out / "exp" / "states-1.ckpt").write_text("kept")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if (Path(source) / "audio_snips").is_dir():  # the new build
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        mini_superb.build(out, tasks=["sf"], overwrite=True)
    assert (out / "libri2mix_diarization").is_dir() and (out / "exp" / "states-1.ckpt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="something else"):
        mini_superb.build(tmp_path, tasks=["sf"], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_recordings_are_used_where_they_are_and_synthesis_elsewhere(tmp_path):
    folder = fsdd_like(tmp_path / "recordings")
    mini_superb.build(tmp_path / "mini", folder, tasks=["ks", "sd"])
    readme = (tmp_path / "mini" / "README.md").read_text()
    assert "ks: real recordings of fsdd" in readme
    assert "sd: synthesised speech (libri2mix_svoice_debug is not among the recordings)" in readme


def _recorded(root: Path, corpus: str, head: str, rows: list[tuple[str, ...]]) -> Path:
    """Write a folder of recordings with one corpus; the first value of each row is the file, of 1.5 s of noise."""
    rng = np.random.default_rng(0)
    for path, *_ in rows:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(root / path), rng.normal(0, 0.1, 24000), 16000, subtype="PCM_16")
    lines = ["\t".join(row) for row in rows]
    (root / corpus / f"{corpus}.tsv").write_text("\n".join([head.replace(" ", "\t"), *lines]) + "\n")
    return root


def test_no_recording_of_sd_has_one_speaker_twice(tmp_path):
    """His turns as the second source would stand in place of those as the first."""
    corpus = "libri2mix_svoice_debug"
    speakers = {"s1": "abcdabcd", "s2": "efghefgd"}  # d is both in the last mixture, which is of test
    rows = [
        (f"{corpus}/{role}_{i}.flac", "1.5", who, role)
        for role, group in speakers.items() for i, who in enumerate(group)
    ]  # fmt: skip
    folder = _recorded(tmp_path / "rec", corpus, "path duration_s speaker role", rows)
    mini_superb.build(tmp_path / "mini", folder, tasks=["sd"])
    for split, count in (("train", 16), ("dev", 4), ("test", 3)):
        segments = (tmp_path / "mini" / "libri2mix_diarization" / split / "utt2spk").read_text().splitlines()
        turns = [line.split() for line in segments]
        speaking = {name.split("-")[1]: set() for name, _ in turns}
        for name, speaker in turns:
            speaking[name.split("-")[1]].add(speaker)
        assert len(speaking) == count and all(len(both) == 2 for both in speaking.values())
    assert "sd: test: 1 pairs left out, in which one speaker would be both" in (tmp_path / "mini/README.md").read_text()


def test_recordings_of_asr_that_are_not_as_librispeech_has_them_are_left_out(tmp_path):
    texts = [("10-2-0000", "10", "a full stop."), ("interview_03", "10", "two words"), ("10-2-0001", "10", "")]
    texts += [(f"{i}-1-0000", str(i), f"it's number {chr(65 + i % 26)}{chr(65 + i // 26)}") for i in range(40)]
    rows = [(f"librispeech/{name}.flac", "1.5", who, text) for name, who, text in texts]
    folder = _recorded(tmp_path / "rec", "librispeech", "path duration_s speaker text", rows)
    mini_superb.build(tmp_path / "mini", folder, tasks=["asr"])
    names = {path.stem for path in (tmp_path / "mini").rglob("*.flac")}
    assert names == {f"{i}-1-0000" for i in range(40)}
    readme = (tmp_path / "mini/README.md").read_text()
    for why in ("its name is not SPEAKER-CHAPTER-NUMBER", "characters other than letters and apostrophes", "no text"):
        assert f"asr, pr: 1 left out ({why})" in readme


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "fsdd/audio/3_bob_5.flac").write_bytes(b"no audio"), "cannot read the audio file"),
        (lambda folder: (folder / "fsdd/audio/3_bob_5.flac").unlink(), "names the clip 'fsdd/audio/3_bob_5.flac'"),
        (lambda folder: _edit(folder, "speaker", "who"), "lacks the column 'speaker'"),
        (lambda folder: (folder / "fsdd/fsdd.tsv").write_text("path\tspeaker\ttext\n"), "lists no clip"),
    ],
)
def test_bad_recordings_give_one_sentence_and_leave_nothing(tmp_path, spoil, message):
    folder = fsdd_like(tmp_path / "recordings")
    spoil(folder)
    with pytest.raises(DataError, match=message):
        mini_superb.build(tmp_path / "out" / "mini", folder, tasks=["ks"])
    assert list((tmp_path / "out").iterdir()) == []


def _edit(folder: Path, old: str, new: str) -> None:
    table = folder / "fsdd" / "fsdd.tsv"
    table.write_text(table.read_text().replace(old, new, 1))


def test_too_few_recordings_are_refused(tmp_path):
    with pytest.raises(DataError, match="but 10 are needed"):
        mini_superb.build(tmp_path / "mini", fsdd_like(tmp_path / "recordings", digits=2), tasks=["ks"])


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(UsageError, match="unknown task 'esc5'; did you mean 'esc50'"):
        mini_superb.build(tmp_path / "mini", tasks=["esc5"])
    with pytest.raises(UsageError, match="no task given"):
        mini_superb.build(tmp_path / "mini", tasks=[])
    with pytest.raises(UsageError, match="contains no known corpus"):
        mini_superb.build(tmp_path / "mini", tmp_path, tasks=["ks"])
    with pytest.raises(UsageError, match="does not exist"):
        mini_superb.build(tmp_path / "mini", tmp_path / "nowhere", tasks=["ks"])
    with pytest.raises(UsageError, match="cannot write into"):
        mini_superb.build(Path("/dev/null/below/mini"), tasks=["ks"])
    with pytest.raises(UsageError, match="unknown corpus 'mini_superbb'"):
        prepare_main(["mini_superbb"])
    assert list(tmp_path.iterdir()) == []


def test_prepare_without_corpus_shows_the_known_ones(capsys):
    assert prepare_main([]) == 2
    assert prepare_main(["--help"]) == 0
    assert capsys.readouterr().out.count("corpora: mini_superb, ") == 2


def test_voices_differ_and_an_unknown_one_is_named():
    spoken = synthesise([Speech("one two three", voice) for voice in VOICES])
    assert len({samples.tobytes() for samples in spoken}) == len(VOICES)
    assert all(samples.dtype == np.float32 and 0.5 < len(samples) / 16000 < 3 for samples in spoken)
    with pytest.raises(DataError, match="no voice 'nobody'"):
        synthesise([Speech("one", Voice("nobody", 50, 160))])


@pytest.mark.data
def test_every_known_corpus_of_the_recordings_is_readable(recordings):
    found = Recordings(recordings)
    assert found.names == sorted(COLUMNS)
    for name in found.names:
        assert len(found.clips(name)) >= 20


def test_a_text_that_begins_with_a_quotation_mark_does_not_swallow_the_rows_behind_it(tmp_path):
    (tmp_path / "ljspeech").mkdir()
    texts = ["hello", '"Well said Tom', "three", '"four"', "five"]
    for number in range(len(texts)):
        (tmp_path / "ljspeech" / f"{number}.wav").write_bytes(b"x")

    def clips(texts):
        rows = "".join(f"ljspeech/{number}.wav\t1.0\t{text}\n" for number, text in enumerate(texts))
        (tmp_path / "ljspeech" / "ljspeech.tsv").write_text(f"path\tduration_s\ttext\n{rows}")
        return [clip.fields["text"] for clip in Recordings(tmp_path).clips("ljspeech")]

    with pytest.raises(DataError, match=r"ljspeech.tsv, line 5: a quotation mark is left open before it"):
        clips(texts)
    assert clips(['"""Well said"" Tom"', *texts[2:]]) == ['"Well said" Tom', "three", "four", "five"]


@pytest.mark.parametrize("count", [3, 20, 41, 42, 60])
def test_no_recording_of_unknown_words_is_in_two_splits(count, tmp_path):
    """The level of a clip tells its recording, and the second that is cut from it."""
    lines = ["path\tduration_s\tspeaker\ttext"]
    for number in range(count + 1):
        number = number % count  # the first is there twice, as gathered from two places
        path = f"librispeech/{len(lines)}/{number:02d}.wav"
        (tmp_path / path).parent.mkdir(parents=True)
        samples = np.repeat(0.01 * number + 0.001 * np.arange(1, 5), 16000)
        soundfile.write(tmp_path / path, samples, 16000, subtype="FLOAT")
        lines.append(f"{path}\t4\tbob\tsome words")
    (tmp_path / "librispeech" / "librispeech.tsv").write_text("\n".join(lines) + "\n")
    source = MiniBuild(tmp_path, Recordings(tmp_path))
    found = [(split, samples) for split, _, samples in ks._unknown(source, source.rng("ks"))]
    assert all(len(samples) == 16000 and np.ptp(samples) == 0 for _, samples in found)
    levels = [(split, round(1000 * float(samples[0]))) for split, samples in found]
    assert len({level for _, level in levels}) == len(levels), "no second is there twice"
    splits = [{level // 10 for split, level in levels if split == one} for one in ks.UNKNOWN_CLIPS]
    assert all(splits) and sum(map(len, splits)) == len(set.union(*splits)) >= min(count, 42) - 1
    if count >= 20:
        assert Counter(split for split, _ in levels) == ks.UNKNOWN_CLIPS
