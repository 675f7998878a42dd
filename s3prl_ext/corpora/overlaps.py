"""Recordings that are too long for one pass: windows that overlap, and which speaker of one is which of the next."""

from __future__ import annotations

import numpy as np

OVERLAP = 0.25  # of a window, at least


def overlapping(length: int, longest: int) -> list[tuple[int, int]]:
    """Cut frames or samples into windows of one length, which overlap by a quarter of it.

    The last one begins earlier, so that it is as long as the others: none is padded where they share a batch.

    Args:
        length: of the recording.
        longest: length of a window.
    """
    windows = [(0, min(length, longest))]
    while windows[-1][1] < length:
        start = min(windows[-1][1] - round(OVERLAP * longest), length - longest)
        windows.append((start, start + longest))
    return windows


def speaker_order(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return for each speaker of a window its number in the next one, [speakers], from what both say of their overlap.

    Args:
        before, after: probabilities that each speaker talks, [frames, speakers], in the same frames.
    """
    from scipy.optimize import linear_sum_assignment

    difference = before[:, :, None] - after[:, None, :]
    _, order = linear_sum_assignment(np.square(difference).sum(0))
    return order
