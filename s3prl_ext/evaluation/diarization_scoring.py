"""The diarization error rate as SUPERB scores it, from the speaker probabilities that s3prl's task writes.

SUPERB (s3prl's ``score.sh`` with dscore): turns at thresholds 0.3 to 0.7, median filters of 1 and 11 frames, no collar,
overlapped speech scored; the lowest rate is reported. That chooses on test: next to it is the rate at the setting
that is best on dev. The rate sums time over all recordings, unlike the mean over frames that training reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.progress import bar
from s3prl_ext.reading import read_lines

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)  # frames
DIGITS = 2  # of seconds in the RTTM files that SUPERB scores


class Turn(NamedTuple):
    """A stretch of one speaker, in seconds."""

    start: float
    end: float
    speaker: str


class Setting(NamedTuple):
    """How probabilities become turns.

    Attributes:
        threshold: a speaker is active in frames above it.
        median: length of the median filter in frames.
    """

    threshold: float
    median: int


@dataclass(frozen=True)
class ErrorRate:
    """Parts of the diarization error, as ratios of the reference's speech (overlapped speech counts per speaker)."""

    miss: float
    false_alarm: float
    confusion: float

    @property
    def der(self) -> float:
        """The diarization error rate."""
        return self.miss + self.false_alarm + self.confusion


@dataclass(frozen=True)
class SuperbScore:
    """What SUPERB reports, and what a threshold chosen on dev gives.

    Attributes:
        setting, rate: the lowest on test.
        dev_setting, dev_chosen: the setting with the lowest rate on dev, and its rate on test; None without dev.
        recordings: number of test recordings.
    """

    setting: Setting
    rate: ErrorRate
    recordings: int
    dev_setting: Setting | None = None
    dev_chosen: ErrorRate | None = None


def score_runs(test: Path, test_rttm: Path, dev: Path | None = None, dev_rttm: Path | None = None) -> SuperbScore:
    """Score the predictions in the folder of a run.

    Args:
        test: folder of a run that was evaluated on test: ``scoring/predictions/*.h5`` and ``frame_shift``.
        test_rttm: reference turns.
        dev, dev_rttm: the same of the dev split, to choose the threshold there.

    Raises:
        UsageError: the extra ``sd`` is not installed.
        DataError: predictions or references are missing, unreadable, or of other recordings.
    """
    rates, recordings = _grid_of(test, test_rttm)
    best = lowest(rates)
    if dev is None or dev_rttm is None:
        return SuperbScore(best, rates[best], recordings)
    chosen = lowest(_grid_of(dev, dev_rttm)[0])
    return SuperbScore(best, rates[best], recordings, chosen, rates[chosen])


def _grid_of(expdir: Path, rttm: Path) -> tuple[dict[Setting, ErrorRate], int]:
    predictions = read_predictions(expdir)
    return error_rates(predictions, read_rttm(rttm), frame_shift(expdir)), len(predictions)


def lowest(rates: Mapping[Setting, ErrorRate]) -> Setting:
    """Return the setting with the lowest rate; of equal ones the first."""
    return min(rates, key=lambda setting: rates[setting].der)


def error_rates(
    predictions: Mapping[str, np.ndarray], references: Mapping[str, Sequence[Turn]], shift: int
) -> dict[Setting, ErrorRate]:
    """Return the error rate over all recordings at each of SUPERB's settings.

    Args:
        predictions: probabilities [frames, speakers] by recording.
        references: turns by recording.
        shift: samples between frames, at 16 kHz.

    Raises:
        UsageError: the extra ``sd`` is not installed.
        DataError: the two hold other recordings, or no speech.
    """
    missing = sorted(references.keys() ^ predictions.keys())
    if missing or not predictions:
        raise DataError(
            f"predictions and reference turns differ in {len(missing)} recordings, such as "
            f"{missing[0] if missing else 'none at all'}: evaluate the whole split, "
            "and give the rttm file of that split."
        )
    settings = [Setting(threshold, median) for median in MEDIANS for threshold in THRESHOLDS]
    return {
        setting: error_rate({name: (turns(p, setting, shift), references[name]) for name, p in predictions.items()})
        for setting in bar(settings, desc="diarization", unit="setting", leave=False)
    }


def smoothed(active: np.ndarray, frames: int) -> np.ndarray:
    """Return who speaks, [frames, speakers] of 0 and 1, after s3prl's median filter (``scipy.signal.medfilt``).

    Args:
        active: who speaks before it.
        frames: length of the filter, odd; beyond the ends there is no speech.
    """
    from scipy.ndimage import median_filter

    return median_filter(active.astype(np.float64), size=(frames, 1), mode="constant")


