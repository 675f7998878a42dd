"""BEATs: filter banks in 16 x 16 patches through a transformer, and the classifier of fine-tuned models.

Source: Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers" (2022). Parameter names are those of the
released checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext.errors import DataError
from s3prl_ext.reading import check_archive
from s3prl_ext.upstreams.beats.config import PATCH, BeatsConfig, parse_config
from s3prl_ext.upstreams.beats.encoder import BeatsEncoder
from s3prl_ext.upstreams.beats.frontend import MEL_BANDS, fbank

BANDS = MEL_BANDS // PATCH  # frequency patches, hence tokens, of a time step


class Beats(nn.Module):
    """A BEATs model, pre-trained or, with ``finetuned_model``, with a classifier.

    Args:
        config: sizes and switches, as in a checkpoint's ``cfg``.
    """

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        width = config.encoder_embed_dim
        self.post_extract_proj = nn.Linear(config.embed_dim, width) if config.embed_dim != width else nn.Identity()
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, PATCH, PATCH, bias=config.conv_bias)
        self.encoder = BeatsEncoder(config)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.predictor_dropout = nn.Dropout(config.predictor_dropout)
        self.predictor = nn.Linear(width, config.predictor_class) if config.finetuned_model else None

    def encode(self, features: Tensor, padding_mask: Tensor | None = None) -> list[Tensor]:
        """Return the input of the first layer and the output of each, all [batch, tokens, width].

        Tokens are time-major: 8 of one time step, from low to high frequencies, then 8 of the next.

        Args:
            features: filter banks [batch, frames, 128]; frames beyond whole patches are left out.
            padding_mask: [batch, tokens], True at padding; or None.
        """
        patches = self.patch_embedding(features.to(self.patch_embedding.weight.dtype).unsqueeze(1))
        tokens = self.layer_norm(patches.flatten(2).transpose(1, 2))
        return self.encoder(self.dropout_input(self.post_extract_proj(tokens)), padding_mask)

    def forward(self, wavs: Tensor, padding_mask: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Encode waveforms with the padding rule of the published implementation.

        Args:
            wavs: 16 kHz audio in [-1, 1], [batch, samples].
            padding_mask: [batch, samples], True at padding; or None.

        Returns:
            The states of :meth:`encode`, and the mask of their tokens or None.
        """
        features = fbank(wavs)
        if padding_mask is not None:
            tokens = features.shape[1] // PATCH * BANDS
            padding_mask = reduce_mask(reduce_mask(padding_mask, features.shape[1]), tokens)
        return self.encode(features, padding_mask), padding_mask

    def class_probabilities(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Return the probability of each class, independent of the others: [batch, classes].

        Args:
            tokens: output of the last layer, [batch, tokens, width].
            padding_mask: [batch, tokens], True at padding; or None.

        Raises:
            DataError: the model was not fine-tuned.
        """
        if self.predictor is None:
            raise DataError("this BEATs checkpoint is only pre-trained: class probabilities need a fine-tuned one.")
        logits = self.predictor(self.predictor_dropout(tokens))
        if padding_mask is None:
            return logits.mean(1).sigmoid()
        valid = ~padding_mask.unsqueeze(-1)
        return (logits.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)).sigmoid()


def reduce_mask(mask: Tensor, length: int) -> Tensor:
    """Shorten a padding mask as the published implementation does, from samples to frames and from frames to tokens.

    Equal runs of `mask` become one entry, True where the whole run is; a remainder at the end is left out. The runs
    do not line up with frames and patches exactly, so a few tokens next to the end of a clip may be judged wrongly.

    Args:
        mask: [batch, longer], True at padding.
        length: number of entries wanted.
    """
    run = mask.shape[1] // length
    return mask[:, : run * length].unflatten(1, (length, run)).all(-1)


def load_checkpoint(path: str | Path) -> tuple[Beats, dict[Any, str]]:
    """Load a checkpoint of the released format ``{'cfg', 'model'}`` without executing anything in it.

    Returns:
        The model in float32 and in evaluation mode, and ``label_dict`` of a fine-tuned one: class index -> name.

    Raises:
        DataError: the file is missing or unreadable, of another family, or its tensors do not fit its ``cfg``.
    """
    path = Path(path).expanduser()
    content = _read(path)
    if not (isinstance(content, dict) and isinstance(content.get("model"), dict) and "cfg" in content):
        held = ", ".join(sorted(map(str, content))[:8]) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not a BEATs checkpoint: it holds {held} in place of 'cfg' and 'model'.")
    config = parse_config(content["cfg"], str(path))
    with torch.device("meta"):  # no weights are drawn only to be replaced
        model = Beats(config)
    _check_tensors(model.state_dict(), content["model"], path)
    model.load_state_dict(content["model"], assign=True)
    return model.float().eval(), dict(content.get("label_dict") or {})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"no such checkpoint file: {path}; give a released or own BEATs checkpoint (.pt).")
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, OSError, KeyError
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not readable as a checkpoint of plain tensors: {reason}.") from error


def _check_tensors(expected: dict[str, Tensor], found: dict[str, Any], path: Path) -> None:
    """Compare names and shapes, so that the error is one sentence."""
    shapes = {key: tuple(value.shape) for key, value in found.items() if isinstance(value, Tensor)}
    problems = [
        f"{what} {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in (
            ("lacks", [key for key in expected if key not in shapes]),
            ("has unknown", [str(key) for key in found if key not in expected]),
            ("has another shape in", [k for k, v in expected.items() if shapes.get(k, v.shape) != tuple(v.shape)]),
        )
        if keys
    ]
    if problems:
        raise DataError(f"{path} does not fit the BEATs model that its cfg describes: it {'; it '.join(problems)}.")
