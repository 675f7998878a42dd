"""The settings of an upstream that decide its features apart from its weights: stored with what is trained, compared.

They are what the files next to the weights say, as transformers reads them. Files of earlier versions lack them.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import OF_STORAGE

if TYPE_CHECKING:  # torch is not needed to compare
    from torch import nn

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    *(*OF_STORAGE, "tokenizer_class", "name_or_path"),
    *("attn_implementation", "output_attentions", "output_hidden_states", "return_dict"),
    *("use_return_dict", "use_cache", "torchscript", "gradient_checkpointing", "id2label", "label2id", "num_labels"),
    *("layerdrop", "apply_spec_augment", "tie_last_hidden_states"),  # set by us, whatever the files say
)  # settings of transformers that do not decide the features of an upstream
KEY = "upstream_settings"  # of stated settings in result files and in the info of a delta
VERSION = "transformers"  # key of the version that has read the settings


def stated_settings(module: nn.Module) -> dict[str, Any]:
    """Return what decides the outputs of an upstream apart from its weights, by name, as plain values.

    That is what the files next to the weights say, ``config.json`` and ``preprocessor_config.json``, with the defaults
    of transformers, whose version is one of the values. Empty where transformers reads neither.
    """
    from s3prl_ext.models.fingerprint import configurations

    found: dict[str, Any] = {}
    for config in configurations(module):
        prefix = type(config).__name__
        for key, value in _plain(prefix, config.to_dict()):
            found.setdefault(key, value)  # of parts of a model whose configuration was copied
    for part in module.modules():
        extractor: Any = getattr(part, "extracter", None)
        if hasattr(extractor, "to_dict"):
            found |= _plain("preprocessing", extractor.to_dict())
    return found | {VERSION: importlib.metadata.version("transformers")} if found else {}


def _plain(prefix: str, settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of settings, also of nested ones, that JSON can hold."""
    for key, value in settings.items():
        if not isinstance(key, str) or key.startswith("_") or key in WITHOUT_EFFECT:
            continue
        if isinstance(value, dict):
            yield from _plain(f"{prefix}.{key}", value)
            continue
        try:
            yield f"{prefix}.{key}", json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue


def check_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any], where: str) -> None:
    """Refuse an upstream with other settings than `where` was made with; None where these are not known.

    Where another version of transformers reads the files, which may mean the same by other settings, there is only a
    warning.

    Raises:
        DataError: it has other settings.
    """
    if before is None or not (changed := other_settings(before, now)):
        return
    told = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    if before.get(VERSION) != now.get(VERSION):
        logger.warning(
            "%s was made with other settings of the upstream (%s), or transformers %s reads its files differently than "
            "%s: compare config.json and preprocessor_config.json next to the weights (-k) with those of then", where,
            told, now.get(VERSION), before.get(VERSION),
        )  # fmt: skip
        return
    raise DataError(
        f"{where} was made with other settings of the upstream ({told}): put config.json and preprocessor_config.json "
        "next to the weights (-k) back as they were then, or start a new experiment."
    )


def other_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Return in words which settings of :func:`stated_settings` differ.

    Only those that both know count: other versions of transformers know others.
    """
    before = before or {}
    keys = [key for key in now if key in before and key != VERSION and before[key] != now[key]]
    return [f"{key} {now[key]} instead of {before[key]}" for key in sorted(keys)]
