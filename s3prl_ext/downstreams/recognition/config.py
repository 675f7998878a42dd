"""The validated section ``downstream_expert`` of the speech recognition tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from s3prl_ext.corpora.splits import SPLITS
from s3prl_ext.corpora.transcribed import ON_MISSING
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.text_rules import text_rule
from s3prl_ext.settings import choice, count, load, name

HEADS = ("target", "fresh")
LONGEST_WINDOW = 30  # seconds: what a Whisper reads at once
CLIP = "clip"
WHISPER_TASKS = ("transcribe", "translate")


def _split(value: Any, where: str) -> str | Mapping[str, list[str]]:
    """Return a split rule, a file, or the groups of each split."""
    if isinstance(value, str) and value:
        return value
    lists = value.values() if isinstance(value, Mapping) else [None]
    if not all(isinstance(names, list) and all(isinstance(one, str) for one in names) for names in lists):
        raise UsageError(f"{where} must be a rule, a file, or a list of names for each split, got {value!r}.")
    lacking = [split for split in SPLITS if split not in value]
    if lacking:
        raise UsageError(f"{where} lacks {lacking[0]}; it may be empty: {lacking[0]}: [].")
    return dict(value)


def _text_rule(value: Any, where: str) -> str:
    """Return the name of a text rule that is there."""
    try:
        text_rule(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return str(value)


def _window(value: Any, where: str) -> int | str | tuple[int, ...]:
    """Return seconds, ``clip``, or several numbers of seconds from the shortest to the longest."""
    seconds = value if isinstance(value, (list, tuple)) and value else [value]
    whole = all(isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= LONGEST_WINDOW for one in seconds)
    if value != CLIP and not whole:
        raise UsageError(
            f"{where} must be a whole number of seconds from 1 to 30, a list of them, or clip, got {value!r}."
        )
    return tuple(sorted(seconds)) if seconds is value else value


@dataclass(frozen=True)
class DataConfig:
    """Section ``datarc``.

    Attributes:
        path: folder of the corpus.
        split: the corpus's own rule (``chapter``, ``speaker``, ``part``), ``hash``, a JSON file with the lists, or for
            each split the list of its chapters, speakers or parts.
        text_rule: what of a transcript counts, see :mod:`s3prl_ext.evaluation.text_rules`.
        on_missing: ``error`` or ``skip``, for a transcript without audio and the reverse.
        num_workers: processes that read audio.
        train_batch_size, eval_batch_size: clips in a batch.
    """

    path: Annotated[str, name()]
    split: Annotated[str | Mapping[str, list[str]], _split]
    text_rule: Annotated[str, _text_rule] = "mam"
    on_missing: Annotated[str, choice(*ON_MISSING)] = "error"
    num_workers: Annotated[int, count(0)] = 0
    train_batch_size: Annotated[int, count()] = 8
    eval_batch_size: Annotated[int, count()] = 1


@dataclass(frozen=True)
class HeadConfig:
    """Section ``head``.

    Attributes:
        init: ``target``: the CTC head and vocabulary, or the decoder of a Whisper, of a released model; ``fresh``: a
            new CTC head on the characters of the text rule.
        ckpt: ``target``: folder or hub id of that model; None takes the target of the upstream (``-u``).
        recurrent: of a ``fresh`` head: width of a bidirectional LSTM below the output layer, 0 for none.
        window: of a Whisper: seconds to which clips are padded with silence, ``30`` as in its training; longer clips to
            a multiple of 30 s; ``clip``: they stay as they are; several: each clip to the shortest one that leaves a
            second of silence behind it.
        language: of a multilingual Whisper: code of the language that is spoken, such as ``en``.
        task: of a multilingual Whisper: ``transcribe``, or ``translate`` into English.
        beams: of a Whisper: hypotheses of the beam search, 1 for greedy decoding.
        max_tokens: of a Whisper: most tokens in a transcript; None for the model's own limit.
    """

    init: Annotated[str, choice(*HEADS)]
    ckpt: Annotated[str | None, name()] = None
    recurrent: Annotated[int, count(0)] = 0
    window: Annotated[int | str | tuple[int, ...], _window] = LONGEST_WINDOW
    language: Annotated[str, name()] = "en"
    task: Annotated[str, choice(*WHISPER_TASKS)] = "transcribe"
    beams: Annotated[int, count()] = 1
    max_tokens: Annotated[int | None, count()] = None


@dataclass(frozen=True)
class TaskConfig:
    """Section ``downstream_expert``."""

    datarc: DataConfig
    head: HeadConfig


def parse(section: Mapping[str, Any]) -> tuple[DataConfig, HeadConfig]:
    """Check section ``downstream_expert``; all problems are reported in one UsageError."""
    for part in ("datarc", "head"):
        if section.get(part) is None:
            raise UsageError(f"downstream_expert.{part} is missing: see ljspeech/mam.yaml in downstream_configs.")
    config = load(TaskConfig, section, "downstream_expert")
    return config.datarc, config.head
