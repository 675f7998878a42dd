"""Write a copy of a model in which some tensors are replaced; everything else keeps its bytes.

A safetensors file is copied and the changed tensors are written over their place. ``pytorch_model.bin`` of a
transformers folder becomes safetensors. Another checkpoint (s3prl, fairseq, BEATs) keeps its format and its other
content. One tensor is computed at a time.

A tensor keeps the dtype that it has in the file where this holds the new values exactly. Where half precision does not,
it is written as float32, and ``config.json`` says float32, so that transformers too loads the model that was computed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor

from s3prl_ext.attention.files import (
    load_torch,
    open_weights,
    read_torch_state,
    state_dict_of,
    weight_file,
    weight_files,
)
from s3prl_ext.attention.layouts import AttentionKeys, Slot, find_attention
from s3prl_ext.errors import DataError
from s3prl_ext.reading import parse_json
from s3prl_ext.writing import written

# What else of a transformers folder belongs to the model: configuration, vocabulary, preprocessor, licence.
COMPANIONS = ("*.json", "*.txt", "*.model", "LICENSE*", "NOTICE*")
INDEX = "model.safetensors.index.json"
# What this package writes next to a model: it describes that model, not a copy of it.
RECORDS = ("merge.json", "export.json")

# Return the new tensor of a slot, given the old one as it is in the file.
Replace = Callable[[Slot, Tensor], Tensor]

# Return the new tensor of a name in the file, given the old one.
Rewrite = Callable[[str, Tensor], Tensor]


def attention_keys(path: Path, prefix: str | None = None) -> AttentionKeys:
    """Return where the attention parameters of a model folder or checkpoint file are, reading no tensor.

    Args:
        prefix: as in :func:`s3prl_ext.attention.layouts.find_attention`.

    Raises:
        DataError: no weights there, unreadable, or no attention in it.
    """
    names = [name for file in weight_files(path) for name in list(open_weights(file).keys())]
    return find_attention(names, str(path), prefix)


def write_model(
    path: Path, out: Path, slots: Iterable[Slot], replace: Replace, prefix: str | None = None
) -> list[Path]:
    """Write the model of `path` into the folder `out` with the tensors of `slots` replaced.

    Args:
        path: transformers folder or checkpoint file.
        out: existing folder.
        slots: attention parameters to replace; all other tensors keep their bits.
        replace: called once for each slot; the result has the shape of the old tensor.
        prefix: as in :func:`attention_keys`.

    Returns:
        The weight files written.

    Raises:
        DataError: the model is unreadable.
    """
    keys = attention_keys(path, prefix)
    names: dict[str, list[Slot]] = {}
    for slot in slots:
        names.setdefault(keys.names[slot], []).append(slot)
    return write_weights(path, out, names, lambda name, old: _replaced(name, old, names[name], keys, replace))


def write_weights(path: Path, out: Path, names: Collection[str], rewrite: Rewrite) -> list[Path]:
    """Write the model of `path` into the folder `out` with the tensors of `names` replaced.

    Args:
        path: transformers folder or checkpoint file.
        out: existing folder.
        names: tensors to replace, as the file calls them; all others keep their bits.
        rewrite: called once for each name; the result has the shape of the old tensor.

    Returns:
        The weight files written.

    Raises:
        DataError: the model is unreadable.
    """
    if path.is_file() and path.suffix != ".safetensors":
        return [_write_torch(path, out / path.name, names, rewrite)]
    if path.is_dir():
        _copy_companions(path, out)
    files = weight_files(path)
    written = [out / _new_name(file.name) for file in files]
    grown = sum(_write_safetensors(*pair, names, rewrite) for pair in zip(files, written, strict=True))
    if grown and path.is_dir():
        _say_float32(out, grown)
    return written


def _as_stored(new: Tensor, old: Tensor) -> Tensor:
    """Return a new tensor in the dtype of the old one where this holds its values exactly, otherwise as it is."""
    stored = new.to(old.dtype)
    return stored if torch.equal(stored.to(new.dtype), new) else new


def _say_float32(folder: Path, grown: int) -> None:
    """Make ``config.json`` name float32, as which transformers loads all tensors, and the index the new size.

    Args:
        grown: bytes that the tensors take more.
    """
    for file in (folder / "config.json", folder / INDEX):
        if not file.is_file():
            continue
        content = parse_json(file.read_text(encoding="utf-8"))
        if file.name == INDEX:
            if "total_size" in content.get("metadata", {}):
                content["metadata"]["total_size"] += grown
        else:
            content |= dict.fromkeys(("dtype", *{"torch_dtype"} & content.keys()), "float32")
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _new_name(name: str) -> str:
    """Return the safetensors name of a weight file.

    ``pytorch_model-00001-of-00002.bin`` -> ``model-...safetensors``.
    """
    return name.replace("pytorch_model", "model", 1).removesuffix(".bin").removesuffix(".safetensors") + ".safetensors"


def _copy_companions(folder: Path, out: Path) -> None:
    """Copy what belongs to the model but its weights, and the index of shards under the new names."""
    for path in sorted({path for pattern in COMPANIONS for path in folder.glob(pattern)}):
        if path.is_file() and not path.name.endswith(".index.json") and path.name not in RECORDS:
            shutil.copyfile(path, out / path.name)
    index = weight_file(folder)
    if index.suffix == ".json":
        content = parse_json(index.read_text(encoding="utf-8"))
        content["weight_map"] = {name: _new_name(file) for name, file in content["weight_map"].items()}
        (out / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _replaced(name: str, old: Tensor, slots: list[Slot], keys: AttentionKeys, replace: Replace) -> Tensor:
    """Return the new tensor behind a state-dict key; of a fused one the parts of `slots` are replaced."""
    if not keys.architecture.fused:
        return replace(slots[0], old)
    parts = dict(zip((slot for slot, key in keys.names.items() if key == name), old.chunk(3), strict=True))
    return torch.cat([replace(slot, part) if slot in slots else part for slot, part in parts.items()])


def _write_safetensors(file: Path, out: Path, names: Collection[str], rewrite: Rewrite) -> int:
    """Write one file, and return by how many bytes its tensors have grown."""
    if file.suffix == ".safetensors":
        shutil.copyfile(file, out)
    else:
        _convert(file, out)
    reader, wider = open_weights(file), {}
    with out.open("r+b") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = parse_json(handle.read(length))
        for name in sorted(set(names) & set(header), key=lambda name: header[name]["data_offsets"]):
            old = reader[name]
            new = _as_stored(rewrite(name, old), old).contiguous()
            first, _ = header[name]["data_offsets"]
            if new.numel() != old.numel():
                raise DataError(f"{file}: {name} has {old.numel():,} numbers, but {new.numel():,} are to be written.")
            if new.dtype != old.dtype:
                wider[name] = new
                continue
            handle.seek(8 + length + first)
            handle.write(new.view(-1).view(torch.uint8).numpy().data)
    if wider:
        copied = open_weights(out)
        tensors = {name: wider[name] if name in wider else copied[name] for name in list(copied.keys())}
        _save(tensors, out, header.get("__metadata__"))
    return sum(tensor.nbytes - reader[name].nbytes for name, tensor in wider.items())


def _convert(file: Path, out: Path) -> None:
    """Write the tensors of a torch file as safetensors; those that share memory are written each by itself."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in read_torch_state(file).items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.clone() if shared or not tensor.is_contiguous() else tensor
    _save(tensors, out, {"format": "pt"})


def _save(tensors: dict[str, Tensor], out: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    with written(out) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _write_torch(file: Path, out: Path, names: Collection[str], rewrite: Rewrite) -> Path:
    content = load_torch(file)
    state = state_dict_of(content, file)
    for name in names:
        state[name] = _as_stored(rewrite(name, state[name]), state[name])
    torch.save(content, out)
    return out
