"""Noise controls, several sources and layer maps through the upstream `merged_attention`, and what its record keeps."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import yaml

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.noise import NoiseConfig, sample
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support import factories, reference


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "hubert": factories.hubert_folder(root / "hubert", layers=3),
        "bert": factories.bert_folder(root / "bert", layers=3),
        "vit": factories.vit_folder(root / "vit", layers=3, seed=4),
        "deep": factories.bert_folder(root / "deep", layers=5, seed=5),
    }


@pytest.fixture
def build(models, tmp_path):
    """Build an upstream from keys of a configuration; strings name models of :func:`models`."""

    def place(value):
        if isinstance(value, list):
            return [place(item) for item in value]
        return value | ({"model": str(models[value["model"]])} if "model" in value else {})

    def build(overrides="", **content):
        content = {"target": {"model": "hubert"}, "lambda": 0.25} | content
        content |= {key: place(content[key]) for key in ("target", "source", "sources") if key in content}
        content = {key: value for key, value in content.items() if value is not None}
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
        return merged_attention(model_config=f"{tmp_path / 'my.yaml'}{overrides}")

    return build


def matrices(upstream):
    return {slot: tensor for slot, tensor in extract(upstream.state_dict()).items() if slot.kind == "weight"}


def same(one, other):
    return {slot for slot in one if torch.equal(one[slot], other[slot])}


@pytest.mark.parametrize("kind", ["source", "target", "standard"])
def test_noise_has_the_statistics_of_its_kind(kind, build, models):
    """At lambda 1 the merged matrices are the noise itself."""
    upstream = build(
        **{"lambda": 1, "noise": kind, "source": {"model": "bert"} if kind == "source" else {"model": "vit"}}
    )
    owner = {"source": read_attention(models["bert"]), "target": read_attention(models["hubert"]), "standard": None}[
        kind
    ]
    for slot, tensor in matrices(upstream).items():
        mean, std = reference.mean_and_std([owner[slot]]) if owner else (0.0, 1.0)
        expected = mean + std * sample({slot: tensor.shape}, None, NoiseConfig(kind))[slot]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)


def test_noise_is_interpolated_like_a_source_and_takes_part_in_nothing_else(build, models):
    before = read_attention(models["hubert"])
    upstream = build(noise="standard", layers=[1], projections=["k"])
    after = extract(upstream.state_dict())
    slot = Slot(1, "k_proj")
    drawn = sample({slot: before[slot].shape}, None, NoiseConfig("standard"))[slot]
    assert torch.equal(after[slot], torch.lerp(before[slot], drawn, 0.25))
    assert same(before, after) == set(before) - {slot}


@pytest.mark.parametrize("kind", ["target", "standard"])
def test_noise_without_a_source_reads_no_source(kind, build, models):
    build(noise=kind)
    build(noise=kind, source={"package": "no_such_package"})
    with pytest.raises(DataError, match="is not installed"):
        build(noise="source", source={"package": "no_such_package"})


def test_draws_differ_and_repeat_whatever_the_layers_and_the_global_seed(build):
    torch.manual_seed(1)
    first = matrices(build(noise="target"))
    torch.manual_seed(2)
    again = matrices(build(noise="target", layers="1-2"))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    build(source={"model": "bert"})
    assert torch.equal(torch.get_rng_state(), state)  # building the target draws from it, the noise does not
    assert {slot.layer for slot in same(first, again)} == {1, 2}
    other = matrices(build(",,noise.draw=1", noise={"kind": "target"}))
    assert not same(first, other)
    assert not same(first, matrices(build(noise={"kind": "target", "seed": 1})))
    assert not same(first, matrices(build(noise={"kind": "target", "statistics": "global"})))


def test_noise_biases_are_drawn_too_where_biases_are_merged(build, models):
    before = read_attention(models["hubert"])
    after = extract(build(noise="standard", biases=True).state_dict())
    assert not same(before, after)


def test_text_and_image_into_one_speech_model(build, models, caplog):
    target, text, image = (read_attention(models[name]) for name in ("hubert", "bert", "vit"))
    sources = [{"model": "bert", "lambda": 0.1, "layers": "0-1"}, {"model": "vit", "lambda": {"v_proj": 0.3}}]
    with caplog.at_level(logging.INFO, logger="s3prl_ext"):
        after = extract(build(sources=sources, **{"lambda": None}).state_dict())
    for slot, tensor in after.items():
        weights = [0.1 if slot.layer < 2 else 0.0, 0.3 if slot.projection == "v_proj" else 0.0]
        weights = weights if slot.kind == "weight" else [0.0, 0.0]
        expected = reference.merge_several(target[slot], [text[slot], image[slot]], weights)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    table = next(r.message for r in caplog.records if "relative change" in r.message)
    assert str(models["bert"]) in table and str(models["vit"]) in table and len(table.splitlines()) == 2 + 6 + 3


def test_two_noises_of_one_kind_differ(build):
    both = build(sources=[{"noise": "standard"}, {"noise": "standard"}]).merge_record["sources"]
    assert both[0]["noise"]["sha256"] != both[1]["noise"]["sha256"]


@pytest.mark.parametrize(
    ("layer_map", "pairs"), [("linear", {0: 0, 1: 2, 2: 4}), ({0: 4, 2: 1}, {0: 4, 2: 1}), ({1: 1}, {1: 1})]
)
def test_layer_maps_merge_models_of_unequal_depth(layer_map, pairs, build, models):
    target, source = read_attention(models["hubert"]), read_attention(models["deep"])
    for slot, tensor in matrices(build(source={"model": "deep"}, layer_map=layer_map)).items():
        if slot.layer not in pairs:
            assert torch.equal(tensor, target[slot])
            continue
        other = source[Slot(pairs[slot.layer], slot.projection)]
        assert torch.equal(tensor, torch.lerp(target[slot], other, 0.25))


def test_noise_of_a_source_of_unequal_depth_follows_the_map(build, models):
    upstream = build(**{"source": {"model": "deep"}, "layer_map": {2: 4}, "noise": "source", "lambda": 1})
    slot, source = Slot(2, "q_proj"), read_attention(models["deep"])
    mean, std = reference.mean_and_std([source[Slot(4, "q_proj")]])
    expected = mean + std * sample({slot: source[slot].shape}, None, NoiseConfig("source"))[slot]
    torch.testing.assert_close(matrices(upstream)[slot], expected, rtol=1e-4, atol=1e-6)
    # the control with other noise is merged into the same layers
    for kind in ("target", "standard"):
        record = build(source={"model": "deep"}, layer_map={2: 4}, noise=kind).merge_record
        assert record["sources"][0]["lambda"]["q_proj"] == [0.0, 0.0, 0.25]


def test_everything_about_all_sources_is_reported_at_once(build, models):
    items = [
        {"model": "deep", "layers": "2-7"},
        {"model": "vit", "lambda": [0.1]},
        {"model": "deep", "layer_map": {0: 9, 8: 0}},
    ]
    with pytest.raises(UsageError) as caught:
        build(sources=items)
    lines = str(caught.value).splitlines()
    for word in (
        "5 layers of shape (32, 32): merging needs the same depth",
        "sources[0].layers: layer 7 is out of range",
        "sources[1].lambda of q_proj has 1 values",
        f"layer 9 of source {models['deep']} is out of range",
        f"layer 8 of target {models['hubert']} is out of range",
    ):
        assert sum(word in line for line in lines) == 1, word
    with pytest.raises(UsageError, match="lambda adds up to 1.2 over the sources"):
        build(sources=[{"model": "bert"}, {"model": "vit"}], **{"lambda": 0.6})
    build(sources=[{"model": "bert"}, {"model": "vit"}], allow_extrapolation=True, **{"lambda": 0.6})


def test_records_are_plain_and_keep_noise_sources_and_maps(build, models):
    sources = [
        {"model": "deep", "layer_map": {0: 4, 2: 1}, "lambda": 0.1},
        {"model": "vit", "noise": {"kind": "source", "draw": 2}},
        {"noise": "standard"},
    ]
    record = build(sources=sources).merge_record
    assert json.loads(json.dumps(record)) == record
    first, second, third = record["sources"]
    assert (first["name"], first["layers"], first["layer_map"]) == (str(models["deep"]), 5, [4, None, 1])
    assert first["noise"] is None and first["lambda"]["q_proj"] == [0.1, 0.0, 0.1]
    noise = {key: value for key, value in second["noise"].items() if key != "sha256"}
    assert noise == {"kind": "source", "draw": 2, "seed": 0, "statistics": "tensor", "streams": "by kind"}
    assert str(models["vit"]) in second["name"] and "draw 2" in second["name"] and second["width"] == 32
    assert third["attention_sha256"] is None and "N(0, 1)" in third["name"]
    check_merge_record(record, build(sources=sources).merge_record)


def changed(record, path, value):
    """Return a copy of a record with one value replaced."""
    copy = json.loads(json.dumps(record))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def test_records_tell_noise_sources_and_maps_apart(build):
    plain = build(source={"model": "bert"}).merge_record
    noisy = build(source={"model": "bert"}, noise="source").merge_record
    mapped = build(source={"model": "deep"}, layer_map={0: 4, 2: 1}).merge_record
    several = build(sources=[{"model": "bert"}, {"model": "vit"}]).merge_record
    for stored, current, message in (
        (plain, noisy, "source noise: none, but now it is kind source, draw 0, seed 0, statistics tensor"),
        (noisy, plain, "statistics tensor, but now it is none"),
        (noisy, build(source={"model": "bert"}, noise={"kind": "source", "draw": 1}).merge_record, "now it is .*draw 1"),
        (noisy, build(source={"model": "vit"}, noise="source").merge_record, "another source"),
        (mapped, build(source={"model": "deep"}, layer_map={0: 3, 2: 1}).merge_record,
         "another layer_map: layer 4 of the source in layer 0, but now 3"),
        (mapped, build(source={"model": "deep"}, layer_map="linear").merge_record, "another lambda: 0 in layer 1"),
        (plain, several, "made with 1 sources, but now there are 2"),
        (several, build(sources=[{"model": "bert"}, {"model": "deep", "layer_map": "linear"}]).merge_record,
         "another source 2: "),
        (several, build(sources=[{"model": "bert"}, {"model": "vit", "lambda": 0.1}]).merge_record,
         "another lambda of source 2: 0.25 in layer 0 q_proj.weight, but now 0.1"),
        (noisy, changed(noisy, ("sources", 0, "noise", "sha256"), "0"), "other numbers for noise of .*torch draws"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message) as caught:
            check_merge_record(stored, current)
        assert "\n" not in str(caught.value)
    # a checkpoint of 0.1.0, where the kinds shared their random numbers
    shared = changed(noisy, ("sources", 0, "noise", "sha256"), "0")
    del shared["sources"][0]["noise"]["streams"]
    with pytest.raises(DataError, match=r"up to s3prl_ext 0\.1\.0 the three kinds of noise shared"):
        check_merge_record(shared, noisy)
    # the same layers written differently are the same merge
    linear = build(source={"model": "deep"}, layer_map="linear").merge_record
    check_merge_record(linear, build(source={"model": "deep"}, layer_map={0: 0, 1: 2, 2: 4}).merge_record)
    standard = build(noise="standard").merge_record
    check_merge_record(standard, build(noise={"kind": "standard", "statistics": "global"}).merge_record)
