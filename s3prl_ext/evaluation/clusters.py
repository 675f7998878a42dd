"""Utterances that belong together: of one speaker, chapter or source recording.

Utterances of one speaker are not independent, so an interval over utterances is too narrow for what it says about other
speakers. The cluster bootstrap draws whole clusters (Field and Welsh, "Bootstrapping clustered data", 2007): errors and
words are summed over each cluster, and the sums take the place of utterances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from s3prl_ext.errors import DataError

UTTERANCE = "utterance"
FEW_CLUSTERS = 20  # clusters; the percentile interval of fewer is too narrow
# What an utterance's name says about its cluster, in the corpora whose names say it.
_NAMES: dict[str, tuple[str, ...]] = {
    "speaker": (
        r"(p\d+|s\d+)_\d+",  # VCTK: p225_001
        r"(\d+)-\d+-\d+",  # LibriSpeech: 1272-128104-0000
        r"([0-9a-f]{8})_nohash_\d+",  # Speech Commands
    ),
    "chapter": (r"(LJ\d+)-\d+", r"(\d+-\d+)-\d+"),  # LJ Speech: LJ001-0001; LibriSpeech
    "source": (r"\d-(\d+)-[A-Z]-\d+",),  # ESC-50: 1-100032-A-0.wav is a cut of Freesound's clip 100032
}
_CORPORA = {
    "speaker": "VCTK, LibriSpeech and Speech Commands", "chapter": "LJ Speech and LibriSpeech", "source": "ESC-50"
}  # fmt: skip
CLUSTERS = (UTTERANCE, *_NAMES)


def cluster_of(name: str, kind: str) -> str:
    """Return the cluster of an utterance.

    Args:
        name: of the utterance or its file, with or without folder and suffix.
        kind: one of :data:`CLUSTERS`.

    Raises:
        DataError: the name does not say it.
    """
    if kind == UTTERANCE:
        return name
    stem = re.sub(r"\.(wav|flac)$", "", PurePosixPath(name).name)
    for pattern in _NAMES[kind]:
        if found := re.fullmatch(pattern, stem):
            return found[1]
    raise DataError(
        f"the name {name} does not say its {kind}, which those of {_CORPORA[kind]} do: take another kind of interval."
    )


def sums(names: Sequence[str], columns: Sequence[Sequence[float]], kind: str) -> list[list[float]]:
    """Return each column summed over the clusters, in the order in which they come first.

    Args:
        names: of the utterances.
        columns: numbers for each utterance, such as errors and words.
        kind: one of :data:`CLUSTERS`.

    Raises:
        DataError: a name does not say its cluster, or all utterances are in one.
    """
    clusters = [cluster_of(name, kind) for name in names]
    order: Mapping[str, int] = {cluster: index for index, cluster in enumerate(dict.fromkeys(clusters))}
    if len(order) < 2 and kind != UTTERANCE:
        raise DataError(
            f"all {len(names)} utterances are of one {kind}: there is no interval over {kind}s, take utterances."
        )
    totals = [[0.0] * len(order) for _ in columns]
    for column, total in zip(columns, totals, strict=True):
        for cluster, value in zip(clusters, column, strict=True):
            total[order[cluster]] += value
    return totals


def described(kind: str, count: int) -> str:
    """Return what an interval is over, such as ``over 10 speakers``, with a warning where these are few."""
    few = (
        f" (with fewer than {FEW_CLUSTERS} it comes out too narrow)"
        if kind != UTTERANCE and count < FEW_CLUSTERS
        else ""
    )
    return f"over {count} {kind}s{few}"
