"""Files of transcripts, their comparison (Table 4) and the categories of improvement (Table 6)."""

from __future__ import annotations

import itertools
import json

import pytest

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.transcripts import (
    compare,
    confirmed_edits,
    improvements,
    mark_differences,
    read_transcripts,
    transcript,
    write_transcripts,
)


def rows(*texts: tuple[str, str]):
    """Return transcripts u0, u1, ... of pairs of reference and hypothesis."""
    return [transcript(f"u{index}", reference, hypothesis) for index, (reference, hypothesis) in enumerate(texts)]


def levenshtein(a: str, b: str) -> int:
    """Return the edit distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    rest = levenshtein(a[1:], b[1:])
    return rest if a[0] == b[0] else 1 + min(rest, levenshtein(a[1:], b), levenshtein(a, b[1:]))


def test_file_round_trip(tmp_path):
    written = rows(("café one", "cafe one"), ("two", ""), ("", "three"))
    write_transcripts(written, tmp_path / "transcripts-test.jsonl")
    assert read_transcripts(tmp_path / "transcripts-test.jsonl") == written
    assert [path.name for path in tmp_path.iterdir()] == ["transcripts-test.jsonl"]
    first = json.loads((tmp_path / "transcripts-test.jsonl").read_text().splitlines()[0])
    assert first == {
        "id": "u0", "reference": "café one", "hypothesis": "cafe one",
        "errors": 1, "words": 2, "character_errors": 1, "characters": 8,
    }  # fmt: skip


def test_interrupted_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.jsonl"
    write_transcripts(rows(("a", "a")), path)

    def broken():
        yield from rows(("b", "b"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_transcripts(broken(), path)
    assert read_transcripts(path) == rows(("a", "a")) and list(tmp_path.iterdir()) == [path]


def test_unreadable_files(tmp_path):
    with pytest.raises(DataError, match="no such file of transcripts"):
        read_transcripts(tmp_path / "none.jsonl")
    path = tmp_path / "t.jsonl"
    for content, part in (("", "contains no transcript"), ("{}\n", "line 1 of"), ("[", "line 1 of")):
        path.write_text(content)
        with pytest.raises(DataError, match=part):
            read_transcripts(path)


def test_comparison_lists_the_largest_drop_first_with_marks():
    baseline = rows(("a b c", "a x c"), ("stand to gain", "stant togain"), ("same", "same"), ("a", "a"))
    merged = rows(("a b c", "a b c"), ("stand to gain", "stand to gain"), ("same", "same"), ("a", "b"))
    found = compare(baseline, merged)
    assert [(row.id, row.drop) for row in found] == [("u1", 3), ("u0", 1), ("u3", -1)]
    assert (found[0].baseline, found[0].merged) == ("*stant* *togain*", "*stand* *to* *gain*")
    assert (found[1].baseline, found[1].merged) == ("a *x* c", "a *b* c")


def test_marks_stand_at_words_that_are_missing_on_the_other_side():
    assert mark_differences("a b c", "a c") == ("a *b* c", "a c")
    assert mark_differences("", "a") == ("", "*a*")


def test_other_utterances_or_references_are_refused():
    with pytest.raises(DataError, match="differ in 1 utterances"):
        compare(rows(("a", "a"), ("b", "b")), rows(("a", "a")))
    with pytest.raises(DataError, match="references of u0 differ"):
        compare(rows(("a", "a")), rows(("A", "a")))


def test_confirmed_edits_of_the_paper_examples():
    assert confirmed_edits("a motorcade route", "a motorcade rout", "a motorcade route") == ["insert"]
    assert confirmed_edits("quantity of base gold", "quantity of bass gold", "quantity of base gold") == ["substitute"]
    assert confirmed_edits("here piemen had", "here pye men had", "here piemen had") == ["substitute", "delete"]
    assert confirmed_edits("a b", "a b", "a c") == []  # a change for the worse


def test_a_confirmed_edit_alone_shortens_the_distance():
    """On all pairs of short strings: where one edit leads from baseline to merged, it counts iff it helps."""
    words = ["".join(letters) for length in range(4) for letters in itertools.product("ab", repeat=length)]
    seen = set()
    for reference, baseline, merged in itertools.product(words, repeat=3):
        if levenshtein(baseline, merged) != 1:
            continue
        found = confirmed_edits(reference, baseline, merged)
        kind = {1: "insert", 0: "substitute", -1: "delete"}[len(merged) - len(baseline)]
        helps = levenshtein(reference, merged) < levenshtein(reference, baseline)
        assert found == ([kind] if helps else []), (reference, baseline, merged)
        seen.add((kind, helps))
    assert len(seen) == 6


def test_a_perfect_transcript_confirms_every_edit():
    words = ["".join(letters) for length in range(1, 5) for letters in itertools.product("ab", repeat=length)]
    for reference, baseline in itertools.product(words, repeat=2):
        assert len(confirmed_edits(reference, baseline, reference)) == levenshtein(reference, baseline)


def test_categories_count_improved_utterances_only_and_sum_to_100():
    baseline = rows(("route", "rout"), ("cat dog", "cut dogg"), ("fine", "fine"), ("worse", "worse"))
    merged = rows(("route", "route"), ("cat dog", "cat dog"), ("fine", "fine"), ("worse", "wurse"))
    found = improvements(baseline, merged)
    assert found.utterances == 2
    assert found.confirmed == {"insertion": 1, "substitution": 1, "deletion": 1}
    assert sum(found.shares.values()) == pytest.approx(100.0)
    assert found.change == {"insertions": -1, "substitutions": -1, "deletions": -1}
    nothing = improvements(baseline, baseline)
    assert nothing.utterances == 0 and set(nothing.shares.values()) == {0.0}
