"""The effect ``silence`` against sox's own way: sample by sample, with two buffers."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch

from s3prl_ext.compat.sox import apply_effects_tensor
from s3prl_ext.errors import UsageError

RATE = 16000
SILENCE = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]  # of s3prl's speaker verification


def as_sox(samples: np.ndarray, duration: int, threshold: float) -> np.ndarray:
    """Return what sox keeps: a ring of the last 20 ms gives the level; held samples are written or dropped whole."""
    ring, place, total = [0.0] * (RATE // 50), 0, 0.0
    copying, held, out = False, [], []
    for sample in map(float, samples):
        total += sample**2 - ring[place]
        ring[place], place = sample**2, (place + 1) % len(ring)
        loud = sqrt(max(0.0, total) / len(ring)) > threshold
        if copying and loud:
            out += [*held, sample]
            held = []
        elif copying:
            held.append(sample)
            if len(held) >= duration:
                copying, held, ring, place, total = False, [], [0.0] * len(ring), 0, 0.0
        else:
            held = [*held, sample] if loud else []
            if len(held) >= duration:
                copying, out, held = True, [*out, *held], []
    return np.array(out + (held if copying else []), dtype=np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_silence_is_cut_out_as_sox_does(seed):
    rng = np.random.default_rng(seed)
    levels = rng.choice([0.0, 0.0003, 0.0009, 0.0011, 0.002, 0.1], 12)
    samples = np.concatenate([rng.normal(0, level, int(n)) for level, n in zip(levels, rng.integers(10, 6000, 12))])
    samples = samples.astype(np.float32)
    found, rate = apply_effects_tensor(torch.from_numpy(samples)[None], RATE, [SILENCE])
    expected = as_sox(samples, RATE // 10, 0.001)
    assert rate == RATE and 0 < len(expected) < len(samples) and np.array_equal(found[0].numpy(), expected)


def test_silence_throughout_leaves_nothing_and_speech_stays_whole():
    assert apply_effects_tensor(torch.zeros(1, 5000), RATE, [SILENCE])[0].shape == (1, 0)
    loud = 0.1 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(apply_effects_tensor(loud, RATE, [SILENCE])[0], loud)
    assert apply_effects_tensor(torch.zeros(1, 0), RATE, [SILENCE])[0].shape == (1, 0)


@pytest.mark.parametrize(
    "effect",
    [
        ["silence", "1", "0.1"],
        ["silence", "1", "0.1", "0.1%"],
        [*SILENCE[:4], "1", "0.1", "0.1%"],
        [*SILENCE[:3], "-60d", *SILENCE[4:]],
    ],
)
def test_another_form_of_silence_is_refused(effect):
    with pytest.raises(UsageError, match="'silence .*' is not available: known is silence 1 SECONDS PERCENT%"):
        apply_effects_tensor(torch.zeros(1, 5000), RATE, [effect])
