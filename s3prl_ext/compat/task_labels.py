"""Intents, slots, characters, phonemes, emotions and speakers: their names go into the task file that checkpoints hold.

s3prl reads them from the corpus at every start, so a checkpoint alone does not say what its outputs mean. They stand
under ``downstream_expert.labels``, with the frame shift that s3prl's diarization stores in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim
from s3prl_ext.tasks.ic import SLOTS
from s3prl_ext.tasks.record import LABELS


def _keeping(labels: Callable[[Any], dict[str, list[str]] | None]) -> Callable[[ModuleType], None]:
    """Return what wraps an expert so that it stores `labels` of itself in its section of the task file."""

    def apply(module: ModuleType) -> None:
        initialise = module.DownstreamExpert.__init__

        @functools.wraps(initialise)
        def initialise_and_keep(self: Any, *args: Any, **kwargs: Any) -> None:
            initialise(self, *args, **kwargs)
            found = labels(self)
            if found is not None and "downstream_expert" in kwargs:
                kwargs["downstream_expert"][LABELS] = found

        setattr(initialise_and_keep, KEEPS_LABELS, True)
        module.DownstreamExpert.__init__ = initialise_and_keep

    return apply


def _intents(expert: Any) -> dict[str, list[str]]:
    sizes = zip(SLOTS, expert.values_per_slot, strict=True)
    return {slot: [str(expert.Sy_intent[slot][index]) for index in range(size)] for slot, size in sizes}


FIRST = 3  # token of s3prl's encoders after padding, end and unknown


def _tokens(expert: Any) -> dict[str, list[str]] | None:
    """Return the vocabulary, but for subwords, whose model is a file of its own; of slot filling the slots as well."""
    found: dict[str, list[str]] = {}
    if (names := getattr(expert.tokenizer, "_vocab_list", None)) is not None:
        kind = "characters" if "character" in expert.tokenizer.token_type else "tokens"
        found[kind] = list(names[FIRST:])
    if (marks := getattr(expert.tokenizer, "slots", None)) is not None:
        found["slots"] = [mark.removeprefix("B-") for mark in marks[::2]]
    return found or None


def _dictionary(expert: Any) -> dict[str, list[str]]:
    return {"characters": list(expert.dictionary.symbols)}


def _emotions(expert: Any) -> dict[str, list[str]]:
    names = expert.train_dataset.dataset.idx2emotion
    return {"emotions": [names[index] for index in sorted(names)]}


def _speakers(expert: Any) -> dict[str, list[str]]:
    return {"speakers": list(expert.train_dataset.all_speakers)}


KEEPS_LABELS = "keeps_labels"


def _unwrapped(module: ModuleType) -> bool:
    return not hasattr(module.DownstreamExpert.__init__, KEEPS_LABELS)


REASON = "a checkpoint of {} does not say what its outputs mean, and s3prl reads that from the corpus at every start"


def _shim(name: str, task: str, labels: Callable[[Any], dict[str, list[str]] | None], reason: str) -> Shim:
    return Shim(
        name=name,
        module=f"s3prl.downstream.{task}.expert",
        needed=_unwrapped,
        apply=_keeping(labels),
        reason=reason,
        remove_when="s3prl stores the labels in its checkpoints",
    )


SHIMS = (
    _shim("s3prl-intent-labels", "fluent_commands", _intents, REASON.format("intent classification")),
    _shim("s3prl-slot-labels", "ctc", _tokens, REASON.format("phoneme recognition or slot filling")),
    _shim("s3prl-recognition-labels", "asr", _dictionary, REASON.format("speech recognition")),
    _shim("s3prl-emotion-labels", "emotion", _emotions, REASON.format("emotion recognition")),
    _shim(
        "s3prl-verification-speakers",
        "sv_voxceleb1",
        _speakers,
        "a checkpoint of speaker verification does not say how many speakers it was trained on",
    ),
)
