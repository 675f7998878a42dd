"""Transcripts of a scored split, line by line in a file, and what changed between two models (MAM, Tables 4 and 6)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import editdistance

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.error_rates import Edit, ErrorCounts, align, count_errors, total, units
from s3prl_ext.reading import parse_json
from s3prl_ext.tasks import writers_of
from s3prl_ext.writing import written

MARK = "*"  # on both sides of a word that differs
CATEGORIES = {"insert": "insertion", "substitute": "substitution", "delete": "deletion"}


@dataclass(frozen=True)
class ScoredTranscript:
    """One utterance, after the text rule.

    Attributes:
        id: the utterance.
        reference, hypothesis: what was said and what was recognised.
        errors, words: word errors, and words of the reference.
        character_errors, characters: the same in characters.
    """

    id: str
    reference: str
    hypothesis: str
    errors: int
    words: int
    character_errors: int
    characters: int


@dataclass(frozen=True)
class TranscriptPair:
    """One utterance recognised by two models.

    Attributes:
        drop: word errors of the baseline minus those of the other model; above 0 = improved.
        baseline, merged: the two hypotheses, each word that differs between stars.
    """

    id: str
    drop: int
    reference: str
    baseline: str
    merged: str


@dataclass(frozen=True)
class Improvements:
    """What a model put right (MAM, Table 6).

    Attributes:
        utterances: utterances with fewer word errors than the baseline's.
        confirmed: character edits from baseline to merged hypothesis that the reference confirms, by category.
        change: change of the character error counts of the same utterances, by kind of error; below 0 = fewer.
    """

    utterances: int
    confirmed: dict[str, int]
    change: dict[str, int]

    @property
    def shares(self) -> dict[str, float]:
        """Confirmed edits in per cent, which sum to 100; all 0 where there is none."""
        every = sum(self.confirmed.values())
        return {name: 100.0 * count / every if every else 0.0 for name, count in self.confirmed.items()}


def transcript(id: str, reference: str, hypothesis: str) -> ScoredTranscript:
    """Count the errors of one utterance; both texts have gone through the text rule."""
    words, characters = count_errors(reference, hypothesis), count_errors(reference, hypothesis, "characters")
    return ScoredTranscript(id, reference, hypothesis, words.errors, words.length, characters.errors, characters.length)


def write_transcripts(transcripts: Iterable[ScoredTranscript], path: Path) -> None:
    """Write one JSON object per line; the file appears when it is complete."""
    with written(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for one in transcripts:
            file.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")


def read_transcripts(path: Path) -> list[ScoredTranscript]:
    """Read what :func:`write_transcripts` wrote.

    Raises:
        DataError: the file is missing, empty, no text, or has a line of another kind.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("transcripts-*.jsonl"))
        remedy = (
            f"name {' or '.join(inside)} in it"
            if inside
            else f"an evaluation of {writers_of('transcripts')} writes transcripts-SPLIT.jsonl there"
        )
        raise DataError(f"{path} is a folder, not a file of transcripts: {remedy}.")
    if not path.is_file():
        raise DataError(f"no such file of transcripts: {path}; an evaluation of {writers_of('transcripts')} writes it.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): evaluate again.") from error
    transcripts = [_parse(line, path, number) for number, line in enumerate(lines, 1) if line or number < len(lines)]
    if not transcripts:
        raise DataError(f"{path} contains no transcript: evaluate again.")
    return transcripts


def compare(baseline: Sequence[ScoredTranscript], merged: Sequence[ScoredTranscript]) -> list[TranscriptPair]:
    """Return every utterance on which two models differ, the largest drop in word errors first (MAM, Table 4).

    Raises:
        DataError: the two hold other utterances or references.
    """
    changed = [
        TranscriptPair(a.id, a.errors - b.errors, a.reference, *mark_differences(a.hypothesis, b.hypothesis))
        for a, b in pair(baseline, merged)
        if a.hypothesis != b.hypothesis
    ]
    return sorted(changed, key=lambda row: (-row.drop, row.id))


