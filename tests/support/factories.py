"""Write tiny models of the real classes to disk: transformers folders and s3prl's converted checkpoints.

Every function takes a path, writes there and returns it; same arguments, same weights, global RNG untouched.
The speech models take 16 kHz audio, have a four-layer conv front end with a total stride of 320 samples, and need
a few milliseconds for one second of audio. Attention biases are drawn at random (the libraries start them at zero).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import s3prl_ext

s3prl_ext.install()  # s3prl and transformers import torchaudio, which may need the compat layer

CONV_CHANNELS, CONV_KERNELS, CONV_STRIDES = (16, 16, 16, 16), (20, 8, 8, 4), (10, 4, 4, 2)  # total stride 320
POSITION_KERNEL, POSITION_GROUPS = 16, 4
CTC_VOCABULARY = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "|",
    *"ETAONIHSRDLUMWCFGYPBVK'XJQZ",
]  # facebook/hubert-large-ls960-ft
WORD_PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomize_attention(model: torch.nn.Module, std: float = 0.2) -> None:
    """Draw the query, key and value weights and biases of `model` from N(0, std), in place."""
    names = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "qkv", "linear_q", "linear_k", "linear_v", "Wqkv")
    names += ("query_proj", "key_proj", "value_proj", "q_lin", "k_lin", "v_lin")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in names for part in name.split(".")):
                parameter.normal_(0.0, std)


def _speech_config(config_class: type, layers: int, width: int, heads: int, stable_norm: bool, **extra: Any) -> Any:
    return config_class(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        conv_dim=CONV_CHANNELS,
        conv_kernel=CONV_KERNELS,
        conv_stride=CONV_STRIDES,
        num_feat_extract_layers=len(CONV_CHANNELS),
        feat_extract_norm="layer" if stable_norm else "group",
        do_stable_layer_norm=stable_norm,
        num_conv_pos_embeddings=POSITION_KERNEL,
        num_conv_pos_embedding_groups=POSITION_GROUPS,
        mask_time_length=2,
        vocab_size=len(CTC_VOCABULARY),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **extra,
    )


def _save_speech(model: Any, path: Path, ctc: bool, **save_options: Any) -> Path:
    from transformers import Wav2Vec2FeatureExtractor

    model.save_pretrained(path, **save_options)
    Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=16000, padding_value=0.0, do_normalize=True, return_attention_mask=True
    ).save_pretrained(path)
    if ctc:
        vocabulary = {token: index for index, token in enumerate(CTC_VOCABULARY)}
        (path / "vocab.json").write_text(json.dumps(vocabulary))
        tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        (path / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", **tokens})
        )
    return path


def _speech_folder(
    family: str,
    path: str | Path,
    layers: int,
    width: int,
    heads: int,
    ctc: bool,
    stable_norm: bool,
    seed: int,
    dtype: torch.dtype,
    save_options: dict[str, Any],
    **config: Any,
) -> Path:
    import transformers

    config = _speech_config(getattr(transformers, f"{family}Config"), layers, width, heads, stable_norm, **config)
    with _seeded(seed):
        model = getattr(transformers, f"{family}ForCTC" if ctc else f"{family}Model")(config)
        randomize_attention(model)
    return _save_speech(model.to(dtype), Path(path), ctc, **save_options)


def hubert_folder(
    path: str | Path,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    ctc: bool = False,
    stable_norm: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    conv_pos_batch_norm: bool = False,
    **save_options: Any,
) -> Path:
    """Write a transformers HuBERT folder with its feature extractor, and with a CTC head and vocabulary if `ctc`.

    Args:
        stable_norm: pre-norm layers and a final norm, as in the large models.
        conv_pos_batch_norm: a batch norm in the positional convolution, in place of its weight norm.
        save_options: for ``save_pretrained``, such as ``max_shard_size="50KB"``.
    """
    more = {"conv_pos_batch_norm": conv_pos_batch_norm} if conv_pos_batch_norm else {}
    return _speech_folder("Hubert", path, layers, width, heads, ctc, stable_norm, seed, dtype, save_options, **more)


def wav2vec2_folder(
    path: str | Path,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    ctc: bool = False,
    stable_norm: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **save_options: Any,
) -> Path:
    """Write a transformers wav2vec 2.0 folder; arguments as in :func:`hubert_folder`."""
    return _speech_folder("Wav2Vec2", path, layers, width, heads, ctc, stable_norm, seed, dtype, save_options)


def wavlm_folder(
    path: str | Path,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    ctc: bool = False,
    stable_norm: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **save_options: Any,
) -> Path:
    """Write a transformers WavLM folder; arguments as in :func:`hubert_folder`."""
    return _speech_folder("WavLM", path, layers, width, heads, ctc, stable_norm, seed, dtype, save_options)


def data2vec_audio_folder(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, ctc: bool = False, seed: int = 0
) -> Path:
    """Write a transformers data2vec-audio folder with its feature extractor."""
    import transformers

    config = _speech_config(transformers.Data2VecAudioConfig, layers, width, heads, False, conv_pos_kernel_size=3)
    with _seeded(seed):
        model = (transformers.Data2VecAudioForCTC if ctc else transformers.Data2VecAudioModel)(config)
        randomize_attention(model)
    return _save_speech(model, Path(path), ctc)


MEL_BANDS = 8  # of w2v-BERT here, 80 in the released model


def speech_family_folder(
    path: str | Path,
    *,
    family: str,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    stable_norm: bool = False,
    ctc: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a folder of another family of transformers' speech models, by the name of its class.

    Args:
        family: ``UniSpeech``, ``UniSpeechSat``, ``Wav2Vec2``, ``Wav2Vec2Conformer``, ``SEW`` or ``SEWD``.
        stable_norm: convolutions with layer norm, and where the family has them pre-norm layers.
        config: further settings.
    """
    return _speech_folder(family, path, layers, width, heads, ctc, stable_norm, seed, torch.float32, {}, **config)


