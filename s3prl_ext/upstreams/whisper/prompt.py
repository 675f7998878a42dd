"""The tokens that Whisper's decoder reads before a text."""

from __future__ import annotations

from typing import Any


def prompt(settings: Any, language: str | None, task: str | None) -> list[int]:
    """Return the tokens before a text: start, language, task, no time stamps.

    Args:
        settings: the model's ``GenerationConfig``.
        language: token such as ``<|en|>``; None of an English-only model, which has no token for task either.
        task: ``transcribe`` or ``translate``.
    """
    tokens = [settings.decoder_start_token_id]
    if language:
        tokens += [settings.lang_to_id[language], settings.task_to_id[task]]
    return [*tokens, settings.no_timestamps_token_id]
