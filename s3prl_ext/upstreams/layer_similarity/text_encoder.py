"""Text models, and the decoder of a Whisper, as encoders: tokens of all blocks from strings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.errors import DataError
from s3prl_ext.merging.names import DECODER
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS, Tap, load_encoder
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE
from s3prl_ext.upstreams.whisper.frontend import LogMel
from s3prl_ext.upstreams.whisper.prompt import prompt

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


LANGUAGE, TASK = "<|en|>", "transcribe"  # of a multilingual Whisper


class DecoderEncoder(TextEncoder):
    """Whisper's decoder, which reads what precedes a text (start, language, task, no time stamps) and the text.

    The end of the text is left out: the decoder writes it, and never reads it. What it says of a transcript must not
    depend on the clip, or the clip would be compared with itself: where it attends to audio it is given 30 s of
    silence, encoded by the encoder of its own file, the same for every transcript.

    Args:
        folder: transformers folder of a Whisper.
        special_tokens: keep the states of the tokens before the text.
        point: where the model is listened to, one of :data:`s3prl_ext.upstreams.layer_similarity.block_outputs.POINTS`.

    Raises:
        DataError: a file is missing or unreadable.
    """

    def __init__(self, folder: Path, name: str, special_tokens: bool = True, point: str = BLOCKS):
        from transformers import GenerationConfig

        super().__init__(folder, name, DECODER, special_tokens, point)
        settings: Any = GenerationConfig()
        if (folder / "generation_config.json").is_file():
            settings = GenerationConfig.from_pretrained(folder)
        multilingual = getattr(settings, "is_multilingual", True)
        needed = ("no_timestamps_token_id", *(("lang_to_id", "task_to_id") if multilingual else ()))
        if any(getattr(settings, key, None) is None for key in needed):
            raise DataError(
                f"{name} lacks generation_config.json with {', '.join(needed)}, which precede a text: "
                "copy it from the model."
            )
        if settings.decoder_start_token_id is None:
            settings.decoder_start_token_id = self.model.config.decoder_start_token_id
        self.prompt = prompt(settings, LANGUAGE if multilingual else None, TASK)

    def _longest(self) -> int:
        return self.model.config.max_target_positions

    @cached_property
    def silence(self) -> Tensor:
        """The encoder's states of a window of silence, [1, time, width]."""
        config = self.model.config
        samples = config.max_source_positions * DOWNSAMPLE_RATE
        mel = LogMel(config.num_mel_bins)([torch.zeros(samples)], [2 * config.max_source_positions], samples)
        with torch.no_grad():
            return self.model.encoder(mel.to(self.model.device)).last_hidden_state

    def states(self, items: Sequence[str]) -> list[Tensor]:
        """Return the outputs of all blocks for each text, [layers, tokens, width]."""
        rows = [self._tokens(text) for text in items]
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.model.config.pad_token_id)

        def run() -> None:  # padding comes after the text, to which no token attends
            audio = self.silence.expand(len(rows), -1, -1)
            self.model.decoder(input_ids=tokens.to(audio.device), encoder_hidden_states=audio, use_cache=False)

        outputs = torch.stack(self.tap.listen(run), 1)
        first = 0 if self.special_tokens else len(self.prompt)
        return [states[:, first : len(row)] for states, row in zip(outputs, rows, strict=True)]

    def _tokens(self, text: str) -> Tensor:
        ids = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError(f"'{text[:60]}' has no token of its own for {self.name}: remove this row.")
        self.warn_of_length(text, len(self.prompt) + len(ids))
        return torch.tensor([*self.prompt, *ids][: self.longest])
