"""What -g, -k and the shipped files become."""

from __future__ import annotations

import pytest

from s3prl_ext.configs import package_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.resolution import resolve_lambdas
from s3prl_ext.overrides import split_options
from s3prl_ext.upstreams.merged_attention.config import preset_names, read_config
from s3prl_ext.upstreams.merged_attention.hubconf import preset

YAML = """
target: {upstream: hubert_local, ckpt: base.pt}
source: {model: "${TEXT_MODEL}"}
lambda: 0.05
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("TEXT_MODEL", "/models/bert")
    (tmp_path / "my.yaml").write_text(YAML)
    return tmp_path / "my.yaml"


def test_overrides_are_yaml_scalars_and_reach_into_sections(file):
    config = read_config(
        f"{file},,lambda=0.10,,layers=12-19,,target.ckpt=/path/a=b.pt,,biases=true,,projections=[q, k]"
    )
    (source,) = config.sources
    assert source.layers == "12-19" and config.biases is True
    assert source.lambda_ == {"q_proj": 0.1, "k_proj": 0.1}
    assert (config.target.upstream, config.target.ckpt) == ("hubert_local", "/path/a=b.pt")
    assert config.sources[0].model == "/models/bert"
    assert sum(value > 0 for value in resolve_lambdas(config, 24)[0]["q_proj"]) == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None, {})),
        ("", (None, {})),
        ("lambda=0.2", (None, {"lambda": 0.2})),
        (",,lambda=0.2", (None, {"lambda": 0.2})),
        (",,layers=0-3,8,,lambda=[0, 0.1]", (None, {"layers": "0-3,8", "lambda": [0, 0.1]})),
        ("lambda={gradient: [0, 0.3]}", (None, {"lambda": {"gradient": [0, 0.3]}})),
        ("my.yaml,,layers=7,,", ("my.yaml", {"layers": 7})),
    ],
)
def test_options_are_split_at_double_commas(text, expected):
    assert split_options(text) == expected


def test_a_file_name_may_hold_an_equals_sign(tmp_path):
    file = tmp_path / "lambda=1.yaml"
    file.write_text(YAML)
    assert split_options(f"{file},,layers=1") == (str(file), {"layers": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",,lambda", "-g: 'lambda' is not an override: write key=value"),
        (",,lambda=[0.1", "the value of lambda is not readable as YAML"),
        (",,lambda.q_proj=0.1", "'lambda' is not a section"),
        (",,lambd=0.1", "unknown key 'lambd'; did you mean 'lambda'"),
        (",,target.chkpt=x", "unknown key 'chkpt'; did you mean 'ckpt'"),
        (",,layers=12-,,lambda=7", "layers: '12-'.*"),
    ],
)
def test_bad_overrides_are_refused(file, text, message):
    with pytest.raises(UsageError, match=message):
        read_config(f"{file}{text}")


def test_k_replaces_the_targets_checkpoint_or_model(file, tmp_path):
    assert read_config(str(file), "/other.pt").target.ckpt == "/other.pt"
    (tmp_path / "b.yaml").write_text("target: {model: a/b}\nsource: {model: c}\nlambda: 0.1\n")
    assert read_config(str(tmp_path / "b.yaml"), "/folder").target.model == "/folder"


def test_unset_variable_and_missing_file_are_named(file, monkeypatch, tmp_path):
    with pytest.raises(
        UsageError, match="merged_attention needs a configuration: -g my.yaml, or one of -u .*mam_hubert"
    ):
        read_config(None)
    with pytest.raises(UsageError, match="no such configuration file: .*nowhere.yaml"):
        read_config(str(tmp_path / "nowhere.yaml"))
    monkeypatch.delenv("TEXT_MODEL")
    with pytest.raises(
        UsageError, match='my.yaml: source.model needs the environment variable TEXT_MODEL.*",,source.model='
    ):
        read_config(str(file))
    with pytest.raises(UsageError, match="(?s)TEXT_MODEL.*lambda must be between"):
        read_config(f"{file},,lambda=2")
    assert read_config(f"{file},,source.model=/x").sources[0].model == "/x"


def test_variables_are_those_of_task_files(tmp_path, monkeypatch):
    file = tmp_path / "my.yaml"
    file.write_text(
        'target: {upstream: hubert_local, ckpt: "${S3PRL_PACKAGE}/hubert.pt"}\n'
        'source: {model: "${NOWHERE:-${MODELS}/bert}"}\nlambda: 0.1\n'
    )
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("MODELS", "/models")
    config = read_config(str(file))
    assert config.target.ckpt == f"{package_dir('s3prl')}/hubert.pt" and config.sources[0].model == "/models/bert"
    monkeypatch.setenv("MODELS", "")
    with pytest.raises(
        UsageError, match=r"my\.yaml: source\.model needs the environment variable MODELS, which is empty"
    ):
        read_config(str(file))


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("target: {model: hub}\nsource: {model: bert}\nlambda: 0.1\n", ["target.model hub", "source.model bert"]),
        ("target: {upstream: hubert_local, ckpt: hub}\nsource: {model: /x}\nlambda: 0.1\n", ["target.ckpt hub"]),
        ("target: {model: a/b}\nsources: [{model: bert}]\nlambda: 0.1\n", ["sources.0.model bert"]),
        (
            "target: {model: a/b}\nsource: {model: c}\nlambda: 0.1\nlayers: {by: swd, top_k: 1, from: layers.json}\n",
            ["layers.from layers.json"],
        ),
    ],
)
def test_a_path_that_lies_next_to_the_file_is_named(tmp_path, monkeypatch, text, places):
    folder, other = tmp_path / "merges", tmp_path / "elsewhere"
    for path in (folder, other):
        path.mkdir()
    (folder / "my.yaml").write_text(text)
    for name in ("hub", "bert", "layers.json"):
        (folder / name).touch()
    monkeypatch.chdir(other)
    with pytest.raises(UsageError) as caught:
        read_config("../merges/my.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert f"{place} is not in the working folder" in line and f"../merges/{place.split()[1]}" in line
    monkeypatch.chdir(folder)
    assert read_config("my.yaml").sources


def test_presets_take_overrides_only(file):
    config = read_config(",,lambda=0.2", preset="mam_hubert_large_ls960_bert_large")
    assert (config.target.model, config.sources[0].model) == ("facebook/hubert-large-ls960-ft", "bert-large-uncased")
    assert set(config.sources[0].lambda_.values()) == {0.2}
    assert read_config(None, "/my/hubert", preset="mam_hubert_tiny_minilm").target.model == "/my/hubert"
    with pytest.raises(UsageError, match="is a configuration itself"):
        read_config(str(file), preset="mam_hubert_base_bert_base")
    with pytest.raises(UsageError, match="unknown upstream configuration 'mam_hubert_bas'"):
        preset("mam_hubert_bas")
    assert [preset(name).__name__ for name in preset_names()] == preset_names()


def test_noise_is_switched_on_and_off_by_overrides(file):
    (source,) = read_config(f"{file},,noise=source").sources
    assert (source.noise.kind, source.noise.draw) == ("source", 0)
    (source,) = read_config("noise.draw=3,,noise.seed=1", preset="mam_hubert_large_ls960_noise_target").sources
    assert (source.noise.kind, source.noise.draw, source.noise.seed) == ("target", 3, 1)
    assert read_config("noise=null", preset="mam_hubert_large_ls960_noise_source").sources[0].noise is None
    (source,) = read_config(f"{file},,layer_map={{0: 0, 1: 2}}").sources
    assert source.layer_map == {0: 0, 1: 2}


SEVERAL = """
target: {model: a}
sources:
  - {model: b, lambda: 0.1}
  - {model: "${IMAGE_MODEL}", lambda: 0.2}
"""


def test_items_of_sources_are_overridden_by_index(tmp_path, monkeypatch):
    file = tmp_path / "two.yaml"
    file.write_text(SEVERAL)
    with pytest.raises(UsageError, match='two.yaml: sources.1.model needs .* IMAGE_MODEL.*",,sources.1.model=/path"'):
        read_config(str(file))
    monkeypatch.setenv("IMAGE_MODEL", "/vit")
    first, second = read_config(f"{file},,sources.0.lambda=0.3,,sources.0.noise.kind=source").sources
    assert (first.lambda_["q_proj"], second.lambda_["q_proj"], second.model) == (0.3, 0.2, "/vit")
    assert first.noise.kind == "source" and second.noise is None
    for key in ("sources.2.lambda", "sources.x.lambda", "sources.2"):
        with pytest.raises(UsageError, match=f"-g: {key} cannot be set: '[2x]' is not an item of a list of 2"):
            read_config(f"{file},,{key}=0.3")
