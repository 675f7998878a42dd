"""Corpora of transcribed speech: utterances, checks that every transcript has its audio, split lists."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import soundfile
from tqdm import tqdm

from s3prl_ext.corpora.archives import CorpusCard, download, unpack
from s3prl_ext.corpora.splits import SPLITS, hash_split
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.reading import parse_json

logger = logging.getLogger(__name__)

SPLIT_FILE = "splits.json"
ON_MISSING = ("error", "skip")


@dataclass(frozen=True)
class Utterance:
    """One transcribed recording.

    Attributes:
        id: name, unique in the corpus.
        audio: file of any sample rate.
        text: transcript as the corpus gives it.
        group: what splits keep together: the chapter (LJ Speech), the speaker (VCTK) or the part (LibriSpeech).
    """

    id: str
    audio: Path
    text: str
    group: str


@dataclass(frozen=True)
class TranscribedCorpus:
    """How one corpus is read and divided.

    Attributes:
        card: what it is and where it comes from.
        group: name of its own split rule, such as ``chapter``.
        read: returns the utterances of a folder; its second argument is one of :data:`ON_MISSING`.
        held_out: returns the groups that are dev and test, from all groups in sorted order.
        read_groups: as `read`, but only of some groups, where that is less work.
    """

    card: CorpusCard
    group: str
    read: Callable[[Path, str], list[Utterance]]
    held_out: Callable[[Sequence[str]], dict[str, list[str]]]
    read_groups: Callable[[Path, str, Collection[str]], list[Utterance]] | None = None

    def utterances(self, root: Path, on_missing: str, rule: str | Mapping[str, Sequence[str]]) -> list[Utterance]:
        """Return the utterances that a split rule needs; see :meth:`splits` for the rules."""
        if self.read_groups is not None and isinstance(rule, Mapping):
            return self.read_groups(root, on_missing, {group for groups in rule.values() for group in groups})
        return self.read(root, on_missing)

    def splits(
        self,
        utterances: Sequence[Utterance],
        rule: str | Mapping[str, Sequence[str]],
        needed: Sequence[str] = SPLITS,
    ) -> dict[str, list[str]]:
        """Return the ids of train, dev and test, each sorted.

        Args:
            rule: the corpus's own (``chapter``, ``speaker``, ``part``), ``hash`` (80/10/10 by id), a JSON file with the
                three lists, such as the ``splits.json`` of another run, or the groups of each split; these may have
                further names, such as ``test-other``, and are empty where nothing of their groups is there.
            needed: splits that must not be empty.

        Raises:
            UsageError: unknown rule.
            DataError: an empty split of those that are needed, a split of whose groups only some are there, or a list
                that names other utterances than the corpus has.
        """
        known = {u.id for u in utterances}
        if isinstance(rule, Mapping):
            _check_apart(rule)
            self._check_whole(rule, {u.group for u in utterances})
            return {name: sorted(u.id for u in utterances if u.group in groups) for name, groups in rule.items()}
        if rule == self.group:
            groups = sorted({u.group for u in utterances})
            held_out = {g: name for name, members in self.held_out(groups).items() for g in members}
            parts: dict[str, list[str]] = {name: [] for name in SPLITS}
            for u in utterances:
                parts[held_out.get(u.group, "train")].append(u.id)
            parts = {name: sorted(ids) for name, ids in parts.items()}
        elif rule == "hash":
            parts = hash_split(known)
        elif str(rule).endswith(".json"):
            parts = read_split_file(Path(rule), known)
        else:
            raise unknown_name("split rule (or file)", rule, (self.group, "hash", "FILE.json"))
        for name, ids in parts.items():
            if not ids and name in needed:
                raise DataError(
                    f"the split '{name}' of {self.card.name} by {rule} is empty: the {len(known)} utterances there "
                    "belong to other splits; complete the corpus, or use the split 'hash' on a part of it."
                )
        return parts

    def _check_whole(self, rule: Mapping[str, Sequence[str]], known: set[str]) -> None:
        for name, groups in rule.items():
            absent = [group for group in groups if group not in known]
            if absent and len(absent) < len(groups):
                raise DataError(
                    f"split: {name} names {', '.join(absent)}, of which {self.card.name} has no utterance here: "
                    "correct the list, or complete the corpus."
                )


def _check_apart(groups: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError where a group of train or dev is in another split too."""
    for (first, ones), (second, others) in combinations(groups.items(), 2):
        twice = sorted(set(ones) & set(others))
        if twice and {first, second} & {"train", "dev"}:
            raise UsageError(f"split: {twice[0]} is in {first} and in {second}: name it in one of them.")


