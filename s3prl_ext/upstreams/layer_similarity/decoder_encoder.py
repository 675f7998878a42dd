"""The decoder of a Whisper as a text model: tokens of all blocks from transcripts.

What it says of a transcript must not depend on the clip, or the clip would be compared with itself: where the decoder
attends to audio it is given 30 s of silence, encoded by the encoder of its own file, the same for every transcript.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.errors import DataError
from s3prl_ext.merging.config import DECODER
from s3prl_ext.upstreams.layer_similarity.block_outputs import BLOCKS
from s3prl_ext.upstreams.layer_similarity.text_encoder import TextEncoder
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE
from s3prl_ext.upstreams.whisper.frontend import LogMel
from s3prl_ext.upstreams.whisper.prompt import prompt

LANGUAGE, TASK = "<|en|>", "transcribe"  # of a multilingual model


class DecoderEncoder(TextEncoder):
    """Whisper's decoder, which reads what precedes a text (start, language, task, no time stamps) and the text.

    The end of the text is left out: the decoder writes it, and never reads it.

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
