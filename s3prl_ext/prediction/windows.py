"""How recordings that are too long for one pass are cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE

Window = tuple[int, int]  # first sample, sample after the last

SHORTEST = SAMPLE_RATE // 2  # no cut at a pause leaves less than this at the end
PAUSE = SAMPLE_RATE // 5  # a cut goes through the middle of the quietest stretch of this length


def equal(samples: int, longest: int) -> list[Window]:
    """Cut into the fewest windows of at most `longest` samples, as equal as possible."""
    count = -(-samples // longest)
    ends = [round(index * samples / count) for index in range(count + 1)]
    return list(pairwise(ends))


def at_pauses(samples: np.ndarray, longest: int) -> list[Window]:
    """Cut at the quietest 0.2 s of the second half of each window, so that no window is longer than `longest`.

    Args:
        samples: float [samples] at 16 kHz.
        longest: in samples, at least two seconds.
    """
    windows, start = [], 0
    while len(samples) - start > longest:
        low = start + longest // 2
        high = min(start + longest, len(samples) - SHORTEST) - PAUSE // 2
        places = np.arange(low, high, PAUSE // 10)
        first = low - PAUSE // 2  # the energy of one window's second half at a time: a recording may last for hours
        part = np.square(samples[first : high + PAUSE // 2], dtype=np.float64)
        energy = np.concatenate([[0.0], np.cumsum(part)])
        loudness = energy[places + PAUSE // 2 - first] - energy[places - PAUSE // 2 - first]
        cut = int(places[int(np.argmin(loudness))])
        windows.append((start, cut))
        start = cut
    return [*windows, (start, len(samples))]
