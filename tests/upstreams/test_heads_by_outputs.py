"""Heads paired by what they do on paired inputs: computed by hand or refused, and found again in a merge."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Aligner, Paired
from s3prl_ext.merging.alignment import permute_heads
from s3prl_ext.merging.basis import Basis, Rotation
from s3prl_ext.sweeps.grid import Arm
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.upstreams.layer_similarity.head_outputs import HeadEncoder
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.layer_similarity.text_encoder import DecoderEncoder, TextEncoder
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.sources import aligner_of
from s3prl_ext.upstreams.speech_models import speech_model
from s3prl_ext.upstreams.whisper.expert import UpstreamExpert
from tests.support import factories

HEADS = 4
pytestmark = pytest.mark.usefixtures("own_cache")

WEIGHTS = [Slot(layer, projection) for layer in (0, 1) for projection in PROJECTIONS]


def encoders(kind, tmp_path):
    """Return the encoders of what attention reads and gives, and the attention, of a tiny model."""
    points = "inputs", "attention"
    if kind in ("hubert", "wavlm", "moonshine"):
        folder = getattr(factories, f"{kind}_folder")(tmp_path / kind, heads=HEADS)
        model = speech_model(folder)
    elif kind.endswith("local"):
        import s3prl.hub

        model = getattr(s3prl.hub, kind)(ckpt=str(getattr(factories, f"{kind}_ckpt")(tmp_path / "m.pt", heads=HEADS)))
    elif kind == "whisper":
        model = UpstreamExpert(factories.whisper_folder(tmp_path / "w", heads=HEADS))
    else:
        makers = {
            "bert": factories.bert_folder,
            "modernbert": factories.modernbert_folder,
            "decoder": factories.whisper_folder,
        }
        folder = makers[kind](tmp_path / kind, heads=HEADS)
        encoder = DecoderEncoder if kind == "decoder" else TextEncoder
        both = [encoder(folder, kind, point=point) for point in points]
        return *both, read_attention(folder, "decoder" if kind == "decoder" else None)
    return *(SpeechEncoder(model.eval(), kind, point=point) for point in points), extract(model.state_dict())


@pytest.mark.parametrize("kind", ["hubert", "hubert_local", "whisper", "bert", "decoder"])
def test_outputs_of_heads_are_those_that_the_model_s_own_attention_gives(kind, tmp_path, table):
    inputs, attention, weights = encoders(kind, tmp_path)
    item = "deep sea" if kind in ("bert", "decoder") else table.parent / "5.wav"
    heads = HeadEncoder(inputs, attention, weights, HEADS, item)
    (outputs,), patterns = heads.states([item]), heads.patterns(item)
    assert outputs.shape == inputs.states([item])[0].shape and len(patterns) == len(outputs)
    for pattern in patterns:
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:2]))
    assert (patterns[0][:, 0, 1:].abs().max() == 0) == (kind == "decoder")  # the first token sees itself only
    with pytest.raises(UsageError, match="positions or gates of its own"):  # other heads are not the model's
        HeadEncoder(inputs, attention, weights, HEADS // 2, item)


def test_heads_on_a_clip_longer_than_whisper_s_window_attend_within_each_window(tmp_path, table):
    inputs, attention, weights = encoders("whisper", tmp_path)
    short, long = table.parent / "5.wav", tmp_path / "long.wav"
    soundfile.write(long, 0.1 * np.random.default_rng(1).standard_normal(5 * 16000), 16000)  # windows of 2, 2 and 1 s
    heads = HeadEncoder(inputs, attention, weights, HEADS, short)
    (outputs,), (given,) = heads.states([long]), attention.states([long])
    assert given.shape[1] == 250
    for own, module, theirs in zip(outputs, attention.tap.modules, given, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(module.out_proj(own), theirs, rtol=1e-4, atol=1e-5)
    for pattern in heads.patterns(long):
        torch.testing.assert_close(pattern[:, :100, :100].sum(-1), torch.ones(HEADS, 100))


def test_heads_that_share_keys_and_values_are_refused(tmp_path, table):
    folder = factories.moonshine_folder(tmp_path / "grouped", heads=HEADS, encoder_num_key_value_heads=2)
    plain = {"target": {"model": str(folder)}, "source": {"model": str(folder)}, "lambda": 0.5}
    shared = "has 16 rows and its query 32: groups of query heads share a key and value head"
    for change in ({"align": "heads"}, {"learnable": {"granularity": "head"}}):
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(plain | change))
        with pytest.raises(UsageError, match=shared):
            merged_attention(model_config=str(tmp_path / "my.yaml"))
    inputs, attention, weights = encoders("hubert", tmp_path)
    grouped = read_attention(folder)
    with pytest.raises(UsageError, match=shared):
        HeadEncoder(inputs, attention, grouped, HEADS, table.parent / "5.wav")
    rotation = Rotation(torch.eye(32, 40, dtype=torch.float64), 32, 1.0)
    wide = {slot: torch.zeros(40, 40) if slot.kind == "weight" else torch.zeros(40) for slot in weights}
    with pytest.raises(UsageError, match=shared):
        Aligner(Paired(Basis({0: rotation, 1: rotation})), (HEADS, HEADS)).apply(wide, grouped)


@pytest.mark.parametrize("kind", ["wavlm", "wavlm_local", "moonshine"])
def test_attention_with_positions_of_its_own_is_refused(kind, tmp_path, table):
    inputs, attention, weights = encoders(kind, tmp_path)
    item = table.parent / "5.wav"
    with pytest.raises(
        UsageError, match=f"the attention of {kind} has positions or gates of its own.*: take by: weights"
    ):
        HeadEncoder(inputs, attention, weights, HEADS, item)


def test_of_an_ast_it_is_the_padding_that_is_named(tmp_path, table):
    model = speech_model(factories.SPEECH_FAMILIES["ast"](tmp_path / "ast")).eval()
    both = [SpeechEncoder(model, "ast", point=point) for point in ("inputs", "attention")]
    with pytest.raises(UsageError, match="the attention of ast reads the padding of its fixed input too.*by: weights"):
        HeadEncoder(*both, extract(model.state_dict()), 2, table.parent / "5.wav")


def with_heads_moved(folder, path, orders):
    """Write a HuBERT that is the same function, with the heads of each layer in another order and rotated inside."""
    path.mkdir()
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    width = 32 // HEADS
    for layer, order in enumerate(orders):
        rotations = [
            torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(n))).Q
            for n in range(HEADS)
        ]
        rotation = torch.block_diag(*rotations)
        name = f"encoder.layers.{layer}.attention."
        for key in [key for key in state if name in key]:
            if "out_proj.weight" in key:
                state[key] = permute_heads((state[key] @ rotation.T).T, order).T.contiguous()
            elif "out_proj" not in key:
                state[key] = permute_heads(rotation @ state[key], order).contiguous()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


ORDERS = ([2, 0, 3, 1], [1, 3, 2, 0])


@pytest.mark.parametrize("by", ["outputs", "patterns"])
def test_heads_that_are_moved_and_turned_inside_are_found_again(by, tmp_path, table):
    folder = factories.hubert_folder(tmp_path / "target", heads=HEADS)
    moved = with_heads_moved(folder, tmp_path / "moved", ORDERS)
    align = {"kind": "heads", "by": by, "pairs": str(table), "share": 1}
    content = {"target": {"model": str(folder)}, "source": {"model": str(moved)}, "lambda": 1, "align": align}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    record = merged_attention(model_config=str(tmp_path / "my.yaml")).merge_record
    (source,) = record["sources"]
    found = source["align"]["orders"]
    assert [[order[head] for head in back] for order, back in zip(ORDERS, found, strict=True)] == [[0, 1, 2, 3]] * 2
    assert source["align"]["by"] == by and source["align"]["pairs"]["used"] == 40

    noise = content | {"noise": {"kind": "target", "draw": 1}}
    (tmp_path / "noise.yaml").write_text(yaml.safe_dump(noise))
    ordered = extract(merged_attention(model_config=str(tmp_path / "noise.yaml")).state_dict())
    plain = extract(merged_attention(model_config=f"{tmp_path / 'noise.yaml'},,align=null").state_dict())
    assert all(torch.equal(ordered[slot], permute_heads(plain[slot], found[slot.layer])) for slot in WEIGHTS)


def test_text_is_paired_with_speech_by_outputs_only(tmp_path, table):
    folder = factories.hubert_folder(tmp_path / "target", heads=HEADS)
    source = factories.bert_folder(tmp_path / "source", heads=2, width=48)
    basis = {"kind": "basis", "pairs": str(table), "share": 1}
    heads = {"kind": "heads", "by": "outputs", "pairs": str(table), "share": 1}
    content = {
        "target": {"model": str(folder)},
        "source": {"model": str(source)},
        "lambda": 0.5,
        "align": [heads, basis],
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    upstream = merged_attention(model_config=str(tmp_path / "my.yaml"))
    (record,) = upstream.merge_record["sources"]
    assert record["projection"]["by"] == "outputs" and record["projection"]["heads"] == [2, 4]
    assert all(sorted(order) == [0, 0, 1, 1] for order in record["projection"]["orders"])
    with pytest.raises(
        UsageError, match=r"reads speech and .* text, and patterns are compared on what both read: take by: outputs"
    ):
        merged_attention(model_config=f"{tmp_path / 'my.yaml'},,align.0.by=patterns")


def test_an_arm_of_a_sweep_takes_the_order_by_outputs(tmp_path, table):
    from s3prl_ext.merging.config import parse_config
    from s3prl_ext.upstreams.layer_similarity.paired_alignment import align_by_pairs
    from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, build_target, open_sources

    folder = factories.hubert_folder(tmp_path / "target", heads=HEADS)
    source = factories.bert_folder(tmp_path / "source", heads=HEADS)
    align = {"kind": "heads", "by": "outputs", "pairs": str(table), "share": 1}
    content = {"target": {"model": str(folder)}, "source": {"model": str(source)}, "lambda": 0.5, "align": align}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
    expected = merged_attention(model_config=str(tmp_path / "my.yaml")).state_dict()
    config = parse_config(content, "my.yaml")
    upstream = build_target(config.target)
    merge = align_by_pairs(OpenedMerge(config, open_sources(config), upstream))
    aligner = aligner_of(merge, merge.sources[0])
    weights = ArmWeights(extract(upstream.state_dict()), read_attention(source), [0, 1], PROJECTIONS, aligner=aligner)
    weights.apply(Arm((0, 1), "none", 0, 0.5))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in upstream.state_dict().items())
