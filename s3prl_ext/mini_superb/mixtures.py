"""Enhancement and separation: lists of audio as s3prl's recipes make them of VoiceBank-DEMAND and Libri2Mix.

Each split has a folder for each condition (``noisy``, ``clean``; ``mix_clean``, ``s1``, ``s2``) with ``wav.scp``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, write_audio
from s3prl_ext.mini_superb.ks import NOISE_COLOURS, noise
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise

LONGEST_S = 2.5
SPLITS = {"train": (range(8), 16), "dev": (range(8, 12), 4), "test": (range(12, 16), 4)}  # voices, clips
LOUDNESS_DB = (0.0, 5.0, 10.0)  # of the speech above the noise

MAPPING_SE = (
    f"Synthesised sentences of at most {LONGEST_S:g} s in computed noise, 0 to 10 dB below them; the voices of a split "
    "are its own."
)
MAPPING_SS = (
    f"Sums of two synthesised sentences, cut to the shorter one (min) and to at most {LONGEST_S:g} s; the voices of a "
    "split are its own."
)

Signals = dict[str, np.ndarray]  # condition -> samples


def write_se(out: Path, source: MiniBuild) -> None:
    """Write ``train``, ``dev`` and ``test`` with ``noisy`` and ``clean`` below `out`."""
    source.note("se", "synthesised speech in computed noise")
    rng = source.rng("se")
    for split, spoken in _spoken(source, "se", 1):
        _write(out, source, split, [_noisy(pair[0], index, rng) for index, pair in enumerate(spoken)])


def write_ss(out: Path, source: MiniBuild) -> None:
    """Write ``train-100``, ``dev`` and ``test`` with ``mix_clean``, ``s1`` and ``s2`` below `out`."""
    source.note("ss", "synthesised speech")
    for split, spoken in _spoken(source, "ss", 2):
        _write(out, source, {"train": "train-100"}.get(split, split), [_mixed(*pair) for pair in spoken])


def _spoken(source: MiniBuild, task: str, talkers: int) -> Iterator[tuple[str, list[list[np.ndarray]]]]:
    """Yield for each split its clips: for each of them the speech of as many voices."""
    texts = iter(sentences(source.rng(f"{task} sentences"), talkers * sum(count for _, count in SPLITS.values())))
    for split, (voices, count) in SPLITS.items():
        speech = [
            Speech(next(texts), VOICES[voices[(i + talker * len(voices) // 2) % len(voices)]])
            for i in range(count)
            for talker in range(talkers)
        ]
        samples = [one[: int(LONGEST_S * SAMPLE_RATE)] for one in synthesise(speech)]
        yield split, [samples[i : i + talkers] for i in range(0, len(samples), talkers)]


def _noisy(clean: np.ndarray, index: int, rng: np.random.Generator) -> Signals:
    added = noise(NOISE_COLOURS[index % len(NOISE_COLOURS)], len(clean), rng)
    level = np.sqrt(np.mean(clean**2) / np.mean(added**2)) * 10 ** (-LOUDNESS_DB[index % len(LOUDNESS_DB)] / 20)
    return _fitting({"noisy": clean + level * added, "clean": clean})


def _mixed(first: np.ndarray, second: np.ndarray) -> Signals:
    length = min(len(first), len(second))
    return _fitting({"mix_clean": first[:length] + second[:length], "s1": first[:length], "s2": second[:length]})


def _fitting(signals: Signals) -> Signals:
    """Scale signals together, so that none of them is scaled alone when it is written."""
    peak = max(float(np.abs(one).max()) for one in signals.values())
    return {name: (0.9 / peak * one).astype(np.float32) for name, one in signals.items()}


def _write(out: Path, source: MiniBuild, split: str, clips: list[Signals]) -> None:
    for condition in clips[0]:
        lines = []
        for index, signals in enumerate(clips):
            name = f"{split.partition('-')[0]}{index:03d}"
            write_audio(out / split / condition / "wav" / f"{name}.wav", signals[condition])
            lines.append(f"{name} {source.final / out.name / split / condition / 'wav' / name}.wav\n")
        (out / split / condition / "wav.scp").write_text("".join(lines), encoding="utf-8")
