"""Each shim: what s3prl meets without it, and that the repair holds."""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import s3prl_ext
from s3prl_ext import plugin
from s3prl_ext.compat import huggingface_hub, s3prl, torchaudio, transformers, undeclared
from s3prl_ext.compat import torch as torch_compat
from s3prl_ext.errors import DataError, UsageError
from tests.support import listings

s3prl_ext.install()

SHIMS = {shim.name: shim for shim in plugin.SHIMS}


def test_every_shim_says_why_and_how_long():
    assert len(SHIMS) == len(plugin.SHIMS)
    for shim in plugin.SHIMS:
        assert len(shim.reason) > 20 and len(shim.remove_when) > 10


# --- torchaudio


def test_extension_that_does_not_load_is_done_without():
    shim, module = SHIMS["torchaudio-extension"], ModuleType("torchaudio._extension")

    def execute() -> None:
        raise OSError("Could not load this library: _torchaudio.abi3.so")

    shim.hook(module, execute)
    assert (module._IS_TORCHAUDIO_EXT_AVAILABLE, module._IS_ALIGN_AVAILABLE) == (False, False)
    with pytest.raises(RuntimeError, match="forced_align needs torchaudio's compiled extension"):
        module.fail_if_no_align(SimpleNamespace(__name__="forced_align"))()


def test_extension_that_loads_is_left_alone():
    module = ModuleType("torchaudio._extension")
    SHIMS["torchaudio-extension"].hook(module, lambda: setattr(module, "fail_if_no_align", "its own"))
    assert vars(module)["fail_if_no_align"] == "its own"
    assert not hasattr(module, "_IS_ALIGN_AVAILABLE")


def test_removed_functions_of_torchaudio_are_back():
    module = importlib.import_module("torchaudio")
    module.set_audio_backend("sox_io")
    sox_effects = importlib.import_module("torchaudio.sox_effects")
    samples, rate = sox_effects.apply_effects_tensor(torch.ones(2, 4) / 2, 16000, [["channels", "1"]])
    assert (samples.tolist(), rate) == ([[0.5] * 4], 16000)


def test_present_functions_of_torchaudio_are_kept():
    old = ModuleType("torchaudio")
    old.set_audio_backend, old.list_audio_backends = (lambda backend: None), (lambda: ["sox", "soundfile"])
    assert not SHIMS["torchaudio-backend"].needed(old)
    assert not SHIMS["torchaudio-soundfile"].needed(old)


@pytest.mark.parametrize("broken", [None, ModuleType("torchcodec")])
def test_audio_is_read_with_soundfile_where_torchcodec_fails(monkeypatch, tmp_path, broken):
    monkeypatch.setitem(sys.modules, "torchcodec", broken)  # None: not installed; an empty module: no decoders
    new = ModuleType("torchaudio")
    new.load_with_torchcodec = None
    assert SHIMS["torchaudio-soundfile"].needed(new)
    torchaudio._read_with_soundfile(new)
    with pytest.raises(DataError, match="no such audio file"):
        new.load(tmp_path / "absent.wav")


def test_audio_is_left_to_a_working_torchcodec(monkeypatch):
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.decoders = decoders
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    new = ModuleType("torchaudio")
    new.load_with_torchcodec = None
    assert not SHIMS["torchaudio-soundfile"].needed(new)


# --- huggingface_hub


def test_names_that_huggingface_hub_removed_are_back():
    from huggingface_hub import HfFolder, Repository

    assert callable(HfFolder.get_token) and isinstance(Repository, type)


def test_repository_says_what_to_do_instead():
    with pytest.raises(UsageError, match="leave out --push_to_hf_hub"):
        huggingface_hub.Repository(local_dir="x", clone_from="y")


def test_token_goes_to_the_present_functions(monkeypatch):
    import huggingface_hub as library

    stored = []
    monkeypatch.setattr(library, "login", lambda token: stored.append(token))  # noqa: PLW0108  called by name
    monkeypatch.setattr(library, "get_token", lambda: stored[-1])
    huggingface_hub.HfFolder.save_token("hf_x")
    assert huggingface_hub.HfFolder.get_token() == "hf_x"


# --- torch


