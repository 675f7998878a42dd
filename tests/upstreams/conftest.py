"""Paired inputs that determine a hidden space of 32 coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

WORDS = ("bee", "sea", "deep", "gee", "jay", "kay", "el", "em", "pea", "queue", "are", "ess", "tea")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """A folder for vectors that tests on the same pairs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def varied_pairs(tmp_path_factory):
    """Write 40 clips of tones and noise, none like another, and their table with texts."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    rows = []
    for index in range(40):
        time = np.arange(3200 + 200 * index) / 16000
        tone = np.sin(2 * np.pi * (150 + 90 * index) * time) * generator.uniform(0.05, 0.5)
        wave = tone + generator.uniform(0.01, 0.2) * generator.standard_normal(len(time))
        soundfile.write(folder / f"{index}.wav", wave, 16000)
        rows.append(f"{index}.wav\t{' '.join(generator.choice(WORDS, 1 + index % 4))}")
    (folder / "pairs.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n")
    return folder / "pairs.tsv"
