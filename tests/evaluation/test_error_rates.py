"""Error counts equal jiwer's and the Levenshtein distance, and add up over a corpus."""

from __future__ import annotations

import editdistance
import jiwer
import pytest

from s3prl_ext.evaluation.error_rates import ErrorCounts, align, corpus_errors, count_errors, units

pytest.importorskip("hypothesis")
from hypothesis import given, strategies

WORDS = strategies.lists(strategies.sampled_from(["a", "b", "ab", "c"]), max_size=8).map(" ".join)
SPOKEN = WORDS.filter(bool)


@given(WORDS, WORDS, strategies.sampled_from(["words", "characters"]))
def test_errors_are_the_levenshtein_distance(reference, hypothesis, unit):
    counts = count_errors(reference, hypothesis, unit)
    assert counts.errors == editdistance.eval(units(reference, unit), units(hypothesis, unit))
    assert counts.length == len(units(reference, unit))
    assert counts.hits + counts.substitutions + counts.insertions == len(units(hypothesis, unit))


@given(strategies.lists(strategies.tuples(SPOKEN, WORDS), min_size=1, max_size=4))
def test_counts_and_rates_equal_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs))
    words, characters = corpus_errors(references, hypotheses), corpus_errors(references, hypotheses, "characters")
    for ours, theirs in (
        (words, jiwer.process_words(references, hypotheses)),
        (characters, jiwer.process_characters(references, hypotheses)),
    ):
        found = (ours.hits, ours.substitutions, ours.deletions, ours.insertions)
        assert found == (theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)
    assert words.rate == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert characters.rate == pytest.approx(100 * jiwer.cer(references, hypotheses))


@given(WORDS, WORDS, strategies.sampled_from(["words", "characters"]))
def test_an_alignment_turns_the_first_into_the_second(first, second, unit):
    source, target, built = units(first, unit), units(second, unit), []
    edits = align(first, second, unit)
    for edit in edits:
        built += source[slice(*edit.first)] if edit.kind == "equal" else target[slice(*edit.second)]
    assert built == target
    ends = [(0, 0), *((edit.first[1], edit.second[1]) for edit in edits)]
    assert ends[:-1] == [(edit.first[0], edit.second[0]) for edit in edits] or not edits
    assert ends[-1] == (len(source), len(target))


def test_rate_is_corpus_level_and_100_without_references():
    assert corpus_errors(["a", "b c d"], ["x", "b c d"]).rate == 25.0
    assert corpus_errors(["", ""], ["a", ""]).rate == 100.0 == ErrorCounts().rate
    assert corpus_errors(["a"], ["b c"]).rate == 200.0
