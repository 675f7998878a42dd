"""Write a CTranslate2 conversion of Whisper, as faster-whisper uses it, as a transformers folder.

Format: CTranslate2's ``ModelSpec.save``, binary version 6: little-endian; names and shapes of all variables with their
bytes, then aliases. Linear maps that read the same input are stacked: query, key, value; of the decoder's attention on
the encoder key and value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import model_config

OLDEST, NEWEST = 4, 6  # versions of the format that are read
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}  # bfloat16 (5) has no numpy type
OTHER_FILES = ("tokenizer.json", "config.json")
ENGLISH_END = 50256  # <|endoftext|> of the English-only models, after GPT-2's vocabulary; of the others it is 50257
Variables = Mapping[str, np.ndarray]


class _Reader:
    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.position, self.where = data, 0, where

    def take(self, count: int) -> memoryview:
        part = self.data[self.position : self.position + count]
        if len(part) < count:
            raise DataError(f"{self.where} is cut short at {len(self.data):,} bytes: copy or download it again.")
        self.position += count
        return part

    def number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", errors="replace")


def read_variables(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Return the variables of a ``model.bin`` by name, aliases included, as views of `data`.

    Args:
        data: content of the file.
        where: its name, for the error.

    Raises:
        DataError: another format or version, a type that is not read, or a file cut short.
    """
    reader = _Reader(memoryview(data), where)
    version = reader.number("I")
    if not OLDEST <= version <= NEWEST:
        raise DataError(
            f"{where} is not a CTranslate2 model of version {OLDEST} to {NEWEST} (it says {version}): convert it again "
            "with ct2-transformers-converter."
        )
    reader.text(), reader.number("I")  # name and revision of the specification
    found: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, size = reader.number("B"), reader.number("I")
        if kind not in TYPES:
            raise DataError(
                f"{where}: {name} is stored as type {kind}, which is not read: convert with float16 or float32."
            )
        found[name] = np.frombuffer(reader.take(size), dtype=TYPES[kind]).reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        found[alias] = found[name]
    return found


def state_dict(variables: Variables, where: str) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' ``WhisperForConditionalGeneration``, float32.

    Raises:
        DataError: the model is quantized, not a Whisper, or has a key bias, which transformers' Whisper has not.
    """
    if any(name.endswith("weight_scale") for name in variables):
        raise DataError(f"{where} is quantized, so its weights are gone: convert the model with float16 or float32.")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in _renamed(variables, where)}


def _renamed(variables: Variables, where: str) -> Iterator[tuple[str, np.ndarray]]:
    def stored(name: str) -> np.ndarray:
        if name not in variables:
            raise DataError(f"{where} lacks {name}: it is not a Whisper.")
        return variables[name]

    for part in ("encoder", "decoder"):
        yield from _norm(f"model.{part}.layer_norm", f"{part}/layer_norm", stored)
        yield f"model.{part}.embed_positions.weight", stored(f"{part}/position_encodings/encodings")
        for layer in range(_depth(variables, part)):
            ours, theirs = f"model.{part}.layers.{layer}", f"{part}/layer_{layer}"
            yield from _attention(f"{ours}.self_attn", f"{theirs}/self_attention", 3, stored, where)
            yield from _norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm", stored)
            if part == "decoder":
                yield from _attention(f"{ours}.encoder_attn", f"{theirs}/attention", 1, stored, where)
                yield from _norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm", stored)
            for ours_linear, theirs_linear in (("fc1", "linear_0"), ("fc2", "linear_1")):
                for kind in ("weight", "bias"):
                    yield f"{ours}.{ours_linear}.{kind}", stored(f"{theirs}/ffn/{theirs_linear}/{kind}")
            yield from _norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", stored)
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            yield f"model.encoder.{conv}.{kind}", stored(f"encoder/{conv}/{kind}")
    yield "model.decoder.embed_tokens.weight", stored("decoder/embeddings/weight")


def _norm(ours: str, theirs: str, stored: Any) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{ours}.weight", stored(f"{theirs}/gamma")
    yield f"{ours}.bias", stored(f"{theirs}/beta")


def _attention(ours: str, theirs: str, stacked: int, stored: Any, where: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the four projections.

    Args:
        stacked: projections in the first linear map: 3 (q, k, v) or 1 (q; k and v are in the second).
    """
    linear = [
        [stored(f"{theirs}/linear_{i}/{kind}") for kind in ("weight", "bias")] for i in range(2 if stacked == 3 else 3)
    ]
    if stacked == 3:
        parts = {
            name: (weight, bias) for name, weight, bias in zip("qkv", *(np.split(a, 3) for a in linear[0]), strict=True)
        }
    else:
        parts = {"q": tuple(linear[0])}
        parts |= {
            name: (weight, bias) for name, weight, bias in zip("kv", *(np.split(a, 2) for a in linear[1]), strict=True)
        }
    if parts["k"][1].any():
        raise DataError(
            f"{where}: {theirs} has a bias of its keys, which a Whisper has not: it is another kind of model."
        )
    for name, (weight, bias) in parts.items():
        yield f"{ours}.{name}_proj.weight", weight
        if name != "k":
            yield f"{ours}.{name}_proj.bias", bias
    yield f"{ours}.out_proj.weight", linear[-1][0]
    yield f"{ours}.out_proj.bias", linear[-1][1]