def w2v_bert_folder(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **config: Any
) -> Path:
    """Write a transformers w2v-BERT 2.0 folder with its mel front end, positions as in the released model."""
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    settings = Wav2Vec2BertConfig(
        **sizes, intermediate_size=2 * width, feature_projection_input_dim=2 * MEL_BANDS, conv_depthwise_kernel_size=5,
        left_max_position_embeddings=8, right_max_position_embeddings=4, output_hidden_size=width, vocab_size=32,
        apply_spec_augment=False, mask_time_length=2, **config,
    )  # fmt: skip
    _save_plain(Wav2Vec2BertModel, settings, path, seed)
    SeamlessM4TFeatureExtractor(feature_size=MEL_BANDS, num_mel_bins=MEL_BANDS, padding_value=1).save_pretrained(path)
    return Path(path)


def moonshine_folder(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **config: Any
) -> Path:
    """Write a transformers Moonshine folder, encoder and decoder of equal size, with its feature extractor."""
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor

    sides = {f"{side}_{key}": value for side in ("encoder", "decoder")
             for key, value in {"num_hidden_layers": layers, "num_attention_heads": heads}.items()}  # fmt: skip
    settings = MoonshineConfig(hidden_size=width, intermediate_size=2 * width, vocab_size=40, **sides, **config)
    _save_plain(MoonshineForConditionalGeneration, settings, path, seed)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(path)
    return Path(path)


