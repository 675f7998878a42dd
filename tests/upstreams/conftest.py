"""Tiny models to merge, and paired inputs that determine a hidden space of 32 coordinates."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.support import factories

WORDS = ("bee", "sea", "deep", "gee", "jay", "kay", "el", "em", "pea", "queue", "are", "ess", "tea")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    """A folder for vectors that tests on the same pairs share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(shared_cache, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(shared_cache))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Write the models of a merge: a target, sources of its size and others, and the bases of these."""
    root = tmp_path_factory.mktemp("models")
    made = {
        "target": factories.hubert_folder(root / "hubert", heads=4),
        "source": factories.bert_folder(root / "bert", heads=4),
        "base": factories.bert_folder(root / "base", heads=4, seed=6),
        "two_heads": factories.bert_folder(root / "two_heads", heads=2),
        "wide": factories.bert_folder(root / "wide", heads=3, width=48),
        "wide_base": factories.bert_folder(root / "wide_base", heads=3, width=48, seed=7),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
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
