"""Block outputs against blocks called by hand, encoders, and layers chosen by similarity in a merge."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.weights import extract
from s3prl_ext.commands import merge as merge_command
from s3prl_ext.corpora.pairs import Pair
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.selection_config import ComparisonSettings
from s3prl_ext.merging.similarity import draw_projections, swd
from s3prl_ext.models.fingerprint import module_sha256
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel
from s3prl_ext.upstreams.layer_similarity import features
from s3prl_ext.upstreams.layer_similarity.block_outputs import as_found, block_outputs, find_blocks
from s3prl_ext.upstreams.layer_similarity.comparison import compare, meeting_layers, source_side, target_side
from s3prl_ext.upstreams.layer_similarity.encoders import load_source
from s3prl_ext.upstreams.layer_similarity.image_encoder import ImageEncoder
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.layer_similarity.text_encoder import TextEncoder
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support import factories

TEXTS = ["a bee", "see the deep blue sea", "ef", "gee h", "i jay kay", "el em en", "o pea", "queue are es"]
CHANNELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 16, "width": 16}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recordings(tmp_path):
    """Write eight clips of noise of different lengths and return their paths."""
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.wav" for index in range(len(TEXTS))]
    for index, path in enumerate(paths):
        soundfile.write(path, 0.1 * generator.standard_normal(4000 + 1700 * index), 16000)
    return paths


@pytest.fixture
def pairs(recordings):
    return [Pair(audio, text) for audio, text in zip(recordings, TEXTS, strict=True)]


@pytest.fixture
def table(tmp_path, recordings):
    rows = [f"{path.name}\t{text}" for path, text in zip(recordings, TEXTS, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(["path\ttext", *rows]) + "\n")
    return tmp_path / "pairs.tsv"


def hubert(tmp_path, **options):
    return factories.hubert_folder(tmp_path / "hubert", stable_norm=True, **options)


def wave(path):
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def hubert_by_hand(speech, wav):
    """Call the front end and then one block after the other."""
    model = speech.model
    values = torch.from_numpy(speech.extracter(wav.numpy(), sampling_rate=16000)["input_values"][0])[None]
    x = model.feature_projection(model.feature_extractor(values).transpose(1, 2))
    x = x + model.encoder.pos_conv_embed(x)
    if type(model.encoder).__name__ == "HubertEncoder":
        x = model.encoder.layer_norm(x)
    outputs = []
    for layer in model.encoder.layers:
        x = layer(x)
        x = x[0] if isinstance(x, tuple) else x
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("stable_norm", [True, False])
def test_blocks_of_a_transformers_model_equal_those_called_by_hand(stable_norm, tmp_path, recordings):
    speech = TransformersSpeechModel(factories.hubert_folder(tmp_path / "h", layers=3, stable_norm=stable_norm)).eval()
    (states,) = SpeechEncoder(speech, "hubert").states([recordings[3]])
    with torch.no_grad():
        expected = hubert_by_hand(speech, wave(recordings[3]))
        hidden = speech([wave(recordings[3])])["hidden_states"]
    assert states.shape == (3, expected[0].shape[1], 32)
    for mine, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(mine, theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(states[1], hidden[2][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factory", ["hubert_local_ckpt", "wav2vec2_local_ckpt", "wavlm_local_ckpt"])
def test_blocks_of_s3prls_models_equal_their_encoder_called_by_hand(factory, tmp_path, recordings):
    import s3prl.hub

    name = factory.removesuffix("_ckpt")
    upstream = getattr(s3prl.hub, name)(ckpt=str(getattr(factories, factory)(tmp_path / "m.pt", layers=3))).eval()
    encoder = SpeechEncoder(upstream, name)
    assert encoder.batch_axis == 1 and encoder.counts_frames
    original = type(upstream.model.encoder).extract_features
    for clip in recordings[:4]:  # even and odd numbers of frames: the models pad odd ones
        (states,) = encoder.states([clip])
        expected = []
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:

            def capture(self, x, *args, expected=expected, **kwargs):
                expected.append(x)
                return original(self, x, *args, **kwargs)

            patch.setattr(type(upstream.model.encoder), "extract_features", capture)
            hidden = upstream([wave(clip)])["hidden_states"]
        assert states.shape == (3, expected[0].shape[1], 32)  # as many frames as enter the encoder
        for mine, theirs in zip(states, hidden[1:], strict=False):  # hooks of s3prl: inputs of later blocks
            torch.testing.assert_close(mine[: theirs.shape[1]], theirs[0], rtol=0, atol=1e-6)


def test_blocks_of_s3prls_hubert_called_by_hand(tmp_path, recordings):
    import s3prl.hub

    upstream = s3prl.hub.hubert_local(ckpt=str(factories.hubert_local_ckpt(tmp_path / "m.pt", layers=3))).eval()
    model, wav = upstream.model, wave(recordings[3])
    with torch.no_grad():
        x = model.post_extract_proj(model.layer_norm(model.feature_extractor(wav[None]).transpose(1, 2)))
        x = model.encoder.layer_norm(x + model.encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        (states,) = SpeechEncoder(upstream, "hubert").states([recordings[3]])
        for layer, mine in zip(model.encoder.layers, states, strict=True):
            x = layer(x.transpose(0, 1))[0].transpose(0, 1)
            torch.testing.assert_close(mine, x[0], rtol=0, atol=1e-5)


def test_blocks_of_beats_are_all_tokens(tmp_path, recordings):
    import s3prl.hub

    upstream = s3prl.hub.beats_local(ckpt=str(factories.beats_ckpt(tmp_path / "beats.pt", layers=3))).eval()
    encoder = SpeechEncoder(upstream, "beats", batch_size=2)
    assert encoder.batch_axis == 0 and encoder.counts_frames
    short, long = encoder.states([recordings[0], recordings[7]])
    assert (short.shape, long.shape) == ((3, 1 * 8, 32), (3, 6 * 8, 32))  # whole patches only
    with torch.no_grad():
        hidden = upstream([wave(recordings[0])])["hidden_states"]
    for mine, pooled in zip(short, hidden[1:], strict=True):
        torch.testing.assert_close(mine.unflatten(0, (-1, 8)).mean(1), pooled[0, :1], rtol=0, atol=1e-5)


def test_the_last_block_of_a_prenorm_hubert_is_before_the_final_norm(tmp_path, recordings):
    speech = TransformersSpeechModel(hubert(tmp_path)).eval()
    (states,) = SpeechEncoder(speech, "hubert").states([recordings[0]])
    with torch.no_grad():
        last = speech([wave(recordings[0])])["last_hidden_state"][0]
        torch.testing.assert_close(speech.model.encoder.layer_norm(states[-1]), last, rtol=0, atol=1e-5)
    assert not torch.allclose(states[-1], last, atol=1e-2)


@pytest.mark.parametrize("kind", ["hubert", "hubert_local"])
def test_padding_is_left_out(kind, tmp_path, recordings):
    import s3prl.hub

    if kind == "hubert":
        upstream = TransformersSpeechModel(hubert(tmp_path)).eval()
    else:
        options = {"extractor_mode": "layer_norm", "layer_norm_first": True}
        upstream = s3prl.hub.hubert_local(ckpt=str(factories.hubert_local_ckpt(tmp_path / "m.pt", **options))).eval()
    encoder = SpeechEncoder(upstream, kind, batch_size=4)
    together = encoder.states(recordings[:4])
    for clip, states in zip(recordings[:4], together, strict=True):
        (alone,) = encoder.states([clip])
        assert states.shape == alone.shape
        if kind == "hubert":  # s3prl's models judge the frame at the end of a padded clip by their own rule
            torch.testing.assert_close(states, alone, rtol=0, atol=1e-4)


def test_blocks_of_bert_equal_those_called_by_hand_with_and_without_special_tokens(tmp_path):
    folder = factories.bert_folder(tmp_path / "bert", layers=3)
    encoder = TextEncoder(folder, "bert")
    states = encoder.states(TEXTS)
    model = encoder.model
    for text, mine in zip(TEXTS, states, strict=True):
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        assert mine.shape == (3, ids.shape[1], 32)
        with torch.no_grad():
            x = model.embeddings(ids)
            for block, layer in zip(mine, model.encoder.layer, strict=True):
                x = layer(x)
                x = x[0] if isinstance(x, tuple) else x
                torch.testing.assert_close(block, x[0], rtol=0, atol=1e-5)
    for whole, inner in zip(states, TextEncoder(folder, "bert", special_tokens=False).states(TEXTS), strict=True):
        torch.testing.assert_close(whole[:, 1:-1], inner, rtol=0, atol=1e-6)


def test_long_texts_are_cut_at_the_models_positions_with_a_warning(tmp_path, caplog):
    encoder = TextEncoder(factories.bert_folder(tmp_path / "bert"), "bert")
    (states,) = encoder.states(["a " * 100])
    assert states.shape[1] == 64 and "has 102 tokens, of which bert takes 64" in caplog.text


def test_images_go_through_a_vit(tmp_path):
    from PIL import Image

    folder = factories.vit_folder(tmp_path / "vit")
    with pytest.raises(DataError, match="lacks preprocessor_config.json"):
        load_source(folder, "vit")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **CHANNELS})
    )
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoder = load_source(folder, "vit")
    assert isinstance(encoder, ImageEncoder)
    (states,) = encoder.states([tmp_path / "a.png"])
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        x = encoder.model.embeddings(x)
        for mine, layer in zip(states, find_blocks(encoder.model, "vit"), strict=True):
            x = layer(x)
            torch.testing.assert_close(mine, x[0], rtol=0, atol=1e-5)
    (patches,) = ImageEncoder(folder, "vit", special_tokens=False).states([tmp_path / "a.png"])
    torch.testing.assert_close(patches, states[:, 1:])


def test_hooks_are_removed_and_a_block_that_does_not_run_is_named(tmp_path):
    speech = TransformersSpeechModel(hubert(tmp_path)).eval()
    blocks = find_blocks(speech, "hubert")
    with pytest.raises(DataError, match="block 0 of hubert gave 0 outputs"):
        block_outputs(blocks, lambda: None, "hubert")
    assert not any(block._forward_hooks for block in blocks)


def sides(tmp_path, target_options=None, **source_options):
    upstream = TransformersSpeechModel(hubert(tmp_path, **(target_options or {}))).eval()
    bert = factories.bert_folder(tmp_path / "bert", **source_options)
    return target_side(upstream, "hubert"), source_side(bert, "bert")


def tables(target, source, pairs, metrics=("euclidean", "swd"), **settings):
    layers = meeting_layers(target, source, None)
    return {
        t.metric: t.values for t in compare(target, source, pairs, layers, metrics, ComparisonSettings(**settings))[0]
    }


def test_values_are_those_of_mean_vectors(tmp_path, pairs):
    target, source = sides(tmp_path)
    values = tables(target, source, pairs)
    x = torch.stack([target.load().states([pair.audio])[0].mean(1) for pair in pairs])
    y = torch.stack([source.load().states([pair.other])[0].mean(1) for pair in pairs])
    expected = [(x[:, i] - y[:, i]).norm(dim=1).mean().item() for i in range(2)]
    assert values["euclidean"] == pytest.approx(expected, rel=1e-5)
    assert values["swd"] == pytest.approx([swd(x[:, i], y[:, i], draw_projections(32)) for i in range(2)], rel=1e-5)


def test_a_model_compared_with_itself_has_distance_0_in_every_layer(tmp_path, recordings):
    folder = hubert(tmp_path, layers=3)
    target, source = target_side(TransformersSpeechModel(folder).eval(), "a"), source_side(folder, "b")
    pairs = [Pair(path, path) for path in recordings]
    metrics = ("euclidean", "swd", "swd_coordinates")
    assert set(tables(target, source, pairs, metrics).values()) == {(0.0,) * 3}
    assert tables(target, source, pairs, ("swd",), level="frame") == {"swd": (0.0,) * 3}


def test_permuting_pairs_jointly_changes_nothing(tmp_path, pairs):
    target, source = sides(tmp_path)
    before, after = tables(target, source, pairs), tables(target, source, pairs[::-1])
    for metric, values in before.items():
        assert after[metric] == pytest.approx(values, rel=1e-6)


def test_frames_against_tokens(tmp_path, pairs):
    target, source = sides(tmp_path)
    (values,) = tables(target, source, pairs, ("swd",), level="frame", projections=50).values()
    directions = draw_projections(32, 50)
    expected = [
        sum(
            swd(target.load().states([p.audio])[0][layer], source.load().states([p.other])[0][layer], directions)
            for p in pairs
        )
        / len(pairs)
        for layer in range(2)
    ]
    assert values == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_comparison_goes_on_and_a_finished_one_is_not_repeated(tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(features, "PART", 3)
    target, source = sides(tmp_path)
    seen: list[str] = []
    original = SpeechEncoder.states

    def states(self, items):
        seen.extend(item.name for item in items)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return original(self, items)

    monkeypatch.setattr(SpeechEncoder, "states", states)
    with pytest.raises(KeyboardInterrupt):
        tables(target, source, pairs)
    values = tables(target, source, pairs)
    assert seen[5:] == [f"{index}.wav" for index in range(3, 8)]  # the first part of three was kept
    assert tables(target, source, pairs) == values and len(seen) == 10
    tables(target, source, pairs, normalize=True)
    assert len(seen) == 10  # other numbers from the same vectors
    damaged = sorted((tmp_path / "cache" / "layers").glob("*.safetensors"))
    for file in (*damaged, *(tmp_path / "cache" / "layers").glob("*.json")):
        file.write_bytes(b"x")
    assert tables(target, source, pairs) == values and len(seen) == 18


def test_other_models_or_data_are_computed_anew(tmp_path, pairs):
    target, source = sides(tmp_path)
    values = tables(target, source, pairs)
    other = TransformersSpeechModel(factories.hubert_folder(tmp_path / "other", stable_norm=True, seed=7)).eval()
    assert tables(target_side(other, "hubert"), source, pairs) != values
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(reversed(factories.WORD_PIECES)))
    assert source_side(tmp_path / "bert", "bert").key != source.key
    assert tables(target, source, [*pairs[:-1], Pair(pairs[-1].audio, "else")]) != values


def test_models_of_equal_weights_with_other_settings_share_no_result(tmp_path, recordings):
    """Strides and activations are in no tensor, of models with and without a configuration of transformers."""
    first = target_side(TransformersSpeechModel(hubert(tmp_path)).eval(), "hubert")
    file = tmp_path / "hubert" / "config.json"
    config = json.loads(file.read_text())
    for change in ({"conv_stride": [10, 4, 4, 1]}, {"hidden_act": "relu"}):
        file.write_text(json.dumps(config | change))
        side = target_side(TransformersSpeechModel(tmp_path / "hubert").eval(), "hubert")
        assert side.key != first.key and side.model_sha256 != first.model_sha256, change
        vectors = [features.layer_vectors(one.load(), one.key, recordings[:1], ["h"]) for one in (first, side)]
        assert not torch.equal(*vectors), change

    class Plain(torch.nn.Module):
        def __init__(self, stride=2, activation=torch.nn.functional.gelu):
            super().__init__()
            self.conv, self.activation = torch.nn.Conv1d(1, 1, 4, stride=stride), activation
            torch.nn.init.ones_(self.conv.weight), torch.nn.init.zeros_(self.conv.bias)

    one = module_sha256(Plain())
    assert module_sha256(Plain()) == module_sha256(Plain().train()) == one
    assert len({one, module_sha256(Plain(1)), module_sha256(Plain(2, torch.relu))}) == 3


def test_nan_is_named(tmp_path, pairs):
    upstream = TransformersSpeechModel(hubert(tmp_path)).eval()
    with torch.no_grad():
        upstream.model.encoder.layers[1].feed_forward.output_dense.weight[0, 0] = float("nan")
    _, source = sides(tmp_path)
    with pytest.raises(DataError, match=r"block 1 of hubert gives NaN or infinity for '.*0.wav'"):
        tables(target_side(upstream, "hubert"), source, pairs)


def test_unequal_models_need_a_map_and_equal_widths(tmp_path):
    target, deeper = sides(tmp_path, layers=3)
    with pytest.raises(UsageError, match="has 2 layers of width 32 and source bert has 3 .*set layer_map"):
        meeting_layers(target, deeper, None)
    assert meeting_layers(target, deeper, "linear") == [0, 2]
    wider = source_side(factories.bert_folder(tmp_path / "wide", width=48), "wide")
    with pytest.raises(UsageError, match="width 32 and source wide has 2 layers of width 48.*equal width"):
        meeting_layers(target, wider, None)


@pytest.mark.parametrize("missing", ["vocab.txt", "config.json"])
def test_a_source_without_tokenizer_or_settings_is_refused(missing, tmp_path):
    folder = factories.bert_folder(tmp_path / "bert")
    (folder / missing).unlink()
    with pytest.raises(DataError, match="no usable tokenizer" if missing == "vocab.txt" else "no config.json"):
        load_source(folder, "bert")


def test_as_found_leaves_modes_and_random_generators(tmp_path):
    upstream = TransformersSpeechModel(hubert(tmp_path)).train()
    upstream.model.encoder.eval()
    modes = [module.training for module in upstream.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with as_found(upstream, "cpu"):
        assert not any(module.training for module in upstream.modules())
        torch.rand(3), np.random.rand(3)
    assert [module.training for module in upstream.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])


def test_as_found_leaves_parameters_and_buffers_in_their_memory(tmp_path):
    upstream = TransformersSpeechModel(hubert(tmp_path))
    upstream.register_buffer("seen", torch.ones(2))
    state = {name: (tensor, tensor.data_ptr(), tensor.clone()) for name, tensor in upstream.state_dict().items()}
    with as_found(upstream, "cpu"):
        upstream.double().float()  # new memory, as on another device
        assert all(tensor.data_ptr() != state[name][1] for name, tensor in upstream.named_parameters())
    for name, tensor in upstream.state_dict().items():
        view, place, before = state[name]
        assert tensor.data_ptr() == place and torch.equal(tensor, before) and torch.equal(view, before)


def write_merge(tmp_path, layers, source_options=None, **target_options):
    target = factories.hubert_folder(tmp_path / "target", layers=4, stable_norm=True, **target_options)
    source = factories.bert_folder(tmp_path / "source", layers=4, **(source_options or {}))
    file = tmp_path / "merge.yaml"
    file.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 0.5\nlayers: {layers}\n")
    return file


def changed_layers(file):
    merged, plain = (merged_attention(model_config=f"{file}{more}").state_dict() for more in ("", ",,lambda=0"))
    return [
        layer
        for layer in range(4)
        if not torch.equal(
            *(state[f"model.encoder.layers.{layer}.attention.q_proj.weight"] for state in (merged, plain))
        )
    ]


def test_a_merge_finds_its_layers_and_records_how(tmp_path, table):
    file = write_merge(tmp_path, f"{{by: swd, top_k: 2, pairs: {table}, share: 1}}")
    upstream = merged_attention(model_config=str(file))
    (source,) = upstream.merge_record["sources"]
    selection = source["layer_selection"]
    assert selection["by"] == "swd" and selection["top_k"] == 2 and selection["pairs"]["used"] == 8
    best = sorted(sorted(range(4), key=selection["values"].__getitem__)[:2])
    assert selection["layers"] == best == changed_layers(file)
    assert [layer for layer, value in enumerate(source["lambda"]["q_proj"]) if value] == best
    json.dumps(upstream.merge_record)
    everything = merged_attention(model_config=f"{file},,layers.top_k=4").merge_record["sources"][0]
    assert everything["layer_selection"]["layers"] == [0, 1, 2, 3]


def test_a_merge_finds_which_layers_meet_and_records_how(tmp_path, table):
    target = factories.hubert_folder(tmp_path / "target", layers=3)
    source = factories.bert_folder(tmp_path / "source", layers=5)
    match = f"{{match: swd, pairs: {table}, share: 1, monotone: false}}"
    file = tmp_path / "merge.yaml"
    file.write_text(f"target: {{model: {target}}}\nsource: {{model: {source}}}\nlambda: 1\nlayer_map: {match}\n")
    upstream = merged_attention(model_config=str(file))
    (record,) = upstream.merge_record["sources"]
    found = record["layer_match"]
    assert found["layer_map"] == record["layer_map"] and found["pairs"]["used"] == 8
    assert found["layer_map"] == [row.index(min(row)) for row in found["values"]]
    assert [len(row) for row in found["values"]] == [5] * 3
    theirs = read_attention(source)
    for slot, tensor in extract(upstream.state_dict()).items():
        if slot.kind == "weight":
            assert torch.equal(tensor, theirs[slot._replace(layer=found["layer_map"][slot.layer])])
    by_hand = str(dict(enumerate(found["layer_map"])))
    check_merge_record(
        upstream.merge_record, merged_attention(model_config=f"{file},,layer_map={by_hand}").merge_record
    )
    monotone = merged_attention(model_config=f"{file},,layer_map.monotone=true").merge_record["sources"][0]["layer_map"]
    assert monotone == sorted(monotone)
    out = tmp_path / "merged"
    assert merge_command.main(["-g", str(file), "--out", str(out)]) == 0
    written = json.loads((out / "merge.json").read_text())["merge"]
    assert written["sources"][0]["layer_match"]["layer_map"] == found["layer_map"]
    check_merge_record(written, upstream.merge_record)


def test_a_cached_choice_draws_no_random_numbers_and_runs_no_model(tmp_path, table, monkeypatch):
    file = write_merge(tmp_path, f"{{by: swd, top_k: 2, pairs: {table}, share: 1}}")
    numbers = []
    for _ in range(2):
        torch.manual_seed(3)
        merged_attention(model_config=str(file))
        numbers.append(torch.rand(1).item())
        monkeypatch.setattr(SpeechEncoder, "states", None)
    torch.manual_seed(3)
    merged_attention(model_config=f"{file},,layers=[0]")
    assert numbers == [torch.rand(1).item()] * 2


def test_a_file_of_the_command_is_read_and_its_models_are_checked(tmp_path, table, caplog):
    from s3prl_ext.commands.layers import main

    file = write_merge(tmp_path, "all")
    out = tmp_path / "out"
    flags = ["-g", str(file), "--pairs", str(table), "--share", "1", "--top-k", "2", "--out", str(out)]
    assert main(flags) == 0
    result = json.loads((out / "layers.json").read_text())
    for by in ("swd", "inner_product"):
        choice = f"{{by: {by}, top_k: 2, from: {out / 'layers.json'}}}"
        file.write_text(file.read_text().replace("layers: all", f"layers: {choice}"))
        assert changed_layers(file) == result["metrics"][by]["layers"]
        file.write_text(file.read_text().replace(f"layers: {choice}", "layers: all"))
    choice = f"{file},,layers={{by: swd, top_k: 2, from: {out / 'layers.json'}}}"
    with pytest.raises(UsageError, match="top_k must be between 1 and the number of layers, 4, got 5"):
        merged_attention(model_config=f"{choice},,layers.top_k=5")
    with pytest.raises(UsageError, match="unknown metric 'swd_coordinates'"):
        merged_attention(model_config=f"{choice},,layers.by=swd_coordinates")
    with pytest.raises(DataError, match="made with another layer_map"):
        merged_attention(model_config=f"{choice},,layer_map={{0: 1}}")
    other = factories.bert_folder(tmp_path / "other", layers=4, seed=9)
    with pytest.raises(DataError, match="made with another source: .* run s3prl-ext layers with this source"):
        merged_attention(model_config=f"{choice},,source.model={other}")
    tuned = tmp_path / "tuned"
    shutil.copytree(tmp_path / "target", tuned)
    tensors = load_file(tuned / "model.safetensors")
    name = next(name for name in tensors if "feed_forward" in name and name.endswith("weight"))
    save_file(tensors | {name: 2 * tensors[name]}, tuned / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="made with another target: .* has the same attention, but other weights or"):
        merged_attention(model_config=f"{choice},,target.model={tuned}")
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "target", copy)
    assert merged_attention(model_config=f"{choice},,target.model={copy}") is not None
    vocabulary = tmp_path / "source" / "vocab.txt"
    text = vocabulary.read_text()
    vocabulary.write_text("\n".join(reversed(factories.WORD_PIECES)))
    with pytest.raises(DataError, match="made with another source: .* has the same attention, but other weights or"):
        merged_attention(model_config=choice)
    vocabulary.write_text(text)
    result.pop("format")
    (out / "layers.json").write_text(json.dumps(result))
    merged_attention(model_config=choice)
    assert "made by an earlier version, which does not tell models of equal attention apart" in caplog.text
    (out / "layers.json").write_text('{"kind": "something"}')
    with pytest.raises(DataError, match="is not a layers.json"):
        merged_attention(model_config=choice)


def test_noise_without_a_source_has_no_layers_by_similarity(tmp_path, table):
    file = write_merge(tmp_path, f"{{by: swd, top_k: 2, pairs: {table}, share: 1}}")
    with pytest.raises(UsageError, match="need a source model"):
        merged_attention(model_config=f"{file},,noise=target,,source=null")


def test_an_upstream_of_s3prl_can_be_the_target(tmp_path, table):
    ckpt = factories.hubert_local_ckpt(tmp_path / "m.pt")
    source = factories.bert_folder(tmp_path / "bert")
    (tmp_path / "m.yaml").write_text(
        f"target: {{upstream: hubert_local, ckpt: {ckpt}}}\nsource: {{model: {source}}}\nlambda: 0.5\n"
        f"layers: {{by: euclidean, top_k: 1, pairs: {table}, share: 0.5}}\n"
    )
    (described,) = merged_attention(model_config=str(tmp_path / "m.yaml")).merge_record["sources"]
    assert len(described["layer_selection"]["layers"]) == 1 and described["layer_selection"]["pairs"]["used"] == 4
