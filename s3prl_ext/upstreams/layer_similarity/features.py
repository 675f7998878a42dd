"""One vector per layer and sample, kept on disk by the hash of model and inputs, so that an interrupted run resumes.

The folder is ``S3PRL_EXT_CACHE``, else ``~/.cache/s3prl_ext``; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from s3prl_ext.attention.files import weight_file
from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.layer_similarity.encoders import Encoder
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

CACHE_FORMAT = 4  # of the stored numbers: to be raised when they come to mean something else
PART = 64  # samples in one file


def cache_dir() -> Path:
    """Return the folder of results that can be computed again."""
    root = os.environ.get("S3PRL_EXT_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "s3prl_ext"


def hash_of(*parts: Any) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 of the files of a transformers folder that make its outputs: weights, settings, tokenizer."""
    weights = weight_file(folder)
    shards = folder.glob(f"*{'.safetensors' if 'safetensors' in weights.name else '.bin'}")
    files = {weights, *(shards if weights.suffix == ".json" else ())}
    files |= {file for pattern in ("*.json", "*.txt", "*.model") for file in folder.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}|{file.stat().st_size}|".encode())
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def layer_vectors(encoder: Encoder, key: str, items: Sequence[Any], hashes: Sequence[str]) -> Tensor:
    """Return the mean over time or tokens of each block's output, [samples, layers, width].

    Args:
        key: hash of the encoder and its settings.
        items: inputs of the encoder.
        hashes: hash of each input.

    Raises:
        DataError: an output holds NaN or infinity.
    """

    def compute(indices: Sequence[int]) -> Tensor:
        states = encoder.states([items[index] for index in indices])
        vectors = torch.stack([state.float().mean(1) for state in states]).cpu()
        for index, vector in zip(indices, vectors, strict=True):
            check_finite(vector, encoder.name, items[index])
        return vectors

    keys = [hash_of(CACHE_FORMAT, "vectors", key, value) for value in hashes]
    return in_parts(compute, keys, encoder.batch_size, f"encoding with {encoder.name}")


def check_finite(values: Tensor, name: str, item: Any) -> None:
    """Check outputs of blocks, [layers, ...].

    Raises:
        DataError: NaN or infinity; the message names model, block and input.
    """
    bad = (~values.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
    if bad:
        raise DataError(
            f"block {bad[0]} of {name} gives NaN or infinity for '{str(item)[:120]}': check model and input."
        )


def in_parts(compute: Callable[[Sequence[int]], Tensor], keys: Sequence[str], batch_size: int, title: str) -> Tensor:
    """Return one row for each key, computed in batches; every part of :data:`PART` rows is kept on disk.

    Args:
        compute: indices of samples -> their rows, [indices, ...].
        keys: one hash per sample.
        title: shown next to the progress bar.
    """
    parts = []
    with tqdm(total=len(keys), desc=title, unit="sample", disable=None) as bar:
        for start in range(0, len(keys), PART):
            indices = range(start, min(start + PART, len(keys)))
            path = cache_dir() / "layers" / f"{hash_of([keys[index] for index in indices])}.safetensors"
            part = _read(path)
            if part is None:
                part = torch.cat([compute(indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)])
                path.parent.mkdir(parents=True, exist_ok=True)
                with written(path) as temporary:
                    save_file({"rows": part.contiguous()}, temporary)
            parts.append(part)
            bar.update(len(indices))
    return torch.cat(parts)


def _read(path: Path) -> Tensor | None:
    try:
        return load_file(path)["rows"] if path.is_file() else None
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("%s is corrupt (%s) and is computed again.", path, error)
        return None
