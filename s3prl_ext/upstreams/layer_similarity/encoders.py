"""Encoders whose blocks are compared: speech, text and images, each with the same interface.

``states(items)`` returns for every item the outputs of all blocks (or what their attention reads or gives),
[layers, tokens, width], without padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.merging.names import DECODER
from s3prl_ext.model_settings import model_config
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS
from s3prl_ext.upstreams.layer_similarity.image_encoder import ImageEncoder
from s3prl_ext.upstreams.layer_similarity.speech_encoder import SpeechEncoder
from s3prl_ext.upstreams.layer_similarity.text_encoder import DecoderEncoder, TextEncoder, no_tokenizer
from s3prl_ext.upstreams.speech_models import is_whisper, speech_model

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
# The second is what a processor of transformers 5 leaves.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


class Encoder(Protocol):
    """What a comparison needs of an encoder; your own class may take its place.

    Attributes:
        name: what to call it in messages.
        batch_size: items to give to :meth:`states` at once.
    """

    name: str
    batch_size: int

    def states(self, items: Sequence[Any]) -> list[Tensor]:
        """Return the outputs of all blocks for each item, [layers, tokens, width], padding left out."""
        ...


def source_kind(folder: Path, name: str, prefix: str | None = None) -> str:
    """Return what a source reads: ``text``, ``image`` or ``speech``.

    Args:
        prefix: of a model with several parts; the decoder of a Whisper reads text.

    Raises:
        DataError: it is not a transformers folder, or has neither a tokenizer nor a description of its images.
    """
    if not (folder / "config.json").is_file():
        raise DataError(
            f"source {name} has no config.json: to encode the paired inputs it must be a transformers folder "
            "with its tokenizer, not weights alone."
        )
    config = model_config(folder)
    if config.get("model_type") in SPEECH_UPSTREAMS and prefix != DECODER:
        return "speech"
    if "text_config" in config and "vision_config" in config:
        raise DataError(
            f"source {name} holds a tower for text and one for images, neither of which is run alone here: choose "
            "layers by similarity with a model of one kind, or give layers as a list."
        )
    if any((folder / file).is_file() for file in TOKENIZER_FILES):
        return "text"
    if "image_size" in config:
        if not any((folder / file).is_file() for file in PROCESSOR_FILES):
            raise DataError(f"source {name} lacks preprocessor_config.json, which says how its images are scaled.")
        return "image"
    raise no_tokenizer(name, f"none of {', '.join(TOKENIZER_FILES)} is in {folder}")


def load_source(
    folder: Path,
    name: str,
    prefix: str | None = None,
    special_tokens: bool = True,
    device: str = "cpu",
    point: str = BLOCKS,
) -> Encoder:
    """Return the encoder of a transformers folder on a device.

    Args:
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: as :func:`source_kind` and the encoders.
    """
    kind = source_kind(folder, name, prefix)
    if kind == "speech":
        return SpeechEncoder(speech_model(folder).eval().to(device), name, point=point)
    if is_whisper(folder):
        encoder: Any = DecoderEncoder(folder, name, special_tokens, point)
    else:
        encoder = (TextEncoder if kind == "text" else ImageEncoder)(folder, name, prefix, special_tokens, point)
    encoder.model.to(device)
    return encoder