def test_checkpoint_with_arguments_loads(tmp_path):
    path = tmp_path / "states-1.ckpt"
    torch.save({"Args": argparse.Namespace(upstream="fbank"), "Config": {"runner": {"total_steps": 1}}}, path)
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(Exception, match="argparse.Namespace"):
            torch.load(path)
        assert SHIMS["torch-safe-globals"].needed(torch)
        torch_compat._allow_namespace(torch)
        assert torch.load(path)["Args"].upstream == "fbank"
        assert not SHIMS["torch-safe-globals"].needed(torch)
    finally:
        torch.serialization.add_safe_globals(before)


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="needs a machine without GPU")
def test_set_device_is_harmless_without_gpu():
    importlib.import_module("s3prl.downstream.runner")
    torch.cuda.set_device(0)


# --- catalyst, librosa, joblib


def test_sampler_wrapper_shares_out_what_the_sampler_draws():
    wrapper = undeclared._catalyst()["catalyst.data.sampler"].DistributedSamplerWrapper
    drawn = [5, 3, 5, 1, 0, 2]
    shares = [list(wrapper(drawn, num_replicas=2, rank=rank, shuffle=False)) for rank in (0, 1)]
    assert shares == [[5, 5, 0], [3, 1, 2]]
    shuffled = [index for rank in range(3) for index in wrapper(drawn, num_replicas=3, rank=rank)]
    assert sorted(shuffled) == sorted(drawn)


def test_undeclared_packages_are_no_longer_visible_after_the_import():
    importlib.import_module("s3prl.downstream.speech_commands.expert")
    importlib.import_module("s3prl.downstream.voxceleb1.dataset")
    for name in ("catalyst", "librosa"):
        assert getattr(sys.modules.get(name), "__spec__", "real") is not None


def test_stand_ins_say_what_to_install():
    with pytest.raises(ImportError, match="pip install librosa"):
        undeclared._librosa()["librosa.util"].find_files("x")
    with pytest.raises(ImportError, match="pip install joblib"):
        undeclared._joblib()["joblib"].Parallel()


# --- transformers


