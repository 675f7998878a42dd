"""The decoder of a Whisper as the head of ljspeech and vctk: zero-shot, beams, windows, training, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.downstreams.recognition.config import HeadConfig
from s3prl_ext.downstreams.recognition.whisper_head import read_whisper
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.transcripts import read_transcripts
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert
from tests.adapters.models import clips
from tests.downstreams.test_recognition import runner, task_file
from tests.support import factories
from tests.support.experiments import make_args

s3prl_ext.install()

TEXTS = ("Don't stop.", "The road", "Six spoons", "of snow")
WINDOW = 32000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """LJSpeech-1.1 with 8 clips of 0.4 to 1.1 s, each a tone of its own pitch in noise."""
    root = tmp_path_factory.mktemp("lj") / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    rng, ids = np.random.default_rng(0), [f"LJ001-{number:04d}" for number in range(1, 9)]
    for index, id in enumerate(ids):
        time = np.arange(6400 + 1600 * index) / 16000
        wav = 0.3 * np.sin(2 * np.pi * 200 * 1.6**index * time) + rng.normal(0, 0.01 * (index + 1), len(time))
        soundfile.write(str(root / "wavs" / f"{id}.wav"), wav, 16000)
    (root / "metadata.csv").write_text("".join(f"{id}|x|{TEXTS[i % 4]}\n" for i, id in enumerate(ids)))
    (root / "splits.json").write_text(json.dumps({"train": ids[:3], "dev": ids[3:4], "test": ids[4:]}))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return factories.whisper_folder(tmp_path_factory.mktemp("whisper") / "tiny", seed=3)


def _args(expdir, folder, **changes):
    changes = {
        "upstream": "whisper_local", "upstream_ckpt": str(folder), "downstream": "ljspeech", "mode": "evaluate",
        "evaluate_split": "test", "upstream_feature_selection": "last_hidden_state",
    } | changes  # fmt: skip
    return make_args(expdir, **changes)


def _of_transformers(folder, wavs, **options):
    """Return the transcripts of transformers' own pipeline: feature extractor, whole model, generate, tokenizer."""
    from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for wav in wavs:
        mel = extractor(wav, sampling_rate=16000, return_tensors="pt").input_features
        ids = model.generate(
            mel, do_sample=False, **({"language": "en", "task": "transcribe", "num_beams": 1} | options)
        )
        texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


@pytest.mark.parametrize(
    "batch_size, head", [(1, {}), (3, {}), (1, {"beams": 3}), (2, {"language": "de", "task": "translate"})]
)
def test_zero_shot_transcripts_equal_transformers(corpus, folder, tmp_path, batch_size, head):
    config = task_file(corpus, eval_batch_size=batch_size, text_rule="identity")
    config["downstream_expert"]["head"] |= head
    runner(_args(tmp_path / "exp", folder), config).evaluate("test")
    rows = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    wavs = [read_audio(corpus / "wavs" / f"{row.id}.wav") for row in rows]
    options = {"num_beams" if key == "beams" else key: value for key, value in head.items()}
    expected = _of_transformers(folder, wavs, **options)
    assert len(set(expected)) > 1 and all(expected)
    assert [row.hypothesis for row in rows] == expected


def test_a_merged_whisper_writes_what_its_plain_export_writes(corpus, folder, tmp_path):
    """The decoder's own attention is the source; the exported folder goes through transformers alone."""
    from s3prl_ext.commands.merge import main as merge

    (tmp_path / "merge.yaml").write_text(
        f"target: {{model: {folder}}}\nsource: {{model: {folder}, prefix: decoder}}\nlambda: 0.5\n"
    )
    args = _args(
        tmp_path / "exp", None, upstream="merged_attention", upstream_ckpt=None,
        upstream_model_config=str(tmp_path / "merge.yaml"),
    )  # fmt: skip
    runner(args, task_file(corpus, text_rule="identity")).evaluate("test")
    rows = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    wavs = [read_audio(corpus / "wavs" / f"{row.id}.wav") for row in rows]
    assert merge(["-g", str(tmp_path / "merge.yaml"), "--out", str(tmp_path / "merged")]) == 0
    assert [row.hypothesis for row in rows] == _of_transformers(tmp_path / "merged", wavs)
    assert [row.hypothesis for row in rows] != _of_transformers(folder, wavs)


