"""transformers: s3prl's experts for Hugging Face models, trained with ``-f`` or read from a local folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType

from s3prl_ext.compat.shim import Shim
from s3prl_ext.errors import DataError

EXPERTS = ("s3prl.upstream.hf_hubert.expert", "s3prl.upstream.hf_wav2vec2.expert")


def _is_stock(module: ModuleType) -> bool:
    return not hasattr(module.UpstreamExpert.__init__, "__wrapped__")


def _check_folder(module: ModuleType, ckpt: object) -> None:
    """Refuse a local model folder without a feature extractor, for which s3prl would download another model's.

    Raises:
        DataError: the folder does not exist or holds no readable ``preprocessor_config.json``.
    """
    if not isinstance(ckpt, (str, os.PathLike)):
        raise DataError("the upstream needs a model: give its name on the Hugging Face Hub or its folder with -k.")
    if not Path(ckpt).is_dir():
        if str(ckpt).startswith(("/", ".", "~")):
            raise DataError(f"no such model folder: {ckpt}; check the path given with -k.")
        return
    try:
        module.Wav2Vec2FeatureExtractor.from_pretrained(ckpt)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the model folder {ckpt} has no readable preprocessor_config.json: copy it from where the model came "
            f"from, or write one with transformers.Wav2Vec2FeatureExtractor(...).save_pretrained({str(ckpt)!r})."
        ) from error


def _fetched(ckpt: object) -> object:
    """Return the folder of a model of the hub: with ``ID@REVISION`` s3prl would ask for a repository of that name."""
    if not isinstance(ckpt, str) or Path(ckpt).expanduser().exists() or ckpt.startswith(("/", ".", "~")):
        return ckpt
    from s3prl_ext.attention.files import find_model

    return str(find_model(ckpt))


def _wrap_expert(module: ModuleType) -> None:
    initialise = module.UpstreamExpert.__init__

    @functools.wraps(initialise)
    def initialise_for_training(self, ckpt, *args, **kwargs) -> None:
        ckpt = _fetched(ckpt)
        _check_folder(module, ckpt)
        initialise(self, ckpt, *args, **kwargs)
        # Both are read in each forward pass, so setting them after construction is enough.
        self.model.config.layerdrop = 0.0
        self.model.config.apply_spec_augment = False

    module.UpstreamExpert.__init__ = initialise_for_training


SHIMS = tuple(
    Shim(
        name=f"transformers-{module.split('.')[2]}",
        module=module,
        needed=_is_stock,
        apply=_wrap_expert,
        reason="with -f, transformers 5 leaves no hidden state for a layer skipped by layerdrop, and SpecAugment fails "
        "on clips below 10 frames; s3prl's own HuBERT and wav2vec 2.0 switch both off; a local folder without "
        "preprocessor_config.json would silently take another model's from the network",
        remove_when="s3prl switches both off and names the missing file",
    )
    for module in EXPERTS
)
