"""The settings of an upstream that decide its features apart from its weights: stored with what is trained, compared.

They are what the files of a model say apart from the weights, and options of ``-g``. What files of earlier versions
lack of them is not compared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import OF_STORAGE
from s3prl_ext.package_versions import versions_of

if TYPE_CHECKING:  # torch is not needed to compare
    from torch import nn

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = (
    *(*OF_STORAGE, "tokenizer_class", "name_or_path"),
    *("attn_implementation", "output_attentions", "output_hidden_states", "return_dict"),
    *("use_return_dict", "use_cache", "torchscript", "gradient_checkpointing", "id2label", "label2id", "num_labels"),
    *("apply_spec_augment", "tie_last_hidden_states"),  # set by us, whatever the files say
)  # settings of transformers that do not decide the features of an upstream
# What decides the features of s3prl's models and of BEATs, by the names in their parts and configurations.
# Sizes are not here, since the weights tell them.
OF_MODELS = (
    *("normalize", "wav_normalize", "extractor_mode", "conv_feature_layers", "activation_fn", "num_heads"),
    *("layer_norm_first", "deep_norm", "required_seq_len_multiple"),
    *("relative_position_embedding", "gru_rel_pos", "num_buckets", "max_distance"),
)
OPTIONS = "options"  # prefix of those that an upstream of ours was built with
OF_TRAINING = re.compile(
    r"dropout|layerdrop|^mask_(time|feature)_"
)  # settings of transformers that leave features alone
KEY = "upstream_settings"  # of stated settings in result files and in the info of a delta
VERSION = "transformers"  # the package that has read the settings, key of its version


def stated_settings(module: nn.Module) -> dict[str, Any]:
    """Return what decides the outputs of an upstream apart from its weights, by name, as plain values.

    That is what the files of transformers say, ``config.json`` and ``preprocessor_config.json``, with its defaults and
    its version as one of the values; or of s3prl's models and BEATs :data:`OF_MODELS`, and the file of fbank and the
    like; and what an upstream of ours names in a method ``feature_options()``. Empty for others.
    """
    from s3prl_ext.models.fingerprint import configurations

    found: dict[str, Any] = {}
    configs = configurations(module)
    for config in configs:
        prefix = type(config).__name__
        for key, value in _plain(prefix, config.to_dict()):
            found.setdefault(key, value)  # of parts of a model whose configuration was copied
    for part in module.modules():
        extractor: Any = getattr(part, "extracter", None)
        if hasattr(extractor, "to_dict"):
            found |= _plain("preprocessing", extractor.to_dict())
    if found:
        found[VERSION] = versions_of((VERSION,))[VERSION]
    if not configs and hasattr(module, "get_downsample_rates"):  # an upstream, not a head or featurizer
        found |= _of_models(module)
    options: Any = getattr(module, "feature_options", None)
    return found | (dict(_plain(OPTIONS, options())) if callable(options) else {})


def _of_models(module: nn.Module) -> dict[str, Any]:
    """Return the settings that an upstream of s3prl, or BEATs, keeps in its parts and in their configurations."""
    found: dict[str, Any] = {}
    for part in module.modules():
        for holder in (part, *(getattr(part, name, None) for name in ("cfg", "task_cfg", "config"))):
            values = holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {})
            for key in OF_MODELS:
                value = getattr(values.get(key), "__name__", values.get(key))  # of an activation: its name
                if isinstance(value, (bool, int, float, str)):
                    found.setdefault(key.removeprefix("wav_"), value)  # first that of the model as a whole
    config = getattr(module, "config", None)
    if isinstance(config, Mapping):  # of fbank and the like, without what only their training computes
        found |= _plain("config", {key: value for key, value in config.items() if key != "target"})
    return found


def _plain(prefix: str, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of settings, also of nested ones, that JSON can hold."""
    for key, value in settings.items():
        if not isinstance(key, str) or key.startswith("_") or key in WITHOUT_EFFECT or OF_TRAINING.search(key):
            continue
        if isinstance(value, Mapping):
            yield from _plain(f"{prefix}.{key}", value)
            continue
        try:
            yield f"{prefix}.{key}", json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue


def stated_sha256(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of stated settings, whichever version of transformers has read them."""
    stated = {key: value for key, value in settings.items() if key != VERSION}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def check_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any], where: str) -> None:
    """Refuse an upstream with other settings than `where` was made with; None where these are not known.

    Where another version of transformers reads its files, which may mean the same by other settings, there is only a
    warning.

    Raises:
        DataError: it has other settings.
    """
    if certain := certain_differences(before, now):
        raise DataError(
            f"{where} was made with other settings of the upstream ({_told(certain)}): put its files as they were then "
            "back (-k, config.json and preprocessor_config.json next to the weights too) and give the -g of then, or "
            "start a new experiment."
        )
    if before is not None and (changed := other_settings(before, now)):
        logger.warning(
            "%s was made with other settings of the upstream (%s), or transformers %s reads its files differently than "
            "%s: compare config.json and preprocessor_config.json next to the weights (-k) with those of then", where,
            _told(changed), now.get(VERSION), before.get(VERSION),
        )  # fmt: skip


def _told(changed: list[str]) -> str:
    return ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def other_settings(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """Return in words which settings of :func:`stated_settings` differ.

    Only those that both know count: other versions of transformers know others.
    """
    before, now = before or {}, now or {}
    keys = [key for key in now if key in before and key != VERSION and before[key] != now[key]]
    return [f"{key} {now[key]} instead of {before[key]}" for key in sorted(keys)]


def certain_differences(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """Return :func:`other_settings` but for those that another version of transformers has read."""
    before, now = before or {}, now or {}
    if before.get(VERSION) != now.get(VERSION):
        now = {key: value for key, value in now.items() if key.startswith(f"{OPTIONS}.")}
    return other_settings(before, now)
