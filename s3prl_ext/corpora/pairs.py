"""Paired inputs for two encoders: audio with its transcript, an image, or other audio, from a table or a corpus."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from s3prl_ext.corpora import ljspeech, vctk
from s3prl_ext.corpora.transcribed import TranscribedCorpus, Utterance
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.reading import check_closed

# What the second encoder reads -> the column of the table that holds it.
COLUMNS = {"text": "text", "image": "image", "speech": "source_path"}
SHORTEST = 0.05  # seconds: a few frames of any speech model
SHOWN = 3  # rows named in a message
CORPORA = (ljspeech.CORPUS, vctk.CORPUS)


@dataclass(frozen=True)
class Pair:
    """One sample for two encoders.

    Attributes:
        audio: file for the target.
        other: transcript, or file of an image or of other audio, for the source.
    """

    audio: Path
    other: str | Path


def read_corpus(path: str, kind: str, root: str | None = None, split: str | None = None) -> list[Pair]:
    """Return all pairs of a table, or the training pairs of a corpus of transcribed speech.

    Args:
        path: a table, see :func:`read_pairs`; or a folder of LJ Speech or VCTK.
        kind: what the source reads: ``text``, ``image`` or ``speech``.
        root: folder that the paths of a table are relative to.
        split: rule or file that divides a corpus folder, see ``TranscribedCorpus.splits``; None for its own rule.

    Raises:
        UsageError: a folder of something else, or `root` or `split` where they have no meaning.
        DataError: a transcript without audio or the reverse, or an empty split.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if split:
            raise UsageError(f"split belongs to a corpus folder, but {path} is a table: list the pairs to use in it.")
        return read_pairs(path, kind, root)
    if root:
        raise UsageError(f"root belongs to a table of pairs, but {path} is a folder: leave it out.")
    if kind == "image":
        raise UsageError(f"{path} has no images: give a table with the columns path and image.")
    corpus = corpus_of(folder)
    if corpus is None:
        known = " or ".join(c.card.name for c in CORPORA)
        raise UsageError(f"{path} is not a folder of {known}: give one, or a table with the columns path and text.")
    utterances = training_utterances(folder, corpus, split)
    return [Pair(u.audio, u.audio if kind == "speech" else u.text) for u in utterances]


def corpus_of(folder: Path) -> TranscribedCorpus | None:
    """Return the corpus whose folder this is, None for a table or another folder."""
    return next((c for c in CORPORA if any(_holds(place, c.card.contents[:2]) for place in _places(folder, c))), None)


def training_utterances(
    folder: Path, corpus: TranscribedCorpus, split: str | None, on_missing: str = "error"
) -> list[Utterance]:
    """Return what a split rule or file calls train in the folder of a corpus; None for the corpus's own rule."""
    utterances = corpus.read(folder, on_missing)
    train = set(corpus.splits(utterances, split or corpus.group, needed=["train"])["train"])
    return [utterance for utterance in utterances if utterance.id in train]


def _places(folder: Path, corpus: TranscribedCorpus) -> tuple[Path, Path]:
    return folder, folder / corpus.card.folder


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).exists() for name in names)


def read_pairs(path: str | Path, kind: str = "text", root: str | Path | None = None) -> list[Pair]:
    """Read a table of pairs, tab-separated, whose first line names its columns; further columns are left alone.

    Args:
        path: the table, with the columns ``path`` and, by `kind`, ``text``, ``image`` or ``source_path``; for speech
            without that column both encoders hear ``path``.
        kind: what the second encoder reads, a key of :data:`COLUMNS`.
        root: folder that paths are relative to; None for that of the table.

    Raises:
        UsageError: no such table or kind.
        DataError: a column is missing, or a row lacks its audio or what belongs to it.
    """
    if kind not in COLUMNS:
        raise unknown_name("kind of paired input", kind, COLUMNS)
    table = Path(path).expanduser()
    if not table.is_file():
        raise UsageError(f"no such table of pairs: {table}; give a TSV with the columns path and {COLUMNS[kind]}.")
    folder = Path(root).expanduser() if root else table.parent
    rows = list(_rows(table, kind))
    problems = [problem for line, audio, other in rows if (problem := _problem(line, audio, other, kind, folder))]
    if problems:
        more = f"; and {len(problems) - SHOWN} more rows" if len(problems) > SHOWN else ""
        raise DataError(f"{table}: {'; '.join(problems[:SHOWN])}{more}: complete or remove these rows.")
    if not rows:
        raise DataError(f"{table} contains no pairs: give at least two rows below the line of column names.")
    return [Pair(folder / audio, other if kind == "text" else folder / other) for _, audio, other in rows]


def _rows(table: Path, kind: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, audio, what belongs to it) of each row that is not blank."""
    with open(table, encoding="utf-8", newline="") as file:
        try:
            reader = csv.DictReader(file, delimiter="\t")
            names = list(reader.fieldnames or ())
            column = "path" if kind == "speech" and COLUMNS[kind] not in names else COLUMNS[kind]
            for name in ("path", column):
                if name not in names:
                    raise DataError(
                        f"{table} lacks the column '{name}': its first line must name path and {COLUMNS[kind]}, "
                        f"separated by tabs, but names {', '.join(names) or 'nothing'}."
                    )
            for row in reader:
                audio, other = ((row[name] or "").strip() for name in ("path", column))
                check_closed((audio, other), f"{table}, line {reader.line_num}")
                yield reader.line_num, audio, other
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{table} is not readable as a table of UTF-8 text: {error}.") from error


def _problem(line: int, audio: str, other: str, kind: str, folder: Path) -> str | None:
    """Return what is wrong with a row, or None."""
    name = {"text": "transcript", "image": "image", "speech": "second audio"}[kind]
    if not audio:
        return f"line {line} has a {name} without audio"
    if not (folder / audio).is_file():
        return f"line {line} has a {name} without audio ({folder / audio} does not exist)"
    if not other:
        return f"line {line} has audio without {name} ({audio})"
    if kind != "text" and not (folder / other).is_file():
        return f"line {line} has audio without {name} ({folder / other} does not exist)"
    return None


def draw_pairs(pairs: Sequence[Pair], share: float, seed: int, where: str) -> list[Pair]:
    """Return a random part of the pairs in their order; the global random state is left alone.

    Args:
        share: part to draw, in (0, 1]; rounded to whole pairs.
        where: name of the table, for the error.

    Raises:
        DataError: fewer than two pairs would be left.
    """
    count = round(share * len(pairs))
    if count < 2:
        raise DataError(
            f"{where} holds too few pairs: {share:g} of {len(pairs)} is {count}, but at least 2 are needed "
            f"(hundreds for a reliable choice); give more pairs or a larger share."
        )
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return [pairs[index] for index in sorted(order[:count].tolist())]


def check_audio(pairs: Sequence[Pair]) -> None:
    """Check from their headers that all recordings can be read and are long enough.

    Raises:
        DataError: one cannot be read or is shorter than :data:`SHORTEST`.
    """
    for pair in pairs:
        try:
            seconds = soundfile.info(str(pair.audio)).duration
        except (soundfile.SoundFileError, OSError) as error:
            raise DataError(
                f"cannot read the audio file {pair.audio} ({error}): replace it or remove its row."
            ) from error
        if seconds < SHORTEST:
            raise DataError(f"{pair.audio} lasts {seconds:.3f} s, too short for a speech model: remove its row.")


def content_hash(item: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a text."""
    if isinstance(item, str):
        return hashlib.sha256(item.encode()).hexdigest()
    digest = hashlib.sha256()
    with open(item, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
