"""transformers: s3prl's experts for Hugging Face models give the same features under version 4 and 5."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim, stub_module
from s3prl_ext.errors import DataError
from s3prl_ext.transformers_models import check_upstream, load_extractor, load_model, use_as_upstream

# module of the expert -> its model class, the upstream it is
EXPERTS = {
    "s3prl.upstream.hf_hubert.expert": ("HubertModel", "hf_hubert_custom"),
    "s3prl.upstream.hf_wav2vec2.expert": ("Wav2Vec2Model", "hf_wav2vec2_custom"),
}


class _Loader:
    """Stands for a model class in an expert's module, of which s3prl calls ``from_pretrained`` alone."""

    def __init__(self, model_class: type, upstream: str) -> None:
        self.model_class, self.upstream = model_class, upstream

    def from_pretrained(self, name: str | os.PathLike) -> Any:
        check_upstream(name, self.upstream)
        return load_model(self.model_class, name)


def _is_stock(module: ModuleType) -> bool:
    return not hasattr(module.UpstreamExpert.__init__, "__wrapped__")


def _check_folder(ckpt: object) -> None:
    """Refuse a local model folder without a feature extractor, for which s3prl would download another model's.

    Raises:
        DataError: the folder does not exist or does not say how audio is prepared.
    """
    if not isinstance(ckpt, (str, os.PathLike)):
        raise DataError("the upstream needs a model: give its name on the Hugging Face Hub or its folder with -k.")
    if Path(ckpt).is_dir():
        load_extractor(ckpt)
    elif str(ckpt).startswith(("/", ".", "~")):
        raise DataError(f"no such model folder: {ckpt}; check the path given with -k.")


def _fetched(ckpt: object) -> object:
    """Return the folder of a model of the hub: with ``ID@REVISION`` s3prl would ask for a repository of that name."""
    if not isinstance(ckpt, str) or Path(ckpt).expanduser().exists() or ckpt.startswith(("/", ".", "~")):
        return ckpt
    from s3prl_ext.attention.files import find_model

    return str(find_model(ckpt))


def _wrap_expert(module: ModuleType) -> None:
    initialise = module.UpstreamExpert.__init__
    model_class, upstream = EXPERTS[module.__name__]

    @functools.wraps(initialise)
    def initialise_whole(self, ckpt, *args, **kwargs) -> None:
        ckpt = _fetched(ckpt)
        _check_folder(ckpt)
        initialise(self, ckpt, *args, **kwargs)
        use_as_upstream(self.model)

    setattr(module, model_class, _Loader(getattr(module, model_class), upstream))
    module.UpstreamExpert.__init__ = initialise_whole


def _late(expert: str) -> Mapping[str, ModuleType]:
    """Return a stand-in for the module of an expert, whose expert imports that module when it is built."""

    def build(*args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(expert).UpstreamExpert(*args, **kwargs)

    return {expert: stub_module(expert, UpstreamExpert=build)}


_EXPERTS = tuple(
    Shim(
        name=f"transformers-{module.split('.')[2]}",
        module=module,
        needed=_is_stock,
        apply=_wrap_expert,
        reason="transformers 5 ends the hidden states of large models before the final norm, keeps half precision, "
        "leaves no hidden state for a layer skipped by layerdrop, and SpecAugment fails on clips below 10 frames; a "
        "folder of another family, or one without preprocessor_config.json, would silently take random weights or "
        "another model's preprocessing",
        remove_when="s3prl checks the folder and does the same with transformers 4 and 5",
    )
    for module in EXPERTS
)

_ENTRIES = tuple(
    Shim(
        name=f"transformers-late-{module.split('.')[2]}",
        module=f"{module.rpartition('.')[0]}.hubconf",
        needed=functools.partial(lambda expert, module: expert not in sys.modules, module),
        stubs=functools.partial(_late, module),
        reason="s3prl's hub imports transformers, 3 s of CPU time and 100 MB, also where another upstream is used",
        remove_when="s3prl's hub imports an expert when it is built",
    )
    for module in EXPERTS
)

SHIMS = (*_EXPERTS, *_ENTRIES)