def test_what_is_only_scored_needs_no_train(folder, corpus, tmp_path):
    ids = [f"LJ001-{number:04d}" for number in range(1, 9)]
    (tmp_path / "halves.json").write_text(json.dumps({"train": [], "dev": [], "test": ids}))
    section = task_file(corpus, split=str(tmp_path / "halves.json"))
    runner(_args(tmp_path / "exp", folder), section).evaluate("test")
    assert len(read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")) == 8
    with pytest.raises(DataError, match=r"the split 'dev' of LJSpeech-1.1 is empty: by .*halves.json"):
        runner(_args(tmp_path / "exp2", folder, evaluate_split="dev"), section).evaluate("dev")
    with pytest.raises(DataError, match="the split 'train' of LJSpeech-1.1 by .* is empty"):
        runner(_args(tmp_path / "exp3", folder, mode="train"), section)


def test_a_long_clip_is_written_window_by_window(folder):
    recognizer, upstream = read_whisper(folder, 32, HeadConfig("target")), UpstreamExpert(folder).eval()
    wav = clips(80000)[0].numpy()
    with torch.no_grad():
        states = upstream([torch.from_numpy(recognizer.pad(wav))])["last_hidden_state"]
    parts = [wav[start : start + WINDOW] for start in range(0, len(wav), WINDOW)]
    assert recognizer.decode(list(states), None)[0].text == " ".join(_of_transformers(folder, parts))


def test_a_shorter_window_pads_short_clips_to_it_and_longer_ones_to_whole_windows(folder):
    recognizer = read_whisper(folder, 32, HeadConfig("target", window=1))
    lengths = {length: len(recognizer.pad(np.ones(length))) for length in (1, 16000, 16001, WINDOW, WINDOW + 1)}
    assert lengths == {1: 16000, 16000: 16000, 16001: WINDOW, WINDOW: WINDOW, WINDOW + 1: 2 * WINDOW}


def test_of_several_windows_a_clip_has_the_shortest_that_leaves_a_second_of_silence(tmp_path):
    """One of exactly the window's length may end in repetitions."""
    folder = factories.whisper_folder(tmp_path / "whisper", positions=200)  # 4 s
    recognizer = read_whisper(folder, 32, HeadConfig("target", window=(2, 3, 30)))
    lengths = {length: len(recognizer.pad(np.ones(length))) for length in (1, 16000, 16001, 32000, 32001, 64001)}
    assert lengths == {1: 32000, 16000: 32000, 16001: 48000, 32000: 48000, 32001: 64000, 64001: 128000}


def test_scored_clips_of_like_length_share_a_batch_and_are_written_in_the_order_of_the_corpus(folder, tmp_path):
    root, ids = tmp_path / "LJSpeech-1.1", [f"LJ001-{number:04d}" for number in range(1, 5)]
    (root / "wavs").mkdir(parents=True)
    for id, samples, rate in zip(ids, (9000, 22050, 6000, 15000), (16000, 44100, 8000, 16000), strict=True):
        soundfile.write(str(root / "wavs" / f"{id}.wav"), clips(samples)[0].numpy(), rate)
    (root / "metadata.csv").write_text("".join(f"{id}|x|The road\n" for id in ids))
    (root / "splits.json").write_text(json.dumps({"train": [], "dev": [], "test": ids}))
    section = task_file(root, eval_batch_size=2)
    section["downstream_expert"]["head"] |= {"window": "clip"}
    made = runner(_args(tmp_path / "exp", folder), section)
    batches = [batch[3] for batch in made.downstream.model.get_dataloader("test")]
    assert batches == [[ids[3], ids[2]], [ids[0], ids[1]]]  # 0.94, 0.75, 0.56 and 0.5 s
    made.evaluate("test")
    assert [row.id for row in read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")] == ids
    section["runner"] = {**section.get("runner", {}), "evaluate_ratio": 0.5}  # the first clips, not the longest
    made = runner(_args(tmp_path / "part", folder), section)
    assert [batch[3] for batch in made.downstream.model.get_dataloader("test")] == [ids[:2], ids[2:]]


def test_a_clip_of_its_own_length_is_decoded_alone_as_in_a_batch(folder):
    recognizer = read_whisper(folder, 32, HeadConfig("target", window="clip"))
    wavs = clips(16000, 9000, 16000)
    assert all(recognizer.pad(wav.numpy()).shape == tuple(wav.shape) for wav in wavs)
    with torch.no_grad():
        states = [UpstreamExpert(folder).eval()([wav])["last_hidden_state"][0] for wav in wavs]
    together = recognizer.decode(states, None)
    assert together == [recognizer.decode([state], None)[0] for state in states]


def test_the_loss_is_that_of_transformers(folder):
    from transformers import WhisperForConditionalGeneration

    recognizer = read_whisper(folder, 32, HeadConfig("target", window="clip"))
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    states = [torch.randn(100, 32), torch.randn(40, 32), torch.randn(100, 32)]
    texts = ["six spoons", "of snow", "a"]
    loss, _ = recognizer.recognize(states, texts, [32000, 12800, 32000])
    total, count = 0.0, 0
    for state, text in zip(states, texts, strict=True):
        read, written = recognizer._tokens(text)
        assert read.tolist()[:4] == [41, 42, 45, 49] and written.tolist()[-1] == 40
        scores = model(encoder_outputs=(state[None],), decoder_input_ids=read[None]).logits[0].log_softmax(-1)
        kept = [(place, token) for place, token in enumerate(written.tolist()) if token != -100]
        assert len(kept) == len(text) + 2  # a blank before it, and its end
        total -= sum(scores[place, token].item() for place, token in kept)
        count += len(kept)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_what_the_model_reads_or_writes_in_part_alone_has_no_part_in_the_loss(folder, caplog):
    """Else the first window of a long clip would be taught the text of all of it."""
    recognizer = read_whisper(folder, 32, HeadConfig("target", window="clip"))
    positions, most = recognizer.head.positions, recognizer.head.whisper.config.max_target_positions
    short, long = torch.randn(40, 32), torch.randn(positions + 1, 32, requires_grad=True)
    samples = [12800, 320 * (positions + 1), 12800]
    expected, _ = recognizer.recognize([short], ["a"], [12800])
    assert not caplog.records
    loss, found = recognizer.recognize([short, long, short], ["a", "of snow", "a" * most], samples)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and len(found) == 3
    alone, _ = recognizer.recognize([long], ["of snow"], samples[1:2])
    alone.backward()
    assert alone.item() == 0 and not long.grad.any()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "have no part in the loss" in said


def test_fine_tuning_trains_decoder_and_encoder_and_resumes_from_its_checkpoint(corpus, folder, tmp_path):
    config = task_file(corpus, tuning="full")
    args = _args(tmp_path / "exp", folder, mode="train", upstream_trainable=True)
    runner(args, config).train()
    states = torch.load(tmp_path / "exp" / "states-3.ckpt", weights_only=True)
    from s3prl_ext.attention.files import open_weights, weight_file

    base = open_weights(weight_file(folder))
    embedded = states["Downstream"]["head.whisper.model.decoder.embed_tokens.weight"]
    assert not torch.equal(embedded, base["model.decoder.embed_tokens.weight"])
    assert not torch.equal(
        states["Upstream"]["model.encoder.layers.0.fc1.weight"], base["model.encoder.layers.0.fc1.weight"]
    )
    assert torch.equal(states["Upstream"]["model.encoder.conv1.weight"], base["model.encoder.conv1.weight"])


def test_the_head_has_no_weights_of_an_encoder(folder):
    head = read_whisper(folder, 32, HeadConfig("target")).head
    assert not [name for name, _ in head.named_parameters() if "encoder." in name]


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _settings(folder, **changes):
    """Change generation_config.json; None removes a key."""
    file = folder / "generation_config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _without(*names):
    return lambda folder: _settings(folder, **dict.fromkeys(names))


def _for_english(folder):
    _settings(folder, is_multilingual=False, lang_to_id=None, task_to_id=None)


def _without_translation(folder):
    _settings(folder, task_to_id={"transcribe": 45})


def _fewer_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_layers": 3}))


@pytest.mark.parametrize(
    "spoil, width, head, error, sentence",
    [
        (None, 32, {"language": "xx"}, UsageError, "unknown downstream_expert.head.language 'xx'. Known: de, en"),
        (None, 48, {}, DataError, "reads states of width 32, but the upstream gives 48"),
        (_remove("tokenizer.json"), 32, {}, DataError, "lacks tokenizer.json"),
        (_remove("generation_config.json"), 32, {}, DataError, "lacks generation_config.json"),
        (_without("lang_to_id"), 32, {}, DataError, "generation_config.json lacks lang_to_id, which names the tokens"),
        (_without("task_to_id"), 32, {}, DataError, "generation_config.json lacks task_to_id, which names the tokens"),
        (_for_english, 32, {"language": "de"}, UsageError, "is a Whisper for English alone: .*language must be en"),
        (_for_english, 32, {"task": "translate"}, UsageError, "is a Whisper for English alone: .*task transcribe"),
        (_without_translation, 32, {"task": "translate"}, UsageError, "unknown .*head.task of this model 'translate'"),
        (None, 32, {"max_tokens": 29}, UsageError, "max_tokens is 29, but this model writes at most 28 tokens"),
        (_fewer_layers, 32, {}, DataError, "does not hold the decoder that its config.json describes"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, spoil, width, head, error, sentence):
    folder = factories.whisper_folder(tmp_path / "whisper")
    if spoil is not None:
        spoil(folder)
    with pytest.raises(error, match=sentence) as caught:
        read_whisper(folder, width, HeadConfig("target", **head))
    assert "\n" not in str(caught.value)


def test_a_model_that_names_no_limit_writes_up_to_its_last_position(tmp_path):
    """transformers stops such a model after 20 tokens, in mid-sentence."""
    folder = factories.whisper_folder(tmp_path / "whisper", seed=6)
    states = [torch.randn(100, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    longest = read_whisper(folder, 32, HeadConfig("target", max_tokens=28)).decode(states, None)
    assert all(len(one.text) > 20 for one in longest)
    _settings(folder, max_length=None)
    assert read_whisper(folder, 32, HeadConfig("target")).decode(states, None) == longest


def test_the_tokens_that_settings_leave_open_are_those_of_the_model(tmp_path):
    """Without its start token, generate would begin a text with another one."""
    folder = factories.whisper_folder(tmp_path / "whisper", seed=3)
    states = [torch.randn(100, 32, generator=torch.Generator().manual_seed(0))]
    expected = read_whisper(folder, 32, HeadConfig("target")).decode(states, None)[0]
    _settings(folder, decoder_start_token_id=None, eos_token_id=None, pad_token_id=None)
    assert read_whisper(folder, 32, HeadConfig("target")).decode(states, None)[0] == expected


@pytest.mark.parametrize(
    "head, sentence",
    [({"window": 31}, "head.window must be a whole number of seconds from 1 to 30, a list of them, or clip, got 31"),
     ({"window": True}, "head.window"), ({"window": []}, "head.window"), ({"window": [4, 0]}, "head.window"), ({"window": "whole"}, "head.window"), ({"task": "sing"}, "head: unknown task 'sing'"), ({"beams": 0}, "head.beams must be"),
     ({"max_tokens": 0}, "head.max_tokens must be")],
)  # fmt: skip
def test_options_are_checked(corpus, head, sentence):
    from s3prl_ext.downstreams.recognition.config import parse

    section = task_file(corpus)["downstream_expert"]
    section["head"] |= head
    with pytest.raises(UsageError, match=sentence):
        parse(section)
