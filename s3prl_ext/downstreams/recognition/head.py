"""The CTC head of a recognition task: the target checkpoint's own, or a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from s3prl_ext.attention.files import find_model, open_weights, weight_files
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.decoding import Vocabulary, read_vocabulary
from s3prl_ext.model_settings import model_config
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.hf_speech.w2v_bert import FRAME, HOP
from s3prl_ext.upstreams.merged_attention.config import preset_names, read_config
from s3prl_ext.upstreams.merged_attention.models import TRANSFORMERS_UPSTREAMS

LAYER = "lm_head"  # name of the output layer in all CTC classes of transformers


@dataclass(frozen=True)
class FrameCounter:
    """The number of frames that a stack of convolutions makes of a waveform.

    s3prl's featurizer keeps round(samples / rate) frames of a padded batch, up to one more than the clip has.

    Attributes:
        kernels, strides: of each layer, in samples of its input; empty = unknown.
    """

    kernels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def frames(self, samples: int, at_most: int) -> int:
        """Return the frames of a clip, `at_most` where the convolutions are unknown."""
        if not self.kernels:
            return at_most
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return min(samples, at_most)


class CtcHead(nn.Module):
    """Scores of tokens per frame: dropout, for a new head possibly an LSTM, and one linear layer.

    Args:
        width: features of a frame.
        tokens: size of the vocabulary.
        recurrent: width of a bidirectional LSTM below the linear layer, 0 for none.
        dropout: before the linear layer, in training.
    """

    def __init__(self, width: int, tokens: int, recurrent: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, recurrent, batch_first=True, bidirectional=True) if recurrent else None
        self.dropout = nn.Dropout(dropout)
        self.lm_head = nn.Linear(2 * recurrent if recurrent else width, tokens)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the scores of a batch of clips, float32 [batch, frames, tokens].

        Args:
            features: one matrix [frames, width] per clip.
        """
        padded = pad_sequence(list(features), batch_first=True)
        if self.lstm is not None:
            lengths = torch.tensor([len(feature) for feature in features])
            packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
            padded, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.lm_head(self.dropout(padded)).float()


def read_target_head(folder: Path, width: int) -> tuple[CtcHead, Vocabulary, FrameCounter]:
    """Return output layer, vocabulary and frame arithmetic of a transformers CTC model.

    Args:
        folder: a folder as ``HubertForCTC.save_pretrained`` and its processor write it.
        width: features of a frame that the upstream gives.

    Raises:
        DataError: the folder contains no CTC head or vocabulary, or they do not fit each other or the upstream.
    """
    if not folder.is_dir():
        raise DataError(f"the CTC head needs a model folder with vocab.json, but {folder} is a file.")
    weight, bias = _layer(folder)
    vocabulary = read_vocabulary(folder, outputs=weight.shape[0])
    if weight.shape[1] != width:
        raise DataError(
            f"the CTC head of {folder} takes features of width {weight.shape[1]}, but the upstream gives {width}; "
            "use the head of the upstream's own target."
        )
    if len(vocabulary) > weight.shape[0]:
        raise DataError(f"{folder}: the vocabulary has {len(vocabulary)} tokens, the CTC head only {weight.shape[0]}.")
    config = model_config(folder)
    head = CtcHead(width, len(vocabulary), dropout=float(config.get("final_dropout", 0.0)))
    with torch.no_grad():
        head.lm_head.weight.copy_(weight)
        head.lm_head.bias.copy_(bias)
    return head, vocabulary, _frame_counter(config)


def _frame_counter(config: Mapping[str, Any]) -> FrameCounter:
    if config.get("model_type") == "wav2vec2-bert":  # frames of a spectrogram, two in one
        return FrameCounter((FRAME, 2), (HOP, 2))
    return FrameCounter(tuple(config.get("conv_kernel", ())), tuple(config.get("conv_stride", ())))


def target_folder(ckpt: str | None, args: Mapping[str, Any]) -> Path:
    """Return the model folder whose head a task uses.

    Args:
        ckpt: ``head.ckpt``: folder or hub id; None takes the target of the upstream.
        args: the arguments of ``run_downstream.py``.

    Raises:
        UsageError: the upstream has no target with a CTC head.
    """
    if ckpt:
        return find_model(ckpt)
    upstream, upstream_ckpt = args.get("upstream"), args.get("upstream_ckpt")
    if upstream in TRANSFORMERS_UPSTREAMS and upstream_ckpt:
        return find_model(upstream_ckpt)
    if upstream == "merged_attention" or upstream in preset_names():
        preset = None if upstream == "merged_attention" else upstream
        target = read_config(args.get("upstream_model_config"), upstream_ckpt, preset).target
        model = target.model or (target.ckpt if target.upstream in TRANSFORMERS_UPSTREAMS else None)
        if model:
            return find_model(model)
    raise UsageError(
        f"the upstream '{upstream}' names no model with a CTC head: give its folder or hub id with "
        "-o \"config.downstream_expert.head.ckpt='FOLDER'\", or train a new head with head.init: fresh."
    )


def check_features(args: Mapping[str, Any]) -> None:
    """Raise UsageError where the features are not the model's last hidden state, which its CTC head was trained on."""
    if not RunSpec.of(args).reads_last_hidden_state:
        raise UsageError(
            "the target's CTC head reads the last hidden state: add -s last_hidden_state, or tuning: {method: frozen} "
            "to the task file."
        )


def _layer(folder: Path) -> tuple[Tensor, Tensor]:
    for file in weight_files(folder):
        weights = open_weights(file)
        if f"{LAYER}.weight" in weights.keys():  # noqa: SIM118  a safetensors file is not a mapping
            return weights[f"{LAYER}.weight"].float(), weights[f"{LAYER}.bias"].float()
    raise DataError(f"{folder} contains no CTC head ({LAYER}.weight): give a model that was fine-tuned with CTC.")