@pytest.fixture
def hf_folder(tmp_path):
    """A tiny wav2vec 2.0 in a folder, with layerdrop and SpecAugment switched on."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8, conv_dim=(4,), conv_stride=(320,),
        conv_kernel=(400,), num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        layerdrop=0.9, apply_spec_augment=True, mask_time_prob=0.5,
    )  # fmt: skip
    folder = tmp_path / "tiny"
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_trained_hf_upstream_returns_every_layer_even_of_a_short_clip(hf_folder):
    expert = importlib.import_module("s3prl.upstream.hf_wav2vec2.expert").UpstreamExpert(str(hf_folder)).train()
    for _ in range(5):
        states = expert([torch.randn(3200)])["hidden_states"]  # 9 frames, below the mask length of 10
        assert len(states) == 4


def test_without_the_shim_layers_are_lost_or_masking_fails(hf_folder):
    module = importlib.import_module("s3prl.upstream.hf_wav2vec2.expert")
    expert = module.UpstreamExpert.__new__(module.UpstreamExpert)
    module.UpstreamExpert.__init__.__wrapped__(expert, str(hf_folder))
    assert expert.model.config.layerdrop == 0.9
    with pytest.raises(ValueError, match="mask_length"):
        expert.train()([torch.randn(3200)])


@pytest.mark.parametrize("module", transformers.EXPERTS)
def test_model_folder_without_feature_extractor_is_refused(module, hf_folder):
    for file in hf_folder.glob("*processor*"):
        file.unlink()
    with pytest.raises(DataError, match=r"tiny has no readable preprocessor_config\.json"):
        importlib.import_module(module).UpstreamExpert(str(hf_folder))


def test_missing_model_is_named(tmp_path):
    expert = importlib.import_module("s3prl.upstream.hf_hubert.expert").UpstreamExpert
    with pytest.raises(DataError, match="no such model folder: .*absent"):
        expert(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="with -k"):
        expert(None)


# --- s3prl


def test_isinstance_stays_as_python_has_it():
    helper = importlib.import_module("s3prl.utility.helper")
    helper.hack_isinstance()
    assert isinstance(defaultdict(), dict)
    assert isinstance(defaultdict(), (dict, list))


@pytest.mark.parametrize(("corpus", "dataset"), [("libriphone", "LibriPhoneDataset"), ("snips", "SnipsDataset")])
def test_ctc_corpora_can_be_imported(corpus, dataset):
    assert hasattr(importlib.import_module(f"s3prl.downstream.ctc.corpus.{corpus}"), dataset)


def test_ctc_corpora_of_a_clone_win(tmp_path, monkeypatch):
    package = importlib.import_module("s3prl.downstream.ctc")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "snips.py").write_text("")
    monkeypatch.setattr(package, "__path__", [str(tmp_path)])
    for name in [name for name in sys.modules if name.startswith("s3prl.downstream.ctc.corpus")]:
        monkeypatch.delitem(sys.modules, name)
    assert not SHIMS["s3prl-ctc-corpus"].needed(package)
    monkeypatch.setattr(package, "__path__", [str(tmp_path / "elsewhere")])
    assert SHIMS["s3prl-ctc-corpus"].needed(package)


def test_number_of_workers_stays_in_the_configuration(monkeypatch):
    expert = importlib.import_module("s3prl.downstream.ctc.expert")
    data = importlib.import_module("s3prl.downstream.ctc.data")
    monkeypatch.setattr(data, "create_dataset", lambda split, tokenizer, **corpus: ([0], 1))
    shared = {"name": "snips", "num_workers": 3}
    assert [expert.load_dataset("dev", None, shared).num_workers for _ in range(2)] == [3, 3]
    assert shared == {"name": "snips", "num_workers": 3}
    expert.load_dataset.__wrapped__("dev", None, shared)
    assert "num_workers" not in shared  # what s3prl does by itself


@pytest.mark.parametrize("pooling", ["MeanPooling", "AttentivePooling"])
def test_padding_has_no_weight_in_a_pooled_clip(pooling):
    from s3prl.downstream.model import UtteranceLevel

    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(length, 8, generator=generator) for length in (5, 50, 20)]
    model = UtteranceLevel(8, 3, pooling=pooling)
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    together, _ = model(padded, torch.tensor([5, 50, 20], dtype=torch.int32))
    alone = torch.cat([model(clip[None], torch.tensor([len(clip)]))[0] for clip in clips])
    assert torch.allclose(together, alone, atol=1e-6)


def test_clips_without_padding_are_pooled_as_s3prl_pools_them():
    from s3prl.downstream.model import AttentivePooling, AttentivePoolingModule

    features = torch.randn(4, 30, 8, generator=torch.Generator().manual_seed(0))
    pooling = AttentivePooling(8, "ReLU")
    mask = torch.ones(4, 30, dtype=torch.bool)
    theirs, _ = AttentivePoolingModule.forward.__wrapped__(pooling.sap_layer, features, mask)
    assert torch.equal(pooling(features, torch.full((4,), 30))[0], theirs)


def test_ctc_folder_is_shipped():
    assert {path.name for path in Path(s3prl.CTC_DIR, "corpus").glob("*.py")} >= {"libriphone.py", "snips.py"}


def test_folders_that_s3prl_searches_are_listed_by_name(tmp_path):
    clone = ModuleType("s3prl.downstream.ctc.corpus.snips")  # of a clone of s3prl, whose corpora do not sort
    clone.Path = Path
    SHIMS["listing-sf"].hook(clone, lambda: None)
    for name in ("b/2.wav", "b/1.wav", "a/3.wav", "a/._3.wav", ".git/4.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with listings.by_name(backwards=True):
        assert [path.name for path in Path(tmp_path).iterdir()] == ["b", "a", ".git"], "the disk of this test"
        root = clone.Path(tmp_path)
        assert [path.name for path in root.iterdir()] == ["a", "b"]
        found = [path.name for path in root.rglob("*.wav")], [path.name for path in root.glob("*/*.wav")]
        assert found == (["3.wav", "1.wav", "2.wav"],) * 2
        assert [path.name for folder in root.iterdir() for path in folder.glob("*")] == ["3.wav", "1.wav", "2.wav"]
    assert pickle.loads(pickle.dumps(root)) == root, "datasets go to the workers of a DataLoader"
