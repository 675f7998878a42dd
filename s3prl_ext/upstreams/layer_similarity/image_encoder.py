"""Image models as encoders: patches of all blocks from image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, Tap, load_encoder


class ImageEncoder:
    """A transformers ViT or its relative with its image processor; its items are image files.

    Args:
        folder: with ``config.json``, weights and ``preprocessor_config.json``.
        special_tokens: keep the class token, and DeiT's distillation token.
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: a file is missing or unreadable.
    """

    batch_size = 8

    def __init__(
        self, folder: Path, name: str, prefix: str | None = None, special_tokens: bool = True, point: str = BLOCKS
    ):
        from transformers import AutoImageProcessor

        self.name, self.special_tokens = name, special_tokens
        self.model = load_encoder(folder, name)
        self.tap = Tap(self.model, name, prefix, point)
        try:
            self.processor = AutoImageProcessor.from_pretrained(folder)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError and ImportError
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"source {name} has no usable preprocessor_config.json for its images ({reason})."
            ) from error

    def states(self, items: Sequence[Path]) -> list[Tensor]:
        """Return the outputs of all blocks for each image, [layers, patches, width]."""
        pixels = self.processor(images=[_read_image(item) for item in items], return_tensors="pt")
        device = next(self.model.parameters()).device
        outputs = self.tap.listen(lambda: self.model(**pixels.to(device)))
        first = 0
        if not self.special_tokens:
            patch = self.model.config.patch_size
            first = outputs[0].shape[1] - (pixels["pixel_values"].shape[-1] // patch) * (
                pixels["pixel_values"].shape[-2] // patch
            )
        return list(torch.stack(outputs, 1)[:, :, first:])


def _read_image(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"cannot read the image {path} ({error}): replace it or remove its row.") from error
