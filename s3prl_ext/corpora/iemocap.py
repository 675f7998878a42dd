"""IEMOCAP for emotion recognition (``s3prl-ext prepare iemocap``): the lists of its five folds, and their check.

``SessionN/sentences/wav/DIALOGUE/UTTERANCE.wav`` are the turns, ``SessionN/dialog/EmoEvaluation/DIALOGUE.txt`` their
emotions. Fold N tests on session N and trains on the other four, so the speakers of a test are in no training.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.corpora.listing import listed
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import parse_json, read_lines, read_text
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
EMOTIONS = ("neu", "hap", "ang", "sad")  # in the order of the head's outputs
MERGED = {"exc": "hap"}  # excitement counts as happiness; other emotions are left out
UTTERANCES = 5531  # of the four classes in the whole corpus
META_DATA = "meta_data"
PARTS = ("train", "test")


def list_file(meta_data: Path, session: str, part: str) -> Path:
    """Return the list of a fold's training (with dev) or test; the fold is named by its test session."""
    return meta_data / session / f"{part}_meta_data.json"


def utterances_of(root: Path, session: str) -> list[dict[str, str]]:
    """Return path below `root`, emotion and dialogue of each turn of a session that has one of the four emotions.

    They come by dialogue and time, which is the same on every disk.

    Raises:
        DataError: the session has no folder of emotions, or none of its turns is there.
    """
    evaluations = root / session / "dialog" / "EmoEvaluation"
    if not evaluations.is_dir():
        raise DataError(f"no such folder: {evaluations}; {root} must hold IEMOCAP's {SESSIONS[0]}/ to {SESSIONS[-1]}/.")
    clips = {path.stem: path for path in listed(root / session / "sentences" / "wav", "**/*.wav")}
    found = []
    for table in listed(evaluations, "*.txt"):
        for line in read_lines(table):
            fields = [field for field in line.split("\t") if field]
            if not line.startswith("[") or len(fields) < 3:
                continue
            emotion, clip = MERGED.get(fields[2], fields[2]), clips.get(fields[1])
            if emotion in EMOTIONS and clip is not None:
                speaker = clip.name.partition("_")[0]
                found.append({"path": clip.relative_to(root).as_posix(), "label": emotion, "speaker": speaker})
    if not found:
        raise DataError(
            f"{root / session} contains no turn that is {', '.join(EMOTIONS)} or excited: unpack IEMOCAP again."
        )
    return found


def write_lists(root: Path, overwrite: bool = False) -> Counter[str]:
    """Write the lists of all five folds below ``meta_data/`` of a corpus; return how often each emotion occurs.

    Args:
        root: folder of the corpus.
        overwrite: replace lists that are there and differ.

    Raises:
        DataError: see :func:`utterances_of`; or lists are there and differ.
    """
    turns = {session: utterances_of(root, session) for session in SESSIONS}
    lists: dict[Path, Any] = {}
    for session in SESSIONS:
        others = [turn for other in SESSIONS if other != session for turn in turns[other]]
        for part, rows in zip(PARTS, (others, turns[session]), strict=True):
            path = list_file(root / META_DATA, session, part)
            lists[path] = {"labels": {name: i for i, name in enumerate(EMOTIONS)}, "meta_data": rows}
    other = next((path for path, content in lists.items() if path.is_file() and _content(path) != content), None)
    if other is not None and not overwrite:
        raise DataError(
            f"{other} is another list than these turns give, and models may have been trained by it: keep it, or "
            "replace all lists with --overwrite."
        )
    for path, content in lists.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    return Counter(turn["label"] for rows in turns.values() for turn in rows)


