"""ESC-50: 2000 environmental recordings of 5 s, 50 classes, five official folds (``s3prl-ext prepare esc50``).

``ESC-50-master/meta/esc50.csv`` names each clip's file, fold and class; ``ESC-50-master/audio/`` holds the clips as
44.1 kHz WAV. Clips cut from one original recording are in one fold, so folds must not be mixed.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from s3prl_ext.corpora.archives import CorpusCard
from s3prl_ext.corpora.listing import listed
from s3prl_ext.corpora.splits import SPLITS, hash_split
from s3prl_ext.errors import DataError, UsageError, unknown_name

logger = logging.getLogger(__name__)

CARD = CorpusCard(
    name="ESC-50",
    licence="CC BY-NC 3.0 (the ESC-10 subset: CC BY 3.0); each clip's author is named in its LICENSE file",
    homepage="https://github.com/karolpiczak/ESC-50",
    url="https://github.com/karolpiczak/ESC-50/archive/master.zip",
    checksum="",
    checksum_from="the archive is made on request from the repository; its authors publish no checksum",
    size=0,
    citation='K. J. Piczak, "ESC: Dataset for Environmental Sound Classification", ACM Multimedia 2015',
    layout="audio/FOLD-SOURCE-TAKE-TARGET.wav, meta/esc50.csv with filename, fold, target and category",
    folder="ESC-50-master",
    contents=("audio", "meta/esc50.csv"),
    also_named=("ESC-50-master.zip",),
)

FOLDS = (1, 2, 3, 4, 5)
CLIPS = 2000
DURATION_S = 5.0
META = Path("meta") / "esc50.csv"
COLUMNS = ("filename", "fold", "target", "category")
SPLIT_RULES = ("folds", "hash")

# index = target in meta/esc50.csv
CLASSES: tuple[str, ...] = (
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow",
    "rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds",
    "water_drops", "wind", "pouring_water", "toilet_flush", "thunderstorm",
    "crying_baby", "sneezing", "clapping", "breathing", "coughing",
    "footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping",
    "door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening",
    "washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking",
    "helicopter", "chainsaw", "siren", "car_horn", "engine",
    "train", "church_bells", "airplane", "fireworks", "hand_saw",
)  # fmt: skip


@dataclass(frozen=True)
class Esc50Clip:
    """One line of ``meta/esc50.csv``.

    Attributes:
        path: the audio file.
        fold: official fold, 1 to 5.
        target: class, index into :data:`CLASSES`.
    """

    path: Path
    fold: int
    target: int

    @property
    def name(self) -> str:
        """File name without suffix, such as ``1-100032-A-0``."""
        return self.path.stem

    @property
    def recording(self) -> str:
        """Number of the recording on Freesound that it was cut from, or its own name where that does not say it."""
        parts = self.name.split("-")
        return parts[1] if len(parts) == 4 else self.name

    @property
    def category(self) -> str:
        """Name of the class."""
        return CLASSES[self.target]


def read_clips(root: Path) -> list[Esc50Clip]:
    """Return all clips of the corpus, sorted by name.

    Args:
        root: ``ESC-50-master`` or the folder that holds it.

    Raises:
        DataError: the table is missing or has a bad line, a line has no audio, or an audio file has no line.
    """
    root = folder_of(root)
    try:
        text = (root / META).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{root / META} is not UTF-8 text ({error}): unpack the archive again.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{root / META} lacks the column '{missing[0]}': it is not the table of ESC-50.")
    clips = [_clip(row, root, line) for line, row in enumerate(reader, 2)]
    _check_audio({clip.path.name for clip in clips}, len(clips), root)
    return sorted(clips, key=lambda clip: clip.name)


def folder_of(root: Path) -> Path:
    """Return the folder with ``meta/esc50.csv``: `root` or the ``ESC-50-master`` in it.

    Raises:
        DataError: neither is one.
    """
    root = Path(root)
    for folder in (root, root / CARD.folder):
        if (folder / META).is_file():
            return folder
    raise DataError(
        f"{root} contains no {META} and no {CARD.folder}/: unpack {CARD.url} there (s3prl-ext prepare esc50 does it)."
    )


def dev_fold(test_fold: int) -> int:
    """Return the fold that is dev when `test_fold` is test: the next one, after 5 comes 1."""
    return test_fold % len(FOLDS) + 1


def split_clips(clips: Sequence[Esc50Clip], rule: str, fold: int) -> dict[str, list[Esc50Clip]]:
    """Divide clips into train, dev and test.

    Args:
        clips: as :func:`read_clips` returns them.
        rule: ``folds``: `fold` is test, the next one dev (after 5 comes 1), the other three train; ``hash``: 80/10/10
            by original recording, for a few clips: all its cuts are in one split.
        fold: official test fold, 1 to 5; not used by ``hash``.

    Raises:
        UsageError: unknown rule, or fold out of range.
        DataError: a split would be empty.
    """
    if rule not in SPLIT_RULES:
        raise unknown_name("downstream_expert.split", rule, SPLIT_RULES)
    if isinstance(fold, bool) or fold not in FOLDS:
        raise UsageError(f"downstream_expert.fold must be 1, 2, 3, 4 or 5 (the test fold), got {fold!r}.")
    if rule == "hash":
        lists = hash_split(clip.recording for clip in clips)
        held = {recording: name for name, recordings in lists.items() for recording in recordings}
        splits = {name: [clip for clip in clips if held[clip.recording] == name] for name in SPLITS}
    else:
        held_out = {fold: "test", dev_fold(fold): "dev"}
        splits = {name: [c for c in clips if held_out.get(c.fold, "train") == name] for name in SPLITS}
    empty = [name for name in SPLITS if not splits[name]]
    if empty:
        raise DataError(
            f"the split '{empty[0]}' of ESC-50 is empty: none of the {len(clips)} clips belongs to it with split "
            f"{rule} and test fold {fold}; complete the corpus or set downstream_expert.split: hash."
        )
    return splits


def validate(root: Path) -> list[str]:
    """Read the whole corpus; return what differs from the official one: counts, lengths, rates.

    Raises:
        DataError: as :func:`read_clips`, or a clip is unreadable.
    """
    clips = read_clips(root)
    remarks = [] if len(clips) == CLIPS else [f"{len(clips)} clips instead of {CLIPS}"]
    rates: set[int] = set()
    odd = []
    for clip in tqdm(clips, desc="ESC-50", unit="clip"):
        try:
            info = soundfile.info(str(clip.path))
        except soundfile.SoundFileError as error:
            raise DataError(f"cannot read the audio file {clip.path} ({error}): unpack the archive again.") from error
        rates.add(info.samplerate)
        if abs(info.duration - DURATION_S) > 0.01:
            odd.append(clip.name)
    if rates != {44100}:
        remarks.append(f"sampled at {', '.join(map(str, sorted(rates)))} Hz instead of 44100 Hz")
    if odd:
        remarks.append(f"{len(odd)} clips are not {DURATION_S:g} s long, such as {odd[0]}")
    return remarks


def _clip(row: dict[str, str], root: Path, line: int) -> Esc50Clip:
    name, fold, target, category = (row.get(column) or "" for column in COLUMNS)
    known = fold.isdecimal() and int(fold) in FOLDS and target.isdecimal() and int(target) < len(CLASSES)
    if not name or not known or CLASSES[int(target)] != category:
        raise DataError(
            f"line {line} of {root / META} is not a clip of ESC-50 (file '{name}', fold '{fold}', target '{target}', "
            f"category '{category}'): restore the official table."
        )
    return Esc50Clip(root / "audio" / name, int(fold), int(target))


def _check_audio(in_table: set[str], lines: int, root: Path) -> None:
    """Refuse lines without audio, audio without a line, and a file listed twice."""
    folder = root / "audio"
    found = {path.name for path in listed(folder, "*.wav")}
    if len(in_table) < lines:
        raise DataError(f"{root / META} names {lines - len(in_table)} files twice: restore the official table.")
    if without := sorted(in_table - found):
        raise DataError(
            f"{len(without)} clips of {root / META} have no audio, such as {without[0]}: unpack the archive again."
        )
    if extra := sorted(found - in_table):
        raise DataError(
            f"{len(extra)} files of {folder} are not in {META}, such as {extra[0]}: remove them or restore the table."
        )