def turns(probabilities: np.ndarray, setting: Setting, shift: int) -> list[Turn]:
    """Return the turns of one recording; start and duration are rounded to 10 ms as in the RTTM files of SUPERB.

    Args:
        probabilities: [frames, speakers].
        setting: threshold and median filter.
        shift: samples between frames, at 16 kHz.
    """
    active = smoothed(probabilities > setting.threshold, setting.median)
    found = []
    for speaker, frames in enumerate(active.T):
        edges = np.flatnonzero(np.diff(np.concatenate([[0.0], frames, [0.0]])))
        for first, last in edges.reshape(-1, 2) * shift / SAMPLE_RATE:
            start = round(float(first), DIGITS)
            found.append(Turn(start, start + round(float(last - first), DIGITS), str(speaker)))
    return found


def error_rate(pairs: Mapping[str, tuple[Sequence[Turn], Sequence[Turn]]]) -> ErrorRate:
    """Return the error rate of several recordings, without collar and with overlapped speech.

    A recording is scored from its first to its last turn in hypothesis or reference, with the best mapping of speakers.

    Args:
        pairs: turns of hypothesis and reference by recording.

    Raises:
        UsageError: the extra ``sd`` is not installed.
        DataError: the references contain no speech.
    """
    try:
        from pyannote.core import Segment, Timeline
        from pyannote.metrics.diarization import DiarizationErrorRate
    except ImportError as error:
        raise UsageError("diarization is scored with pyannote.metrics: pip install 's3prl_ext[sd]'.") from error
    scorer = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    sums = dict.fromkeys(("missed detection", "false alarm", "confusion", "total"), 0.0)
    for name, (hypothesis, reference) in pairs.items():
        both = [*hypothesis, *reference]
        if not both:
            continue
        scored = Timeline([Segment(min(t.start for t in both), max(t.end for t in both))], uri=name)
        parts = scorer(_annotation(reference, name), _annotation(hypothesis, name), uem=scored, detailed=True)
        sums = {key: value + parts[key] for key, value in sums.items()}
    total = sums["total"]
    if total <= 0:
        raise DataError("the reference turns contain no speech: check the rttm file.")
    return ErrorRate(sums["missed detection"] / total, sums["false alarm"] / total, sums["confusion"] / total)


def _annotation(found: Iterable[Turn], uri: str) -> Any:
    from pyannote.core import Annotation, Segment

    annotation = Annotation(uri=uri)
    for track, turn in enumerate(found):
        if turn.end > turn.start:
            annotation[Segment(turn.start, turn.end), track] = turn.speaker
    return annotation.support()  # the turns of one speaker that touch or overlap are one


def read_predictions(expdir: Path) -> dict[str, np.ndarray]:
    """Return the probabilities [frames, speakers] that an evaluation wrote, by recording.

    Raises:
        DataError: there are none, or a file is corrupt.
    """
    import h5py

    folder = Path(expdir) / "scoring" / "predictions"
    found = {}
    for path in sorted(folder.glob("*.h5")):
        try:
            with h5py.File(path) as file:
                found[path.stem] = np.asarray(file["T_hat"])
        except (OSError, KeyError) as error:
            raise DataError(f"{path} is not a prediction of the diarization task: evaluate the split again.") from error
    if not found:
        raise DataError(f"{folder} contains no predictions: evaluate test first (-m evaluate -t test).")
    return found


def predictions_sha256(expdir: Path) -> str | None:
    """Return the SHA-256 of what a run's folder holds to be scored: its predictions and frame shift; None without.

    Result files hold it: a score of other predictions is not of that result.
    """
    files = sorted((Path(expdir) / "scoring" / "predictions").glob("*.h5"))
    shift = Path(expdir) / "frame_shift"
    if not files:
        return None
    digest = hashlib.sha256()
    for path in (*files, *([shift] if shift.is_file() else [])):
        digest.update(f"{path.name}|{hashlib.sha256(path.read_bytes()).hexdigest()}|".encode())
    return digest.hexdigest()


def frame_shift(expdir: Path) -> int:
    """Return the samples between frames that a run's folder names."""
    path = Path(expdir) / "frame_shift"
    try:
        return int(float(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} contains no number of samples: evaluate the run again.") from error


def read_rttm(path: Path) -> dict[str, list[Turn]]:
    """Return the turns of an RTTM file by recording.

    Raises:
        DataError: it is missing, empty, or a line is not a speaker turn.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the rttm file of the split.") from error
    found: dict[str, list[Turn]] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0] in (";;", "SPKR-INFO"):
            continue
        try:
            start, duration = float(fields[3]), float(fields[4])
            found.setdefault(fields[1], []).append(Turn(start, start + duration, fields[7]))
        except (IndexError, ValueError) as error:
            raise DataError(f"line {number} of {path} is not a speaker turn: {line[:60]!r}.") from error
    if not found:
        raise DataError(f"{path} contains no speaker turn.")
    return found
