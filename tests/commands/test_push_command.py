"""``s3prl-ext push`` to a stand-in of the hub: what arrives is the folder, with a filled card, and loads from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model
from s3prl_ext.commands import export
from s3prl_ext.commands.push import main
from s3prl_ext.errors import DataError, UsageError
from tests.support import tuned as made
from tests.support.factories import hubert_folder
from tests.support.hub_server import StandInHub

CHILD = {"method": "child", "density": 0.05}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The hub, without repositories, that lets the holder of a token write."""
    monkeypatch.setattr(hub, "_resolved", {})
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_DISABLE_XET", True
    )  # large files by LFS, which the stand-in has
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "hub").mkdir()
    with StandInHub(tmp_path / "hub").running() as running:
        running.token = "hf_secret"
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running


@pytest.fixture
def exported(tmp_path) -> Path:
    ckpt = made.write_model("hf_hubert_custom", tmp_path, ctc=True)
    tuned = made.tune(made.build("hf_hubert_custom", ckpt))
    delta = made.save_delta(tuned, made.about("hf_hubert_custom", ckpt, CHILD), tmp_path / "exp" / "delta.safetensors")
    assert export.main(["--delta", str(delta), "--out", str(tmp_path / "ks_hubert")]) == 0
    return tmp_path / "ks_hubert"


def test_an_export_arrives_with_its_card_and_loads_from_there(server, exported, capsys):
    (exported / ".hidden").write_text("x")
    assert main([str(exported), "me/tuned"]) == 0
    assert f"{server.address}/me/tuned/commit/" in capsys.readouterr().out
    assert server.made == {"me/tuned": True}
    sent = server.root / "me" / "tuned"
    names = {path.name for path in exported.iterdir() if not path.name.startswith(".")}
    assert {path.name for path in sent.iterdir()} == names and {"model.safetensors", "head.ckpt"} < names
    assert all((sent / n).read_bytes() == (exported / n).read_bytes() for n in names if n != "README.md")
    card = ModelCard.load(sent / "README.md")
    assert (card.data.library_name, card.data.model_name) == ("transformers", "tuned")
    (score,) = [result for result in card.data.eval_results if result.metric_type == "acc"]
    assert (score.task_type, score.dataset_split, score.metric_value) == ("speech_commands", "dev", 0.75)
    assert card.text.strip() == ModelCard.load(exported / "README.md").text.strip()
    assert made.same(
        made.features(made.build("hf_hubert_custom", find_model("me/tuned"))),
        made.features(made.build("hf_hubert_custom", exported)),
    )


def test_a_second_push_adds_a_commit_and_public_is_asked_for(server, exported):
    assert main([str(exported), "me/tuned", "--public", "-m", "first"]) == 0
    assert server.made == {"me/tuned": False}
    assert main([str(exported), "me/tuned"]) == 0
    assert len([request for request in server.requests if "/commit/" in request]) == 2


def test_a_second_push_takes_away_what_would_be_loaded_in_its_place(server, tmp_path, capsys):
    """transformers reads ``model.safetensors`` rather than the parts of a divided model, and an adapter before both."""
    whole, parts = (hubert_folder(tmp_path / name, seed, **options) for name, seed, options in
                    (("whole", 1, {}), ("parts", 2, {"max_shard_size": "50KB"})))  # fmt: skip
    for folder in (whole, parts):
        (folder / "README.md").write_text("---\ntags: []\n---\n# a model\n")
        (folder / "export.json").write_text("{}")
    sent = server.root / "me" / "tuned"
    assert main([str(whole), "me/tuned"]) == 0 and "deleted" not in capsys.readouterr().out
    (sent / "adapter_config.json").write_text("{}")
    (sent / "LICENSE").write_text("mine")
    assert main([str(parts), "me/tuned"]) == 0
    said = capsys.readouterr().out
    assert "deleted from me/tuned, as this folder does not have them: adapter_config.json, model.safetensors\n" in said
    assert {path.name for path in sent.iterdir()} == {"LICENSE", *(path.name for path in parts.iterdir())}
    assert made.same(*(list(AutoModel.from_pretrained(folder).state_dict().values()) for folder in (sent, parts)))
    assert main([str(whole), "me/tuned"]) == 0
    assert not list(sent.glob("*-of-*")) and not (sent / "model.safetensors.index.json").exists()


def test_an_adapter_says_which_library_reads_it(server, tmp_path):
    lora = {"method": "lora", "rank": 2}
    ckpt = made.write_model("hf_hubert_custom", tmp_path)
    tuned = made.tune_adapter(made.build("hf_hubert_custom", ckpt), lora)
    delta = made.save_delta(tuned, made.about("hf_hubert_custom", ckpt, lora), tmp_path / "delta.safetensors")
    assert export.main(["--delta", str(delta), "--format", "peft", "--out", str(tmp_path / "adapter")]) == 0
    assert main([str(tmp_path / "adapter"), "me/adapter"]) == 0
    sent = server.root / "me" / "adapter"
    assert ModelCard.load(sent / "README.md").data.library_name == "peft"
    assert (sent / "adapter_model.safetensors").is_file()


def test_dry_run_sends_nothing(server, exported, capsys):
    assert main([str(exported), "me/tuned", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "model.safetensors" in shown and "library_name: transformers" in shown and "value: 0.75" in shown
    assert "are deleted from it by an upload" in shown
    assert shown.endswith("Nothing was sent.\n") and server.requests == []


@pytest.mark.parametrize(
    ("change", "repo", "error", "message"),
    [
        ("token", "me/tuned", DataError, "does not let you write to me/tuned: log in with `hf auth login`"),
        ("offline", "me/tuned", DataError, "HF_HUB_OFFLINE is set, so nothing can be uploaded"),
        ("branch", "me/tuned@other", DataError, "me/tuned has no branch 'other'"),
        ("closed", "me/tuned", DataError, "me/tuned was not uploaded .*: the same command tries again"),
        ("header", "me/tuned", DataError, "the header of .*README.md cannot be read"),
        ("folder", "me/tuned", DataError, "was not written by s3prl-ext export or merge"),
        ("", "tuned", UsageError, "'tuned' is not a name of a repository: write OWNER/NAME"),
        ("", "me/tuned:file", UsageError, "is not a name of a repository"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(change, repo, error, message, server, exported, monkeypatch):
    if change == "token":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif change == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif change == "closed":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    elif change == "header":
        (exported / "README.md").write_text("---\n- [\n---\n# x\n")
    elif change == "folder":
        (exported / "export.json").unlink()
    with pytest.raises(error, match=message):
        main([str(exported), repo])