def match_audio(
    texts: Mapping[str, str], audio: Mapping[str, Path], corpus: str, on_missing: str, expected: Iterable[str] = ()
) -> list[str]:
    """Return the sorted ids that have both text and audio.

    Args:
        texts: transcript by id.
        audio: file by id.
        corpus: its name and place, for messages.
        on_missing: ``error`` refuses an id without text or audio, ``skip`` leaves it out with a warning.
        expected: ids whose text or audio the official archive lacks itself: left out with a note.

    Raises:
        UsageError: unknown `on_missing`.
        DataError: an id lacks text or audio and `on_missing` is ``error``, or nothing is left.
    """
    if on_missing not in ON_MISSING:
        raise unknown_name("way with missing files (on_missing)", on_missing, ON_MISSING)
    expected = set(expected)
    lacking = {
        "transcripts have no audio": sorted(texts.keys() - audio.keys()),
        "recordings have no transcript": sorted(audio.keys() - texts.keys()),
    }
    for what, ids in lacking.items():
        official = [id for id in ids if id in expected]
        unexpected = [id for id in ids if id not in expected]
        if official:
            logger.info("%s: %d %s in the official archive, such as %s", corpus, len(official), what, official[0])
        if not unexpected:
            continue
        sentence = f"{corpus}: {len(unexpected)} {what}: {', '.join(unexpected[:3])}{' ...' * (len(unexpected) > 3)}"
        if on_missing == "error":
            raise DataError(
                f"{sentence}; complete the corpus, or leave them out with on_missing: skip (prepare: "
                "--on-missing skip)."
            )
        logger.warning("%s; left out", sentence)
    both = sorted(texts.keys() & audio.keys())
    if not both:
        raise DataError(f"{corpus} contains no recording with a transcript: check the path of the corpus.")
    return both


def read_split_file(path: Path, known: set[str]) -> dict[str, list[str]]:
    """Read the lists of a ``splits.json``; utterances that it does not name belong to no split.

    Besides train, dev and test it may have further lists, such as ``test-other``.

    Raises:
        DataError: the file is missing, malformed, names an utterance twice, or one that is not among `known`.
    """
    try:
        content = parse_json(Path(path).read_text(encoding="utf-8"))
        names = dict.fromkeys([*SPLITS, *(name for name, ids in content.items() if isinstance(ids, list))])
        parts = {name: sorted(map(str, content[name])) for name in names}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a file of splits with the lists train, dev and test ({error}).") from error
    named = [id for ids in parts.values() for id in ids]
    strangers = sorted(set(named) - known)
    if strangers:
        raise DataError(f"{path} names {len(strangers)} utterances that the corpus lacks, such as {strangers[0]}.")
    twice = [id for ids in parts.values() for id, count in Counter(ids).items() if count > 1]
    for first, second in combinations(parts, 2):
        if {first, second} & {"train", "dev"} or {first, second} <= {*SPLITS}:  # test sets may overlap
            twice += sorted({*parts[first]} & {*parts[second]})
    if twice:
        raise DataError(f"{path} names the utterance {twice[0]} twice: an utterance belongs to one split.")
    return parts


def corpus_folder(root: Path, corpus: CorpusCard) -> Path:
    """Return `root`, or the corpus folder in it, whichever holds the corpus.

    Raises:
        DataError: neither does.
    """
    root = Path(root)
    for folder in (root, root / corpus.folder):
        if all((folder / name).exists() for name in corpus.contents[:2]):
            return folder
    lacking = [name for name in corpus.contents[:2] if not (root / name).exists()]
    raise DataError(
        f"{root} is not a folder of {corpus.name}: it lacks {' and '.join(lacking)}; give the folder that holds "
        f"{' and '.join(corpus.contents[:2])}."
    )


def validate(corpus: TranscribedCorpus, root: Path, on_missing: str = "error") -> str:
    """Read every transcript and the header of every recording; return a summary in one sentence.

    Args:
        on_missing: one of :data:`ON_MISSING`.

    Raises:
        DataError: text or audio is missing or unreadable.
    """
    utterances = corpus.read(root, on_missing)
    seconds, rates = 0.0, set()
    for utterance in tqdm(utterances, desc=corpus.card.name, unit="clip"):
        try:
            info = soundfile.info(str(utterance.audio))
        except (soundfile.SoundFileError, OSError) as error:
            raise DataError(
                f"cannot read the audio file {utterance.audio} ({error}): unpack the archive again."
            ) from error
        seconds += info.duration
        rates.add(info.samplerate)
    groups = len({u.group for u in utterances})
    kind = corpus.group if groups == 1 else f"{corpus.group}s"
    return (
        f"{corpus.card.name}: {len(utterances)} utterances, {groups} {kind}, {seconds / 3600:.2f} h, "
        f"{', '.join(map(str, sorted(rates)))} Hz"
    )


def prepare(corpus: TranscribedCorpus, name: str, argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare NAME``: show the card, fetch and unpack the archive, or check a folder."""
    parser = argparse.ArgumentParser(
        prog=f"s3prl-ext prepare {name}",
        description=str(corpus.card),
        epilog=f"example:\n  s3prl-ext prepare {name} --out corpora --download\n"
        f"  export {name.upper()}=corpora/{corpus.card.folder}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, help=f"folder of the archive and of {corpus.card.folder}/")
    place.add_argument("--validate", type=Path, metavar="DIR", help="only check the corpus in this folder")
    parser.add_argument("--download", action="store_true", help="fetch the archive where it is missing; resumes")
    parser.add_argument("--on-missing", choices=ON_MISSING, default="error",
                        help="a transcript without audio, or the reverse: stop, or leave it out (default: "
                        "error)")  # fmt: skip
    args = parser.parse_args(argv)
    if args.validate:
        folder = args.validate
    else:
        folder = (download if args.download else unpack)(corpus.card, args.out)
    print(validate(corpus, folder, args.on_missing))
    print(f"export {name.upper()}={corpus_folder(folder, corpus.card).absolute()}")
    return 0