def bert_folder(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1, **save_options: Any
) -> Path:
    """Write a transformers BERT folder (``BertModel``) with a vocabulary of single letters."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = BertConfig(**sizes, intermediate_size=2 * width, vocab_size=len(WORD_PIECES), max_position_embeddings=64)
    with _seeded(seed):
        model = BertModel(config)
        randomize_attention(model)
    path = Path(path)
    model.save_pretrained(path, **save_options)
    (path / "vocab.txt").write_text("\n".join(WORD_PIECES) + "\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return path


def lora_folder(
    path: str | Path,
    modules: str = "bert.encoder.layer.{layer}.attention.self.{projection}",
    projections: tuple[str, ...] = ("query", "value"),
    layers: int = 2,
    width: int = 32,
    rank: int = 2,
    alpha: float = 6,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a LoRA as peft does, with random factors.

    Args:
        modules: template of the names of its modules.
        settings: further ones of ``adapter_config.json``.
    """
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    names = [modules.format(layer=layer, projection=p) for layer in range(layers) for p in projections]
    for name in names:
        shapes = {"A": (rank, width), "B": (width, rank)}
        for factor, shape in shapes.items():
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = torch.randn(shape, generator=generator)
    folder = Path(path)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(projections), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def roberta_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers RoBERTa folder with a language-model head, so that names carry the prefix ``roberta.``."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = RobertaConfig(**sizes, intermediate_size=2 * width, vocab_size=40, max_position_embeddings=64)
    return _save_plain(RobertaForMaskedLM, config, path, seed)


def vit_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers ViT folder (``ViTModel``, 16 x 16 pixels, patches of 8)."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = ViTConfig(**sizes, intermediate_size=2 * width, image_size=16, patch_size=8)
    return _save_plain(ViTModel, config, path, seed)


def deit_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers DeiT classifier folder (16 x 16 pixels, patches of 8)."""
    from transformers import DeiTConfig, DeiTForImageClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = DeiTConfig(**sizes, intermediate_size=2 * width, image_size=16, patch_size=8)
    return _save_plain(DeiTForImageClassification, config, path, seed)


def ast_folder(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1, **config: Any
) -> Path:
    """Write a transformers Audio Spectrogram Transformer folder (window of 0.58 s: 6 steps of 100 ms, 3 patches each)."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    settings = ASTConfig(
        **sizes, intermediate_size=2 * width, **{"patch_size": 8, "num_mel_bins": 28, "max_length": 58} | config
    )
    _save_plain(ASTForAudioClassification, settings, path, seed)
    ASTFeatureExtractor(num_mel_bins=settings.num_mel_bins, max_length=settings.max_length).save_pretrained(path)
    return Path(path)


def distilbert_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers DistilBERT folder with a language-model head."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    sizes = {"dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": 2 * width}
    config = DistilBertConfig(**sizes, vocab_size=40, max_position_embeddings=64)
    return _save_plain(DistilBertForMaskedLM, config, path, seed)


def modernbert_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers ModernBERT folder with a language-model head; it has no biases in its attention."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = ModernBertConfig(**sizes, **ids, intermediate_size=2 * width, vocab_size=40)
    return _save_plain(ModernBertForMaskedLM, config, path, seed)


def dinov2_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers DINOv2 folder (16 x 16 pixels, patches of 8)."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return _save_plain(Dinov2Model, Dinov2Config(**sizes, image_size=16, patch_size=8), path, seed)