def _content(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except (ValueError, DataError):
        return None


def check_fold(root: Path, meta_data: Path, fold: str) -> None:
    """Check the lists of a fold before s3prl reads them: labels, where their clips lie, which sessions they are of.

    Args:
        root: folder of the corpus.
        meta_data: folder of the lists.
        fold: ``fold1`` to ``fold5``.

    Raises:
        DataError: naming what is missing, the list with a wrong line, a clip that is in both parts, or lists that
            number their emotions differently.
    """
    if not root.is_dir():
        raise DataError(
            f"no such IEMOCAP folder: {root}; set IEMOCAP, or config.downstream_expert.datarc.root with -o."
        )
    session = fold.replace("fold", "Session")
    found = {part: _list(list_file(meta_data, session, part)) for part in PARTS}
    labels = {part: numbers for part, (numbers, _) in found.items()}
    rows = {part: names for part, (_, names) in found.items()}
    if labels["train"] != labels["test"]:
        train, test = (list_file(meta_data, session, part) for part in PARTS)
        shown = [", ".join(f"{name} {number}" for name, number in labels[part].items()) for part in PARTS]
        raise DataError(
            f"{train} numbers its emotions {shown[0]}, but {test} has {shown[1]}, so that right answers would count as "
            f"wrong: make the lists again, `s3prl-ext prepare iemocap --root {root} --overwrite`."
        )
    for part, expected in zip(PARTS, ({*SESSIONS} - {session}, {session}), strict=True):
        path = list_file(meta_data, session, part)
        for name in rows[part]:
            if _session(name) not in expected:
                raise DataError(
                    f"{path} lists {name}, but {fold} {'tests on' if part == 'test' else 'trains on all but'} "
                    f"{session}: make the lists again, `s3prl-ext prepare iemocap --root {root}`."
                )
        missing = next((name for name in rows[part] if not (root / name).is_file()), None)
        if missing is not None:
            raise DataError(f"{path} lists {missing}, which is not below {root}: complete the corpus.")


def _list(path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the numbers of the emotions and the paths of a list whose lines have a known emotion."""
    if not path.is_file():
        raise DataError(
            f"no such list: {path}; `s3prl-ext prepare iemocap --root IEMOCAP` makes those of all five folds."
        )
    try:
        content: Any = parse_json(read_text(path))
        labels, rows = content["labels"], content["meta_data"]
        names = [str(row["path"]) for row in rows]
        wrong = next((row for row in rows if row["label"] not in labels), None)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a list of s3prl's emotion recognition ({error}): make it again.") from error
    if wrong is not None or sorted(labels.values()) != list(range(len(labels))) or not names:
        raise DataError(
            f"{path}: the label of {wrong} is not among {', '.join(labels)}, or it has no line: make it again."
        )
    return labels, names


def _session(path: str) -> str:
    """Return the session that a clip's path names; the speaker's name, ``Ses01F``, must agree."""
    parts = Path(path).parts
    session = next((part for part in parts if part in SESSIONS), parts[0] if parts else "")
    spoken = parts[-1][3:5] if parts and parts[-1].startswith("Ses") else ""
    return session if not spoken or session.endswith(spoken.lstrip("0")) else f"{session} (of Session{spoken})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare iemocap``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare iemocap",
        description="Write the lists of IEMOCAP's five folds, four emotions, into its folder meta_data/.\n"
        "The corpus itself is given out on request: https://sail.usc.edu/iemocap/",
        epilog="example:\n  s3prl-ext prepare iemocap --root IEMOCAP_full_release\n  export "
        "IEMOCAP=IEMOCAP_full_release",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder that holds Session1/ to Session5/")
    parser.add_argument("--overwrite", action="store_true", help="replace lists that are there and differ")
    args = parser.parse_args(argv)
    if not args.root.is_dir():
        raise UsageError(f"no such folder: {args.root} (--root).")
    counts = write_lists(args.root, args.overwrite)
    print(f"{_total(counts.items())}\nexport IEMOCAP={args.root.absolute()}")
    if sum(counts.values()) != UTTERANCES:
        logger.warning("the whole corpus has %d utterances of these emotions: this one is not whole", UTTERANCES)
    return 0


def _total(counts: Iterable[tuple[str, int]]) -> str:
    rows = list(counts)
    return f"{sum(n for _, n in rows)} utterances: " + ", ".join(f"{name} {n}" for name, n in rows)
