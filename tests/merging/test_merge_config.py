"""Reading merge configurations: all forms of lambda and layers, and every complaint."""

from __future__ import annotations

import pytest

from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.merging.config import parse_config
from s3prl_ext.merging.noise import NoiseConfig
from s3prl_ext.merging.resolution import resolve_lambdas

BASE = {"target": {"upstream": "hubert_base"}, "source": {"model": "bert-base-uncased"}, "lambda": 0.1}
DROP = object()


def config(**changes):
    content = {**BASE, **{("lambda" if k == "lambda_" else k): v for k, v in changes.items()}}
    return parse_config({key: value for key, value in content.items() if value is not DROP}, "my.yaml")


def resolve(merge, depth):
    """Return the lambdas of a merge with one source."""
    (lambdas,) = resolve_lambdas(merge, depth)
    return lambdas


def sources(*items, **changes):
    return config(source=DROP, lambda_=changes.pop("lambda_", DROP), sources=list(items), **changes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", tuple(range(24))),
        ("none", ()),
        ([], ()),
        ("12-19", tuple(range(12, 20))),
        ("0-3,8", (0, 1, 2, 3, 8)),
        (5, (5,)),
        ([0, "4-6", 5], (0, 4, 5, 6)),
        ("23", (23,)),
    ],
)
def test_layers(value, expected):
    assert parse_layers(value, 24) == expected


@pytest.mark.parametrize("value", ["12-", "-7", "a", "5-3", 1.5, None, {"a": 1}, True, "", [[1, 2]]])
def test_malformed_layers_are_refused(value):
    with pytest.raises(UsageError, match="layers: .* is neither a layer index nor a range"):
        config(layers=value)


def test_layers_out_of_range_name_layer_and_depth():
    with pytest.raises(UsageError, match="layer 12 is out of range: 12 layers are numbered 0-11"):
        resolve(config(layers="8-12"), 12)


def test_scalar_on_some_layers_and_projections():
    resolved = resolve(config(layers="1-2", projections=["q", "value"]), 4)
    assert resolved == {"q_proj": [0, 0.1, 0.1, 0], "k_proj": [0, 0, 0, 0], "v_proj": [0, 0.1, 0.1, 0]}


def test_list_is_one_value_per_layer():
    assert resolve(config(lambda_=[0, 0.1, 0.2]), 3)["k_proj"] == [0, 0.1, 0.2]
    with pytest.raises(UsageError, match="has 3 values, but the models have 4 layers.*gradient"):
        resolve(config(lambda_=[0, 0.1, 0.2]), 4)


def test_gradient_runs_over_depth_and_layers_cut_it():
    resolved = resolve(config(lambda_={"gradient": [0, 0.4]}, layers="1-4"), 5)
    assert resolved["q_proj"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert resolve(config(lambda_={"gradient": [0, 0.4]}, layers=[1]), 5)["v_proj"] == pytest.approx([0, 0.1, 0, 0, 0])


def test_filters_by_projection():
    resolved = resolve(config(lambda_={"q_proj": 0.1, "key": {"gradient": [0, 0.2]}}), 2)
    assert resolved == {"q_proj": [0.1, 0.1], "k_proj": [0, 0.2], "v_proj": [0, 0]}
    resolved = resolve(config(lambda_={"q_proj": [0.1, 0.2], "default": 0.3}), 2)
    assert resolved == {"q_proj": [0.1, 0.2], "k_proj": [0.3, 0.3], "v_proj": [0.3, 0.3]}


def test_numeric_strings_are_numbers():
    assert resolve(config(lambda_="1e-2"), 1)["q_proj"] == [0.01]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_": 1.2}, r"lambda must be between 0 \(target\) and 1 \(source\), got 1.2"),
        ({"lambda_": [0.1, -0.1]}, "must be between 0"),
        ({"lambda_": "much"}, "lambda must be a number, got 'much'"),
        ({"lambda_": True}, "must be a number"),
        ({"lambda_": None}, "must be a number"),
        ({"lambda_": float("nan")}, "must be a finite number"),
        ({"lambda_": {}}, "lambda is empty"),
        ({"lambda_": {"q_prj": 0.1}}, "unknown key 'q_prj'; did you mean 'q_proj'"),
        ({"lambda_": {"gradient": 0.1}}, "gradient"),
        ({"lambda_": {"q_proj": 0.3, "query": 0.0}}, "lambda: q_proj and query are one projection: give it one value"),
        ({"lambda_": {"q_proj": 0.1}, "projections": ["k"]}, "q_proj is not among the projections k_proj"),
        ({"projections": ["o_proj"]}, "unknown projection 'o_proj'"),
        ({"projections": []}, "must be a list"),
        ({"biases": "yes"}, "biases must be true or false"),
        ({"target": {"upstream": "a", "model": "b"}}, "exactly one of upstream and model"),
        ({"target": {}}, "exactly one of upstream and model"),
        ({"target": {"model": "a", "ckpt": "b"}}, "the model is the checkpoint"),
        ({"target": "hubert_base"}, "must be a mapping"),
        ({"target": {"upstream": 3}}, "must be a name, got 3"),
        ({"source": {"modle": "x"}}, "unknown key 'modle'; did you mean 'model'"),
        ({"lamda": 0.1}, "unknown key 'lamda'; did you mean 'lambda'"),
    ],
)
def test_each_problem_has_its_sentence(changes, message):
    with pytest.raises(UsageError, match=message):
        config(**changes)


