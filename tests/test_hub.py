"""Names of models on the hub, what is fetched, and one sentence for each way in which the hub does not give it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model, read_attention, weight_files
from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.support import factories
from tests.support.hub_server import StandInHub


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Repositories with tiny models, and with files that nobody needs."""
    root = tmp_path_factory.mktemp("hub")
    factories.bert_folder(root / "google-bert" / "bert-large-uncased", width=32)
    (root / "google-bert" / "bert-large-uncased" / "rust_model.ot").write_bytes(b"x" * 100)
    (root / "google-bert" / "bert-large-uncased" / "tf_model.h5").write_bytes(b"x" * 100)
    factories.hubert_folder(root / "facebook" / "hubert", width=32, ctc=True, safe_serialization=True)
    factories.bert_folder(root / "me" / "gated")
    (root / "me" / "empty").mkdir()
    (root / "me" / "empty" / "config.json").write_text("{}")
    (root / "me" / "weights").mkdir()
    factories.beats_ckpt(root / "me" / "weights" / "BEATs.pt")
    return root


@pytest.fixture
def server(models, tmp_path, monkeypatch):
    """The hub, with an empty cache; what this process has fetched is forgotten."""
    monkeypatch.setattr(hub, "_resolved", {})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with StandInHub(models).running() as running:
        running.moved["bert-large-uncased"] = "google-bert/bert-large-uncased"
        running.gated.add("me/gated")
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.mark.parametrize(("name", "expected"), [
    ("bert-large-uncased", ("bert-large-uncased", None, None)),
    ("facebook/hubert@v1", ("facebook/hubert", None, "v1")),
    ("me/weights:BEATs.pt", ("me/weights", "BEATs.pt", None)),
    ("me/weights:a/BEATs.pt@abc/def", ("me/weights", "a/BEATs.pt", "abc/def")),
    ("/models/bert", None), ("a/b/c", None), ("me/weights:../x", None), ("me@", None), ("", None),
])  # fmt: skip
def test_names(name, expected):
    found = hub.parse(name)
    assert expected == (None if found is None else (found.repo, found.file, found.revision))
    assert found is None or str(found) == name


def test_only_what_is_needed_is_fetched_and_old_ids_follow(server, models):
    folder = find_model("bert-large-uncased")
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert "rust_model.ot" not in server.downloads() and "tf_model.h5" not in server.downloads()
    assert hub.resolved() == {"bert-large-uncased": server.commit("google-bert/bert-large-uncased")}
    before = len(server.downloads())
    assert find_model("bert-large-uncased") == folder and len(server.downloads()) == before, "the cache is used"


