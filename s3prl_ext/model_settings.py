"""``config.json`` and ``preprocessor_config.json`` of a transformers folder, checked before a model is built.

A value of another kind would stop transformers with an error that names no file, or keep it building for ever.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json

CONFIG_FILE = "config.json"
# Settings of transformers that only say where a model comes from and how it is stored.
OF_STORAGE = ("transformers_version", "architectures", "dtype", "torch_dtype", "processor_class")
LAYERS = (
    "num_hidden_layers", "encoder_layers", "decoder_layers", "num_feat_extract_layers", "encoder_num_hidden_layers",
    "decoder_num_hidden_layers",
)  # fmt: skip
SIZES = (
    "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups", "max_position_embeddings", "num_channels", "d_model", "encoder_attention_heads",
    "encoder_ffn_dim", "decoder_attention_heads", "decoder_ffn_dim", "num_mel_bins", "max_source_positions",
    "max_target_positions", "image_size", "patch_size", "conv_dim", "conv_kernel", "conv_stride",
    "squeeze_factor", "feature_projection_input_dim", "conv_depthwise_kernel_size", "time_stride",
    "frequency_stride", "encoder_num_attention_heads",
)  # fmt: skip
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")  # a number for each convolution
NUMBER_OR_PAIR = ("image_size", "patch_size")
SWITCHES = ("do_stable_layer_norm", "conv_bias", "feat_proj_layer_norm", "conv_pos_batch_norm", "add_adapter")
FRACTION = re.compile(r"(dropout|layerdrop|_prob|_eps)$")  # null: none
MOST_LAYERS, LARGEST = 1_000, 10_000_000
SAMPLE_RATE = 16_000  # Hz, of all audio that models take


def model_config(folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a transformers folder, or an empty dict where there is none.

    Raises:
        DataError: the file is not JSON, or a value in it cannot be.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not readable as JSON: {error}.") from error
    problem = _problem(config)
    if problem:
        raise DataError(f"{file}: {problem}; get the file again from where the model came from.")
    return config


def head_count(folder: Path, prefix: str | None = None) -> int | None:
    """Return the number of attention heads of a transformers folder's model, None where no ``config.json`` says it.

    Args:
        prefix: ``decoder`` for the decoder of a model that has both, ``text_model`` or ``vision_model`` for a tower of
            CLIP; otherwise the encoder is meant.
    """
    config = model_config(folder)
    if prefix in ("text_model", "vision_model"):
        tower = config.get(prefix.replace("model", "config"))
        config = dict(tower) if isinstance(tower, Mapping) else {}
    part = "decoder" if prefix == "decoder" else "encoder"
    keys = (f"{part}_attention_heads", f"{part}_num_attention_heads", "num_attention_heads", "n_heads")
    return next((config[key] for key in keys if key in config), None)


def check_extractor(extractor: Any, name: object) -> None:
    """Refuse preprocessing that cannot be a speech model's.

    Args:
        extractor: one of transformers' feature extractors.
        name: its folder or hub id.

    Raises:
        DataError: a setting is of another kind, or the model reads other audio than 16 kHz mono.
    """
    own = type(extractor).__name__
    found = getattr(extractor, "feature_extractor_type", own)
    if found != own and found in OWN_SETTINGS:
        raise DataError(
            f"the preprocessor_config.json of {name} is that of a {found}, but its model reads what {own} makes: take "
            "both files from the same model."
        )
    for key, (fits, what) in (COMMON_SETTINGS | OWN_SETTINGS.get(own, {})).items():
        value = getattr(extractor, key, None)
        if not fits(value):
            raise DataError(
                f"the preprocessor_config.json of {name} says {key}: {_shown(value)}, which must be {what}; get the "
                "file again from where the model came from."
            )


def _problem(config: Any) -> str:
    """Return what is wrong with the content of ``config.json``, or an empty text."""
    if not isinstance(config, Mapping):
        return f"holds {type(config).__name__} in place of a mapping of settings"
    for key, value in config.items():
        wanted = _wanted(key, value)
        if wanted:
            return f"{key} must be {wanted}, but is {_shown(value)}"
    return ""


def _wanted(key: str, value: Any) -> str:
    """Return what the value of a setting must be, or an empty text where it is that, or where the key is another's."""
    if key in LAYERS or key in SIZES:
        most = MOST_LAYERS if key in LAYERS else LARGEST
        listed = value if isinstance(value, list) and (key in CONVOLUTIONS or key in NUMBER_OR_PAIR) else [value]
        if (
            listed
            and all(_is_whole(item) and 1 <= item <= most for item in listed)
            and (key not in CONVOLUTIONS or isinstance(value, list))
        ):
            return ""
        return f"{'a list of whole numbers' if key in CONVOLUTIONS else 'a whole number'} from 1 to {most:,}"
    if key in SWITCHES and not isinstance(value, bool):
        return "true or false"
    if FRACTION.search(key) and value is not None and not (_is_number(value) and 0 <= value <= 1):
        return "a number from 0 to 1"
    return ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:60]


def _is_count(value: Any) -> bool:
    return _is_whole(value) and 1 <= value <= LARGEST


# Settings of preprocessing: what a value must be, as a test and in words.
_Setting = tuple[Callable[[Any], bool], str]
_SWITCH: _Setting = (lambda value: isinstance(value, bool), "true or false")
_COUNT: _Setting = (_is_count, "a whole number above 0")
COMMON_SETTINGS: dict[str, _Setting] = {
    "sampling_rate": (
        lambda value: _is_whole(value) and value == SAMPLE_RATE,
        f"{SAMPLE_RATE}: s3prl reads audio at this rate",
    ),
    "padding_value": (_is_number, "a number"),
    "padding_side": (lambda value: value == "right", "right: frames are counted from the first one on"),
    "return_attention_mask": _SWITCH,
}
OWN_SETTINGS: dict[str, dict[str, _Setting]] = {
    "Wav2Vec2FeatureExtractor": {
        "feature_size": (lambda value: _is_whole(value) and value == 1, "1: one channel"),
        "do_normalize": _SWITCH,
    },
    "SeamlessM4TFeatureExtractor": {"num_mel_bins": _COUNT, "stride": _COUNT},
    "ASTFeatureExtractor": {
        "num_mel_bins": _COUNT,
        "max_length": _COUNT,
        "do_normalize": _SWITCH,
        "mean": (_is_number, "a number"),
        "std": (lambda value: _is_number(value) and value > 0, "a number above 0"),
    },
}
