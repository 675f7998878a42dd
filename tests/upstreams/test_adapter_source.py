"""A source with a LoRA in peft's format: folded in, or merged as the change that it makes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import PROJECTIONS, Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.commands import layers, merge
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from s3prl_ext.upstreams.merged_attention.record import check_merge_record
from tests.support import factories

WEIGHTS = [Slot(layer, projection) for layer in (0, 1) for projection in PROJECTIONS]
PARTS = {"q_proj": "query", "v_proj": "value"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {
        "target": factories.hubert_folder(root / "hubert"),
        "source": factories.bert_folder(root / "bert"),
        "lora": factories.lora_folder(root / "lora"),
    }
    return {name: str(path) for name, path in made.items()}


@pytest.fixture
def build(folders, tmp_path):
    def build(adapter=None, **content):
        source = {"model": folders["source"], "adapter": adapter or folders["lora"]}
        content = {"target": {"model": folders["target"]}, "source": source, "lambda": 0.25} | content
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(content))
        return merged_attention(model_config=str(tmp_path / "my.yaml"))

    return build


def change(folder, slot, factor=3.0):
    """Return (alpha / r) B A of a module, 6 / 2 by default."""
    if slot.projection not in PARTS:
        return torch.zeros(32, 32)
    tensors = load_file(f"{folder}/adapter_model.safetensors")
    name = f"base_model.model.bert.encoder.layer.{slot.layer}.attention.self.{PARTS[slot.projection]}"
    return factor * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]


def test_task_vectors_of_an_adapter_are_what_it_changes(build, folders):
    target, source = read_attention(folders["target"]), read_attention(folders["source"])
    upstream = build(method="task_arithmetic")
    after = extract(upstream.state_dict())
    for slot in WEIGHTS:
        torch.testing.assert_close(
            after[slot], target[slot] + 0.25 * change(folders["lora"], slot), rtol=1e-5, atol=1e-5
        )
    assert all(torch.equal(after[slot], target[slot]) for slot in WEIGHTS if slot.projection == "k_proj")
    folded = extract(build(**{"lambda": 1}).state_dict())
    for slot in WEIGHTS:
        torch.testing.assert_close(folded[slot], source[slot] + change(folders["lora"], slot))
    zero = extract(build(method="ties", **{"lambda": 0}).state_dict())
    assert all(torch.equal(zero[slot], target[slot]) for slot in target)
    (record,) = upstream.merge_record["sources"]
    plain = merged_attention(model_config=write_plain(folders)).merge_record["sources"][0]
    assert record["base"]["attention_sha256"] == plain["attention_sha256"] != record["attention_sha256"]
    assert record["name"].endswith(f"bert with adapter {folders['lora']}")


def write_plain(folders):
    from pathlib import Path

    file = Path(folders["lora"]).parent / "plain.yaml"
    file.write_text(yaml.safe_dump({k: {"model": folders[k]} for k in ("target", "source")} | {"lambda": 0.25}))
    return str(file)


def test_names_without_the_head_s_prefix_rank_scaled_and_fused_modules(build, folders, tmp_path, caplog):
    bare = factories.lora_folder(
        tmp_path / "bare", "encoder.layer.{layer}.attention.self.{projection}", use_rslora=True
    )
    target = read_attention(folders["target"])
    after = extract(build(str(bare), method="task_arithmetic").state_dict())
    slot = WEIGHTS[0]  # the same factors as those of the other adapter
    expected = target[slot] + 0.25 * change(folders["lora"], slot, 6 / 2**0.5)
    torch.testing.assert_close(after[slot], expected, rtol=1e-5, atol=1e-5)
    more = factories.lora_folder(
        tmp_path / "more", "bert.encoder.layer.{layer}.{projection}", ("attention.self.query", "attention.output.dense")
    )
    build(str(more), method="task_arithmetic")
    assert "acts on 4 modules, of which 2 are query, key or value; the others are not merged" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_change_of_a_source_in_half_precision_is_kept(dtype, build, folders, tmp_path):
    """A change of 0.1 % of W is below the steps of bfloat16: rounded to it, most entries would be lost."""
    half = factories.bert_folder(tmp_path / "half")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(half / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    adapter = factories.lora_folder(tmp_path / "lora")
    factors = load_file(adapter / "adapter_model.safetensors")
    small = {name: tensor * (1e-3 if "lora_B" in name else 1) for name, tensor in factors.items()}
    save_file(small, adapter / "adapter_model.safetensors")
    source = {"model": str(half), "adapter": str(adapter)}
    after = extract(build(source=source, method="task_arithmetic", **{"lambda": 1}).state_dict())
    target = read_attention(folders["target"])
    for slot in WEIGHTS:
        torch.testing.assert_close(after[slot] - target[slot], change(adapter, slot), rtol=1e-2, atol=3e-7)


def test_a_written_merge_equals_the_upstream(build, folders, tmp_path):
    upstream = build(method={"name": "ties", "density": 0.5})
    assert merge.main(["-g", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "merged")]) == 0
    written, built = read_attention(tmp_path / "merged"), extract(upstream.state_dict())
    assert all(torch.equal(written[slot], built[slot]) for slot in written)
    check_merge_record(json.loads((tmp_path / "merged" / "merge.json").read_text())["merge"], upstream.merge_record)
    without = build(source={"model": folders["source"]}).merge_record
    with pytest.raises(DataError, match="made with method|another source"):
        check_merge_record(upstream.merge_record, without)


@pytest.mark.usefixtures("own_cache")
def test_layers_from_a_file_are_those_of_the_model_without_the_adapter(build, folders, table, tmp_path):
    flags = ["--target", folders["target"], "--source", folders["source"], "--pairs", str(table), "--share", "1"]
    assert layers.main([*flags, "--metric", "euclidean", "--top-k", "1", "--out", str(tmp_path)]) == 0
    selection = {"by": "euclidean", "top_k": 1}
    found = build(layers={**selection, "from": str(tmp_path / "layers.json")})
    run = build(layers={**selection, "pairs": str(table), "share": 1})
    (record,), (expected,) = found.merge_record["sources"], run.merge_record["sources"]
    assert record["layers"] == expected["layers"]
    assert all(torch.equal(tensor, run.state_dict()[name]) for name, tensor in found.state_dict().items())
    other = factories.bert_folder(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match=r"made with another source: '.*bert' .*, but now it is '.*other' "):
        source = {"model": str(other), "adapter": folders["lora"]}
        build(source=source, layers={**selection, "from": str(tmp_path / "layers.json")})


def test_an_adapter_that_does_not_fit_is_one_sentence(build, folders, tmp_path):
    wide = factories.lora_folder(tmp_path / "wide", width=48)
    deep = factories.lora_folder(tmp_path / "deep", layers=3)
    other = factories.lora_folder(
        tmp_path / "other", "bert.encoder.layer.{layer}.{projection}", ("intermediate.dense",)
    )
    dora = factories.lora_folder(tmp_path / "dora", use_dora=True)
    for folder, message in (
        (
            wide,
            r"changes layer 0 q_proj.weight of shape \(48, 48\), of which .* has the shape \(32, 32\): name its own model",
        ),
        (deep, "changes layer 2 q_proj.weight .* has no such layer"),
        (other, "none of which is a query, key or value that is known"),
        (dora, "uses use_dora: true"),
        (tmp_path, "holds no adapter of peft: it lacks adapter_config.json"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            build(str(folder), method="task_arithmetic")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="noise replaces a source's matrices"):
        build(method="task_arithmetic", noise="source")
    with pytest.raises(UsageError, match="unknown key 'adaptor'"):
        build(source={"model": folders["source"], "adaptor": "x"})
