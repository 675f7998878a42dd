"""Recognition with a language model: refuse what s3prl decodes greedily without a word, name what is missing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim, absent
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.tasks.asr import DECODING, WITH_LM


def _check_decoder(module: ModuleType) -> None:
    get_decoder = module.get_decoder

    @functools.wraps(get_decoder)
    def get_checked(decoder_args_dict: Mapping[str, Any], dictionary: Any) -> Any:
        kind = (decoder_args_dict or {}).get("decoder_type")
        if kind not in (None, "None", WITH_LM):
            raise UsageError(
                f"config.{DECODING}.decoder_type must be 'None' (greedy) or '{WITH_LM}' (with a language "
                f"model), got {kind!r}."
            )
        if kind == WITH_LM:
            _check_parts(decoder_args_dict)
        try:
            return get_decoder(decoder_args_dict, dictionary)
        except AssertionError as error:  # its text: the letters of a word, and their numbers
            raise DataError(
                f"{decoder_args_dict['lexicon']} spells a word with a letter that the dictionary (datarc.dict_path) "
                f"lacks: {error}; spell it with the letters of the dictionary."
            ) from error

    get_checked.is_checked = True
    module.get_decoder = get_checked


def _check_parts(settings: Mapping[str, Any]) -> None:
    if absent("flashlight.lib.text"):
        raise UsageError(
            f"decoding with a language model (decoder_type '{WITH_LM}') needs the package flashlight-text: pip install "
            "'s3prl_ext[lm]'."
        )
    for name in ("kenlm_model", "lexicon"):
        if not Path(str(settings.get(name))).is_file():
            raise DataError(
                f"no such file: {settings.get(name)}, for decoding with a language model: set "
                f"config.{DECODING}.{name} with -o."
            )


SHIMS = (
    Shim(
        name="language-model",
        module="s3prl.downstream.asr.expert",
        needed=lambda module: not hasattr(module.get_decoder, "is_checked"),
        apply=_check_decoder,
        reason="s3prl decodes greedily at any other decoder_type than 'kenlm', and 'kenlm' ends in a NameError without "
        "flashlight-text",
        remove_when="s3prl refuses unknown decoders, and names the package that is missing",
    ),
)
