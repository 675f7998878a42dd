"""Text rules: what of a transcript counts. Reference and hypothesis go through the same rule."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from s3prl_ext.errors import UsageError, unknown_name

# Letters that Unicode does not take apart, in their usual ASCII spelling.
_SPELLED = str.maketrans({"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ı": "i"})
_HYPHENS = "-\u2010\u2011"  # hyphen-minus, hyphen, non-breaking hyphen: inside words
_MINUS = "\u2212"
_FRACTION_SLASHES = "\u2044\u2215"
_SLASH_OF_A_FRACTION = re.compile(r"(?<=\d)/(?=\d)")
_LONE_HYPHEN = re.compile(r"(?<![^\W_])-|-(?![^\W_])")  # without a letter or digit on both sides


@dataclass(frozen=True)
class TextRule:
    """One rule.

    Attributes:
        apply: maps a text to what is compared. Applying it twice changes nothing, except with ``whisper``.
        alphabet: the characters besides the space that a new CTC head of this rule can write.
        description: what the rule does, in one sentence.
    """

    apply: Callable[[str], str]
    alphabet: str
    description: str


def mam(text: str) -> str:
    """Return `text` in lower case and plain letters, dashes as spaces, without any other punctuation."""
    return _letters(text, keep_hyphens=False)


def keep_hyphen(text: str) -> str:
    """As :func:`mam`, but a hyphen between two letters or digits stays (``lunch-room``)."""
    return _letters(text, keep_hyphens=True)


def identity(text: str) -> str:
    """Return `text` as it is."""
    return text


def whisper(text: str) -> str:
    """Return `text` as OpenAI's English normaliser writes it (Radford et al., "Robust speech recognition", appendix C).

    Numbers in digits, American spelling, contractions written out, titles too; no fillers, punctuation, brackets.
    Applied twice it may change more (``minus five`` is ``-5``, and that is ``5``), so each text goes through it once.

    Raises:
        UsageError: its table of spellings is not installed.
    """
    return " ".join(_english_normalizer()(text).split())


@cache
def _english_normalizer() -> Callable[[str], str]:
    """Return transformers' port of the normaliser with OpenAI's table of spellings, shipped by another package."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    try:
        table = resources.files("whisper_normalizer").joinpath("normalizers", "english.json")
        return EnglishTextNormalizer(json.loads(table.read_text(encoding="utf-8")))
    except (ModuleNotFoundError, FileNotFoundError):
        raise UsageError(
            "the text rule 'whisper' needs the package whisper-normalizer, for its table of British and American "
            "spellings: pip install 's3prl_ext[whisper]'."
        ) from None


TEXT_RULES: dict[str, TextRule] = {
    "mam": TextRule(
        mam,
        string.ascii_lowercase + string.digits,
        "lower case, accents folded, hyphens, dashes and slashes of fractions as spaces, no other punctuation, "
        "no apostrophes",
    ),
    "keep_hyphen": TextRule(
        keep_hyphen, string.ascii_lowercase + string.digits + "-", "as mam, but hyphens inside words stay"
    ),
    "identity": TextRule(
        identity, string.ascii_letters + string.digits + string.punctuation.replace("|", ""), "texts as they are"
    ),
    "whisper": TextRule(
        whisper,
        string.ascii_lowercase + string.digits + ".%$¢€£+-",
        "OpenAI's English normaliser: numbers in digits, American spelling, contractions and titles written out, "
        "no punctuation",
    ),
}


def text_rule(name: str) -> TextRule:
    """Return the row of `name`, ready to use.

    Raises:
        UsageError: an unknown rule, or one whose package is not installed.
    """
    if name not in TEXT_RULES:
        raise unknown_name("text rule", name, TEXT_RULES)
    TEXT_RULES[name].apply("")
    return TEXT_RULES[name]


def _letters(text: str, keep_hyphens: bool) -> str:
    plain = unicodedata.normalize("NFKD", _numbers_apart(text))
    folded = unicodedata.normalize("NFKD", plain.casefold()).translate(_SPELLED)
    kept = "".join(_character(c) for c in _SLASH_OF_A_FRACTION.sub(" ", folded))
    spaced = _LONE_HYPHEN.sub(" ", kept) if keep_hyphens else kept.replace("-", " ")
    return " ".join(spaced.split())


def _numbers_apart(text: str) -> str:
    """Return `text` with a space where unfolding would make one number of two (``10²``, ``1½``), without trade marks.

    Unicode calls the digits of a number Nd, and fractions, superscripts and circled numbers No.
    """
    spaced, before = [], " "  # the last character that is not dropped
    for c in text:
        if unicodedata.category(c) == "So" and _form(c) == "<super>":
            continue
        numbers = {_category(before, -1), _category(c, 0)}
        apart = "No" in numbers <= {"Nd", "No"} and not _form(before) == _form(c) in ("<super>", "<sub>")
        spaced += [" ", c] if apart else [c]
        if any(map(_character, unicodedata.normalize("NFKD", c))):
            before = c
    return "".join(spaced)


def _category(c: str, end: int) -> str:
    """Return Unicode's category of a number as it is, of another character of its first (0) or last (-1) plain one."""
    category = unicodedata.category(c)
    return category if category == "No" else unicodedata.category(unicodedata.normalize("NFKD", c)[end])


def _form(c: str) -> str:
    """Return how Unicode says that a character differs from its plain form, such as ``<super>``.

    "" where it does not.
    """
    return unicodedata.decomposition(c).partition(" ")[0]


def _character(c: str) -> str:
    """Return what becomes of one character: itself, a space, a hyphen to be judged by its neighbours, or nothing."""
    category = unicodedata.category(c)
    if c in _HYPHENS:
        return "-"
    if category == "Pd" or c == _MINUS or c in _FRACTION_SLASHES or c.isspace():
        return " "
    return c if category[0] in "LN" else ""
