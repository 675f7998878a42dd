"""Load transformers models in one way everywhere: the right family, no weight drawn at random, float32.

The last hidden state of a pre-norm speech model (``do_stable_layer_norm``, the large models) comes after the encoder's
final norm in s3prl's own models, in transformers 4 and in all published numbers; transformers 5 ends ``hidden_states``
before it, unless ``config.tie_last_hidden_states`` is set, which :func:`use_as_upstream` does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.model_settings import check_extractor, model_config
from s3prl_ext.models.architectures import without_unused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Under these the hidden states of tests/golden/transformers4 were equal to 1e-5; `dtype=` needs 4.56. Shown by doctor.
CHECKED_VERSIONS = ("4.56.2", "4.57.6", "5.0.0", "5.12.1", "5.23.0", "5.24.0")

# "model_type" of config.json -> an upstream that takes such a folder with -k: s3prl's own where there is one.
SPEECH_UPSTREAMS = {
    "hubert": "hf_hubert_custom",
    "wav2vec2": "hf_wav2vec2_custom",
    "wavlm": "hf_speech_custom",
    "data2vec-audio": "hf_speech_custom",
    "unispeech": "hf_speech_custom",
    "unispeech-sat": "hf_speech_custom",
    "wav2vec2-conformer": "hf_speech_custom",
    "wav2vec2-bert": "hf_speech_custom",
    "sew": "hf_speech_custom",
    "sew-d": "hf_speech_custom",
    "audio-spectrogram-transformer": "hf_speech_custom",
    "moonshine": "hf_speech_custom",
    "whisper": "whisper_local",
}
MODEL_TYPES = tuple(kind for kind in SPEECH_UPSTREAMS if kind != "whisper")  # what hf_speech_custom takes


def load_model(model_class: Any, name: str | os.PathLike) -> PreTrainedModel:
    """Return a transformers model in float32, whatever its files hold, in evaluation mode.

    Args:
        model_class: class with ``from_pretrained``, such as ``AutoModel``.
        name: folder or hub id.

    Raises:
        DataError: its configuration is corrupt, or weights that its outputs depend on are not in the files.
        OSError, ValueError, KeyError, RuntimeError: transformers' own.
    """
    import torch

    model_config(Path(name))
    model, report = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    missing = sorted(without_unused(report["missing_keys"]))
    if missing:
        raise DataError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, which would be drawn at random "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): "
            "get the complete model, or one of this kind."
        )
    return model.eval()


def load_extractor(name: str | os.PathLike, class_name: str = "Wav2Vec2FeatureExtractor") -> Any:
    """Return the preprocessing of a speech model, from ``preprocessor_config.json`` or ``processor_config.json``.

    Args:
        name: folder or hub id.
        class_name: transformers' class of the family's preprocessing.

    Raises:
        DataError: the folder has neither, or what is in them is unreadable or another model's.
    """
    import transformers

    try:
        extractor = getattr(transformers, class_name).from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the model folder {name} has no readable preprocessor_config.json or processor_config.json, which say "
            "whether audio is normalised: copy one from where the model came from, or write one with "
            f"transformers.{class_name}(...).save_pretrained({str(name)!r})."
        ) from error
    check_extractor(extractor, name)
    return extractor


def check_upstream(name: str | os.PathLike, upstream: str) -> None:
    """Raise UsageError where the upstream of s3prl called `upstream` would read another family than its own.

    Args:
        name: folder or hub id.
        upstream: ``hf_hubert_custom`` or ``hf_wav2vec2_custom``.

    Raises:
        DataError: its configuration is corrupt.
    """
    from transformers import PretrainedConfig

    kind = (model_config(Path(name)) or PretrainedConfig.get_config_dict(name)[0]).get("model_type")
    right = SPEECH_UPSTREAMS.get(kind or "")
    if right == upstream:
        return
    taken = next(model_type for model_type, entry in SPEECH_UPSTREAMS.items() if entry == upstream)
    advice = f"use -u {right}" if right else f"no upstream takes it; hf_speech_custom takes {', '.join(MODEL_TYPES)}"
    raise UsageError(f"{name} holds a model of type {kind!r}, but -u {upstream} takes {taken}: {advice}.")


def use_as_upstream(model: PreTrainedModel, ties_last: bool = True) -> None:
    """Let a speech model give a hidden state for each layer, and mask no input; all of it is read in each forward pass.

    Args:
        ties_last: let the last of the hidden states be the model's own output, after its final norm.

    Raises:
        DataError: the model changes the frame rate after its encoder.
    """
    if getattr(model, "adapter", None) is not None:
        raise DataError(
            f"{model.name_or_path} has add_adapter: true, which shortens what comes after the encoder: it cannot be an "
            "upstream with one feature in 20 ms."
        )
    model.config.layerdrop = 0.0
    model.config.apply_spec_augment = False
    model.config.tie_last_hidden_states = ties_last
