"""Speaker verification on VoxCeleb1 (SUPERB's ASV): one score for each trial, the equal error rate over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3prl_ext.tasks.counts import DRAWS, Ends, Records
from s3prl_ext.tasks.record import Reads, SingleClips, Task

if TYPE_CHECKING:
    import numpy as np

SEED = 0  # of the bootstrap


def equal_error_rate(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the rate (0 to 1) at which as many same-speaker trials are rejected as others are accepted.

    NaN where a score is not finite.

    It lies where the ROC, joined by straight lines between its thresholds, meets the line of equal errors.

    Args:
        labels: 1 of the same speaker, 0 of two, [trials]; both occur.
        scores: higher is more alike, [trials].
    """
    import numpy as np

    return _rate(*_accepted(labels, scores)) if np.isfinite(scores).all() else float("nan")


def _accepted(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many trials of the same speaker, and of two, each threshold accepts, [thresholds]; the first none."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    same, two = (np.concatenate([[0], np.cumsum(labels[order] == kind)[ends]]) for kind in (1, 0))
    return same, two


def _rate(same: np.ndarray, two: np.ndarray) -> float:
    """Return the equal error rate of trials of which each threshold accepts so many, see :func:`_accepted`."""
    import numpy as np

    rejection, acceptance = 1.0 - same / same[-1], two / two[-1]
    after = int(np.argmax(acceptance >= rejection))  # the last threshold accepts all; the first one accepts nothing
    gap_before = rejection[after - 1] - acceptance[after - 1]
    gap_after = acceptance[after] - rejection[after]
    share = gap_before / (gap_before + gap_after)
    return float(acceptance[after - 1] + share * (acceptance[after] - acceptance[after - 1]))


def over_trials(records: Records) -> Ends | None:
    """Return the EER and the ends of its interval over the trials of each kind, each drawn anew."""
    import numpy as np

    labels, scores = records.get("labels"), records.get("scores")
    if not labels or not scores or len(set(labels)) < 2:
        return None
    truth, given = np.array(labels, dtype=int), np.array(scores, dtype=float)
    if not np.isfinite(given).all():
        return None
    rng, accepted = np.random.default_rng(SEED), _accepted(truth, given)
    rates = [_rate(*(_drawn_anew(kind, rng) for kind in accepted)) for _ in range(DRAWS)]
    low, high = np.percentile(rates, [2.5, 97.5])
    return Ends(_rate(*accepted), float(low), float(high))


def _drawn_anew(accepted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what each threshold accepts of trials of one kind that are drawn with replacement, the first none."""
    import numpy as np

    count = int(accepted[-1])
    drawn = np.bincount(rng.integers(count, size=count), minlength=count)  # of the first, the second ... by score
    return np.concatenate([[0], np.cumsum(drawn)])[accepted]


TASK = Task(
    name="asv",
    downstream="sv_voxceleb1",
    metrics=("EER",),
    preset="asv/superb",
    variables={"VOXCELEB1": "VoxCeleb1", "VOXCELEB1_TRIALS": "trials of VoxCeleb1-O"},
    reads=(
        Reads("datarc.file_path"),
        Reads("datarc.dev_meta_data", divides=("",)),
        Reads("datarc.test_meta_data", divides=("",)),
    ),
    not_used=("train_meta_data",),
    counts={"EER": over_trials},
    writes=("*_predict.txt", "*_truth.txt"),
    decoder="s3prl_ext.prediction.verification:VoiceDecoder",
    superb=("EER",),
    chosen_on_test="states-20000, 40000 ... 200000",
    single_clips=SingleClips("datarc.eval_batch_size", "an embedding depends on the longer clips of its batch"),
    modules=("s3prl.downstream.sv_voxceleb1.expert",),
)