def _depth(variables: Variables, part: str) -> int:
    layers = {
        int(name.split("/")[1].removeprefix("layer_"))
        for name in variables
        if name.startswith(f"{part}/layer_") and name.split("/")[1][6:].isdigit()
    }
    return 1 + max(layers, default=-1)


def sizes(variables: Variables) -> dict[str, int]:
    """Return the sizes of a model under the names of ``WhisperConfig``."""
    vocabulary, width = variables["decoder/embeddings/weight"].shape
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
        "max_source_positions": len(variables["encoder/position_encodings/encodings"]),
        "max_target_positions": len(variables["decoder/position_encodings/encodings"]),
    } | {
        f"{part}_{name}": int(value)
        for part in ("encoder", "decoder")
        for name, value in (
            ("layers", _depth(variables, part)),
            ("attention_heads", variables[f"{part}/num_heads"]),
            ("ffn_dim", len(variables[f"{part}/layer_0/ffn/linear_0/weight"])),
        )
    }


def generation_settings(tokens: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers' ``generate`` must know of a Whisper.

    Args:
        tokens: id of each special token.
        config: CTranslate2's ``config.json``, with the tokens that are never or not at first written.
    """
    start, end = tokens["<|startoftranscript|>"], tokens["<|endoftext|>"]
    languages = {name: id for name, id in tokens.items() if start < id < tokens["<|translate|>"]}
    if end == ENGLISH_END:  # these vocabularies have the tokens of all languages too, which are never used
        languages = {}
    settings: dict[str, Any] = {
        "decoder_start_token_id": start,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "is_multilingual": bool(languages),
        "max_initial_timestamp_index": 50,
        "suppress_tokens": [id for id in config.get("suppress_ids", ()) if id >= 0],
        "begin_suppress_tokens": list(config.get("suppress_ids_begin", ())),
        "alignment_heads": config.get("alignment_heads"),
    }
    if languages:
        tasks = {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate")}
        settings |= {"lang_to_id": languages, "task_to_id": tasks}
    return settings


def write_transformers(data: bytes, files: Mapping[str, bytes], out: Path, where: str) -> int:
    """Write a transformers folder: weights, configuration, generation settings, tokenizer, feature extractor.

    Args:
        data: content of ``model.bin``.
        files: content of ``tokenizer.json`` and CTranslate2's ``config.json``.
        out: existing folder.
        where: name of the conversion, for errors.

    Returns:
        The number of weights.

    Raises:
        DataError: it is corrupt, quantized, incomplete or not a Whisper.
    """
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    variables = read_variables(data, where)
    state = state_dict(variables, where)
    tokenizer, config = (json.loads(files[name]) for name in OTHER_FILES)
    tokens = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    settings = generation_settings(tokens, config)
    ids: dict[str, Any] = {
        key: settings[key] for key in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    model = WhisperForConditionalGeneration(WhisperConfig(**(sizes(variables) | ids)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"proj_out.weight"} or unexpected:
        raise DataError(f"{where} does not hold all weights of a Whisper: {', '.join([*missing, *unexpected][:3])}.")
    model.tie_weights()
    model.generation_config = GenerationConfig(**settings, max_length=model.config.max_target_positions)
    model.save_pretrained(out)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(out)
    (out / "tokenizer.json").write_bytes(files["tokenizer.json"])
    end = "<|endoftext|>"
    described = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": end,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def read_folder(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    """Return ``model.bin`` and the other files of a conversion.

    Raises:
        DataError: it is not a folder, or a file is missing.
    """
    for name in ("model.bin", *OTHER_FILES):
        if not (folder / name).is_file():
            raise DataError(f"{folder} lacks {name}: give the folder of a CTranslate2 conversion of Whisper.")
    if "model_type" in model_config(folder):
        raise DataError(f"{folder} is in transformers' format already: give it to -k as it is.")
    return (folder / "model.bin").read_bytes(), {name: (folder / name).read_bytes() for name in OTHER_FILES}
