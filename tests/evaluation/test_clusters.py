"""Intervals over speakers, chapters and source recordings against a slow bootstrap of our own."""

from __future__ import annotations

import random

import numpy as np
import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.clusters import cluster_of, described, sums
from s3prl_ext.evaluation.significance import bootstrap_difference, bootstrap_ratio


@pytest.mark.parametrize(("name", "kind", "expected"), [
    ("p225_001", "speaker", "p225"),
    ("s5_012", "speaker", "s5"),
    ("LJ010-0007", "chapter", "LJ010"),
    ("1272-128104-0000", "speaker", "1272"),
    ("1272-128104-0000", "chapter", "1272-128104"),
    ("yes/0a7c2a8d_nohash_1.wav", "speaker", "0a7c2a8d"),
    ("4-100032-A-0.wav", "source", "100032"),
    ("anything at all", "utterance", "anything at all"),
])  # fmt: skip
def test_clusters_are_read_from_names(name, kind, expected):
    assert cluster_of(name, kind) == expected


@pytest.mark.parametrize(("name", "kind"), [("LJ010-0007", "speaker"), ("p225_001", "chapter"), ("p225_001", "source")])
def test_a_name_that_does_not_say_its_cluster_is_refused(name, kind):
    with pytest.raises(DataError, match=f"does not say its {kind}, which those of"):
        cluster_of(name, kind)


def corpus() -> tuple[list[str], list[float], list[float]]:
    """Names, errors and words of 8 speakers, of whom some are bad and some say much."""
    rng = np.random.default_rng(0)
    names, errors, words = [], [], []
    for speaker in range(8):
        for sentence in range(int(rng.integers(4, 12))):
            names.append(f"p{300 + speaker}_{sentence:03d}")
            words.append(float(rng.integers(3, 12)))
            errors.append(float(rng.binomial(int(words[-1]), 0.05 + 0.07 * speaker)))
    order = rng.permutation(len(names))
    return [names[i] for i in order], [errors[i] for i in order], [words[i] for i in order]


def slow_bootstrap(names, numerators, words, draws=4000):
    """Draw speakers one by one with the standard library and add up all their utterances."""
    rng, speakers = random.Random(1), sorted({name.split("_")[0] for name in names})
    rates = []
    for _ in range(draws):
        above = below = 0.0
        for _ in speakers:
            chosen = rng.choice(speakers)
            for name, errors, length in zip(names, numerators, words):
                if name.startswith(chosen + "_"):
                    above, below = above + errors, below + length
        rates.append(above / below)
    return np.percentile(rates, [2.5, 97.5])


def test_the_cluster_bootstrap_equals_a_slow_one_and_is_wider():
    names, errors, words = corpus()
    found = bootstrap_ratio(*sums(names, (errors, words), "speaker"), draws=4000)
    assert found == pytest.approx(slow_bootstrap(names, errors, words), abs=0.012)
    alone = bootstrap_ratio(errors, words, draws=4000)
    assert found[1] - found[0] > 1.5 * (alone[1] - alone[0])


def test_the_paired_difference_equals_a_slow_one():
    names, errors, words = corpus()
    better = [max(0.0, e - (i % 3 == 0)) for i, e in enumerate(errors)]
    found = bootstrap_difference(*sums(names, (errors, better, words), "speaker"), draws=4000)
    changes = [b - a for a, b in zip(errors, better)]
    assert found == pytest.approx(slow_bootstrap(names, changes, words), abs=0.006)


def test_utterances_stay_themselves():
    names, errors, words = corpus()
    assert sums(names, (errors, words), "utterance") == [errors, words]


def test_one_cluster_has_no_interval():
    with pytest.raises(DataError, match="all 2 utterances are of one speaker: there is no interval over speakers"):
        sums(["p225_001", "p225_002"], ([0.0, 1.0], [2.0, 3.0]), "speaker")


def test_few_clusters_are_said_to_be_few():
    assert described("chapter", 5) == "over 5 chapters (with fewer than 20 it comes out too narrow)"
    assert described("speaker", 40) == "over 40 speakers"
