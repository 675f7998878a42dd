"""Speaker verification on VoxCeleb1 (SUPERB's ASV): one score for each trial, the equal error rate over all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3prl_ext.tasks.counts import Ends, Records
from s3prl_ext.tasks.record import Reads, SingleClips, Task

if TYPE_CHECKING:
    import numpy as np

DRAWS, SEED = 1000, 0  # of the bootstrap


def equal_error_rate(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the rate (0 to 1) at which as many same-speaker trials are rejected as others are accepted.

    NaN where a score is not finite.

    It lies where the ROC, joined by straight lines between its thresholds, meets the line of equal errors.

    Args:
        labels: 1 of the same speaker, 0 of two, [trials]; both occur.
        scores: higher is more alike, [trials].
        weights: how often each trial counts; None for once.
    """
    import numpy as np

    if not np.isfinite(scores).all():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    counted = np.ones(len(scores)) if weights is None else weights[order].astype(float)
    same, ends = labels[order] == 1, np.flatnonzero(np.diff(scores[order], append=-np.inf))
    accepted = np.concatenate([[0.0], np.cumsum(counted * same)[ends]])
    false = np.concatenate([[0.0], np.cumsum(counted * ~same)[ends]])
    rejection, acceptance = 1.0 - accepted / accepted[-1], false / false[-1]
    after = int(np.argmax(acceptance >= rejection))  # the last threshold accepts all; the first one accepts nothing
    gap_before = rejection[after - 1] - acceptance[after - 1]
    gap_after = acceptance[after] - rejection[after]
    share = gap_before / (gap_before + gap_after)
    return float(acceptance[after - 1] + share * (acceptance[after] - acceptance[after - 1]))


def over_trials(records: Records) -> Ends | None:
    """Return the EER and the ends of its interval over the trials of each kind, drawn anew 1,000 times."""
    import numpy as np

    labels, scores = records.get("labels"), records.get("scores")
    if not labels or not scores or len(set(labels)) < 2:
        return None
    truth, given = np.array(labels, dtype=int), np.array(scores, dtype=float)
    rng = np.random.default_rng(SEED)
    weights = np.empty((DRAWS, len(truth)))
    for kind in (0, 1):
        members = truth == kind
        weights[:, members] = rng.multinomial(members.sum(), np.full(members.sum(), 1 / members.sum()), DRAWS)
    drawn = [equal_error_rate(truth, given, row) for row in weights]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Ends(equal_error_rate(truth, given), float(low), float(high))


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
    single_clips=SingleClips("datarc.eval_batch_size", "an embedding depends on the longer clips of its batch"),
    modules=("s3prl.downstream.sv_voxceleb1.expert",),
)
