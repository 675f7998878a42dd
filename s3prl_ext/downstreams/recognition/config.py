"""The validated section ``downstream_expert`` of the speech recognition tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3prl_ext.corpora.splits import SPLITS
from s3prl_ext.corpora.transcribed import ON_MISSING
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.evaluation.text_rules import text_rule
from s3prl_ext.settings import unknown_keys

HEADS = ("target", "fresh")
LONGEST_WINDOW = 30  # seconds: what a Whisper reads at once
CLIP = "clip"
TASKS = ("transcribe", "translate")


@dataclass(frozen=True)
class DataConfig:
    """Section ``datarc``.

    Attributes:
        path: folder of the corpus.
        split: the corpus's own rule (``chapter``, ``speaker``, ``part``), ``hash``, a JSON file with the lists, or for each
            split the list of its chapters, speakers or parts.
        text_rule: what of a transcript counts, see :mod:`s3prl_ext.evaluation.text_rules`.
        on_missing: ``error`` or ``skip``, for a transcript without audio and the reverse.
        num_workers: processes that read audio.
        train_batch_size, eval_batch_size: clips in a batch.
    """

    path: str
    split: str | Mapping[str, list[str]]
    text_rule: str = "mam"
    on_missing: str = "error"
    num_workers: int = 0
    train_batch_size: int = 8
    eval_batch_size: int = 1


@dataclass(frozen=True)
class HeadConfig:
    """Section ``head``.

    Attributes:
        init: ``target``: the CTC head and vocabulary, or the decoder of a Whisper, of a released model; ``fresh``: a
            new CTC head on the characters of the text rule.
        ckpt: ``target``: folder or hub id of that model; None takes the target of the upstream (``-u``).
        recurrent: of a ``fresh`` head: width of a bidirectional LSTM below the output layer, 0 for none.
        window: of a Whisper: seconds to which clips are padded with silence, ``30`` as in its training; longer clips to a
            multiple of 30 s; ``clip``: they stay as they are.
        language: of a multilingual Whisper: code of the language that is spoken, such as ``en``.
        task: of a multilingual Whisper: ``transcribe``, or ``translate`` into English.
        beams: of a Whisper: hypotheses of the beam search, 1 for greedy decoding.
        max_tokens: of a Whisper: most tokens in a transcript; None for the model's own limit.
    """

    init: str
    ckpt: str | None = None
    recurrent: int = 0
    window: int | str = LONGEST_WINDOW
    language: str = "en"
    task: str = "transcribe"
    beams: int = 1
    max_tokens: int | None = None


def parse(section: Mapping[str, Any]) -> tuple[DataConfig, HeadConfig]:
    """Check section ``downstream_expert``; all problems are reported in one UsageError."""
    problems = unknown_keys(section, ("datarc", "head"), "downstream_expert")
    data = _mapping(section, "datarc", DataConfig, problems)
    head = _mapping(section, "head", HeadConfig, problems)
    for name in ("path", "split"):
        if not data.get(name):
            problems.append(f"downstream_expert.datarc.{name} is missing.")
    problems += _wrong_lists(data.get("split"))
    for place, values, name, least in (
        ("datarc", data, "num_workers", 0),
        ("datarc", data, "train_batch_size", 1),
        ("datarc", data, "eval_batch_size", 1),
        ("head", head, "recurrent", 0),
        ("head", head, "beams", 1),
        ("head", head, "max_tokens", 1),
    ):
        value = values.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problems.append(
                f"downstream_expert.{place}.{name} must be a whole number of at least {least}, not {value!r}."
            )
    for kind, value, known in (
        ("downstream_expert.datarc.on_missing", data.get("on_missing", "error"), ON_MISSING),
        ("downstream_expert.head.init", head.get("init", "nothing"), HEADS),
        ("downstream_expert.head.task", head.get("task", "transcribe"), TASKS),
    ):
        if value not in known:
            problems.append(str(unknown_name(kind, value, known)))
    window = head.get("window", LONGEST_WINDOW)
    if window != CLIP and (
        isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= LONGEST_WINDOW
    ):
        problems.append(
            f"downstream_expert.head.window must be a whole number of seconds from 1 to 30, or clip, not {window!r}."
        )
    try:
        text_rule(data.get("text_rule", "mam"))
    except UsageError as error:
        problems.append(f"downstream_expert.datarc: {error}")
    if problems:
        raise UsageError(" ".join(problems))
    return DataConfig(**data), HeadConfig(**head)


def _wrong_lists(split: Any) -> list[str]:
    """Return what is wrong with a split that is neither a rule nor a file."""
    if split is None or isinstance(split, str):
        return []
    lists = split.values() if isinstance(split, Mapping) else [None]
    if all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        lacking = [name for name in SPLITS if name not in split]
        return (
            [f"downstream_expert.datarc.split lacks {lacking[0]}; it may be empty: {lacking[0]}: []."]
            if lacking
            else []
        )
    return [f"downstream_expert.datarc.split must be a rule, a file, or a list of names for each split, not {split!r}."]


def _mapping(section: Mapping[str, Any], name: str, cls: type, problems: list[str]) -> dict[str, Any]:
    """Return the known, given keys of a subsection."""
    content = section.get(name)
    if not isinstance(content, Mapping):
        problems.append(f"downstream_expert.{name} is missing: see ljspeech/mam.yaml in downstream_configs.")
        return {}
    known = [field.name for field in fields(cls)]
    problems += unknown_keys(content, known, f"downstream_expert.{name}")
    return {key: value for key, value in content.items() if key in known and value is not None}
