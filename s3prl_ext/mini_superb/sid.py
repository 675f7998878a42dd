"""Speaker identification: a folder of the form of VoxCeleb1.

``{dev,test}/wav/idNNNNN/<video>/<n>.wav`` and ``veri_test_class.txt`` with lines ``1|2|3 idNNNNN/<video>/<n>.wav``
(training, dev, test). Ids count from id10001: s3prl's label is the number minus 10001.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip, without_repeats
from s3prl_ext.mini_superb import ks
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import Source, cut_seconds, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

PIECE_S = 2.0  # seconds of one utterance
VIDEOS, PIECES = 7, 2  # recordings per speaker, utterances cut from each
SYNTHETIC_SPEAKERS = 10
SPLIT_CODES = {"train": 1, "dev": 2, "test": 3}
META_DATA = "veri_test_class.txt"
DIGITS = "0123456789"

Video = tuple[str, list[np.ndarray]]  # split of a recording, the utterances cut from it

MAPPING = (
    f"Utterances of up to {PIECE_S:g} s, {PIECES} from each of up to {VIDEOS} recordings of a speaker; one recording is "
    "dev, one test. From spoken digits a recording is one take of a speaker, its utterances the digits 0-4 and 5-9 said "
    "one after the other. With `--takes N` an utterance is one digit: takes 0-4 are test, 5-6 dev, N others train. "
    "Speakers are numbered id10001, id10002, ... as listed below."
)


def write(out: Path, source: Source) -> None:
    """Write clips and split below `out`."""
    lines = []
    for number, videos in enumerate(_single_digits(source) if source.takes else _last_held_out(_speakers(source))):
        for index, (split, pieces) in enumerate(videos):
            for piece, samples in enumerate(pieces, 1):
                name = f"id{10001 + number}/video{index:02d}/{piece:05d}.wav"
                write_audio(out / ("test" if split == "test" else "dev") / "wav" / name, samples)
                lines.append(f"{SPLIT_CODES[split]} {name}\n")
    (out / META_DATA).write_text("".join(lines), encoding="utf-8")


def _last_held_out(speakers: list[list[list[np.ndarray]]]) -> list[list[Video]]:
    """Return the recordings with their splits: the last two of each speaker are dev and test."""
    return [
        [({len(videos) - 2: "dev", len(videos) - 1: "test"}.get(i, "train"), pieces) for i, pieces in enumerate(videos)]
        for videos in speakers
    ]


def _single_digits(source: Source) -> list[list[Video]]:
    """Return speakers -> takes, an utterance is one digit: the official test takes, two of dev, few of train."""
    clips = ks.hard_form(source.clips("sid", "fsdd"), "sid")
    training = {clip.path for clip in ks.training_takes(_later(clips), source.takes)}
    held_out = {take: split for split in ("test", "dev") for take in ks.RECORDED_TAKES[split]}
    speakers: dict[str, dict[tuple[int, str], list[np.ndarray]]] = {}
    for clip in clips:
        split = "train" if clip.path in training else held_out.get(ks.take_of(clip))
        if split:
            takes = speakers.setdefault(clip.speaker, {})
            takes.setdefault((ks.take_of(clip), split), []).append(read_audio(clip.path))
    require(len(speakers), 2, "fsdd", "speakers")
    for number, name in enumerate(sorted(speakers), 1):
        source.note("sid", f"id{10000 + number} is speaker {name}")
    return [
        [(split, pieces) for (_, split), pieces in sorted(speakers[name].items(), key=lambda item: item[0])]
        for name in sorted(speakers)
    ]


def _later(clips: list[Clip]) -> list[Clip]:
    """Return the clips outside the takes of dev."""
    return [clip for clip in clips if ks.take_of(clip) not in ks.RECORDED_TAKES["dev"]]


def _speakers(source: Source) -> list[list[list[np.ndarray]]]:
    """Return speakers -> recordings -> pieces: from spoken digits, else from read sentences, else synthesised."""
    if source.recordings is not None and source.recordings.has("fsdd"):
        return _digits(source.clips("sid", "fsdd"), source)
    read = source.clips("sid", "librispeech", "vctk")
    return _read(read, source) if read else _spoken(source)


def _digits(clips: list[Clip], source: Source) -> list[list[list[np.ndarray]]]:
    """Return speakers -> takes -> strings of digits; files are named ``<digit>_<speaker>_<take>``."""
    takes: dict[str, dict[int, dict[str, Clip]]] = {}
    for clip in clips:
        digit, _, take = clip.name.split("_")
        takes.setdefault(clip.speaker, {}).setdefault(int(take), {})[digit] = clip
    speakers = []
    for name in sorted(takes):
        whole = [take for _, take in sorted(takes[name].items()) if len(take) == len(DIGITS)][:VIDEOS]
        if len(whole) < 3:
            continue
        speakers.append([[_string(take, DIGITS[:5]), _string(take, DIGITS[5:])] for take in whole])
        source.note("sid", f"id{10000 + len(speakers)} is speaker {name}")
    require(len(speakers), 2, "fsdd", "speakers with three takes of all digits")
    return speakers


def _string(take: dict[str, Clip], digits: str) -> np.ndarray:
    samples = np.concatenate([read_audio(take[digit].path) for digit in digits])
    return samples[: int(PIECE_S * SAMPLE_RATE)]


def _read(read: list[Clip], source: Source) -> list[list[list[np.ndarray]]]:
    """Return speakers -> recordings -> pieces, from read sentences long enough for one piece."""
    by_speaker: dict[str, list[Clip]] = {}
    for clip in without_repeats(read):
        if clip.speaker and clip.duration >= PIECE_S:
            by_speaker.setdefault(clip.speaker, []).append(clip)
    rng = source.rng("sid")
    speakers = []
    for name in sorted(by_speaker):
        clips = by_speaker[name]
        if len(clips) < 3:
            continue
        chosen = rng.permutation(len(clips))[:VIDEOS]
        speakers.append([_pieces(clips[index]) for index in chosen])
        source.note("sid", f"id{10000 + len(speakers)} is speaker {name}")
    require(len(speakers), 2, "read speech", f"speakers with three recordings of over {PIECE_S:g} s")
    return speakers


def _pieces(clip: Clip) -> list[np.ndarray]:
    """Return the first pieces of `clip`, all of full length."""
    count = min(PIECES, int(clip.duration / PIECE_S))
    return [cut_seconds(clip, number * PIECE_S, PIECE_S) for number in range(count)]


def _spoken(source: Source) -> list[list[list[np.ndarray]]]:
    """Return speakers -> recordings -> pieces, synthesised."""
    rng = source.rng("sid")
    plan = [(voice, text) for voice in VOICES[:SYNTHETIC_SPEAKERS] for text in sentences(rng, VIDEOS * PIECES)]
    pieces = [samples[: int(PIECE_S * SAMPLE_RATE)] for samples in synthesise([Speech(text, v) for v, text in plan])]
    recordings = [pieces[start : start + PIECES] for start in range(0, len(pieces), PIECES)]
    return [recordings[start : start + VIDEOS] for start in range(0, len(recordings), VIDEOS)]