def clip_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers CLIP folder: a tower for text and one for images (16 x 16 pixels, patches of 8)."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 64}
    text = sizes | {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    images = sizes | {"image_size": 16, "patch_size": 8}
    return _save_plain(CLIPModel, CLIPConfig(text_config=text, vision_config=images, projection_dim=16), path, seed)


def mgp_str_folder(path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 1) -> Path:
    """Write a transformers MGP-STR folder: a text recogniser whose encoder is timm's ViT with fused q, k, v."""
    from transformers import MgpstrConfig, MgpstrForSceneTextRecognition

    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    labels = {"num_character_labels": 5, "num_bpe_labels": 5, "num_wordpiece_labels": 5, "max_token_length": 4}
    config = MgpstrConfig(**sizes, **labels, image_size=[16, 16], patch_size=8)
    return _save_plain(MgpstrForSceneTextRecognition, config, path, seed)


def _save_plain(model_class: type, config: Any, path: str | Path, seed: int) -> Path:
    with _seeded(seed):
        model = model_class(config)
        randomize_attention(model)
    model.save_pretrained(path)
    return Path(path)


def _plain(config: Any) -> dict[str, Any]:
    """Return a dataclass instance as a dict of plain values, so that ``torch.load`` reads it with weights_only."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _fairseq_sizes(layers: int, width: int, heads: int) -> dict[str, Any]:
    return {
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 2 * width,
        "encoder_attention_heads": heads,
        "conv_feature_layers": str(list(zip(CONV_CHANNELS, CONV_KERNELS, CONV_STRIDES, strict=True))),
        "conv_pos": POSITION_KERNEL,
        "conv_pos_groups": POSITION_GROUPS,
    }


def hubert_local_ckpt(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **model_options: Any
) -> Path:
    """Write a converted checkpoint for s3prl's ``hubert_local``.

    Args:
        model_options: further fields of s3prl's ``HubertConfig``, such as ``layer_norm_first=True``.
    """
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    symbols = [[str(index) for index in range(8)]]
    sizes = _fairseq_sizes(layers, width, heads) | model_options
    task, config = HubertPretrainingConfig(label_rate=50.0), HubertConfig(label_rate=50.0, **sizes)
    with _seeded(seed):
        model = HubertModel(config, task, symbols)
        randomize_attention(model)
    content = {"task_cfg": _plain(task), "model_cfg": _plain(config), "model_weight": model.state_dict()}
    torch.save(content | {"dictionaries_symbols": symbols}, path)
    return Path(path)


def wav2vec2_local_ckpt(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **model_options: Any
) -> Path:
    """Write a converted checkpoint for s3prl's ``wav2vec2_local``; arguments as in :func:`hubert_local_ckpt`."""
    from s3prl.upstream.wav2vec2.wav2vec2_model import AudioPretrainingConfig, Wav2Vec2Config, Wav2Vec2Model

    task = AudioPretrainingConfig()
    config = Wav2Vec2Config(**(_fairseq_sizes(layers, width, heads) | model_options))
    with _seeded(seed):
        model = Wav2Vec2Model(config)
        randomize_attention(model)
    torch.save({"task_cfg": _plain(task), "model_cfg": _plain(config), "model_weight": model.state_dict()}, path)
    return Path(path)


def wavlm_local_ckpt(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **model_options: Any
) -> Path:
    """Write a checkpoint for s3prl's ``wavlm_local``, with gated relative positions as in the released models."""
    from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

    positions = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 32, "max_distance": 80}
    config = WavLMConfig(_fairseq_sizes(layers, width, heads) | positions | model_options)
    with _seeded(seed):
        model = WavLM(config)
        randomize_attention(model)
    torch.save({"cfg": dict(vars(config)), "model": model.state_dict()}, path)
    return Path(path)


