"""A tuned task as a small file: what differs from the pre-trained upstream, and the task's own weights.

A delta holds the entries of the child network as *base XOR tuned* bits, so that the same operation applies and
reverts it, exactly; a checkpoint holds their tuned values, which :meth:`Delta.over` turns into bits. In the file the
indices are gaps of one byte each, the bits are split into byte planes, and both are deflated: about 33 MB at a
density of 0.1 of 85 million weights, 0.4 MB at 0.001.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3prl_ext.errors import DataError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.tied import first_names
from s3prl_ext.reading import parse_json
from s3prl_ext.writing import written

FORMAT = "s3prl_ext.delta"
VERSION = 2
_TENSORS_ALONE = "1"  # the version whose checksum does not cover the header
MEMBERS = "members"  # a tensor that earlier versions do not read
_SAMPLE = 4096  # bytes of each tensor
_NO_GAP = 255  # a byte of this value adds 255 to the gap that the next byte ends


@dataclass(frozen=True)
class Delta:
    """What one task changes in an upstream, and what the task adds.

    Attributes:
        base_sha256: :func:`state_sha256` of the untouched upstream; empty where it is not known.
        indices: sorted flat indices (int64 or int32) of the changed entries by name of the upstream's tensor.
        bits: bits of base XOR tuned value (int32), same order.
        sizes: number of entries of each tensor of `indices`.
        added: tensors that the method adds to the upstream's own, such as an adapter's, by name.
        task: state dict of ``Featurizer`` and ``Downstream``.
        info: plain values: upstream, task, method, configuration, step.
        values: tuned values (float32) in place of `bits` and `sizes`, as checkpoints hold them.
        members: which of `indices` train now (bool, same order), where others have trained before; empty: all of them.
    """

    base_sha256: str
    indices: Mapping[str, Tensor] = field(default_factory=dict)
    bits: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    added: Mapping[str, Tensor] = field(default_factory=dict)
    task: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    members: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return k, the number of changed entries of the upstream."""
        return sum(i.numel() for i in self.indices.values())

    def over(self, base: Mapping[str, Tensor], where: str = "the delta") -> Delta:
        """Return the delta with bits in place of values.

        Args:
            base: state dict of the untouched upstream.
            where: what the delta is called in messages.

        Raises:
            DataError: `base` lacks an entry.
        """
        for name, chosen in self.indices.items():
            if name not in base or (len(chosen) and int(chosen.max()) >= base[name].numel()):
                raise DataError(f"{where} modifies '{name}', which is missing here or has a different size.")
        indices = {name: chosen.long() for name, chosen in self.indices.items()}
        before = {name: base[name].take(indices[name].to(base[name].device)) for name in self.values}
        bits = {**self.bits, **difference(before, self.values)}
        sizes = {**self.sizes, **{name: base[name].numel() for name in self.values}}
        return replace(self, indices=indices, bits=bits, sizes=sizes, values={}, added={}).with_tensors(
            base, self.added
        )

    def with_tensors(self, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Delta:
        """Return the delta with more tensors: as entries that changed where `base` has them, else as added ones.

        Args:
            base: state dict of the untouched upstream.
            tuned: whole tensors by name; none of them is in :attr:`indices`.
        """
        shared = {name: value for name, value in tuned.items() if name in base}
        changed = {name: torch.arange(value.numel()) for name, value in shared.items()}
        bits = difference(
            {name: base[name].reshape(-1) for name in shared}, {n: value.reshape(-1) for n, value in shared.items()}
        )
        return replace(
            self,
            indices={**self.indices, **changed},
            bits={**self.bits, **bits},
            sizes={**self.sizes, **{name: value.numel() for name, value in shared.items()}},
            added={**self.added, **{name: value for name, value in tuned.items() if name not in base}},
        )

    @torch.no_grad()
    def toggle(self, state: Mapping[str, Tensor]) -> None:
        """Turn the base into the tuned model, in place; a second call turns it back, bitwise.

        A tensor that modules share is turned once, whatever number of its names the delta has.

        Args:
            state: float32 tensors of the upstream by name, such as its ``state_dict()``.

        Raises:
            DataError: as :meth:`check_fits`, or two names of one tensor have different changes; nothing is turned then.
        """
        self.check_fits(state)
        first = first_names({name: state[name] for name in self.indices})
        for name, other in first.items():
            if name != other and not self._same_change(name, other):
                raise DataError(f"the delta has two changes of one tensor, '{other}' and '{name}': make it again.")
        for name in dict.fromkeys(first.values()):
            indices = self.indices[name]
            entries = state[name].view(-1).view(torch.int32)
            at = indices.to(entries.device)
            tuned = entries.index_select(0, at).bitwise_xor_(self.bits[name].to(entries.device))
            entries.index_copy_(0, at, tuned)

    def check_fits(self, state: Mapping[str, Tensor]) -> None:
        """Raise DataError where a tensor that the delta changes is missing, of another size, or not in float32."""
        for name in self.indices:
            if name not in state or state[name].numel() != self.sizes[name]:
                raise DataError(f"the delta modifies '{name}', which is missing here or has a different size.")
            if state[name].dtype != torch.float32:
                raise DataError(
                    f"the delta modifies '{name}', which is {state[name].dtype} here, but it holds the bits of "
                    "float32 weights: apply it to the upstream in float32, and cast a copy of that."
                )

    def _same_change(self, name: str, other: str) -> bool:
        return all(torch.equal(part[name], part[other]) for part in (self.indices, self.bits))

    def check_base(self, state: Mapping[str, Tensor], where: str = "the delta") -> None:
        """Raise DataError where `state` is not the upstream that the delta was made from."""
        found = state_sha256(state) if self.base_sha256 else ""
        if found != self.base_sha256:
            rounded = (self.info.get("tuning") or {}).get("base_dtype") == "bfloat16"
            raise DataError(
                f"{where} belongs to another upstream (hash {self.base_sha256[:12]}, but this one has {found[:12]}): "
                "give the model and settings that it was tuned from"
                + (", rounded to bfloat16 (s3prl_ext.training.methods.prepare_base)." if rounded else ".")
            )


def difference(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], in_place: bool = False) -> dict[str, Tensor]:
    """Return the bits (int32) in which two sets of float32 vectors differ: base XOR tuned.

    Args:
        base, tuned: vectors of the same names.
        in_place: write the bits into the memory of `tuned`, whose values are lost.
    """
    for name, values in (*base.items(), *tuned.items()):
        if values.dtype != torch.float32:
            raise DataError(f"'{name}' is {values.dtype}; a delta holds float32 weights.")
    combine = torch.Tensor.bitwise_xor_ if in_place else torch.Tensor.bitwise_xor
    return {
        name: combine(tuned[name].detach().cpu().view(torch.int32), values.detach().cpu().view(torch.int32))
        for name, values in base.items()
    }


