"""Keyword spotting: a folder tree of the form of Speech Commands v0.01.

Training folder: ``<word>/<speaker>_nohash_<n>.wav``; the hash of the speaker id decides between train and dev.
Test folder: exactly the ten keywords, ``_unknown_`` and ``_silence_``. Words are at least half a second long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, pad_to, read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip, digit_take, without_repeats
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb.source import MiniBuild, cut_seconds, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
OTHER_WORDS = ("bed", "bird", "cat", "dog", "happy", "house", "marvin", "sheila", "tree", "wow")
READ_SPEECH = ("librispeech", "vctk", "ljspeech", "asterisk_en")

# Takes of a word by split. Recorded digits: takes 0-4 are their official test set.
RECORDED_TAKES: dict[str, tuple[int, ...]] = {"test": (0, 1, 2, 3, 4), "dev": (5, 6), "train": tuple(range(7, 15))}
HARD_SPEAKERS = {"test": 2, "dev": 1}  # speakers of their own with --takes; all others are train
SPOKEN_TAKES: dict[str, tuple[int, ...]] = {"test": (0, 1), "dev": (5,), "train": (6, 7, 8, 9)}
SHORTEST = 8000  # samples; shorter words are set into half a second of faint noise
UNKNOWN_CLIPS = {"test": 12, "dev": 6, "train": 24}
NOISE_COLOURS = ("white", "pink", "brown", "hum")

MAPPING = (
    "Ten keywords, `_unknown_`, `_silence_`; words are at least half a second long. From recorded digits: "
    + ", ".join(f"{digit} is labelled {keyword}" for digit, keyword in zip(DIGIT_WORDS, KEYWORDS))
    + ". Each take of a speaker has a speaker id of its own whose sha1 puts it into train or dev: takes 0-4 are test, "
    "5-6 dev, 7-14 train, so the same people are in all splits. With `--takes N` test has two speakers and dev one who "
    "are in no other split, with all their takes, and train N takes of each digit of the others. `_silence_` is "
    "computed noise."
)

Spoken = tuple[str, str, str, np.ndarray]  # split, keyword, name of speaker and take, samples

TRAIN_FOLDER, TEST_FOLDER = "speech_commands_v0.01", "speech_commands_test_set_v0.01"


def hash_split(speaker: str) -> str:
    """Return ``"dev"``, ``"test"`` or ``"train"``: the rule of Speech Commands for a speaker id (sha1, per cent)."""
    largest = 2**27 - 1
    percentage = (int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (largest + 1)) * (100.0 / largest)
    return "dev" if percentage < 10 else "test" if percentage < 20 else "train"


def speaker_id(name: str, split: str) -> str:
    """Return an eight-digit speaker id for `name` that :func:`hash_split` puts into `split`."""
    attempt = 0
    while hash_split(candidate := hashlib.sha1(f"{name}/{attempt}".encode()).hexdigest()[:8]) != split:
        attempt += 1
    return candidate


def write(out: Path, source: MiniBuild) -> None:
    """Write training and test folder below `out`."""
    clips = source.clips("ks", "fsdd")
    spoken: Iterable[Spoken]
    if source.takes:
        spoken = _unseen_speakers(hard_form(clips, "ks"), source)
    else:
        spoken = _recorded_digits(clips) if clips else _spoken_keywords()
    rng = source.rng("ks")
    for split, word, name, samples in spoken:
        _write_clip(out, split, word, name, pad_to(samples, max(len(samples), SHORTEST), rng))
    for split, name, samples in _unknown(source, rng):
        _write_clip(out, split, "_unknown_", name, pad_to(samples, SAMPLE_RATE, rng))
    _write_noises(out, rng)


def _write_clip(out: Path, split: str, word: str, name: str, samples: np.ndarray) -> None:
    if split != "test" and word == "_unknown_":
        word = "other"  # any folder that is not a keyword becomes _unknown_
    folder = TEST_FOLDER if split == "test" else TRAIN_FOLDER
    write_audio(out / folder / word / f"{speaker_id(name, split)}_nohash_0.wav", samples)


def _recorded_digits(clips: list[Clip]) -> list[Spoken]:
    """Return spoken digits; the digit is in the folder of a keyword."""
    split_of = {take: split for split, takes in RECORDED_TAKES.items() for take in takes}
    spoken = []
    for clip in clips:
        if clip.text in DIGIT_WORDS and (take := digit_take(clip).take) in split_of:
            keyword = KEYWORDS[DIGIT_WORDS.index(clip.text)]
            spoken.append((split_of[take], keyword, f"{clip.speaker}/{take}", read_audio(clip.path)))
    for split in RECORDED_TAKES:
        require(sum(one[0] == split for one in spoken), len(KEYWORDS), "fsdd", f"digits for {split}")
    return spoken


def hard_form(clips: list[Clip], task: str) -> list[Clip]:
    """Return recorded digits, of which ``--takes`` makes a harder form of `task`.

    Raises:
        UsageError: there are none.
    """
    if not clips:
        raise UsageError(f"--takes makes {task} of recorded digits: give --recordings with a folder that holds fsdd/.")
    return clips


def training_takes(clips: list[Clip], takes: int) -> list[Clip]:
    """Return the first `takes` takes, outside the official test takes, of each digit of each speaker."""
    of: dict[tuple[str, str], list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: digit_take(clip).take):
        if digit_take(clip).take not in RECORDED_TAKES["test"]:
            of.setdefault((clip.speaker, clip.text), []).append(clip)
    for (speaker, digit), found in of.items():
        require(len(found), takes, "fsdd", f"takes for training of '{digit}' by {speaker}")
    return [clip for found in of.values() for clip in found[:takes]]


def _unseen_speakers(clips: list[Clip], source: MiniBuild) -> list[Spoken]:
    """Return spoken digits of which dev and test have speakers of their own, and train few takes."""
    clips = [clip for clip in clips if clip.text in DIGIT_WORDS]
    speakers = sorted({clip.speaker for clip in clips})
    require(len(speakers), sum(HARD_SPEAKERS.values()) + 1, "fsdd", "speakers")
    order = [speakers[index] for index in source.rng("ks speakers").permutation(len(speakers))]
    test, dev = order[: HARD_SPEAKERS["test"]], order[HARD_SPEAKERS["test"] : sum(HARD_SPEAKERS.values())]
    by_split = {
        "train": training_takes([clip for clip in clips if clip.speaker not in {*test, *dev}], source.takes),
        "dev": [clip for clip in clips if clip.speaker in dev],
        "test": [clip for clip in clips if clip.speaker in test],
    }
    for split, members in by_split.items():
        said_by = ", ".join(sorted({clip.speaker for clip in members}))
        source.note("ks", f"{split} is {len(members)} digits said by {said_by}")
    return [
        (
            split,
            KEYWORDS[DIGIT_WORDS.index(clip.text)],
            f"{clip.speaker}/{digit_take(clip).take}",
            read_audio(clip.path),
        )
        for split, members in by_split.items()
        for clip in members
    ]


def _spoken_keywords() -> Iterator[Spoken]:
    """Yield synthesised keywords: six voices, takes differ in speed and pitch."""
    plan = [
        (split, word, f"{voice.name}/{take}", Speech(word, voice, faster=4 * take - 16, higher=take % 5 - 2))
        for voice in VOICES[:6]
        for split, takes in SPOKEN_TAKES.items()
        for take in takes
        for word in KEYWORDS
    ]
    for (split, word, name, _), samples in zip(plan, synthesise([speech for *_, speech in plan])):
        yield split, word, name, samples


def _unknown(source: MiniBuild, rng: np.random.Generator) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (split, name, samples) of speech that is not a keyword."""
    available = [name for name in READ_SPEECH if source.recordings and source.recordings.has(name)]
    if source.recordings and available:
        source.note("ks", f"_unknown_ is one second cut from sentences of {available[0]}")
        clips = [clip for clip in without_repeats(source.recordings.clips(available[0])) if clip.duration > 3]
        require(len(clips), len(UNKNOWN_CLIPS), available[0], "clips of over 3 s")
        for i, (split, clip, start) in enumerate(_cuts(clips, rng)):
            yield split, f"unknown/{i}", cut_seconds(clip, start, 1.0)
        return
    source.note("ks", f"_unknown_ is the synthesised words {', '.join(OTHER_WORDS)}")
    splits = [split for split, count in UNKNOWN_CLIPS.items() for _ in range(count)]
    words = [Speech(OTHER_WORDS[i % len(OTHER_WORDS)], VOICES[i % 6], faster=i % 9 * 3) for i in range(len(splits))]
    for i, (split, samples) in enumerate(zip(splits, synthesise(words))):
        yield split, f"unknown/{i}", samples