def beats_ckpt(
    path: str | Path, layers: int = 2, width: int = 32, heads: int = 2, seed: int = 0, **model_options: Any
) -> Path:
    """Write a checkpoint for ``beats_local`` in the released format, with the switches of the released models.

    Args:
        model_options: further entries of its ``cfg``, such as ``finetuned_model=True, predictor_class=10``.
    """
    from s3prl_ext.upstreams.beats.config import parse_config
    from s3prl_ext.upstreams.beats.model import Beats

    sizes = {"encoder_layers": layers, "encoder_embed_dim": width, "encoder_attention_heads": heads}
    sizes |= {"encoder_ffn_embed_dim": 2 * width, "embed_dim": width // 2, "input_patch_size": 16}
    sizes |= {"conv_pos": POSITION_KERNEL, "conv_pos_groups": POSITION_GROUPS, "encoder_layerdrop": 0.05}
    switches = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
    dropout = {"dropout": 0.0, "attention_dropout": 0.0, "layer_wise_gradient_decay_ratio": 0.6}
    config = sizes | switches | dropout | model_options
    with _seeded(seed):
        model = Beats(parse_config(config, "the configuration"))
        randomize_attention(model)
        for parameter in model.parameters():  # biases, norms and gates start at constants
            parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save({"cfg": config, "model": model.state_dict()}, path)
    return Path(path)


WHISPER_SPECIAL = [
    "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nocaptions|>", "<|notimestamps|>",
]  # fmt: skip
WHISPER_TOKENS = {name: 40 + index for index, name in enumerate(WHISPER_SPECIAL)}


def whisper_folder(
    path: str | Path,
    layers: int = 2,
    width: int = 32,
    heads: int = 2,
    positions: int = 100,
    bands: int = 80,
    bare: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **save_options: Any,
) -> Path:
    """Write a tiny multilingual Whisper, encoder and decoder of equal size, with feature extractor and tokenizer.

    Args:
        positions: states of 20 ms in a window: 100 = 2 s (1500 in the released models).
        bare: save ``WhisperModel``, whose names have no ``model.`` in front.
        save_options: for ``save_pretrained``.
    """
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    end, start = WHISPER_TOKENS["<|endoftext|>"], WHISPER_TOKENS["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=50, d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, num_mel_bins=bands,
        max_source_positions=positions, max_target_positions=32, decoder_start_token_id=start, pad_token_id=end,
        bos_token_id=end, eos_token_id=end, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    with _seeded(seed):
        model = WhisperForConditionalGeneration(config)
        randomize_attention(model)
        with torch.no_grad():
            model.model.encoder.embed_positions.weight.normal_(0.0, 0.5)
            model.model.decoder.embed_positions.weight.normal_(0.0, 0.5)
            model.model.decoder.embed_tokens.weight.normal_(0.0, 0.5)
            for layer in model.model.decoder.layers:
                for name in ("q_proj", "k_proj", "v_proj", "out_proj"):  # what is written depends on what is heard
                    getattr(layer.encoder_attn, name).weight.normal_(0.0, 0.5)
    model = model.to(dtype)
    (model.model if bare else model).save_pretrained(path, **save_options)
    languages = {name: WHISPER_TOKENS[name] for name in ("<|en|>", "<|de|>")}
    GenerationConfig(
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end, max_length=12,
        no_timestamps_token_id=WHISPER_TOKENS["<|notimestamps|>"], is_multilingual=True, lang_to_id=languages,
        task_to_id={task: WHISPER_TOKENS[f"<|{task}|>"] for task in ("transcribe", "translate")},
    ).save_pretrained(path)  # fmt: skip
    WhisperFeatureExtractor(feature_size=bands, chunk_length=positions // 50).save_pretrained(path)
    _write_character_tokenizer(Path(path))
    return Path(path)


def _write_character_tokenizer(path: Path) -> None:
    """Write a tokenizer of single characters in Whisper's form."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = [
        "\u0120",
        *"abcdefghijklmnopqrstuvwxyz'.,ABCDEFGHI",
    ]  # the first is what a byte-level tokenizer makes of a blank
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(f"<unused{index}>") for index in range(len(letters), 40)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in WHISPER_SPECIAL])
    tokenizer.save(str(path / "tokenizer.json"))
    end = "<|endoftext|>"
    described = {"tokenizer_class": "WhisperTokenizer"} | dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token"), end
    )
    (path / "tokenizer_config.json").write_text(json.dumps(described))


# family of hf_speech_custom that has no factory of its own name -> what writes a folder, given its path
SPEECH_FAMILIES: dict[str, Callable[..., Path]] = {
    "unispeech": functools.partial(speech_family_folder, family="UniSpeech"),
    "unispeech-sat": functools.partial(speech_family_folder, family="UniSpeechSat"),
    "mms": functools.partial(speech_family_folder, family="Wav2Vec2", stable_norm=True, adapter_attn_dim=4),
    "conformer": functools.partial(speech_family_folder, family="Wav2Vec2Conformer"),
    "sew": functools.partial(speech_family_folder, family="SEW"),
    "sew-d": functools.partial(speech_family_folder, family="SEWD"),
    "w2v-bert": w2v_bert_folder,
    "ast": ast_folder,
    "moonshine": moonshine_folder,
}
