"""Text models as encoders: tokens of all blocks from strings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, Tap, load_encoder

logger = logging.getLogger(__name__)

# Families whose position numbers start behind that of the padding token.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "data2vec-text")


class TextEncoder:
    """A transformers text model with its tokenizer; its items are strings.

    Args:
        folder: with ``config.json``, weights and tokenizer.
        special_tokens: keep what the tokenizer adds, such as [CLS] and [SEP].
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: a file is missing or unreadable, or the tokenizer knows no words.
    """

    batch_size = 32

    def __init__(
        self, folder: Path, name: str, prefix: str | None = None, special_tokens: bool = True, point: str = BLOCKS
    ):
        from transformers import AutoTokenizer

        self.name, self.special_tokens = name, special_tokens
        self.model = load_encoder(folder, name)
        self.tap = Tap(self.model, name, prefix, point)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # transformers raises OSError, ValueError, KeyError and ImportError
            raise no_tokenizer(name, error) from error
        if len(self.tokenizer) <= len(self.tokenizer.all_special_ids):
            raise no_tokenizer(name, "its vocabulary is empty")
        self.longest = self._longest()

    def _longest(self) -> int:
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        if config.model_type in POSITIONS_AFTER_PADDING:
            positions -= config.pad_token_id + 1
        return min(self.tokenizer.model_max_length, positions)

    def states(self, items: Sequence[str]) -> list[Tensor]:
        """Return the outputs of all blocks for each text, [layers, tokens, width]."""
        lengths = [len(ids) for ids in self.tokenizer(list(items), truncation=False, verbose=False)["input_ids"]]
        for text, length in zip(items, lengths, strict=True):
            self.warn_of_length(text, length)
        batch = self.tokenizer(
            list(items),
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = batch.pop("special_tokens_mask").bool()
        device = next(self.model.parameters()).device
        outputs = self.tap.listen(lambda: self.model(**batch.to(device)))
        keep = batch["attention_mask"].bool().cpu()
        if not self.special_tokens:
            keep &= ~special
        for text, kept in zip(items, keep, strict=True):
            if not kept.any():
                raise DataError(f"'{text[:60]}' has no token of its own for {self.name}: remove this row.")
        return [states[:, kept.to(device)] for states, kept in zip(torch.stack(outputs, 1), keep, strict=True)]

    def warn_of_length(self, text: str, tokens: int) -> None:
        """Warn of a text whose end is cut off."""
        if tokens > self.longest:
            logger.warning("'%s...' has %d tokens, of which %s takes %d.", text[:40], tokens, self.name, self.longest)


def no_tokenizer(name: str, reason: Any) -> DataError:
    """Build the error for a source whose tokenizer is missing or unusable."""
    return DataError(
        f"source {name} has no usable tokenizer ({' '.join(str(reason).split())[:200]}): "
        "put the tokenizer files of its release into its folder."
    )
