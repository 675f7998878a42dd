"""Nested training subsets of LibriSpeech (``s3prl-ext prepare low_resource``; AD-TUNING, Figs. 5 and 6).

With Libri-Light's ``librispeech_finetuning``: 10 h and 1 h are its official lists, 0.5 h is the first three of the six
official folds of ten minutes, 5 h is the 1 h and a seeded draw from the rest in which each speaker, hence each gender
and each of clean and other, has half of its share of the 10 h. Without it: a seeded draw from train-clean-100 with as
many speakers as Libri-Light's lists have, half of them women, in turn. ``subsets.json`` says which of the two it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import read_lines
from s3prl_ext.settings import as_number
from s3prl_ext.writing import written_folder

logger = logging.getLogger(__name__)

HOURS = (0.5, 1.0, 5.0, 10.0)
SOURCE_SPLIT = "train-clean-100"
OTHER_SPLITS = ("dev-clean", "test-clean")
SPEAKERS = 24  # in each of Libri-Light's lists of 1 and 10 hours
HALF_HOUR_FOLDS = ("0", "1", "2")  # of 1h/0 ... 1h/5, ten minutes each
OFFICIAL, DRAWN = "Libri-Light", f"seeded draw from {SOURCE_SPLIT}"


@dataclass(frozen=True)
class LibriClip:
    """One utterance of LibriSpeech: ``SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac``, and its length in seconds."""

    path: Path
    seconds: float

    @property
    def speaker(self) -> str:
        """Number of the speaker."""
        return self.path.stem.split("-")[0]


def draw(
    recordings: Iterable[LibriClip],
    genders: dict[str, str],
    hours: Sequence[float],
    seed: int,
    speakers: int = SPEAKERS,
) -> dict[float, list[LibriClip]]:
    """Return for each of `hours` a subset that holds the smaller ones.

    Genders take turns, and the speakers of each. An exhausted speaker is followed by another one of the same gender.

    Args:
        recordings: what to draw from.
        genders: ``F`` or ``M`` by speaker; speakers without one form a group of their own.
        hours: sizes, in hours of speech.
        seed: decides about speakers and order.
        speakers: how many take part as long as they have recordings.

    Raises:
        DataError: there is less speech than asked for.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, dict[str, list[LibriClip]]] = {}
    for recording in sorted(recordings, key=lambda r: r.path.name):
        group = groups.setdefault(genders.get(recording.speaker, ""), {})
        group.setdefault(recording.speaker, []).append(recording)
    turns = [_turns(groups[name], max(1, speakers // len(groups)), rng) for name in sorted(groups)]
    order = [one for step in _zip_longest(turns) for one in step]
    return _prefixes(order, {size: size * 3600 for size in hours})


def official(
    folds: dict[str, list[LibriClip]],
    nine: Sequence[LibriClip],
    hours: Sequence[float],
    seed: int,
) -> dict[float, list[LibriClip]]:
    """Return Libri-Light's subsets, nested; see the head of this module for 0.5 and 5 hours.

    Args:
        folds: recordings of the six folds ``1h/0`` to ``1h/5``, by the fold's name.
        nine: recordings of ``9h``.
        hours: out of :data:`HOURS`.
        seed: decides about the rest of the 5 hours.

    Raises:
        UsageError: another size.
    """
    unknown = [size for size in hours if size not in HOURS]
    if unknown:
        raise UsageError(f"Libri-Light has no subset of {unknown[0]:g} h: choose from {_listed(HOURS)}.")
    half = [one for name in HALF_HOUR_FOLDS for one in folds[name]]
    hour = half + [one for name in sorted(folds) if name not in HALF_HOUR_FOLDS for one in folds[name]]
    ten = [*hour, *nine]
    five = hour + _fill_halves(hour, nine, np.random.default_rng(seed))
    made = {0.5: half, 1.0: hour, 5.0: five, 10.0: ten}
    return {size: made[size] for size in hours}


def _fill_halves(hour: Sequence[LibriClip], nine: Sequence[LibriClip], rng: np.random.Generator) -> list[LibriClip]:
    """Return recordings of `nine` that bring every speaker as near as possible to half of its seconds."""
    chosen = []
    speakers = sorted({one.speaker for one in (*hour, *nine)})
    for speaker in speakers:
        rest = sorted((one for one in nine if one.speaker == speaker), key=lambda r: r.path.name)
        have = sum(one.seconds for one in hour if one.speaker == speaker)
        half = (have + sum(one.seconds for one in rest)) / 2
        for index in rng.permutation(len(rest)):
            if abs(have + rest[index].seconds - half) <= abs(have - half):
                chosen.append(rest[index])
                have += rest[index].seconds
    return chosen


def _turns(group: dict[str, list[LibriClip]], active: int, rng: np.random.Generator) -> list[LibriClip]:
    """Return all recordings of a group, `active` speakers in turn."""
    names = sorted(group)
    waiting = [[group[names[i]][j] for j in rng.permutation(len(group[names[i]]))] for i in rng.permutation(len(names))]
    at_work = [waiting.pop(0) for _ in range(min(active, len(waiting)))]
    order = []
    while at_work:
        for place in range(len(at_work)):
            order.append(at_work[place].pop())
            if not at_work[place] and waiting:
                at_work[place] = waiting.pop(0)
        at_work = [rest for rest in at_work if rest]
    return order


def _zip_longest(lists: Sequence[Sequence[LibriClip]]) -> Iterable[list[LibriClip]]:
    for index in range(max(map(len, lists), default=0)):
        yield [one[index] for one in lists if index < len(one)]


def _prefixes(order: Sequence[LibriClip], seconds: dict[float, float]) -> dict[float, list[LibriClip]]:
    """Return for each size the shortest beginning of `order` that has so many seconds."""
    ends = np.cumsum([one.seconds for one in order])
    total = float(ends[-1]) if len(order) else 0.0
    for size, wanted in seconds.items():
        if wanted > total:
            raise DataError(
                f"there are {total / 3600:.2f} h of speech, but {size:g} h are asked for: give all of {SOURCE_SPLIT}, "
                "or fewer --hours."
            )
    return {size: list(order[: int(np.searchsorted(ends, wanted)) + 1]) for size, wanted in seconds.items()}


# -- files -------------------------------------------------------------------------------------------------------------


def read_folder(folder: Path) -> list[LibriClip]:
    """Return all recordings below a folder, with their lengths.

    Raises:
        DataError: there is none, or one cannot be read.
    """
    paths = listed(folder, "**/*.flac")
    if not paths:
        raise DataError(f"{folder} contains no .flac file: give the folder that LibriSpeech or Libri-Light unpacks to.")
    try:
        return [
            LibriClip(path, soundfile.info(str(path)).duration)
            for path in tqdm(paths, desc=f"lengths of {folder.name}", leave=False)
        ]
    except soundfile.LibsndfileError as error:
        raise DataError(f"a recording below {folder} cannot be read: {error}.") from error


def read_genders(librispeech: Path) -> dict[str, str]:
    """Return ``F`` or ``M`` by speaker from ``SPEAKERS.TXT``.

    Empty, with a warning, where the corpus has no such file.
    """
    table = librispeech / "SPEAKERS.TXT"
    if not table.is_file():
        logger.warning("%s is missing: the draw is not balanced by gender", table)
        return {}
    rows = [line.split("|") for line in read_lines(table) if not line.startswith(";")]
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


def build(
    out: Path, librispeech: Path, librilight: Path | None = None, hours: Sequence[float] = HOURS, seed: int = 0
) -> list[str]:
    """Write a LibriSpeech folder whose training splits ``train-0.5h`` and so on are links; return one line for each.

    Args:
        out: new folder; besides the splits it gets ``dev-clean`` and ``test-clean``, ``subsets.json`` and ``env.sh``.
        librispeech: folder with ``train-clean-100``, ``dev-clean``, ``test-clean``.
        librilight: Libri-Light's ``librispeech_finetuning``, or None for a draw.
        hours: sizes.
        seed: decides what is not official.

    Raises:
        UsageError: `out` already exists, a size that cannot be.
        DataError: a folder or transcript is missing, or there is too little speech.
    """
    out, librispeech = Path(out).absolute(), Path(librispeech).absolute()
    hours = sorted(set(hours))
    if not hours or hours[0] <= 0:
        raise UsageError("--hours takes sizes above 0, such as 0.5,1,5,10.")
    if out.exists():
        raise UsageError(f"{out} already exists: give a new folder, or remove it.")
    for split in OTHER_SPLITS:
        if not (librispeech / split).is_dir():
            raise DataError(f"{librispeech} lacks {split}: give the folder that holds {SOURCE_SPLIT} and {split}.")
    if librilight is not None:
        folds = {name: read_folder(Path(librilight).absolute() / "1h" / name) for name in map(str, range(6))}
        subsets = official(folds, read_folder(Path(librilight).absolute() / "9h"), hours, seed)
    else:
        subsets = draw(read_folder(librispeech / SOURCE_SPLIT), read_genders(librispeech), hours, seed)
    with written_folder(out) as partial:
        for size, members in subsets.items():
            _write_split(partial / name_of(size), members)
        for name in (*OTHER_SPLITS, "lexicon.txt", "SPEAKERS.TXT"):
            if (librispeech / name).exists():
                (partial / name).symlink_to(librispeech / name)
        record = _record(subsets, OFFICIAL if librilight is not None else DRAWN, seed)
        (partial / "subsets.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (partial / "env.sh").write_text(f"export LIBRISPEECH={shlex.quote(str(out))}\n", encoding="utf-8")
    return [
        f"{name}: {row['hours']:.3f} h, {row['utterances']} utterances, {row['speakers']} speakers ({record['source']})"
        for name, row in record["subsets"].items()
    ]


def name_of(hours: float) -> str:
    """Return the name of a subset's split: ``train-0.5h``."""
    return f"train-{hours:g}h"


def _write_split(folder: Path, members: Sequence[LibriClip]) -> None:
    texts: dict[Path, dict[str, str]] = {}
    for one in members:
        chapter = one.path.parent
        if chapter not in texts:
            lines = [row for file in listed(chapter, "*.trans.txt") for row in read_lines(file)]
            texts[chapter] = dict(line.split(" ", 1) for line in lines if " " in line)
        if one.path.stem not in texts[chapter]:
            raise DataError(f"{chapter} contains no transcript of {one.path.name}: complete its .trans.txt.")
        speaker, number, _ = one.path.stem.split("-")
        target = folder / speaker / number
        target.mkdir(parents=True, exist_ok=True)
        (target / one.path.name).symlink_to(one.path)
        with open(target / f"{speaker}-{number}.trans.txt", "a", encoding="utf-8") as file:
            file.write(f"{one.path.stem} {texts[chapter][one.path.stem]}\n")


def _record(subsets: dict[float, list[LibriClip]], source: str, seed: int) -> dict[str, Any]:
    rows = {
        name_of(size): {
            "hours": sum(one.seconds for one in members) / 3600,
            "utterances": len(members),
            "speakers": len({one.speaker for one in members}),
            "sha256": hashlib.sha256("\n".join(sorted(one.path.stem for one in members)).encode()).hexdigest(),
        }
        for size, members in subsets.items()
    }
    return {"source": source, "seed": seed, "subsets": rows}


def _listed(hours: Iterable[float]) -> str:
    return ", ".join(f"{size:g}" for size in hours)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare low_resource``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare low_resource",
        description="Make nested training subsets of LibriSpeech, as links, for low-resource studies.",
        epilog="example:\n  s3prl-ext prepare low_resource --librispeech LibriSpeech --librilight "
        "librispeech_finetuning \\\n      --out low_resource\n  . low_resource/env.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--librispeech", type=Path, required=True, help=f"folder with {SOURCE_SPLIT}, dev-clean, test-clean"
    )
    parser.add_argument(
        "--librilight", type=Path, help="Libri-Light's librispeech_finetuning; without it: a seeded draw"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--hours", default=_listed(HOURS), help="sizes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    flags = parser.parse_args(argv)
    hours = [as_number(size.strip(), "--hours") for size in flags.hours.split(",") if size.strip()]
    for line in build(flags.out, flags.librispeech, flags.librilight, hours, flags.seed):
        print(line)
    return 0
