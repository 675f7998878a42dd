"""Speaker identification and verification: a folder of the form of VoxCeleb1.

``{dev,test}/wav/idNNNNN/<video>/<n>.wav`` and ``veri_test_class.txt`` with lines ``1|2|3 idNNNNN/<video>/<n>.wav``
(training, dev, test). Ids count from id10001: s3prl's label is the number minus 10001. Verification has trials
(``1|0 CLIP CLIP``): in ``dev_trials.txt`` of the last third of the speakers in ``dev/wav``, who are not trained on
then, and in ``veri_test2.txt`` of speakers who are in ``test/wav`` alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip, digit_take, without_repeats
from s3prl_ext.mini_superb import ks
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild, cut_seconds, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

PIECE_S = 2.0  # seconds of one utterance
VIDEOS, PIECES = 7, 2  # recordings per speaker, utterances cut from each
SYNTHETIC_SPEAKERS = 10
SPLIT_CODES = {"train": 1, "dev": 2, "test": 3}
META_DATA = "veri_test_class.txt"
DIGITS = range(10)

TRIALS = {"dev": "dev_trials.txt", "test": "veri_test2.txt"}
FIRST_UNSEEN = 10270  # VoxCeleb1's first speaker of verification's test
UNSEEN, UNSEEN_CLIPS = 5, 4  # speakers of verification's test, clips of each
TRIALS_OF_A_SPEAKER = 6  # of each kind

MAPPING_ASV = (
    "The training and dev clips of sid are trained on, but for the last third of the speakers (two at least), whose "
    f"trials are dev; test has trials of {UNSEEN} other speakers with {UNSEEN_CLIPS} clips each, id{FIRST_UNSEEN} and "
    "following. About half of the trials are of one speaker, the others of two."
)

Video = tuple[str, list[np.ndarray]]  # split of a recording, the utterances cut from it

MAPPING = (
    f"Utterances of up to {PIECE_S:g} s, {PIECES} from each of up to {VIDEOS} recordings of a speaker; one recording "
    "is dev, one test. From spoken digits a recording is one take of a speaker, its utterances the digits 0-4 and 5-9 "
    "said one after the other. With `--takes N` an utterance is one digit: takes 0-4 are test, 5-6 dev, N others "
    "train. Speakers are numbered id10001, id10002, ... as listed below."
)


def write(out: Path, source: MiniBuild) -> None:
    """Write clips and split below `out`, unless an earlier task of the same build did."""
    if (out / META_DATA).is_file():
        return
    lines = []
    for number, videos in enumerate(_single_digits(source) if source.takes else _last_held_out(_speakers(source))):
        for index, (split, pieces) in enumerate(videos):
            for piece, samples in enumerate(pieces, 1):
                name = f"id{10001 + number}/video{index:02d}/{piece:05d}.wav"
                write_audio(out / ("test" if split == "test" else "dev") / "wav" / name, samples)
                lines.append(f"{SPLIT_CODES[split]} {name}\n")
    (out / META_DATA).write_text("".join(lines), encoding="utf-8")


def write_asv(out: Path, source: MiniBuild) -> None:
    """Write the clips of identification, those of unseen speakers, and the trials below `out`."""
    write(out, source)
    for number, pieces in enumerate(_unseen(source)):
        for piece, samples in enumerate(pieces, 1):
            write_audio(
                out / "test" / "wav" / f"id{FIRST_UNSEEN + number}" / f"video{piece:02d}" / "00001.wav", samples
            )
    rng = source.rng("asv")
    trained = sorted(path.name for path in (out / "dev" / "wav").iterdir())
    require(len(trained), 4, "the speech of identification", "speakers, of whom two are dev of verification")
    first_of_dev = int(trained[-max(2, len(trained) // 3)][2:])
    for split, first in (("dev", first_of_dev), ("test", FIRST_UNSEEN)):
        root = out / split / "wav"
        clips: dict[str, list[str]] = {}
        for path in sorted(root.glob("*/*/*.wav")):
            if int(path.parts[-3][2:]) >= first:
                clips.setdefault(path.parts[-3], []).append(path.relative_to(root).as_posix())
        (out / TRIALS[split]).write_text("".join(_trials(clips, rng)), encoding="utf-8")


def _trials(clips: dict[str, list[str]], rng: np.random.Generator) -> list[str]:
    """Return lines of trials: for each speaker as many with itself as with others."""
    lines = []
    for speaker, own in clips.items():
        others = [clip for other, found in clips.items() if other != speaker for clip in found]
        for _ in range(TRIALS_OF_A_SPEAKER):
            first, second = rng.choice(len(own), 2, replace=False)
            lines.append(f"1 {own[first]} {own[second]}\n")
            lines.append(f"0 {own[first]} {others[rng.integers(len(others))]}\n")
    return list(dict.fromkeys(lines))


def _unseen(source: MiniBuild) -> list[list[np.ndarray]]:
    """Return speakers -> clips of verification's test.

    Read sentences where identification has digits, or voices of its own.
    """
    recorded = source.recordings
    by_speaker: dict[str, list[Clip]] = {}
    if recorded is not None and recorded.has("fsdd") and recorded.has("vctk"):
        for clip in without_repeats(source.clips("asv", "vctk")):
            if clip.speaker and clip.duration >= PIECE_S:
                by_speaker.setdefault(clip.speaker, []).append(clip)
    able = [name for name in sorted(by_speaker) if len(by_speaker[name]) >= UNSEEN_CLIPS][:UNSEEN]
    if len(able) >= 2:
        return [[cut_seconds(clip, 0.0, PIECE_S) for clip in by_speaker[name][:UNSEEN_CLIPS]] for name in able]
    source.note("asv", "the speakers of test are synthetic voices")
    voices = VOICES[SYNTHETIC_SPEAKERS : SYNTHETIC_SPEAKERS + UNSEEN]
    texts = sentences(source.rng("asv sentences"), UNSEEN * UNSEEN_CLIPS)
    spoken = [
        s[: int(PIECE_S * SAMPLE_RATE)]
        for s in synthesise([Speech(t, voices[i % UNSEEN]) for i, t in enumerate(texts)])
    ]
    return [spoken[number::UNSEEN] for number in range(UNSEEN)]


def _last_held_out(speakers: list[list[list[np.ndarray]]]) -> list[list[Video]]:
    """Return the recordings with their splits: the last two of each speaker are dev and test."""
    return [
        [({len(videos) - 2: "dev", len(videos) - 1: "test"}.get(i, "train"), pieces) for i, pieces in enumerate(videos)]
        for videos in speakers
    ]


def _single_digits(source: MiniBuild) -> list[list[Video]]:
    """Return speakers -> takes, an utterance is one digit: the official test takes, two of dev, few of train."""
    clips = ks.hard_form(source.clips("sid", "fsdd"), "sid")
    training = {clip.path for clip in ks.training_takes(_later(clips), source.takes)}
    held_out = {take: split for split in ("test", "dev") for take in ks.RECORDED_TAKES[split]}
    speakers: dict[str, dict[tuple[int, str], list[np.ndarray]]] = {}
    for clip in clips:
        take = digit_take(clip).take
        split = "train" if clip.path in training else held_out.get(take)
        if split:
            takes = speakers.setdefault(clip.speaker, {})
            takes.setdefault((take, split), []).append(read_audio(clip.path))
    require(len(speakers), 2, "fsdd", "speakers")
    for number, name in enumerate(sorted(speakers), 1):
        source.note("sid", f"id{10000 + number} is speaker {name}")
    return [
        [(split, pieces) for (_, split), pieces in sorted(speakers[name].items(), key=lambda item: item[0])]
        for name in sorted(speakers)
    ]


def _later(clips: list[Clip]) -> list[Clip]:
    """Return the clips outside the takes of dev."""
    return [clip for clip in clips if digit_take(clip).take not in ks.RECORDED_TAKES["dev"]]


def _speakers(source: MiniBuild) -> list[list[list[np.ndarray]]]:
    """Return speakers -> recordings -> pieces: from spoken digits, else from read sentences, else synthesised."""
    if source.recordings is not None and source.recordings.has("fsdd"):
        return _digits(source.clips("sid", "fsdd"), source)
    read = source.clips("sid", "librispeech", "vctk")
    return _read(read, source) if read else _spoken(source)


def _digits(clips: list[Clip], source: MiniBuild) -> list[list[list[np.ndarray]]]:
    """Return speakers -> takes -> strings of digits."""
    takes: dict[str, dict[int, dict[int, Clip]]] = {}
    for clip in clips:
        digit, _, take = digit_take(clip)
        takes.setdefault(clip.speaker, {}).setdefault(take, {})[digit] = clip
    speakers = []
    for name in sorted(takes):
        whole = [take for _, take in sorted(takes[name].items()) if len(take) == len(DIGITS)][:VIDEOS]
        if len(whole) < 3:
            continue
        speakers.append([[_string(take, DIGITS[:5]), _string(take, DIGITS[5:])] for take in whole])
        source.note("sid", f"id{10000 + len(speakers)} is speaker {name}")
    require(len(speakers), 2, "fsdd", "speakers with three takes of all digits")
    return speakers


def _string(take: dict[int, Clip], digits: range) -> np.ndarray:
    samples = np.concatenate([read_audio(take[digit].path) for digit in digits])
    return samples[: int(PIECE_S * SAMPLE_RATE)]


def _read(read: list[Clip], source: MiniBuild) -> list[list[list[np.ndarray]]]:
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


def _spoken(source: MiniBuild) -> list[list[list[np.ndarray]]]:
    """Return speakers -> recordings -> pieces, synthesised."""
    rng = source.rng("sid")
    plan = [(voice, text) for voice in VOICES[:SYNTHETIC_SPEAKERS] for text in sentences(rng, VIDEOS * PIECES)]
    pieces = [samples[: int(PIECE_S * SAMPLE_RATE)] for samples in synthesise([Speech(text, v) for v, text in plan])]
    recordings = [pieces[start : start + PIECES] for start in range(0, len(pieces), PIECES)]
    return [recordings[start : start + VIDEOS] for start in range(0, len(recordings), VIDEOS)]