def save(delta: Delta, path: str | os.PathLike[str]) -> None:
    """Write a delta as a safetensors file, which appears only when it is complete.

    Raises:
        DataError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    tensors = {"gaps": _pack_indices(delta), "bits": _pack_bits(delta)}
    if delta.members:
        tensors[MEMBERS] = _pack_members(delta)
    tensors |= {f"added.{name}": _plain(value) for name, value in delta.added.items()}
    for part, states in delta.task.items():
        tensors |= {f"{part}.{name}": _plain(value) for name, value in states.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "base_sha256": delta.base_sha256,
        "tensors": json.dumps([[n, delta.sizes[n], i.numel()] for n, i in delta.indices.items()]),
        "info": json.dumps(dict(delta.info), default=str),
    }
    metadata["content_sha256"] = content_sha256(tensors, metadata)
    try:
        with written(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot write the delta {path}: {cause}.") from error


def load(path: str | os.PathLike[str]) -> Delta:
    """Read a delta.

    Raises:
        DataError: the file is missing, truncated, edited, or not a delta.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such delta: {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a delta, or is truncated: {str(error).splitlines()[0][:120]}.") from error
    if metadata.get("format") != FORMAT:
        raise DataError(f"{path} is a safetensors file, but not a delta of s3prl_ext.")
    if metadata.get("version") not in (str(VERSION), _TENSORS_ALONE):
        raise DataError(
            f"{path} is a delta of version {metadata.get('version')}; this package reads {VERSION}: update."
        )
    whole = metadata["version"] != _TENSORS_ALONE
    expected = content_sha256(tensors, metadata) if whole else state_sha256(tensors)
    try:
        if metadata["content_sha256"] == expected:
            return _delta(metadata, tensors)
    except (LookupError, TypeError, ValueError, RuntimeError):  # of a header that says something else than the tensors
        pass
    raise DataError(f"{path} is corrupt or was edited: its content does not match its checksum; get it again.")


def content_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of a safetensors file's tensors and metadata, without the entry that holds it."""
    digest = hashlib.sha256(state_sha256(tensors).encode())
    for key, value in sorted(metadata.items()):
        if key != "content_sha256":
            digest.update(f"{len(key)}|{key}|{len(value)}|{value}|".encode())
    return digest.hexdigest()


def _delta(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Delta:
    """Return what the parts of a file say."""
    rows = parse_json(metadata["tensors"])
    counts = {name: count for name, _, count in rows}
    sizes = {name: size for name, size, _ in rows}
    parts: dict[str, dict[str, Tensor]] = {"added": {}, "Featurizer": {}, "Downstream": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if rest:
            parts.setdefault(part, {})[rest] = tensor
    added = parts.pop("added")
    if any(not 0 <= counts[name] <= size for name, size in sizes.items()):
        raise ValueError("a tensor with more changed entries than it has")
    return Delta(
        metadata["base_sha256"],
        _unpack_indices(tensors["gaps"], sizes, counts),
        _unpack_bits(tensors["bits"], counts),
        sizes,
        added,
        {part: states for part, states in parts.items() if states},
        parse_json(metadata["info"]),
        members=_unpack_members(tensors[MEMBERS], counts) if MEMBERS in tensors else {},
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _pack_indices(delta: Delta) -> Tensor:
    """Return the deflated gaps.

    Those of a Fisher mask repeat. Those of a random one do not, and searching them for repeated strings takes six times
    as long and more bytes. The beginning of every tensor tells which it is.
    """
    gaps = list(_gaps(delta))
    beginnings = [part[:_SAMPLE] for part in gaps]
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE)
    return _deflated(gaps, min(strategies, key=lambda strategy: len(_deflated(beginnings, strategy))))


def _gaps(delta: Delta) -> Iterator[bytes]:
    """Yield, for each tensor, the gaps between the changed entries of all tensors, laid end to end, one byte each."""
    start, last = 0, -1
    for name, indices in delta.indices.items():
        if indices.numel():
            positions = indices.cpu().numpy().astype(np.int64) + start
            gaps = np.diff(positions, prepend=last) - 1
            long = gaps // _NO_GAP
            ends = np.cumsum(long + 1) - 1
            stream = np.full(int(ends[-1]) + 1, _NO_GAP, np.uint8)
            stream[ends] = gaps - long * _NO_GAP
            yield stream.tobytes()
            last = int(positions[-1])
        start += delta.sizes[name]


def _unpack_indices(packed: Tensor, sizes: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, Tensor]:
    longest = sum(counts.values()) + sum(sizes.values()) // _NO_GAP
    stream = np.frombuffer(_inflated(packed, longest), np.uint8)
    ends = np.flatnonzero(stream != _NO_GAP)
    positions = np.cumsum(stream, dtype=np.int64)[ends] + np.arange(len(ends))
    indices, start, first = {}, 0, 0
    for name, count in counts.items():
        found = positions[first : first + count] - start
        if len(found) != count or (count and not 0 <= found[0] <= found[-1] < sizes[name]):  # gaps only ascend
            raise ValueError("an entry outside its tensor")
        indices[name] = torch.from_numpy(found)
        start, first = start + sizes[name], first + count
    return indices


def _pack_bits(delta: Delta) -> Tensor:
    """Return the bits by byte plane: the high bytes of small updates are zero and shrink to nothing.

    The low bytes are noise, where looking for repeated strings costs most of the time and finds none: runs are enough.
    """
    return _deflated(_planes(delta), zlib.Z_RLE)


def _planes(delta: Delta) -> Iterator[bytes]:
    """Yield the lowest byte of each entry, tensor by tensor, then the second one, and so on."""
    for plane in range(4):
        for name in delta.indices:
            entries = delta.bits[name].cpu().numpy().astype("<i4", copy=False)
            yield entries.view(np.uint8).reshape(-1, 4)[:, plane].tobytes()


def _unpack_bits(packed: Tensor, counts: Mapping[str, int]) -> dict[str, Tensor]:
    planes = np.frombuffer(_inflated(packed, 4 * sum(counts.values())), np.uint8).reshape(4, -1)
    flat = torch.from_numpy(np.ascontiguousarray(planes.T).reshape(-1).view("<i4").astype(np.int32))
    return dict(zip(counts, flat.split(list(counts.values())))) if counts else {}


def _pack_members(delta: Delta) -> Tensor:
    """Return one bit for each entry, laid end to end."""
    flags = np.concatenate([delta.members[name].cpu().numpy() for name in delta.indices])
    return _deflated([np.packbits(flags).tobytes()])


def _unpack_members(packed: Tensor, counts: Mapping[str, int]) -> dict[str, Tensor]:
    total = sum(counts.values())
    flags = np.unpackbits(np.frombuffer(_inflated(packed, -(-total // 8)), np.uint8), count=total).astype(bool)
    return dict(zip(counts, torch.from_numpy(flags).split(list(counts.values()))))


def _deflated(parts: Iterable[bytes], strategy: int = zlib.Z_DEFAULT_STRATEGY) -> Tensor:
    """Return the deflated content of all parts together; a part is asked for when the one before it is done."""
    deflate = zlib.compressobj(6, strategy=strategy)
    content = bytearray()
    for part in parts:
        content += deflate.compress(part)
    content += deflate.flush()
    return torch.frombuffer(content, dtype=torch.uint8)


def _inflated(packed: Tensor, longest: int) -> bytes:
    """Return the content of a deflated tensor, which the sizes in the header allow to be `longest` bytes."""
    inflate = zlib.decompressobj()
    try:
        content = inflate.decompress(packed.numpy().tobytes(), longest + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) > longest or not inflate.eof:
        raise ValueError("more content than the sizes in the header allow, or less than there was")
    return content
