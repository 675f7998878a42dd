"""A hidden space rotated onto the target's through `merged_attention`, a sweep's arms and ``s3prl-ext merge``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.commands import merge
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.aligner import Aligner, Paired
from s3prl_ext.merging.alignment import align_heads
from s3prl_ext.merging.config import parse_config
from s3prl_ext.merging.methods import parse_method
from s3prl_ext.sweeps.grid import Arm
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.upstreams.layer_similarity.block_outputs import (
    attention_inputs,
    block_outputs,
    find_attention_modules,
    find_blocks,
)
from s3prl_ext.upstreams.layer_similarity.comparison import Side
from s3prl_ext.upstreams.layer_similarity.paired_alignment import _moments_of, align_by_pairs
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.layer_similarity.text_encoder import TextEncoder
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, build_target, open_sources
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from s3prl_ext.upstreams.merged_attention.sources import aligner_of
from s3prl_ext.upstreams.speech_models import speech_model
from tests.support import factories

WIDTH = 32
pytestmark = pytest.mark.usefixtures("own_cache")

WEIGHTS = [Slot(layer, projection) for layer in (0, 1) for projection in PROJECTIONS]


@pytest.fixture
def build(folders, table, tmp_path):
    def build(**content):
        source = {"source": {"model": folders["source"]}, "align": basis(table)}
        content = {"target": {"model": folders["target"]}, "lambda": 0.25} | source | content
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
        return merged_attention(model_config=str(tmp_path / "my.yaml"))

    return build


def basis(table, **more):
    return {"kind": "basis", "pairs": str(table), "share": 1, **more}


def with_hidden_space_permuted(folder, path, order):
    """Write a Whisper whose encoder is the same function in another order of the hidden coordinates."""
    path.mkdir()
    for file in folder.iterdir():
        if file.name != "model.safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        inside = name.removeprefix("model.encoder.")
        if inside == name or inside.startswith("conv1"):
            continue
        reads = any(part in inside for part in ("q_proj", "k_proj", "v_proj", "fc1"))
        if inside == "embed_positions.weight" or (reads and inside.endswith("weight")):
            state[name] = tensor[:, order].contiguous()
        elif not reads:
            state[name] = tensor[order].contiguous()
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_model_in_another_hidden_space_becomes_the_target(table, tmp_path):
    folder = factories.whisper_folder(tmp_path / "target", seed=3)
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    other = with_hidden_space_permuted(folder, tmp_path / "other", order)
    target, source = read_attention(folder), read_attention(other)
    file = tmp_path / "my.yaml"
    content = {"target": {"model": str(folder)}, "source": {"model": str(other)}, "lambda": 1, "align": basis(table)}
    file.write_text(yaml.safe_dump(content))
    upstream = merged_attention(model_config=str(file))
    after = extract(upstream.state_dict())
    for slot in WEIGHTS:
        assert (source[slot] - target[slot]).abs().max() > 0.1
        torch.testing.assert_close(after[slot], target[slot], rtol=0, atol=2e-3)
    (record,) = upstream.merge_record["sources"]
    assert record["basis"]["fit"] == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("stable_norm", [True, False])
def test_inputs_of_attention_are_what_its_norm_or_the_block_before_gives(stable_norm, tmp_path, table):
    from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel

    speech = TransformersSpeechModel(factories.hubert_folder(tmp_path / "h", stable_norm=stable_norm)).eval()
    clips = [table.parent / "0.wav"]
    (inputs,), (outputs,) = (SpeechEncoder(speech, "h", point=point).states(clips) for point in ("inputs", "blocks"))
    assert inputs.shape == outputs.shape
    norm = speech.model.encoder.layers[1].layer_norm if stable_norm else torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(inputs[1], norm(outputs[0]))


@pytest.mark.parametrize("make", ["conformer", "w2v-bert"])
def test_inputs_of_attention_with_rotary_positions_before_query_and_key_are_refused(make, tmp_path):
    folder = factories.SPEECH_FAMILIES[make](tmp_path / "m", position_embeddings_type="rotary")
    speech = speech_model(folder).eval()
    with pytest.raises(DataError, match="rope has rotary positions that change what query and key read"):
        SpeechEncoder(speech, "rope", point="inputs")
    SpeechEncoder(speech, "rope")  # its blocks can be compared


def test_inputs_of_attention_in_an_ast_are_the_patches_without_padding(tmp_path):
    speech = speech_model(factories.ast_folder(tmp_path / "ast")).eval()
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, 0.1 * np.random.default_rng(0).standard_normal(4000), 16000)  # 3 of 6 steps, 3 bands
    encoder = SpeechEncoder(speech, "ast", point="inputs")
    (states,) = encoder.states([clip])
    wav = torch.from_numpy(read_audio(clip))
    raw = encoder.tap.listen(lambda: speech([wav]))
    steps = speech([wav])["last_hidden_state"].shape[1]
    for layer, tokens in zip(states, raw, strict=True):
        kept = [tokens[0, 2 + band * speech.steps + step] for band in range(3) for step in range(steps)]
        assert torch.equal(layer, torch.stack(kept))


@pytest.mark.parametrize("point", ["inputs", "blocks"])
def test_the_masked_frame_of_an_odd_number_of_mel_frames_is_left_out(point, tmp_path):
    speech = speech_model(factories.w2v_bert_folder(tmp_path / "w2v")).eval()
    encoder = SpeechEncoder(speech, "w2v", point=point)
    clip = tmp_path / "clip.wav"
    for samples, frames, read in ((16000, 49, 49), (16160, 49, 50)):
        soundfile.write(clip, 0.1 * np.random.default_rng(0).standard_normal(samples), 16000)
        raw = encoder.tap.listen(lambda: speech([torch.from_numpy(read_audio(clip))]))
        (states,) = encoder.states([clip])
        assert {layer.shape[1] for layer in raw} == {read}
        assert torch.equal(states, torch.cat(raw)[:, :frames])


@pytest.mark.parametrize("factory", ["hubert_local_ckpt", "wav2vec2_local_ckpt", "wavlm_local_ckpt"])
def test_inputs_of_attention_in_s3prls_models_are_those_of_the_block_before(factory, tmp_path, table):
    import s3prl.hub

    name = factory.removesuffix("_ckpt")
    upstream = getattr(s3prl.hub, name)(ckpt=str(getattr(factories, factory)(tmp_path / "m.pt", layers=3))).eval()
    clips = [table.parent / "3.wav"]
    (inputs,), (outputs,) = (SpeechEncoder(upstream, name, point=point).states(clips) for point in ("inputs", "blocks"))
    torch.testing.assert_close(inputs[1:], outputs[:-1], rtol=0, atol=0)


def test_inputs_of_attention_in_a_text_model(folders):
    encoder = TextEncoder(folders["source"], "bert", point="inputs")
    (inputs,) = encoder.states(["deep sea"])
    tokens = encoder.tokenizer("deep sea", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(inputs[0], encoder.model.embeddings(tokens["input_ids"])[0])
        first = block_outputs(find_blocks(encoder.model, "bert")[:1], lambda: encoder.model(**tokens), "bert")
    torch.testing.assert_close(inputs[1], first[0][0])
    with pytest.raises(DataError, match="the attention of layer 0 of bert was given 0 inputs in one pass"):
        attention_inputs(find_attention_modules(encoder.model, "bert"), lambda: None, "bert")


def found(folders, table, source="source"):
    """Return the basis as the merge finds it, from the files alone."""
    content = {"target": {"model": folders["target"]}, "source": {"model": folders[source]}, "lambda": 0.25}
    config = parse_config(content | {"align": basis(table)}, "my.yaml")
    merge = align_by_pairs(OpenedMerge(config, open_sources(config), build_target(config.target)))
    one = merge.sources[0].paired
    assert one.basis is not None and one.alike is None
    return one.basis


def test_source_noise_and_base_are_turned_and_lambda_zero_is_the_target(build, folders, table):
    target, source, base = (read_attention(folders[name]) for name in ("target", "source", "base"))
    one = found(folders, table)
    upstream = build()
    after, rotated = extract(upstream.state_dict()), one.apply(source)
    for slot, tensor in after.items():
        expected = torch.lerp(target[slot], rotated[slot], 0.25) if slot in WEIGHTS else target[slot]
        assert torch.equal(tensor, expected)
    assert not torch.allclose(rotated[WEIGHTS[0]], source[WEIGHTS[0]], atol=0.05)
    record = upstream.merge_record["sources"][0]["basis"]
    assert record["pairs"]["used"] == 40 and record == json.loads(json.dumps(one.describe()))

    zero = extract(build(**{"lambda": 0}).state_dict())
    assert all(torch.equal(zero[slot], target[slot]) for slot in target)

    noise = extract(build(noise="target", align=None, **{"lambda": 1}).state_dict())
    with_basis = extract(build(noise="target", **{"lambda": 1}).state_dict())
    expected = one.apply({slot: noise[slot] for slot in WEIGHTS})
    assert all(torch.equal(with_basis[slot], expected[slot]) for slot in WEIGHTS)

    records = [build(noise="target", align=align).merge_record["sources"][0] for align in (None, basis(table))]
    assert records[0]["noise"] == records[1]["noise"]  # what was drawn, whatever the last bits of the basis

    both = extract(build(align=["heads", basis(table)]).state_dict())
    ordered, _ = align_heads(target, rotated, 4, PROJECTIONS)
    assert all(torch.equal(both[slot], torch.lerp(target[slot], ordered[slot], 0.25)) for slot in WEIGHTS)

    vectors = extract(build(method="task_arithmetic", base={"model": folders["base"]}).state_dict())
    for slot in WEIGHTS:
        change = rotated[slot] - one.apply(base)[slot]
        torch.testing.assert_close(vectors[slot], target[slot] + 0.25 * change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arm", [Arm((0, 1), "none", 0, 0.25), Arm((1,), "target", 2, 0.5)])
@pytest.mark.parametrize("heads", [None, 4])
def test_an_arm_of_a_sweep_equals_the_merged_upstream_bit_for_bit(heads, arm, build, folders, table):
    align = ["heads", basis(table)] if heads else basis(table)
    upstream = build(align=align, **{"lambda": 0})
    own, source = extract(upstream.state_dict()), read_attention(folders["source"])
    method = parse_method("linear")
    aligner = Aligner(Paired(found(folders, table)), (4, 4), pair=bool(heads))
    weights = ArmWeights(own, source, [0, 1], PROJECTIONS, method=method, aligner=aligner)
    weights.apply(Arm((0, 1), "standard", 0, 0.9))
    weights.apply(arm)
    noise = {} if arm.noise == "none" else {"noise": {"kind": arm.noise, "draw": arm.draw}}
    expected = build(align=align, **noise, layers=list(arm.layers), **{"lambda": arm.lambda_}).state_dict()
    for name, tensor in upstream.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_written_model_equals_the_upstream_and_nothing_is_drawn(build, tmp_path, capsys):
    numbers = []
    for align in (None, "as before"):
        torch.manual_seed(3)
        upstream = build(**({"align": None} if align is None else {}))
        numbers.append(torch.rand(3))
    assert torch.equal(*numbers) and upstream.training
    out = tmp_path / "merged"
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--out", str(out)]) == 0
    written, built = read_attention(out), extract(upstream.state_dict())
    assert all(torch.equal(written[slot], built[slot]) for slot in written)
    check_merge_record(json.loads((out / "merge.json").read_text())["merge"], upstream.merge_record)


def test_records_tell_bases_apart_and_what_does_not_fit_is_one_sentence(build, folders, table, tmp_path):
    plain, rotated = build(align=None).merge_record, build().merge_record
    half = build(align=basis(table, share=0.5)).merge_record
    for stored, current, message in (
        (plain, rotated, "without align basis of the source, but now it is with align basis"),
        (
            rotated,
            half,
            "another basis of the source: 40 pairs, but now 20 or other ones: give the same align and pairs",
        ),
    ):
        with pytest.raises(DataError, match=message) as caught:
            check_merge_record(stored, current)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="a source is run over the pairs: name it with source"):
        build(source=None, noise="standard")
    with pytest.raises(UsageError, match="no such table of pairs"):
        build(align={"kind": "basis", "pairs": str(tmp_path / "none.tsv")})


@pytest.mark.parametrize("pair", [True, False])
def test_a_source_of_another_width_and_other_heads_is_merged_with_its_noise_and_base(
    pair, build, folders, table, caplog
):
    target, source, base = (read_attention(folders[name]) for name in ("target", "wide", "wide_base"))
    aligner = Aligner(Paired(found(folders, table, "wide")), (4, 3), pair)
    align = ["heads", basis(table)] if pair else basis(table)
    wide = {"source": {"model": folders["wide"]}, "align": align}
    caplog.set_level("INFO")
    upstream = build(**wide, biases=True)
    after, placed = extract(upstream.state_dict()), aligner.apply(target, source)
    for slot in target:
        torch.testing.assert_close(after[slot], torch.lerp(target[slot], placed.weights[slot], 0.25), rtol=0, atol=1e-6)
    (record,) = upstream.merge_record["sources"]
    assert record["projection"] == placed.facts["projection"] and record["width"] == 48
    assert record["projection"]["heads"] == [3, 4] and record["projection"]["paired"] is pair
    assert "norm kept" in caplog.text and f"{placed.kept[WEIGHTS[0]]:.4f}" in caplog.text
    assert "heads will not line up" not in caplog.text

    zero = extract(build(**wide, **{"lambda": 0}).state_dict())
    assert all(torch.equal(zero[slot], target[slot]) for slot in target)

    vectors = extract(build(**wide, method="task_arithmetic", base={"model": folders["wide_base"]}).state_dict())
    moved = aligner.apply(target, source, base)
    for slot in WEIGHTS:
        change = moved.weights[slot] - moved.base[slot]
        torch.testing.assert_close(vectors[slot], target[slot] + 0.25 * change, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arm", [Arm((0, 1), "none", 0, 0.25), Arm((1,), "source", 1, 1.0)])
def test_an_arm_with_another_width_equals_the_merged_upstream_bit_for_bit(arm, build, folders, table):
    wide = {"source": {"model": folders["wide"]}, "align": ["heads", basis(table)]}
    upstream = build(**wide, **{"lambda": 0})
    aligner = Aligner(Paired(found(folders, table, "wide")), (4, 3), pair=True)
    own, source = extract(upstream.state_dict()), read_attention(folders["wide"])
    weights = ArmWeights(own, source, [0, 1], PROJECTIONS, aligner=aligner)
    weights.apply(Arm((0, 1), "standard", 0, 0.9))
    weights.apply(arm)
    noise = {} if arm.noise == "none" else {"noise": {"kind": arm.noise, "draw": arm.draw}}
    expected = build(**wide, **noise, layers=list(arm.layers), **{"lambda": arm.lambda_}).state_dict()
    for name, tensor in upstream.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


PARTIAL = {1: 0}  # target layer 0 is paired with none


@pytest.mark.parametrize("noise", ["source", "standard", "target"])
@pytest.mark.parametrize("align", ["none", "basis", "heads", "wide"])
def test_noise_of_a_sweep_with_a_partial_layer_map_equals_the_merged_upstream(align, noise, build, folders, table):
    content = {"layer_map": PARTIAL, "source": {"model": folders["wide" if align == "wide" else "source"]}}
    content["align"] = {
        "none": None, "basis": basis(table), "wide": basis(table),
        "heads": {"kind": "heads", "by": "outputs", "pairs": str(table), "share": 1},
    }[align]  # fmt: skip
    config = parse_config({"target": {"model": folders["target"]}, "lambda": 0.5, **content}, "my.yaml")
    upstream = build_target(config.target)
    merge = align_by_pairs(OpenedMerge(config, open_sources(config), upstream))
    (source,) = merge.sources
    weights = ArmWeights(
        extract(upstream.state_dict()), source.weights, [None, 0], PROJECTIONS, aligner=aligner_of(merge, source)
    )
    weights.apply(Arm((1,), noise, 2, 0.5))
    expected = build(**content, noise={"kind": noise, "draw": 2}, **{"lambda": 0.5}).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in upstream.state_dict().items())


@pytest.mark.parametrize("nothing", [{"lambda": 0}, {"layers": []}])
@pytest.mark.parametrize("heads", [False, True])
def test_noise_of_which_nothing_is_merged_leaves_the_target_whatever_the_heads(nothing, heads, build, folders, table):
    target = read_attention(folders["target"])
    align = ["heads", basis(table)] if heads else basis(table)
    upstream = build(source={"model": folders["wide"]}, align=align, noise="source", **nothing)
    after = extract(upstream.state_dict())
    assert all(torch.equal(after[slot], target[slot]) for slot in target)


def test_a_projected_merge_is_written_with_what_is_kept_and_learns_its_lambda(build, folders, table, tmp_path, capsys):
    wide = {"source": {"model": folders["wide"]}, "align": basis(table)}
    learnt = build(**wide, learnable=True)
    upstream = build(**wide)
    for slot, tensor in extract(upstream.state_dict()).items():
        theirs = dict(learnt.named_modules())[f"model.encoder.layers.{slot.layer}.attention.{slot.projection}"]
        torch.testing.assert_close(getattr(theirs, slot.kind), tensor)
    out = tmp_path / "merged"
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--dry-run"]) == 0
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--out", str(out)]) == 0
    written, built = read_attention(out), extract(upstream.state_dict())
    assert all(torch.equal(written[slot], built[slot]) for slot in written)
    content = json.loads((out / "merge.json").read_text())
    check_merge_record(content["merge"], upstream.merge_record)
    kept = [row["kept"] for row in content["rows"]]
    assert len(kept) == 6 and all(0 < share < 1.5 for share in kept)
    assert f"{min(kept):.2f} to {max(kept):.2f} of the norm" in (out / "README.md").read_text(encoding="utf-8")
    paired = build(**wide | {"align": ["heads", basis(table)]}).merge_record
    with pytest.raises(DataError, match="placed otherwise: 3 into 4 heads, in order, but now 3 into 4 heads, paired"):
        check_merge_record(content["merge"], paired)


@pytest.mark.parametrize("by_pairs", [True, False])
def test_other_bits_of_a_merge_by_pairs_are_said_to_be_rounding_with_the_way_out(by_pairs, build):
    upstream = build() if by_pairs else build(align=None)
    task = TrainedTask(Path("a.safetensors"), {}, Delta("f" * 64), merge=upstream.merge_record)
    for check in (lambda: TunedUpstream(upstream).check_base("f" * 64, "a.ckpt"),
                  lambda: task.over(upstream)):  # fmt: skip
        with pytest.raises(DataError, match="another upstream") as error:
            check()
        assert ("rounded otherwise" in str(error.value)) is by_pairs
        assert ("s3prl-ext merge --out" in str(error.value)) is by_pairs


def test_another_width_without_a_basis_is_refused_with_the_way_out(build, folders, table):
    with pytest.raises(
        UsageError, match=r"32\) and .* 2 layers of shape \(48, 48\).* or project it with align: \{kind: basis"
    ):
        build(source={"model": folders["wide"]}, align=None)
    with pytest.raises(UsageError, match="the target has 4 and the source has 3 and align.heads is 4"):
        build(source={"model": folders["wide"]}, align=[{"kind": "heads", "heads": 4}, basis(table)])
    with pytest.raises(UsageError, match=r"source .* has 2 layers of shape \(48, 48\) and base .* \(32, 32\)"):
        build(source={"model": folders["wide"]}, base={"model": folders["base"]}, method="task_arithmetic")


def regmean(table, **more):
    return {"name": "regmean", "pairs": str(table), "share": 1, **more}


def moments_by_hand(folders, table, source="source"):
    """Return mean x x^T of what the attention of layer 1 reads, of target and source, clip by clip."""
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    ours = SpeechEncoder(speech_model(Path(folders["target"])).eval(), "target", point="inputs")
    theirs = TextEncoder(folders[source], "source", point="inputs")
    states = [ours.states([table.parent / path])[0][1] for path, _ in rows], [theirs.states([t])[0][1] for _, t in rows]
    return [torch.stack([x.double().T @ x.double() / len(x) for x in side]).mean(0) for side in states]


def test_moments_keep_the_precision_that_an_inverse_needs():
    """With fewer tokens than coordinates the inverse must see which directions no token has."""
    states = [torch.randn(1, 2 + n, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]

    class Given:
        name, batch_size = "given", 1

        def states(self, items):
            return [states[item] for item in items]

    side = Side("given", "text", 1, 8, "", "", "few tokens", Given)
    found = _moments_of(side, [0, 1], ["a", "b"])[0]
    exact = [x[0].double().T @ x[0].double() / x.shape[1] for x in states]
    torch.testing.assert_close(found, (exact[0] + exact[1]) / 2, rtol=1e-14, atol=1e-14)
    assert torch.linalg.matrix_rank(found, hermitian=True) == 5


@pytest.mark.parametrize("source", ["source", "wide"])
def test_regmean_weighs_both_models_by_what_they_read(source, build, folders, table, tmp_path):
    target, own = read_attention(folders["target"]), read_attention(folders[source])
    align = basis(table) if source == "wide" else None
    content = {"source": {"model": folders[source]}, "align": align, "method": regmean(table), "biases": True}
    upstream = build(**content)
    after, (ours, theirs) = extract(upstream.state_dict()), moments_by_hand(folders, table, source)
    if source == "wide":
        one = found(folders, table, "wide")
        own = Aligner(Paired(one), (4, 3)).apply(target, own).weights
        rotation = one.rotations[1].matrix
        theirs = rotation.T @ theirs @ rotation
    grams = [0.9 * gram + 0.1 * torch.diag(torch.diagonal(gram)) for gram in (ours, theirs)]
    for slot in WEIGHTS[3:]:
        left = 0.75 * target[slot].double() @ grams[0] + 0.25 * own[slot].double() @ grams[1]
        expected = torch.linalg.solve(0.75 * grams[0] + 0.25 * grams[1], left, left=False)
        torch.testing.assert_close(after[slot].double(), expected, rtol=1e-4, atol=1e-4)
        bias = slot._replace(kind="bias")
        torch.testing.assert_close(after[bias], torch.lerp(target[bias], own[bias].float(), 0.25))
    zero = extract(build(**content, **{"lambda": 0}).state_dict())
    assert all(torch.equal(zero[slot], target[slot]) for slot in target)
    out = tmp_path / "merged"
    build(**content)
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--out", str(out)]) == 0
    written = read_attention(out)
    assert all(torch.equal(written[slot], after[slot]) for slot in written)
    check_merge_record(json.loads((out / "merge.json").read_text())["merge"], upstream.merge_record)
    half = build(**content | {"method": regmean(table, share=0.5)}).merge_record
    with pytest.raises(DataError, match="method: {name: regmean, seed: 0, share: 1.0, shrink: 0.9}, but now"):
        check_merge_record(upstream.merge_record, half)


@pytest.mark.parametrize("arm", [Arm((0, 1), "none", 0, 0.25), Arm((1,), "target", 1, 0.5)])
def test_an_arm_by_regmean_equals_the_merged_upstream_bit_for_bit(arm, build, folders, table):
    from s3prl_ext.merging.config import parse_config
    from s3prl_ext.upstreams.merged_attention.models import OpenedMerge, build_target, open_sources

    content = {"method": regmean(table), "align": None}
    upstream = build(**content, **{"lambda": 0})
    made = {key: {"model": folders[key]} for key in ("target", "source")} | {"lambda": 0.25, "method": regmean(table)}
    config = parse_config(made, "my.yaml")
    merge = align_by_pairs(OpenedMerge(config, open_sources(config), build_target(config.target)))
    own, source = extract(upstream.state_dict()), read_attention(folders["source"])
    weights = ArmWeights(
        own, source, [0, 1], PROJECTIONS, method=config.combination, moments=merge.sources[0].paired.common_moments()
    )
    weights.apply(Arm((0, 1), "standard", 0, 0.9))
    weights.apply(arm)
    noise = {} if arm.noise == "none" else {"noise": {"kind": arm.noise, "draw": arm.draw}}
    expected = build(**content, **noise, layers=list(arm.layers), **{"lambda": arm.lambda_}).state_dict()
    for name, tensor in upstream.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(UsageError, match="method regmean runs a source over the pairs: name it with source"):
        build(**content, source=None, noise="standard")
