"""ESC-50 in its archive's layout, from recordings or synthesised: all of it, or a few clips of a few classes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio, write_audio
from s3prl_ext.corpora.esc50 import CLASSES, COLUMNS, DURATION_S, FOLDS, META
from s3prl_ext.corpora.recordings import Clip
from s3prl_ext.mini_superb.source import MiniBuild, require

# The subset ESC-10 comes first: its licence, CC BY, allows more than that of the other classes.
ESC10 = (0, 1, 10, 11, 12, 20, 21, 38, 40, 41)
ORDER = (*ESC10, *(target for target in range(len(CLASSES)) if target not in ESC10))

MINI_CLASSES, MINI_CLIPS = 5, 2  # classes; clips of a class in each fold

MAPPING = (
    f"{MINI_CLIPS} clips of each of {MINI_CLASSES} classes (of ESC-10) in each official fold, in the layout of "
    "ESC-50-master at 16 kHz. From recordings these are clips of ESC-50; without them every class is a tone of its "
    "own in noise. `s3prl-ext prepare esc50 --recordings` builds more."
)

Row = tuple[str, int, int, np.ndarray]  # file name, fold, target, samples


def write(out: Path, source: MiniBuild) -> None:
    """Write ``audio/`` and ``meta/esc50.csv`` of a miniature corpus below `out`."""
    write_corpus(out, source, MINI_CLASSES, MINI_CLIPS)


def write_corpus(out: Path, source: MiniBuild, classes: int, clips: int) -> None:
    """Write the first `classes` classes of :data:`ORDER` with up to `clips` clips in each fold.

    Raises:
        DataError: the recordings hold fewer clips of a class than one per fold, or one is unreadable.
    """
    targets = ORDER[:classes]
    if source.recordings is not None and source.recordings.has("esc50"):
        _write_rows(out, _recorded(source.clips("esc50", "esc50"), targets, clips))
    else:
        source.note("esc50", "a tone in noise for each class, computed")
        _write_rows(out, _tones(source, targets, clips))


def _write_rows(out: Path, rows: Iterable[Row]) -> None:
    lines = []
    for name, fold, target, samples in rows:
        write_audio(out / "audio" / name, samples)
        source_id, take = name.split("-")[1:3]
        lines.append([name, fold, target, CLASSES[target], target in ESC10, source_id, take])
    (out / META).parent.mkdir(parents=True, exist_ok=True)
    with open(out / META, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "esc10", "src_file", "take"])
        writer.writerows(sorted(lines))


def _recorded(recorded: list[Clip], targets: Iterable[int], clips: int) -> Iterator[Row]:
    """Yield the first `clips` recordings of each class and fold."""
    places: dict[tuple[int, int], list[Clip]] = {}
    for clip in recorded:
        places.setdefault((int(clip.fields["target"]), int(clip.fields["fold"])), []).append(clip)
    for target in targets:
        for fold in FOLDS:
            found = places.get((target, fold), [])[:clips]
            require(len(found), 1, "esc50", f"clips of {CLASSES[target]} in fold {fold}")
            for clip in found:
                yield clip.fields["filename"], fold, target, read_audio(clip.path)


def _tones(source: MiniBuild, targets: Iterable[int], clips: int) -> Iterator[Row]:
    """Yield for each class a tone with its overtones, beating at a rate of its own, in noise."""
    rng = source.rng("esc50")
    seconds = np.arange(int(DURATION_S * SAMPLE_RATE)) / SAMPLE_RATE
    for target in targets:
        pitch, beat = 120 * 2 ** (target / 10), 1 + target % 7  # Hz
        for fold in FOLDS:
            for take in range(clips):
                pitched = 2 * np.pi * pitch * rng.uniform(0.97, 1.03) * seconds
                tone = sum(np.sin(k * pitched) / k for k in (1, 2, 3)) * (1 + np.sin(2 * np.pi * beat * seconds))
                samples = 0.1 * tone + rng.normal(0, 0.02, len(seconds))
                name = f"{fold}-{100000 + 100 * target + take}-{chr(65 + take % 26)}-{target}.wav"
                yield name, fold, target, samples.astype(np.float32)