@pytest.mark.parametrize("stale", [(), ("model.safetensors.index.json",)])
def test_shards_of_a_model_without_safetensors_are_fetched_with_their_index(stale, models, server):
    folder = models / "me" / f"large{len(stale)}"
    shutil.copytree(models / "google-bert" / "bert-large-uncased", folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    where = {name: shards[number % 2] for number, name in enumerate(state)}
    for shard in shards:
        torch.save({name: state[name] for name in state if where[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    for name in stale:
        (folder / name).write_text(
            json.dumps({"weight_map": {name: "model-00001-of-00001.safetensors" for name in state}})
        )
    found = find_model(f"me/large{len(stale)}")
    assert [file.name for file in weight_files(found)] == shards
    attention, whole = read_attention(found), read_attention(find_model("bert-large-uncased"))
    assert attention.keys() == whole.keys() and all(torch.equal(attention[slot], whole[slot]) for slot in whole)


def test_a_revision_is_asked_for_and_recorded(server, tmp_path):
    commit = server.commit("facebook/hubert")
    folder = find_model("facebook/hubert@v1")
    assert folder.name == commit and any("/revision/v1" in path for path in server.requests)
    assert find_model(f"facebook/hubert@{commit}") == folder
    file = tmp_path / "merge.yaml"
    file.write_text("target: {model: facebook/hubert@v1}\nsource: {model: bert-large-uncased@main}\nlambda: 0.1\n")
    record = merged_attention(model_config=str(file)).merge_record
    assert record["target"]["name"] == "facebook/hubert@v1" and record["target"]["revision"] == commit
    assert record["sources"][0]["revision"] == server.commit("google-bert/bert-large-uncased")
    assert json.loads(json.dumps(record)) == record


def test_a_result_file_names_the_commits(server, tmp_path):
    from s3prl_ext.training.results import result_file
    from tests.support.experiments import make_args

    find_model("facebook/hubert@v1")
    args = make_args(tmp_path, mode="evaluate", upstream="hf_speech_custom", upstream_ckpt="facebook/hubert@v1")
    path = result_file.write(args, {"downstream_expert": {}}, {"test": {"acc": 0.5}}, 0, 1.0, {})
    assert json.loads(path.read_text())["hub"] == {"facebook/hubert@v1": server.commit("facebook/hubert")}


def test_s3prls_own_entries_take_a_revision(server):
    import s3prl.hub

    with torch.no_grad():
        features = s3prl.hub.hf_hubert_custom(ckpt="facebook/hubert@v1")([torch.randn(4000)])
    assert len(features["hidden_states"]) == 3
    assert hub.resolved()["facebook/hubert@v1"] == server.commit("facebook/hubert")


def test_one_file_is_a_checkpoint(server, tmp_path):
    import s3prl.hub

    name = "me/weights:BEATs.pt@v1"
    assert s3prl.hub.beats_custom(ckpt=name)([torch.randn(8000)])["last_hidden_state"].shape[-1] == 32
    file = tmp_path / "merge.yaml"
    vit = factories.vit_folder(tmp_path / "vit", width=32)
    file.write_text(f"target: {{upstream: beats_local, ckpt: '{name}'}}\nsource: {{model: {vit}}}\nlambda: 0.1\n")
    assert merged_attention(model_config=str(file)).merge_record["target"]["revision"] == server.commit("me/weights")


def test_offline_the_cache_is_enough(server, monkeypatch):
    folder = find_model("facebook/hubert")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = list(server.requests)
    assert find_model("facebook/hubert") == folder and server.requests == before
    with pytest.raises(
        DataError, match="'me/other' is neither a folder here nor in the local cache, and HF_HUB_OFFLINE is set"
    ):
        find_model("me/other")


def test_offline_with_half_a_cache(server, monkeypatch):
    folder = find_model("facebook/hubert")
    (folder / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DataError, match="holds 'facebook/hubert' only in part .*, and HF_HUB_OFFLINE is set: fetch it once"
    ):
        find_model("facebook/hubert")


def test_a_connection_that_is_cut_once_is_resumed(server, models):
    server.cuts["model.safetensors"] = 1000
    folder = find_model("facebook/hubert")
    stored = (models / "facebook" / "hubert" / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == stored


@pytest.mark.parametrize(("name", "message"), [
    ("me/gated", r"'me/gated' is gated: accept its conditions .* `hf auth login`, or set HF_TOKEN"),
    ("me/nothing", r"'me/nothing' is neither a folder here nor a public model .* `hf auth login`, or set HF_TOKEN"),
    ("facebook/hubert@v9", r"facebook/hubert has no revision 'v9'"),
    ("me/weights:other.pt", r"me/weights has no file 'other.pt'"),
    ("me/empty", r"'me/empty' contains no model weights in a form that is read here"),
    ("https://huggingface.co/bert-large-uncased", r"is the address of a page: give the id, bert-large-uncased"),
])  # fmt: skip
def test_what_the_hub_does_not_give_is_one_sentence(server, name, message):
    with pytest.raises(DataError, match=message) as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match="'facebook/hubert' is not a folder here.*set HF_ENDPOINT to a mirror"):
        find_model("facebook/hubert")


def test_released_files_of_a_mirror_are_verified_once(server, models, monkeypatch):
    path = models / "lpepino" / "beats_ckpts" / "BEATs_iter3.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(models / "me" / "weights" / "BEATs.pt", path)
    with pytest.raises(
        DataError, match=r"is not the released BEATs_iter3.pt: it has \d+ bytes and the SHA-256 .* It was removed"
    ):
        find_model("lpepino/beats_ckpts:BEATs_iter3.pt")
    content = path.read_bytes()
    right = hub.Released(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(hub.RELEASED, "BEATs_iter3.pt", right)
    assert find_model("lpepino/beats_ckpts:BEATs_iter3.pt").read_bytes() == content
    monkeypatch.setattr(hub, "_verify", None)  # a file of the cache was verified when it came
    assert find_model("lpepino/beats_ckpts:BEATs_iter3.pt").read_bytes() == content
