"""Diarization: Kaldi-style folders of two-speaker recordings of the form of Libri2Mix.

Each split has ``wav/``, ``wav.scp``, ``segments``, ``utt2spk``, ``spk2utt``, ``reco2dur`` and ``rttm``.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio, write_audio
from s3prl_ext.corpora.recordings import Clip
from s3prl_ext.errors import DataError
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

FRAME = 320  # samples, 20 ms: resolution of the activity detector
FLOOR_DB = -35.0  # a frame is speech when its energy is within this range of the loudest frame
BRIDGE_S, SHORTEST_S = 0.3, 0.1  # pauses that do not split a segment, segments that are dropped
OVERLAP = 0.5  # the second speaker starts this fraction into the first one's turn

MAPPING = (
    "Sums of two single-speaker sources; the second starts in the middle of the first. Segments come from each "
    f"source's energy: 20 ms frames within {-FLOOR_DB:g} dB of its loudest, pauses under {BRIDGE_S} s bridged."
)

Voiced = tuple[str, np.ndarray]  # speaker, samples


def activity(samples: np.ndarray) -> list[tuple[float, float]]:
    """Return the (start, end) times in seconds at which `samples` hold speech, from the energy of 20 ms frames."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    level = 10 * np.log10((frames.astype(np.float64) ** 2).mean(axis=1) + 1e-12)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], level > level.max() + FLOOR_DB, [0]]).astype(int)))
    step = FRAME / SAMPLE_RATE
    segments: list[tuple[float, float]] = []
    for start, end in edges.reshape(-1, 2) * step:
        if segments and start - segments[-1][1] < BRIDGE_S:
            segments[-1] = (segments[-1][0], float(end))
        else:
            segments.append((float(start), float(end)))
    return [(start, end) for start, end in segments if end - start >= SHORTEST_S]


def write(out: Path, source: MiniBuild) -> None:
    """Write the folders ``train``, ``dev`` and ``test`` below `out`."""
    groups = _recorded_pairs(source) or _spoken_pairs(source)
    for split, (first, second) in groups.items():
        tables = _Tables(source.final / out.name / split / "wav")
        pairs = [(one, other) for one, other in product(first, second) if one[0] != other[0]]
        if not pairs:
            raise DataError(f"sd: the sources of {split} are all of one speaker: give recordings of more speakers.")
        if left_out := len(first) * len(second) - len(pairs):
            source.note("sd", f"{split}: {left_out} pairs left out, in which one speaker would be both sources")
        for (speaker_a, a), (speaker_b, b) in pairs:
            delay = int(OVERLAP * len(a))
            mix = np.zeros(max(len(a), delay + len(b)), dtype=np.float32)
            mix[: len(a)] += a
            mix[delay : delay + len(b)] += b
            recording = f"{split}{len(tables.reco2dur):03d}_{speaker_a}_{speaker_b}"
            write_audio(out / split / "wav" / f"{recording}.wav", mix)
            shift = delay / SAMPLE_RATE
            later = [(start + shift, end + shift) for start, end in activity(b)]
            tables.add(recording, len(mix) / SAMPLE_RATE, {speaker_a: activity(a), speaker_b: later})
        tables.write(out / split)


def _recorded_pairs(source: MiniBuild) -> dict[str, tuple[list[Voiced], list[Voiced]]]:
    """Return per split the sources of recorded mixtures; every first source is mixed with every second one."""
    clips = source.clips("sd", "libri2mix_svoice_debug")
    if not clips:
        return {}
    source.note("sd", "within a split every first source of the mixtures is mixed anew with every second one")
    roles = {role: [clip for clip in clips if clip.fields["role"] == role] for role in ("s1", "s2")}
    count = min(len(clips) for clips in roles.values())
    require(count, 4, "libri2mix_svoice_debug", "mixtures with both sources (role s1 and s2)")
    train, dev = count // 2, count * 3 // 4
    bounds = {"train": slice(0, train), "dev": slice(train, dev), "test": slice(dev, count)}
    return {split: (_sources(roles["s1"][part]), _sources(roles["s2"][part])) for split, part in bounds.items()}


def _sources(clips: list[Clip]) -> list[tuple[str, np.ndarray]]:
    return [(clip.speaker, read_audio(clip.path)) for clip in clips]


def _spoken_pairs(source: MiniBuild) -> dict[str, tuple[list[Voiced], list[Voiced]]]:
    """Return per split synthesised voices of which every first one meets every second one."""
    rng = source.rng("sd")
    voices = {"train": VOICES[:8], "dev": VOICES[8:12], "test": VOICES[12:16]}
    plan = [(split, voice) for split, group in voices.items() for voice in group]
    speech = [Speech(". ".join(sentences(rng, 2)), voice) for _, voice in plan]
    spoken: dict[str, list[Voiced]] = {split: [] for split in voices}
    for (split, voice), samples in zip(plan, synthesise(speech)):
        spoken[split].append((f"voice{VOICES.index(voice):02d}", samples))
    return {split: (group[::2], group[1::2]) for split, group in spoken.items()}


class _Tables:
    """The Kaldi tables of one split, filled recording by recording."""

    def __init__(self, wav_folder: Path):
        self.wav_folder = wav_folder
        self.reco2dur: dict[str, float] = {}
        self.segments: list[tuple[str, str, str, float, float]] = []  # utterance, speaker, recording, start, end

    def add(self, recording: str, duration: float, turns: dict[str, list[tuple[float, float]]]) -> None:
        """Add a recording of `duration` seconds with the turns of its two speakers."""
        self.reco2dur[recording] = duration
        for speaker, segments in turns.items():
            for start, end in segments:
                end = min(end, duration)
                name = f"{speaker}-{recording}-{round(start * 100):06d}-{round(end * 100):06d}"
                self.segments.append((name, speaker, recording, start, end))

    def write(self, folder: Path) -> None:
        """Write the six tables into `folder`."""
        by_speaker: dict[str, list[str]] = {}
        for name, speaker, *_ in self.segments:
            by_speaker.setdefault(speaker, []).append(name)
        tables = {
            "wav.scp": [f"{name} {self.wav_folder / name}.wav" for name in self.reco2dur],
            "reco2dur": [f"{name} {duration:.4f}" for name, duration in self.reco2dur.items()],
            "segments": [f"{name} {reco} {start:.3f} {end:.3f}" for name, _, reco, start, end in self.segments],
            "utt2spk": [f"{name} {speaker}" for name, speaker, *_ in self.segments],
            "spk2utt": [f"{speaker} {' '.join(names)}" for speaker, names in by_speaker.items()],
            "rttm": [
                f"SPEAKER {reco} 1 {start:.3f} {end - start:.3f} <NA> <NA> {speaker} <NA> <NA>"
                for _, speaker, reco, start, end in self.segments
            ],
        }
        for table, lines in tables.items():
            (folder / table).write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")
