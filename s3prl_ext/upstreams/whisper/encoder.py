"""Whisper's encoder with transformers' modules and parameter names, for clips of any length up to its window.

The published model always reads 30 s, silence included. Here the table of positions is cut to the clip, and clips of
unequal length are masked, so a clip gives the same states alone and in a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext.attention.files import open_weights, refuse_ctranslate2, weight_files
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.model_settings import model_config

MODEL_TYPE = "whisper"  # "model_type" in config.json
STEM = "encoder.conv1.weight"  # its prefix in a file is the prefix of all names of the encoder


class WhisperModel(nn.Module):
    """Holds the encoder under the name that it has in Whisper's files: ``encoder.layers.0.self_attn.q_proj.weight``.

    Args:
        config: transformers' ``WhisperConfig``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)


def make_encoder(config: Any) -> nn.Module:
    """Return an encoder with random weights.

    Its ``forward`` maps embedded frames [batch, time, width] and a mask [batch, time], True at frames of the clip, or
    None, to the list of states: the input, the output of each block, the last one after the final norm.

    Args:
        config: transformers' ``WhisperConfig``.
    """
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    class Encoder(WhisperEncoder):
        def embed(self, mel: Tensor, frames: Sequence[int]) -> Tensor:
            return _embed(self, mel, frames)

        def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
            return _states(self, inputs, attention_mask)

    Encoder.__name__ = Encoder.__qualname__ = "WhisperEncoder"
    return Encoder(config)


def _embed(encoder: Any, mel: Tensor, frames: Sequence[int]) -> Tensor:
    """Return convolved frames with their positions, [batch, time, width].

    Args:
        mel: [batch, bands, 2 * time], zero behind each clip.
        frames: time steps of 20 ms of each clip.
    """
    first = F.gelu(encoder.conv1(mel.to(encoder.conv1.weight.dtype)))
    if len(set(frames)) > 1:  # behind a clip the second convolution must meet what it meets where the batch ends: zeros
        steps = torch.arange(first.shape[-1], device=mel.device)
        first = first * (steps < 2 * torch.tensor(frames, device=mel.device)[:, None])[:, None].to(first.dtype)
    second = F.gelu(encoder.conv2(first)).transpose(1, 2)
    embedded = second + encoder.embed_positions.weight[: second.shape[1]]
    return F.dropout(embedded, p=encoder.dropout, training=encoder.training)


def _states(encoder: Any, inputs: Tensor, mask: Tensor | None) -> list[Tensor]:
    states, hidden = [inputs], inputs
    bias = None if mask is None or bool(mask.all()) else _bias(mask.bool(), inputs.dtype)
    for layer in encoder.layers:
        output = layer(hidden, bias, **_absent_arguments(type(layer)))
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return states


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the attention scores, [batch, 1, 1, time]: nothing, or the least number at padding."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)[
        :, None, None
    ]


def _absent_arguments(layer: type[torch.nn.Module]) -> dict[str, None]:
    """Return the arguments that the blocks of transformers 4 cannot do without."""
    parameters = inspect.signature(layer.forward).parameters
    return {"layer_head_mask": None} if "layer_head_mask" in parameters else {}


def load_encoder(folder: Path) -> WhisperModel:
    """Return the encoder of a Whisper folder in float32; the decoder is not read.

    Args:
        folder: as ``save_pretrained`` of any of transformers' Whisper classes writes it.

    Raises:
        UsageError: the folder holds another kind of model.
        DataError: a file or a weight is missing or does not fit the configuration.
    """
    check_folder(folder)
    from transformers import WhisperConfig

    try:
        config = WhisperConfig.from_pretrained(folder)
        model = WhisperModel(config)
    except Exception as error:  # what checks the values of a configuration raises kinds of its own
        raise DataError(f"transformers cannot read {folder / 'config.json'}: {_line(error)}.") from error
    state = _read_state(folder)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"the weights in {folder} do not fit its config.json: {_line(error)}.") from error
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:3])
        raise DataError(
            f"the weights in {folder} do not fit its config.json: {len(missing)} of the encoder's are missing and "
            f"{len(unexpected)} unknown ({names}): take both files from the same model."
        )
    return model


def _read_state(folder: Path) -> dict[str, Tensor]:
    """Return the encoder's weights under the names of :class:`WhisperModel`, in float32."""
    found: dict[str, Tensor] = {}
    prefix = None
    readers = [open_weights(file) for file in weight_files(folder)]
    for name in (name for reader in readers for name in list(reader.keys())):
        if name == STEM or name.endswith(f".{STEM}"):
            prefix = name.removesuffix(STEM)
    if prefix is None:
        raise DataError(f"{folder} does not contain the weights of a Whisper encoder (no name ends in {STEM}).")
    for reader in readers:
        for name in list(reader.keys()):
            if name.startswith(f"{prefix}encoder."):
                found[name.removeprefix(prefix)] = reader[name].float()
    return found


def check_folder(folder: Path) -> None:
    """Refuse what is not a Whisper in transformers' format, saying what it is.

    Raises:
        UsageError: another kind of model.
        DataError: no ``config.json``, or a CTranslate2 conversion.
    """
    if not folder.is_dir():
        raise DataError(f"a Whisper is a folder with config.json and its weights, but {folder} is a file.")
    refuse_ctranslate2(folder)
    if not (folder / "config.json").is_file():
        raise DataError(
            f"{folder} lacks config.json, which says how large the model is: copy it from where the weights came from."
        )
    kind = model_config(folder).get("model_type")
    if kind != MODEL_TYPE:
        raise UsageError(
            f"{folder} holds a model of type {kind!r}, not whisper: for HuBERT, wav2vec 2.0 and other speech models "
            "use -u hf_speech_custom."
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