def test_all_problems_are_reported_at_once():
    with pytest.raises(UsageError) as caught:
        parse_config({"target": {"modl": "x"}, "lambda": 3, "layers": "z", "biases": 1, "depth": 4}, "my.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("my.yaml") for line in lines)
    for word in (
        "'depth'",
        "'source' is missing",
        "'modl'",
        "exactly one",
        "lambda must be between",
        "'z'",
        "biases must",
    ):
        assert sum(word in line for line in lines) == 1, word
    with pytest.raises(UsageError) as caught:
        resolve(config(lambda_=[0.1, 0.2], layers="3-9"), 4)
    assert len(str(caught.value).splitlines()) == 4  # layers, and the list's length for q, k and v


def test_extrapolation_has_to_be_allowed():
    assert resolve(config(lambda_=-0.5, allow_extrapolation=True), 1)["q_proj"] == [-0.5]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("target", NoiseConfig("target")),
        ({"kind": "source"}, NoiseConfig("source", 0, 0, "tensor")),
        (
            {"kind": "standard", "draw": 3, "seed": 7, "statistics": "global"},
            NoiseConfig("standard", 3, 7, "global"),
        ),
        (None, None),
    ],
)
def test_noise_is_a_kind_or_a_mapping(value, expected):
    assert config(noise=value).sources[0].noise == expected


def test_only_noise_of_the_source_needs_a_source():
    for kind in ("target", "standard"):
        (source,) = config(source=DROP, noise=kind).sources
        assert not source.is_read and source.model is None
        assert not config(noise=kind).sources[0].is_read
    assert config(noise="source").sources[0].is_read
    with pytest.raises(UsageError, match="^my.yaml: the key 'source' is missing.$"):
        config(source=DROP, noise="source")


def test_sources_have_their_own_settings_and_take_the_rest_from_the_top():
    first, second = sources(
        {"model": "a", "lambda": 0.2, "layers": "0-1", "layer_map": {0: 3, 1: 0}},
        {"package": "b", "projections": ["k"], "noise": {"kind": "source", "draw": 1}},
        lambda_=0.3,
        layers=[1],
    ).sources
    assert (first.model, first.layers, first.layer_map, first.noise) == ("a", "0-1", {0: 3, 1: 0}, None)
    assert first.lambda_ == {"q_proj": 0.2, "k_proj": 0.2, "v_proj": 0.2}
    assert (second.package, second.layers, second.lambda_) == ("b", [1], {"k_proj": 0.3})
    assert second.noise == NoiseConfig("source", 1)


def test_lambdas_of_several_sources_are_resolved_one_by_one():
    merge = sources(
        {"model": "a", "lambda": 0.2, "layers": 1}, {"model": "b", "lambda": [0.5, 0.8], "projections": "v"}
    )
    first, second = resolve_lambdas(merge, 2)
    assert first == {key: [0.0, 0.2] for key in ("q_proj", "k_proj", "v_proj")}
    assert second == {"q_proj": [0, 0], "k_proj": [0, 0], "v_proj": [0.5, 0.8]}


def test_lambdas_may_not_add_up_to_more_than_1():
    items = [{"model": "a", "lambda": [0.9, 0.3]}, {"model": "b", "lambda": 0.4, "projections": ["k"]}]
    message = (
        "^config: lambda adds up to 1.3 over the sources in layer 0 k_proj, but must not exceed 1: .*extrapolation"
    )
    with pytest.raises(UsageError, match=message):
        resolve_lambdas(sources(*items), 2)
    assert resolve_lambdas(sources(*items, allow_extrapolation=True), 2)[1]["k_proj"] == [0.4, 0.4]
    # apart in the layers, or 1 but for rounding (0.7 + 0.2 + 0.1 < 1 < 0.6 + 0.3 + 0.1 + 1e-16)
    resolve_lambdas(sources({**items[0], "layers": 1}, items[1]), 2)
    resolve_lambdas(sources(*({"model": "a", "lambda": value} for value in (0.6, 0.3, 0.1000000000000002))), 2)


@pytest.mark.parametrize("value", ["linear", {0: 0, 1: 2}, None])
def test_layer_maps(value):
    assert config(layer_map=value).sources[0].layer_map == value