def improvements(baseline: Sequence[ScoredTranscript], merged: Sequence[ScoredTranscript]) -> Improvements:
    """Categorise what a model put right, over the utterances whose word errors fell (MAM, Table 6).

    The baseline's hypothesis is aligned with the merged model's in characters. An edit counts where the reference
    confirms it: made by itself, it brings the baseline's hypothesis closer to the reference.

    Raises:
        DataError: the two hold other utterances or references.
    """
    improved = [(a, b) for a, b in pair(baseline, merged) if b.errors < a.errors]
    confirmed = dict.fromkeys(CATEGORIES.values(), 0)
    for a, b in improved:
        for kind in confirmed_edits(a.reference, a.hypothesis, b.hypothesis):
            confirmed[CATEGORIES[kind]] += 1
    before = total(count_errors(a.reference, a.hypothesis, "characters") for a, _ in improved)
    after = total(count_errors(b.reference, b.hypothesis, "characters") for _, b in improved)
    return Improvements(len(improved), confirmed, _change(before, after))


def confirmed_edits(reference: str, baseline: str, merged: str) -> list[str]:
    """Return the kind of each one-character edit from `baseline` to `merged` that brings it closer to `reference`."""
    source, target = units(baseline, "characters"), units(merged, "characters")
    distance = count_errors(reference, baseline, "characters").errors
    kinds = []
    for edit in _single(align(baseline, merged, "characters")):
        (start, end), (first, last) = edit.first, edit.second
        edited = source[:start] + target[first:last] + source[end:]
        if editdistance.eval(units(reference, "characters"), edited) < distance:
            kinds.append(edit.kind)
    return kinds


def mark_differences(first: str, second: str) -> tuple[str, str]:
    """Return two texts with stars around each word that the other has not in its place."""
    words, others = units(first), units(second)
    for edit in align(first, second):
        if edit.kind != "equal":
            words[slice(*edit.first)] = [f"{MARK}{word}{MARK}" for word in words[slice(*edit.first)]]
            others[slice(*edit.second)] = [f"{MARK}{word}{MARK}" for word in others[slice(*edit.second)]]
    return " ".join(words), " ".join(others)


def pair(
    first: Sequence[ScoredTranscript], second: Sequence[ScoredTranscript]
) -> list[tuple[ScoredTranscript, ScoredTranscript]]:
    """Return the transcripts of the same utterances side by side, in the order of `first`.

    Raises:
        DataError: utterances or references differ.
    """
    others = {one.id: one for one in second}
    if {one.id for one in first} != others.keys() or len(first) != len(second):
        differing = len({one.id for one in first} ^ others.keys())
        raise DataError(
            f"the two files of transcripts differ in {differing} utterances: score the same split with both."
        )
    for one in first:
        if one.reference != others[one.id].reference:
            raise DataError(f"the references of {one.id} differ: score both models with the same text rule.")
    return [(one, others[one.id]) for one in first]


def _single(edits: Iterable[Edit]) -> Iterable[Edit]:
    """Yield the edits of an alignment one unit at a time, without the equal stretches."""
    for edit in edits:
        if edit.kind == "equal":
            continue
        (start, end), (first, last) = edit.first, edit.second
        for step in range(max(end - start, last - first)):
            a = (start + step, start + step + 1) if edit.kind != "insert" else (start, start)
            b = (first + step, first + step + 1) if edit.kind != "delete" else (first, first)
            yield Edit(edit.kind, a, b)


def _change(before: ErrorCounts, after: ErrorCounts) -> dict[str, int]:
    return {
        "insertions": after.insertions - before.insertions,
        "substitutions": after.substitutions - before.substitutions,
        "deletions": after.deletions - before.deletions,
    }


def _parse(line: str, path: Path, number: int) -> ScoredTranscript:
    try:
        content: dict[str, Any] = parse_json(line)
        for field in fields(ScoredTranscript):
            if not isinstance(content[field.name], str if field.type == "str" else int):
                raise TypeError(f"{field.name}: {content[field.name]!r}")
        return ScoredTranscript(**{field.name: content[field.name] for field in fields(ScoredTranscript)})
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"line {number} of {path} is not a transcript ({error!r}): evaluate again.") from error
