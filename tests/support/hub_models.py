"""Small random models under the ids of the real repositories, with their file lists and key names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tests.support import factories

LARGE, BASE = 24, 12  # layers of the released models; width is 32 here
NOT_READ = ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "README.md", ".gitattributes")


def write_hub(root: Path) -> Path:
    """Write every repository that a preset names below `root`."""
    _hubert_large(root / "facebook" / "hubert-large-ls960-ft")
    _bert(root / "google-bert" / "bert-large-uncased", LARGE)
    _bert(root / "google-bert" / "bert-base-uncased", BASE)
    _vit(root / "google" / "vit-base-patch16-224-in21k")
    factories.whisper_folder(root / "openai" / "whisper-base", layers=6)
    factories.whisper_folder(root / "openai" / "whisper-small", layers=BASE)
    factories.w2v_bert_folder(root / "facebook" / "w2v-bert-2.0", layers=LARGE)
    _ast(root / "MIT" / "ast-finetuned-audioset-10-10-0.4593")
    converted = root / "s3prl" / "converted_ckpts"
    converted.mkdir(parents=True)
    factories.hubert_local_ckpt(converted / "hubert_base_ls960.pt", layers=BASE)
    factories.wav2vec2_local_ckpt(converted / "wav2vec_small.pt", layers=BASE)
    factories.wavlm_local_ckpt(converted / "wavlm_base_plus.pt", layers=BASE)
    mirror = root / "lpepino" / "beats_ckpts"
    mirror.mkdir(parents=True)
    factories.beats_ckpt(mirror / "BEATs_iter3.pt", layers=BASE)
    for folder in root.glob("*/*"):
        for name in NOT_READ:
            (folder / name).write_bytes(b"x" * 64)
    return root


def _hubert_large(folder: Path) -> None:
    """A CTC model as transformers 4 wrote it: .bin only, weight norm under its old names."""
    factories.hubert_folder(folder, layers=LARGE, ctc=True, stable_norm=True)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        state = {key.replace(new, old): value for key, value in state.items()}
    assert any(key.endswith("conv.weight_g") for key in state)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))


def _bert(folder: Path, layers: int) -> None:
    """A model for pre-training with heads that nobody needs, and norms under their names in TensorFlow."""
    from safetensors.torch import save_file
    from transformers import BertConfig, BertForPreTraining

    factories.bert_folder(folder, layers=layers)
    config = BertConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForPreTraining(config)
        factories.randomize_attention(model)
    state = {key: value.clone() for key, value in model.state_dict().items() if "decoder" not in key}
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        state = {key.replace(new, old): value for key, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save(state, folder / "pytorch_model.bin")


def _vit(folder: Path) -> None:
    """A bare model with a pooler; its keys have no prefix."""
    factories.vit_folder(folder, layers=BASE)
    from safetensors.torch import load_file

    assert "encoder.layer.0.attention.attention.query.weight" in load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": 16, "feature_extractor_type": "ViTFeatureExtractor"})
    )
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ViTModel"]}))
    shutil.copyfile(folder / "model.safetensors", folder / "pytorch_model.bin.not_fetched")


def _ast(folder: Path) -> None:
    """A classifier, whose keys have the prefix of its encoder and ViT's names behind it."""
    factories.ast_folder(folder, layers=BASE)
    from safetensors.torch import load_file

    name = "audio_spectrogram_transformer.encoder.layer.0.attention.attention.query.weight"
    assert name in load_file(folder / "model.safetensors")
