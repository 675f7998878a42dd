"""The tasks that predictions can be made for: one row each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.prediction import classification, diarization, transcription
from s3prl_ext.prediction.decoder import Decoder, Inputs, Options
from s3prl_ext.prediction.labels import with_known_variables

# -d -> what builds its decoder, without the corpus
TASKS: dict[str, Callable[[Inputs], Decoder]] = {
    "speech_commands": classification.keywords,
    "fluent_commands": classification.intent,
    "voxceleb1": classification.speaker,
    "esc50": classification.sound,
    "asr": transcription.words,
    "ljspeech": transcription.recognition,
    "vctk": transcription.recognition,
    "librispeech_zeroshot": transcription.recognition,
    "ctc": transcription.ctc,
    "diarization": diarization.turns,
}


def build_decoder(info: Mapping[str, Any], width: int, rate: int, options: Options, name: str) -> Decoder:
    """Build the decoder of a task, with an untrained head.

    Args:
        info: what was trained: arguments and, under ``config``, the task file.
        width: of the features.
        rate: samples per frame.
        options: what was chosen.
        name: file that says what was trained.

    Raises:
        UsageError: there is no decoder for the task, or an option that it has no use for.
        DataError: the head needs a file that is not there, or does not come of its section of the task file.
    """
    task = str(info.get("downstream"))
    if task not in TASKS:
        raise unknown_name("task of predict", task, TASKS)
    config = info.get("config")
    if not isinstance(config, Mapping) or "downstream_expert" not in config:
        raise DataError(
            f"{name} does not say how its head is made (section downstream_expert of the task file): it was edited."
        )
    try:
        section = with_known_variables(config["downstream_expert"])
        with contextlib.redirect_stdout(sys.stderr):  # s3prl's experts print
            decoder = TASKS[task](Inputs(info, section, width, rate, options))
    except OSError as error:
        raise DataError(f"the head of -d {task} needs {error.filename}, which cannot be read: put it back.") from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise DataError(
            f"the head of -d {task} cannot be built as section downstream_expert of the task file with {name} says ({reason}): "
            "it was edited or damaged, use it as it was trained."
        ) from error
    for field in fields(options):
        if getattr(options, field.name) is not None and field.name not in decoder.OPTIONS:
            raise UsageError(f"--{field.name} means nothing for -d {task}: drop it.")
    return decoder
