"""The text rule ``whisper`` is OpenAI's normaliser: their own examples, their table, and transformers' tokenizer."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation import text_rules
from s3prl_ext.evaluation.text_rules import TEXT_RULES, text_rule

# From tests/test_normalizer.py of openai-whisper (MIT), release 20250625.
OPENAI = {
    "two": "2", "thirty one": "31", "five twenty four": "524", "nineteen ninety nine": "1999", "twenty nineteen": "2019",
    "two point five million": "2500000", "four point two billions": "4200000000s", "200 thousand": "200000",
    "200 thousand dollars": "$200000", "$20 million": "$20000000", "€52.4 million": "€52400000",
    "£77 thousands": "£77000s", "two double o eight": "2008", "three thousand twenty nine": "3029",
    "forty three thousand two hundred sixty": "43260", "forty three thousand two hundred and sixty": "43260",
    "nineteen fifties": "1950s", "thirty first": "31st",
    "thirty three thousand and three hundred and thirty third": "33333rd", "three billion": "3000000000",
    "millions": "1000000s", "july third twenty twenty": "july 3rd 2020",
    "august twenty sixth twenty twenty one": "august 26th 2021", "3 14": "3 14", "3.14": "3.14", "3 point 2": "3.2",
    "3 point 14": "3.14", "fourteen point 4": "14.4", "two point two five dollars": "$2.25",
    "two hundred million dollars": "$200000000", "$20.1 million": "$20100000", "ninety percent": "90%",
    "seventy six per cent": "76%", "double oh seven": "007", "double zero seven": "007", "nine one one": "911",
    "nine double one": "911", "one triple oh one": "10001", "two thousandth": "2000th",
    "thirty two thousandth": "32000th", "minus 500": "-500", "positive twenty thousand": "+20000",
    "two dollars and seventy cents": "$2.70", "3 cents": "¢3", "$0.36": "¢36",
    "three euros and sixty five cents": "€3.65", "three and a half million": "3500000",
    "forty eight and a half dollars": "$48.5", "b747": "b 747", "10 th": "10th", "10th": "10th",
    "mobilisation": "mobilization", "cancelation": "cancellation", "Let's": "let us", "he's like": "he is like",
    "she's been like": "she has been like", "10km": "10 km", "10mm": "10 mm", "RC232": "rc 232",
    "Mr. Park visited Assoc. Prof. Kim Jr.": "mister park visited associate professor kim junior",
}  # fmt: skip
# SHA-256 of whisper/normalizers/english.json in that release.
TABLE = "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465"


@pytest.fixture
def table():
    """Return OpenAI's table of spellings, or skip."""
    pytest.importorskip("whisper_normalizer", reason="needs the extra whisper")
    return resources.files("whisper_normalizer").joinpath("normalizers", "english.json").read_bytes()


def test_openais_own_examples(table):
    assert hashlib.sha256(table).hexdigest() == TABLE
    apply = text_rule("whisper").apply
    assert {text: apply(text) for text in OPENAI} == OPENAI


def test_it_is_what_the_tokenizer_of_a_released_model_does(table, tmp_path):
    """With ``normalizer.json`` among the model's files, transformers' tokenizer normalises texts for evaluations."""
    from transformers import WhisperTokenizer

    from tests.support import factories

    folder = factories.whisper_folder(tmp_path / "whisper")
    (folder / "normalizer.json").write_bytes(table)
    tokenizer = WhisperTokenizer.from_pretrained(folder, normalizer_file=str(folder / "normalizer.json"))
    texts = (
        " Umm, the Colour - of [noise] Dr. O'Neill's £5 notes (sic) cost 1,250.50 in the '60s!",
        "HE HOPED THERE WOULD BE STEW FOR DINNER TURNIPS AND CARROTS",
        "Café naïve, Ærø; we'd gone at 10:45 p.m. - 3 1/2 miles, 20% off.",
    )
    for text in texts:
        assert text_rule("whisper").apply(text) == " ".join(tokenizer.normalize(text).split())


def test_words_of_both_sides_meet(table):
    apply = text_rule("whisper").apply
    assert apply("MISTER HALE DIDN'T TRAVEL TWENTY ONE MILES") == apply("Mr. Hale did not travel 21 miles.")
    assert apply("") == apply(" [music] ") == ""
    assert set(apply("It's -5 or +20 %, $3.50, ¢36, €1 and £2.")) <= {*TEXT_RULES["whisper"].alphabet, " "}


def test_without_the_package_one_sentence_says_what_is_missing(monkeypatch):
    def nothing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    text_rules._english_normalizer.cache_clear()
    monkeypatch.setattr(text_rules.resources, "files", nothing)
    with pytest.raises(UsageError, match=r"needs the package whisper-normalizer.*pip install 's3prl_ext\[whisper\]'"):
        text_rule("whisper")
    text_rules._english_normalizer.cache_clear()