def _cuts(clips: list[Clip], rng: np.random.Generator) -> Iterator[tuple[str, Clip, float]]:
    """Yield (split, clip, start in seconds) of the seconds to cut; no clip is in two splits.

    Where there are fewer clips than seconds, each split takes its share of them and several seconds of a clip, as many
    as are wanted or there.
    """
    wanted = sum(UNKNOWN_CLIPS.values())
    drawn = [clips[index] for index in rng.choice(len(clips), min(len(clips), wanted), replace=False)]
    shares = {split: max(1, len(drawn) * count // wanted) for split, count in UNKNOWN_CLIPS.items()}
    shares["train"] += len(drawn) - sum(shares.values())
    for split, count in UNKNOWN_CLIPS.items():
        own, drawn = drawn[: shares[split]], drawn[shares[split] :]
        for number in range(count):
            clip, start = own[number % len(own)], 1.0 + number // len(own)
            if start + 1 <= clip.duration:
                yield split, clip, start


def _write_noises(out: Path, rng: np.random.Generator) -> None:
    """Write six-second background noises (the class ``_silence_``) and twelve test clips of one second."""
    for kind in NOISE_COLOURS:
        write_audio(out / TRAIN_FOLDER / "_background_noise_" / f"{kind}.wav", noise(kind, 6 * SAMPLE_RATE, rng))
        for n in range(3):
            write_audio(out / TEST_FOLDER / "_silence_" / f"{kind}_{n}.wav", noise(kind, SAMPLE_RATE, rng))


def noise(kind: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return `length` samples of ``white``, ``pink`` or ``brown`` noise or of a ``hum`` (50 Hz), peak 0.05."""
    white = rng.normal(size=length)
    if kind == "hum":
        samples = np.sin(2 * np.pi * 50 * np.arange(length) / SAMPLE_RATE) + 0.1 * white
    else:
        slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]  # amplitude falls as frequency^-slope
        frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0)
        samples = np.fft.irfft(np.fft.rfft(white) * frequency**-slope, length)
    return (0.05 / np.abs(samples).max() * samples).astype(np.float32)
