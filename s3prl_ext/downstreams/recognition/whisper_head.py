"""The decoder of a Whisper as the head of a recognition task: zero-shot transcripts, and training on texts.

Decoding is transformers' own ``generate`` with its cache, given the encoder's states that the upstream made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext.attention.files import open_weights, weight_files
from s3prl_ext.configs import Record
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.downstreams.recognition.config import HeadConfig
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.evaluation.decoding import Decoded
from s3prl_ext.upstreams.whisper.encoder import check_folder
from s3prl_ext.upstreams.whisper.expert import DOWNSAMPLE_RATE
from s3prl_ext.upstreams.whisper.prompt import prompt

IGNORED = -100  # label of a position without a text
SILENCE = SAMPLE_RATE  # samples behind a clip in the shortest of several windows: without them the decoder may not end
UNSET_LENGTH = 20  # what transformers 4 takes where a model names no limit: a few words

logger = logging.getLogger(__name__)


class WhisperHead(nn.Module):
    """A Whisper without its encoder.

    Args:
        folder: transformers folder of any Whisper class with a decoder.

    Attributes:
        whisper: transformers' model, whose encoder has no weights and is never called.

    Raises:
        DataError: weights are missing or do not fit the configuration.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

        config = WhisperConfig.from_pretrained(folder)
        self.positions: int = config.max_source_positions
        self.whisper = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder, encoder_layers=0))
        inner = self.whisper.model
        # generate asks the encoder for nothing but its strides and the name of its input
        strides = {name: SimpleNamespace(stride=getattr(inner.encoder, name).stride) for name in ("conv1", "conv2")}
        inner.encoder = _NoEncoder(strides, inner.encoder.main_input_name)
        _load(self.whisper, folder)
        if (folder / "generation_config.json").is_file():
            self.whisper.generation_config = GenerationConfig.from_pretrained(folder)
        _complete(self.whisper.generation_config, config)

    def forward(self, states: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the summed cross-entropy of the texts.

        Args:
            states: of the encoder, [batch, time, width]; the decoder attends to all of them.
            tokens: what the decoder reads, [batch, tokens].
            labels: the token after each of them, [batch, tokens]; :data:`IGNORED` where none counts.
        """
        output = self.whisper.model.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False)
        scores = self.whisper.proj_out(output.last_hidden_state).float()
        return nn.functional.cross_entropy(scores.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")


def _complete(settings: Any, config: Any) -> None:
    """Take from the model's configuration what the settings leave open: else generate starts and stops elsewhere."""
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id"):
        if getattr(settings, name, None) is None:
            setattr(settings, name, getattr(config, name))
    if settings.max_length in (None, UNSET_LENGTH):
        settings.max_length = config.max_target_positions


class _NoEncoder(nn.Module):
    def __init__(self, strides: Mapping[str, Any], main_input_name: str) -> None:
        super().__init__()
        self.__dict__.update(strides)
        self.main_input_name = main_input_name


def _load(whisper: Any, folder: Path) -> None:
    """Load the decoder's weights; the projection to the vocabulary is the table of tokens."""
    found: dict[str, Tensor] = {}
    for file in weight_files(folder):
        reader = open_weights(file)
        names = [name for name in list(reader.keys()) if name.removeprefix("model.").startswith("decoder.")]
        found |= {f"model.{name.removeprefix('model.')}": reader[name].float() for name in names}
    try:
        missing, unexpected = whisper.load_state_dict(found, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the decoder in {folder} does not fit its config.json: {reason}") from error
    missing = [name for name in missing if name != "proj_out.weight"]
    if missing or unexpected:
        first = ", ".join([*missing, *unexpected][:3])
        raise DataError(f"{folder} does not hold the decoder that its config.json describes ({first}).")
    whisper.tie_weights()


class WhisperRecognizer:
    """Decoder, tokenizer and options of a Whisper.

    Args:
        head: the decoder.
        folder: its folder, with the tokenizer.
        config: section ``head``.

    Raises:
        DataError: the folder lacks its tokenizer, or what ``generate`` must know.
        UsageError: a language or task that the model does not know.
    """

    def __init__(self, head: WhisperHead, folder: Path, config: HeadConfig) -> None:
        self.head, self.config = head, config
        self.tokenizer = _tokenizer(folder)
        self.longest = head.positions * DOWNSAMPLE_RATE  # samples
        self.settings: Any = head.whisper.generation_config  # the ids of a Whisper are not fields of its class
        self.options = _options(head.whisper.generation_config, config, folder)
        self.prefix = self._prefix()
        self._check_length()
        self.told = False  # what has no part in the loss
        self.special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    def pad(self, wav: np.ndarray) -> np.ndarray:
        """Return the clip with silence up to ``window``, a longer one up to whole windows of the model."""
        if isinstance(self.config.window, str):  # clip
            return wav
        missing = self.padded(len(wav)) - len(wav)
        return np.pad(wav, (0, missing)) if missing else wav

    def padded(self, samples: int) -> int:
        """Return how many samples :meth:`pad` makes of so many."""
        window = self.config.window
        if isinstance(window, str):  # clip
            return samples
        windows, silence = ((window,), 0) if isinstance(window, int) else (window, SILENCE)
        for seconds in windows:
            if samples + silence <= seconds * SAMPLE_RATE <= self.longest:
                return seconds * SAMPLE_RATE
        return -(-samples // self.longest) * self.longest

    def recognize(
        self, features: Sequence[Tensor], texts: Sequence[str], samples: Sequence[int]
    ) -> tuple[Tensor, list[Decoded]]:
        """Return the mean cross-entropy of the texts, given the tokens before them, and the transcripts.

        A clip above the model's 30 s, of which no window has the whole text, and a text above the model's length have
        no part in it.
        """
        states = [feature[: self.head.positions] for feature in features]
        read, written = self._targets(features, texts)
        padding_token: Any = self.head.whisper.config.pad_token_id
        losses, count = [], max(1, sum(int((labels != IGNORED).sum()) for labels in written))
        for numbers in _by_length(states):
            tokens, labels = (
                pad_sequence([rows[n] for n in numbers], batch_first=True, padding_value=padding).to(states[0].device)
                for rows, padding in ((read, padding_token), (written, IGNORED))
            )
            losses.append(self.head(torch.stack([states[n] for n in numbers]), tokens, labels))
        return torch.stack(losses).sum() / count, self.decode(features, samples)

    def _targets(self, features: Sequence[Tensor], texts: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
        """Return what the decoder reads and must write of each text; nothing counts of what is too long for it."""
        most, read, written = self._most_tokens(), [], []
        for feature, text in zip(features, texts, strict=True):
            tokens, labels = self._tokens(text)
            if len(feature) > self.head.positions or len(tokens) > most:
                labels = torch.full_like(labels, IGNORED)
                if not self.told:
                    logger.warning(
                        "clips above %g s, or with more than %d tokens, have no part in the loss: the model reads and "
                        "writes no more at a time", self.longest / SAMPLE_RATE, most,
                    )  # fmt: skip
                    self.told = True
            read.append(tokens[:most])
            written.append(labels[:most])
        return read, written

    @torch.no_grad()
    def decode(self, features: Sequence[Tensor], samples: Sequence[int] | None) -> list[Decoded]:
        """Return the transcripts of a batch; the windows of a long clip are joined by a space."""
        training = self.head.training
        self.head.eval()
        try:
            windows = [window for feature in features for window in feature.split(self.head.positions)]
            decoded = self._generate(windows)
        finally:
            self.head.train(training)
        joined, start = [], 0
        for feature in features:
            count = -(-len(feature) // self.head.positions)
            parts = decoded[start : start + count]
            start += count
            text = " ".join(part.text.strip() for part in parts if part.text.strip())
            joined.append(Decoded(text, sum(part.special for part in parts)))
        return joined

    def unknown(self, text: str) -> str:
        """Return nothing: the tokens spell every text."""
        return ""

    def decisive(self) -> Record:
        """Return tokenizer and generation settings."""
        backend, settings = getattr(self.tokenizer, "backend_tokenizer", None), self.settings.to_diff_dict()
        settings.pop("transformers_version", None)
        return {
            "tokenizer": backend.to_str() if backend is not None else self.tokenizer.get_vocab(),
            "special": sorted(self.special),
            "generation": settings,
            "options": self.options,
        }

    def _generate(self, windows: Sequence[Tensor]) -> list[Decoded]:
        """Return the transcripts of windows; those of equal length go through the decoder together."""
        from transformers.modeling_outputs import BaseModelOutput

        found: dict[int, Decoded] = {}
        for numbers in _by_length(windows):
            states = torch.stack([windows[number] for number in numbers])
            output = BaseModelOutput(last_hidden_state=states)
            with _quiet():
                tokens = self.head.whisper.generate(encoder_outputs=output, **self.options)
            found |= {number: self._decoded(row.tolist()) for number, row in zip(numbers, tokens, strict=True)}
        return [found[number] for number in range(len(windows))]

    def _decoded(self, tokens: list[int]) -> Decoded:
        stamp = self.settings.no_timestamps_token_id + 1  # the first time stamp
        text = self.tokenizer.decode([token for token in tokens if token < stamp and token not in self.special])
        end = {self.head.whisper.config.eos_token_id, self.head.whisper.config.pad_token_id, *self.prefix}
        return Decoded(text.strip(), sum(token in self.special and token not in end for token in tokens))

    def _most_tokens(self) -> int:
        """Return how many tokens the decoder reads, with the prefix."""
        return int(self.head.whisper.config.max_target_positions)

    def _check_length(self) -> None:
        most = self._most_tokens() - len(self.prefix)
        if self.config.max_tokens is not None and self.config.max_tokens > most:
            raise UsageError(
                f"downstream_expert.head.max_tokens is {self.config.max_tokens}, but this model writes at most {most} "
                f"tokens after the {len(self.prefix)} that start a text."
            )

    def _prefix(self) -> list[int]:
        """Return the tokens before a text: start, language, task, no time stamps."""
        return prompt(self.settings, self.options.get("language"), self.options.get("task"))

    def _tokens(self, text: str) -> tuple[Tensor, Tensor]:
        """Return what the decoder reads and what it must write; only the text and its end count in the loss."""
        ids = self.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        written = [*[IGNORED] * (len(self.prefix) - 1), *ids, self.head.whisper.config.eos_token_id]
        return torch.tensor([*self.prefix, *ids]), torch.tensor(written)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what transformers says of its own defaults and of a mask that Whisper does not use."""
    loggers = [logging.getLogger(f"transformers.generation.{name}") for name in ("utils", "configuration_utils")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _by_length(windows: Sequence[Tensor]) -> list[list[int]]:
    """Return the numbers of the windows in groups of equal length: the decoder knows no padding of its states."""
    groups: dict[int, list[int]] = {}
    for number, window in enumerate(windows):
        groups.setdefault(len(window), []).append(number)
    return list(groups.values())


def read_whisper(folder: Path, width: int, config: HeadConfig) -> WhisperRecognizer:
    """Return the decoder of a Whisper with its tokenizer.

    Args:
        folder: transformers folder.
        width: features of a frame that the upstream gives.
        config: section ``head``.

    Raises:
        UsageError: a language that the model does not know.
        DataError: the folder is incomplete, or the decoder reads another width.
    """
    check_folder(folder)
    head = WhisperHead(folder)
    if head.whisper.config.d_model != width:
        raise DataError(
            f"the decoder of {folder} reads states of width {head.whisper.config.d_model}, but the upstream gives "
            f"{width}; use the decoder of the upstream's own target."
        )
    return WhisperRecognizer(head, folder, config)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise DataError(f"{folder} lacks tokenizer.json, without which nothing can be written: copy it from the model.")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"transformers cannot read the tokenizer of {folder}: {' '.join(str(error).split())[:200]}."
        ) from error


def _options(settings: Any, config: HeadConfig, folder: Path) -> dict[str, Any]:
    """Return the arguments of ``generate``.

    Raises:
        UsageError: a language or task that the model does not know.
        DataError: the folder does not say which tokens start a text.
    """
    multilingual = getattr(settings, "is_multilingual", True)
    needed = ("no_timestamps_token_id", *(("lang_to_id", "task_to_id") if multilingual else ()))
    lacking = next((name for name in needed if getattr(settings, name, None) is None), None)
    if lacking is not None:
        file = folder / "generation_config.json"
        what = f"{file} lacks {lacking}" if file.is_file() else f"{folder} lacks generation_config.json"
        raise DataError(f"{what}, which names the tokens for language and task: copy the file from the released model.")
    # one pass per window: a stray time stamp must not make generate look for more of the audio, which is not there
    options: dict[str, Any] = {"num_beams": config.beams, "do_sample": False, "return_timestamps": False}
    options["force_unique_generate_call"] = True
    if config.max_tokens is not None:
        options["max_new_tokens"] = config.max_tokens
    if not multilingual:
        if (config.language, config.task) != ("en", "transcribe"):
            raise UsageError(
                f"{folder} is a Whisper for English alone: downstream_expert.head.language must be en and task "
                "transcribe."
            )
        return options
    known = {name.strip("<|>"): name for name in settings.lang_to_id}
    if config.language not in known:
        raise unknown_name("downstream_expert.head.language", config.language, known)
    if config.task not in settings.task_to_id:
        raise unknown_name("downstream_expert.head.task of this model", config.task, settings.task_to_id)
    return options | {"language": known[config.language], "task": config.task}
