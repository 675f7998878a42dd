"""KS and SID of recorded digits in their hard forms (``--takes``): who and what is in which split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from s3prl_ext.corpora.recordings import Clip, digit_take
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb import build
from s3prl_ext.mini_superb.ks import DIGIT_WORDS, KEYWORDS

pytest.importorskip("espeakng_loader")

SPEAKERS, TAKES = ("ann", "bob", "cid", "dan", "eve"), 10


def level(speaker: int, take: int) -> int:
    """Return the sample value (16 bit) that tells speaker and take of a clip."""
    return 100 * (TAKES * speaker + take + 1)


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory) -> Path:
    """Return recordings of five speakers, ten takes of each digit; half a second at a level that tells who and which."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "fsdd/audio").mkdir(parents=True)
    lines = ["path\tspeaker\ttext"]
    for number, name in enumerate(SPEAKERS):
        for take in range(TAKES):
            for digit, word in enumerate(DIGIT_WORDS):
                path = f"fsdd/audio/{digit}_{name}_{take}.wav"
                samples = np.full(8000, level(number, take), dtype=np.int16)
                soundfile.write(str(folder / path), samples, 16000, subtype="PCM_16")
                lines.append(f"{path}\t{name}\t{word}")
    (folder / "fsdd/fsdd.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def hard(fsdd, tmp_path_factory) -> Path:
    """Return both corpora with two training takes."""
    out = tmp_path_factory.mktemp("hard") / "mini"
    build(out, fsdd, tasks=["ks", "sid"], takes=2)
    return out


def said(path: Path) -> tuple[str, int]:
    """Return speaker and take of a clip."""
    value = int(soundfile.read(str(path), dtype="int16")[0][4000])
    speaker, take = divmod(value // 100 - 1, TAKES)
    return SPEAKERS[speaker], take


def test_ks_has_unseen_speakers_in_dev_and_test_and_few_takes_in_train(hard):
    from s3prl_ext.mini_superb.ks import hash_split

    root, by_split = hard / "speech_commands", {"train": [], "dev": [], "test": []}
    for path in root.glob("speech_commands_v0.01/*/*.wav"):
        if path.parent.name in KEYWORDS:
            by_split[hash_split(path.name.partition("_nohash_")[0])].append((path.parent.name, *said(path)))
    for path in root.glob("speech_commands_test_set_v0.01/*/*.wav"):
        if path.parent.name in KEYWORDS:
            by_split["test"].append((path.parent.name, *said(path)))
    speakers = {split: {speaker for _, speaker, _ in members} for split, members in by_split.items()}
    assert {split: len(names) for split, names in speakers.items()} == {"train": 2, "dev": 1, "test": 2}
    assert len(set.union(*speakers.values())) == 5
    assert {split: len(members) for split, members in by_split.items()} == {"train": 40, "dev": 100, "test": 200}
    assert {take for _, _, take in by_split["train"]} == {5, 6}  # 0-4 are the official test takes
    assert set(Counter(word for word, *_ in by_split["train"]).values()) == {4}


def test_sid_has_single_digits_of_the_official_takes_in_test(hard):
    takes = {"1": set(), "2": set(), "3": set()}
    counts: Counter = Counter()
    for line in (hard / "voxceleb1/veri_test_class.txt").read_text().splitlines():
        code, name = line.split()
        folder = hard / "voxceleb1" / ("test" if code == "3" else "dev") / "wav"
        speaker, take = said(folder / name)
        assert SPEAKERS.index(speaker) == int(name[2:7]) - 10001
        takes[code].add(take)
        counts[code] += 1
    assert takes == {"1": {7, 8}, "2": {5, 6}, "3": {0, 1, 2, 3, 4}}
    assert counts == {"1": 5 * 10 * 2, "2": 5 * 10 * 2, "3": 5 * 10 * 5}


def test_the_readme_names_the_speakers_of_each_split(hard):
    readme = (hard / "README.md").read_text()
    assert "ks: test is 200 digits said by" in readme and "--takes N" in readme


def test_what_cannot_be_made_is_refused(fsdd, tmp_path):
    for recordings, takes, kind, part in (
        (None, 2, UsageError, "--takes makes ks of recorded digits: give --recordings"),
        (fsdd, -1, UsageError, "--takes -1 is negative"),
        (fsdd, 6, DataError, "give 5 takes for training of"),
    ):
        with pytest.raises(kind, match=part):
            build(tmp_path / "no", recordings, tasks=["ks"], takes=takes)
    assert not (tmp_path / "no").exists()


def test_the_name_of_a_digit_says_digit_speaker_and_take():
    assert digit_take(Clip(Path("fsdd/7_jackson_0.wav"), {})) == (7, "jackson", 0)
    assert digit_take(Clip(Path("fsdd/0_ann_b_12.flac"), {})) == (0, "ann_b", 12)


@pytest.mark.parametrize("form", [
    {"tasks": ["ks"]}, {"tasks": ["ks"], "takes": 2}, {"tasks": ["sid"]}, {"tasks": ["sid"], "takes": 2},
    {"tasks": ["vctk"], "digit_strings": 10},
])  # fmt: skip
@pytest.mark.parametrize("name", ["0-ann-take1", "0_ann_take1", "zero_ann_1", "0_1", "0__1"])
def test_a_digit_with_another_name_is_refused(tmp_path, form, name):
    (tmp_path / "fsdd").mkdir()
    rows = ["path\tspeaker\ttext"]
    for speaker in SPEAKERS[:4]:
        path = f"fsdd/{name.replace('ann', speaker)}.wav"
        (tmp_path / path).touch()
        rows.append(f"{path}\t{speaker}\tzero")
    (tmp_path / "fsdd/fsdd.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(
        DataError, match=rf"fsdd/{name[0]}.*\.wav is not named DIGIT_SPEAKER_TAKE, as 7_jackson_0\.wav is: ren"
    ):
        build(tmp_path / "no", tmp_path, **form)