def test_a_layer_map_restricts_all_layers_to_its_own_and_refuses_others():
    assert resolve(config(layer_map={1: 0, 3: 5}), 4)["q_proj"] == [0, 0.1, 0, 0.1]
    assert resolve(config(layer_map={1: 0, 3: 5}, layers=3), 4)["q_proj"] == [0, 0, 0, 0.1]
    assert resolve(config(layer_map="linear", layers="0-1"), 4)["q_proj"] == [0.1, 0.1, 0, 0]
    with pytest.raises(UsageError, match="config: layers names 0, 2, which layer_map does not map"):
        resolve(config(layer_map={1: 0, 3: 5}, layers="0-3"), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "pink"}, "^my.yaml: noise: unknown kind 'pink'.* Known: source, standard, target"),
        ({"noise": "standart"}, "did you mean 'standard'"),
        ({"noise": 1}, "noise must be one of source, target, standard, or a mapping"),
        ({"noise": {"draw": 1}}, "noise.kind is missing"),
        ({"noise": {"kind": "source", "darw": 1}}, "unknown key 'darw'; did you mean 'draw'"),
        ({"noise": {"kind": "source", "draw": -1}}, "noise.draw must be a whole number of at least 0, got -1"),
        ({"noise": {"kind": "source", "seed": 1.5}}, "noise.seed must be a whole number"),
        ({"noise": {"kind": "source", "seed": True}}, "noise.seed must be a whole number"),
        ({"noise": {"kind": "source", "statistics": "layer"}}, "noise: unknown statistics 'layer'"),
        ({"noise": {"kind": ["source"]}}, "noise.kind must be one of source, standard, target, got"),
        ({"layer_map": "even"}, "layer_map must be linear, map target layers"),
        ({"layer_map": {0: -1}}, "layer_map must be linear"),
        ({"layer_map": {"0": 1}}, "layer_map must be linear"),
        ({"layer_map": {0: True}}, "layer_map must be linear"),
        ({"layer_map": {}}, "layer_map must be linear"),
        ({"layer_map": [0, 1]}, "layer_map must be linear"),
        ({"sources": [{"model": "a"}]}, "has both source and sources"),
        ({"source": DROP, "sources": []}, "sources must be a list"),
        ({"source": DROP, "sources": {"model": "a"}}, "sources must be a list"),
        ({"source": DROP, "sources": [{"model": "a"}, "b"]}, r"sources\[1\] must be a mapping"),
        ({"source": DROP, "sources": [{"lambda": 0.1}]}, r"sources\[0\] must name a model"),
        ({"source": DROP, "sources": [{"model": "a", "weight": 1}]}, r"sources\[0\]: unknown key 'weight'"),
        ({"source": DROP, "sources": [{"model": "a", "lambda": 2}]}, r"sources\[0\].lambda must be between 0"),
        ({"source": DROP, "sources": [{"model": "a"}], "lambda_": DROP}, r"sources\[0\] needs a lambda"),
        ({"source": {"model": "a", "lambda": 0.1}}, "source: unknown key 'lambda'"),
    ],
)
def test_each_problem_of_noise_sources_and_maps_has_its_sentence(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


def test_all_problems_of_all_sources_are_reported_at_once():
    with pytest.raises(UsageError) as caught:
        sources({"model": "a", "lambda": 3, "layers": "z"}, {"lambda": 0.1, "layer_map": 3}, noise="pink")
    lines = str(caught.value).splitlines()
    for word in ("sources[0].lambda", "'z'", "sources[1] must name", "sources[1].layer_map", "pink"):
        assert sum(word in line for line in lines) == 1, word


PAPER = {
    "mam_hubert_large_ls960_bert_large_layers_12_19": (0.25, range(12, 20)),
    "mam_beats_iter3_vit_base_layers_4_11": (0.10, range(4, 12)),
}


@pytest.mark.parametrize("path", sorted(shipped_dir("upstream_configs").glob("mam_*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    parsed = parse_config(load_yaml(path), path.name)
    usual = 0.10 if {"beats", "ast"} & set(path.stem.split("_")) else 0.05
    value, layers = PAPER.get(path.stem, (usual, range(24)))
    expected = [value if layer in layers else 0.0 for layer in range(24)]
    assert resolve(parsed, 24) == dict.fromkeys(("q_proj", "k_proj", "v_proj"), expected)
    assert not parsed.biases


@pytest.mark.parametrize("kind", ["source", "target", "standard"])
@pytest.mark.parametrize(
    ("target", "source"),
    [("hubert_large_ls960", "bert-large-uncased"), ("beats_iter3", "google/vit-base-patch16-224-in21k")],
)
def test_noise_presets_are_the_papers_pairs(kind, target, source):
    name = f"mam_{target}_noise_{kind}"
    parsed = parse_config(load_yaml(shipped_dir("upstream_configs") / f"{name}.yaml"), name)
    if target == "beats_iter3":
        assert parsed.target.upstream == "beats_local"
        assert parsed.target.ckpt.startswith("${BEATS_ITER3:-lpepino/beats_ckpts:BEATs_iter3.pt@")
    else:
        assert parsed.target.model == "facebook/hubert-large-ls960-ft"
    assert parsed.sources[0].noise == NoiseConfig(kind)
    assert parsed.sources[0].model == (source if kind == "source" else None)
