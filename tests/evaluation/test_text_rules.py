"""Text rules: what they keep, and that applying one twice changes nothing."""

from __future__ import annotations

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.text_rules import TEXT_RULES, keep_hyphen, mam, text_rule

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import example, given, strategies


@pytest.mark.parametrize(("text", "expected"), [
    ("Don't", "dont"),
    ("Don’t; O‘Brien’s.", "dont obriens"),
    ("the pre-Raphaelite ne‑plus‐ultra", "the pre raphaelite ne plus ultra"),
    ("nine–ten — and 3−2", "nine ten and 3 2"),
    ("“Élan”, café; naïve Ærø Straße Łódź", "elan cafe naive aero strasse lodz"),
    ("a\u0301 b\u00a0c\td\n", "a b c d"),
    ("co\u00adoperate under_score 5 % [x] <y> $3.50", "cooperate underscore 5 x y 350"),
    ("", ""),
    ("...", ""),
    # a number is never made of two
    ("½ cup, 1½ cups, 1/2 and 1\u20442", "1 2 cup 1 1 2 cups 1 2 and 1 2"),
    ("0:\U00010320 10:½", "0 \U00010320 10 1 2"),  # also where a sign between them is dropped
    ("10² m², 10²³, H₂O, ①2 ½¼", "10 2 m2 10 23 h2o 1 2 1 2 1 4"),
    ("and/or", "andor"),
    # folded, not split
    ("ﬁne ﬂag Ĳssel １２ 𝟙𝟚 № 5 20℃", "fine flag ijssel 12 12 no 5 20c"),
    ("Windows™ Visa℠", "windows visa"),
])  # fmt: skip
def test_mam(text, expected):
    assert mam(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Oswald's lunch-room", "oswalds lunch-room"),
    ("forty‑two - line -x y- a--b 14-b", "forty-two line x y a b 14-b"),
    ("nine–ten", "nine ten"),
])  # fmt: skip
def test_keep_hyphen(text, expected):
    assert keep_hyphen(text) == expected


def test_identity_changes_nothing():
    assert text_rule("identity").apply(" Don't  pre-empt. ") == " Don't  pre-empt. "


@example("0:\U00010320", "mam")
@given(strategies.text(), strategies.sampled_from(["mam", "keep_hyphen", "identity"]))
def test_twice_is_once(text, name):
    rule = TEXT_RULES[name].apply
    assert rule(rule(text)) == rule(text)


@given(strategies.text(alphabet=strategies.characters(max_codepoint=0x24F)))
def test_mam_and_keep_hyphen_differ_in_hyphens_only(text):
    assert keep_hyphen(text).replace("-", " ").split() == mam(text).split()


@given(strategies.text(alphabet="abcXYZ019 -'.,!?;:éüß—–\"", max_size=40))
def test_output_of_english_is_within_the_alphabet(text):
    for name in ("mam", "keep_hyphen"):
        assert set(TEXT_RULES[name].apply(text)) <= {*TEXT_RULES[name].alphabet, " "}


def test_unknown_rule():
    with pytest.raises(UsageError, match=r"unknown text rule 'mamm'; did you mean 'mam'\?"):
        text_rule("mamm")
