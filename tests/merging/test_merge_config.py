"""Reading merge configurations: all forms of lambda and layers, and every complaint."""

from __future__ import annotations

import pytest

from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import parse_config, parse_layers, resolve_lambdas

BASE = {"target": {"upstream": "hubert_base"}, "source": {"model": "bert-base-uncased"}, "lambda": 0.1}


def config(**changes):
    return parse_config({**BASE, **{("lambda" if k == "lambda_" else k): v for k, v in changes.items()}}, "my.yaml")


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
        resolve_lambdas(config(layers="8-12"), 12)


def test_scalar_on_some_layers_and_projections():
    resolved = resolve_lambdas(config(layers="1-2", projections=["q", "value"]), 4)
    assert resolved == {"q_proj": [0, 0.1, 0.1, 0], "k_proj": [0, 0, 0, 0], "v_proj": [0, 0.1, 0.1, 0]}


def test_list_is_one_value_per_layer():
    assert resolve_lambdas(config(lambda_=[0, 0.1, 0.2]), 3)["k_proj"] == [0, 0.1, 0.2]
    with pytest.raises(UsageError, match="has 3 values, but the models have 4 layers.*gradient"):
        resolve_lambdas(config(lambda_=[0, 0.1, 0.2]), 4)


def test_gradient_runs_over_depth_and_layers_cut_it():
    resolved = resolve_lambdas(config(lambda_={"gradient": [0, 0.4]}, layers="1-4"), 5)
    assert resolved["q_proj"] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert resolve_lambdas(config(lambda_={"gradient": [0, 0.4]}, layers=[1]), 5)["v_proj"] == pytest.approx(
        [0, 0.1, 0, 0, 0]
    )


def test_filters_by_projection():
    resolved = resolve_lambdas(config(lambda_={"q_proj": 0.1, "key": {"gradient": [0, 0.2]}}), 2)
    assert resolved == {"q_proj": [0.1, 0.1], "k_proj": [0, 0.2], "v_proj": [0, 0]}
    resolved = resolve_lambdas(config(lambda_={"q_proj": [0.1, 0.2], "default": 0.3}), 2)
    assert resolved == {"q_proj": [0.1, 0.2], "k_proj": [0.3, 0.3], "v_proj": [0.3, 0.3]}


def test_numeric_strings_are_numbers():
    assert resolve_lambdas(config(lambda_="1e-2"), 1)["q_proj"] == [0.01]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_": 1.2}, r"lambda must lie between 0 \(target\) and 1 \(source\), but is 1.2"),
        ({"lambda_": [0.1, -0.1]}, "must lie between 0"),
        ({"lambda_": "much"}, "lambda must be a number, but is 'much'"),
        ({"lambda_": True}, "must be a number"),
        ({"lambda_": None}, "must be a number"),
        ({"lambda_": float("nan")}, "must be finite"),
        ({"lambda_": {}}, "lambda is empty"),
        ({"lambda_": {"q_prj": 0.1}}, "unknown key 'q_prj'; did you mean 'q_proj'"),
        ({"lambda_": {"gradient": 0.1}}, "gradient"),
        ({"lambda_": {"q_proj": 0.1}, "projections": ["k"]}, "q_proj is not among the projections k_proj"),
        ({"projections": ["o_proj"]}, "unknown projection 'o_proj'"),
        ({"projections": []}, "must be a list"),
        ({"biases": "yes"}, "biases must be true or false"),
        ({"target": {"upstream": "a", "model": "b"}}, "exactly one of upstream and model"),
        ({"target": {}}, "exactly one of upstream and model"),
        ({"target": {"model": "a", "ckpt": "b"}}, "the model is the checkpoint"),
        ({"target": "hubert_base"}, "must be a mapping"),
        ({"target": {"upstream": 3}}, "must be a name or path, but is 3"),
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
    for word in ("'depth'", "'source' is missing", "'modl'", "exactly one", "lambda must lie", "'z'", "biases must"):
        assert sum(word in line for line in lines) == 1, word
    with pytest.raises(UsageError) as caught:
        resolve_lambdas(config(lambda_=[0.1, 0.2], layers="3-9"), 4)
    assert len(str(caught.value).splitlines()) == 4  # layers, and the list's length for q, k and v


def test_extrapolation_has_to_be_allowed():
    assert resolve_lambdas(config(lambda_=-0.5, allow_extrapolation=True), 1)["q_proj"] == [-0.5]


@pytest.mark.parametrize("path", sorted(shipped_dir("upstream_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    parsed = parse_config(load_yaml(path), path.name)
    assert resolve_lambdas(parsed, 12) == dict.fromkeys(("q_proj", "k_proj", "v_proj"), [0.05] * 12)
    assert not parsed.biases
