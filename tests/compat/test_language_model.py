"""Recognition with a language model: what cannot be decoded is refused in a sentence, the rest goes to s3prl's decoder."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

import s3prl_ext
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import DataError, UsageError

s3prl_ext.install()

PRESETS = sorted(shipped_dir("downstream_configs").glob("asr/*.yaml"))


@pytest.fixture
def get_decoder():
    return importlib.import_module("s3prl.downstream.asr.expert").get_decoder


@pytest.fixture
def installed(monkeypatch):
    """A stand-in for flashlight-text, with the decoder of s3prl that reads it."""
    for name in ("flashlight", "flashlight.lib", "flashlight.lib.text"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[name].__spec__ = SimpleNamespace(name=name)
    decoder = ModuleType("s3prl.downstream.asr.w2l_decoder")
    decoder.W2lKenLMDecoder = lambda settings, dictionary: settings
    monkeypatch.setitem(sys.modules, decoder.__name__, decoder)


def settings(**changes) -> dict:
    return load_yaml(PRESETS[0])["downstream_expert"]["datarc"]["decoder_args"] | changes


@pytest.mark.parametrize("kind", ["KenLM", "none", "lm", False])
def test_a_decoder_that_s3prl_would_take_for_none_is_refused(get_decoder, kind):
    with pytest.raises(UsageError, match=rf"decoder_type must be 'None' \(greedy\) or 'kenlm' .*, got {kind!r}\."):
        get_decoder(settings(decoder_type=kind), None)


@pytest.mark.parametrize("kind", [None, "None"])
def test_without_a_language_model_there_is_no_decoder(get_decoder, kind):
    assert get_decoder(settings(decoder_type=kind), None) is None


def test_the_package_that_is_missing_is_named(get_decoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight", None)
    with pytest.raises(UsageError, match=r"needs the package flashlight-text: pip install 's3prl_ext\[lm\]'"):
        get_decoder(settings(decoder_type="kenlm"), None)


@pytest.mark.parametrize("missing", ["kenlm_model", "lexicon"])
def test_a_file_that_is_missing_is_named(get_decoder, installed, tmp_path, missing):
    (tmp_path / "there").touch()
    paths = dict.fromkeys(("kenlm_model", "lexicon"), str(tmp_path / "there")) | {missing: str(tmp_path / "away")}
    with pytest.raises(DataError, match=rf"no such file: {tmp_path}/away, .* set config\..*\.{missing} with -o"):
        get_decoder(settings(decoder_type="kenlm", **paths), None)


def test_a_letter_that_the_dictionary_lacks_is_named(get_decoder, installed, tmp_path, monkeypatch):
    def decoder(settings, dictionary):
        raise AssertionError("['T', 'É', '|'] [6, 3, 4]")  # as s3prl's does

    monkeypatch.setattr(sys.modules["s3prl.downstream.asr.w2l_decoder"], "W2lKenLMDecoder", decoder)
    (tmp_path / "there").touch()
    paths = dict.fromkeys(("kenlm_model", "lexicon"), str(tmp_path / "there"))
    with pytest.raises(DataError, match=r"there spells a word with a letter that the dictionary .* lacks: \['T', 'É',"):
        get_decoder(settings(decoder_type="kenlm", **paths), ["a"])


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_the_shipped_settings_reach_the_decoder(get_decoder, installed, tmp_path, preset):
    (tmp_path / "there").touch()
    paths = dict.fromkeys(("kenlm_model", "lexicon"), str(tmp_path / "there"))
    shipped = load_yaml(preset)["downstream_expert"]["datarc"]["decoder_args"]
    found = get_decoder(shipped | {"decoder_type": "kenlm"} | paths, ["a", "b"])
    assert found.unk_weight == -float("inf") and found.beam_size_token == 2


def test_a_word_that_the_language_model_prefers_is_recognised(get_decoder, tmp_path):
    """With flashlight-text itself: greedily the sound is of one word, and the model knows the other one better."""
    pytest.importorskip("flashlight.lib.text", reason="the extra lm is not installed")
    import torch
    from s3prl.downstream.asr.dictionary import Dictionary

    dictionary = Dictionary.load(str(PRESETS[0].with_name("char.dict")))
    (tmp_path / "lexicon.lst").write_text("THE\tT H E |\nTHY\tT H Y |\n")
    (tmp_path / "lm.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\n\n\\1-grams:\n-5\t<unk>\t0\n-99\t<s>\t0\n-1\t</s>\n-4\tTHE\t0\n-0.1\tTHY\t0\n\n"
        "\\2-grams:\n-0.1\tTHY\tTHY\n\n\\end\\\n"
    )
    paths = {"kenlm_model": str(tmp_path / "lm.arpa"), "lexicon": str(tmp_path / "lexicon.lst")}
    decoder = get_decoder(settings(decoder_type="kenlm", **paths), dictionary)
    frames = torch.full((1, 4, len(dictionary)), -20.0)
    for number, letter in enumerate("THE|"):
        frames[0, number, dictionary.index(letter)] = -0.5
    frames[0, 2, dictionary.index("Y")] = -1.0
    assert decoder.decode(frames)[0][0]["words"] == ["THY"]
