"""Where pairs come from: a table, or the folder of a corpus in its official layout."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s3prl_ext.corpora import ljspeech, vctk
from s3prl_ext.corpora.pairs import Pair, read_pairs
from s3prl_ext.errors import UsageError

CORPORA = (ljspeech.CORPUS, vctk.CORPUS)


def read_corpus(path: str, kind: str, root: str | None = None, split: str | None = None) -> list[Pair]:
    """Return all pairs of a table, or the training pairs of a corpus of transcribed speech.

    Args:
        path: a table, see :func:`s3prl_ext.corpora.pairs.read_pairs`; or a folder of LJ Speech or VCTK.
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
    corpus = next((c for c in CORPORA if any(_holds(place, c.card.contents[:2]) for place in _places(folder, c))), None)
    if corpus is None:
        known = " or ".join(c.card.name for c in CORPORA)
        raise UsageError(f"{path} is not a folder of {known}: give one, or a table with the columns path and text.")
    utterances = corpus.read(folder, "error")
    train = set(corpus.splits(utterances, split or corpus.group, needed=["train"])["train"])
    return [Pair(u.audio, u.audio if kind == "speech" else u.text) for u in utterances if u.id in train]


def _places(folder: Path, corpus: Any) -> tuple[Path, Path]:
    return folder, folder / corpus.card.folder


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).exists() for name in names)
