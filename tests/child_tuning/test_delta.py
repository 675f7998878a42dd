"""A delta turns the base into the tuned model and back, bit by bit, from a small file that cannot be mistaken."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from s3prl_ext.child_tuning import delta
from s3prl_ext.errors import DataError
from s3prl_ext.models.hashing import state_sha256


def tuned_model(density: float = 0.1, seed: int = 0) -> tuple[dict, dict, delta.Delta]:
    """Return base, tuned model and the delta between them; special values are among the entries."""
    generator = torch.Generator().manual_seed(seed)
    base = {
        name: torch.randn(size, generator=generator) for name, size in (("a", (40, 30)), ("b", (7,)), ("c", (999,)))
    }
    base["a"].view(-1)[:4] = torch.tensor([0.0, -0.0, float("inf"), 1e-42])
    tuned = {name: value.clone() for name, value in base.items()}
    indices = {}
    for name, value in tuned.items():
        chosen = torch.rand(value.numel(), generator=generator) < density
        chosen[:4] = True
        indices[name] = torch.nonzero(chosen).squeeze(1)
        value.view(-1)[indices[name]] = torch.randn(len(indices[name]), generator=generator)
    bits = delta.difference(
        {n: base[n].take(i) for n, i in indices.items()}, {n: tuned[n].take(i) for n, i in indices.items()}
    )
    sizes = {name: value.numel() for name, value in base.items()}
    added = {"adapter.up": torch.randn(3, 4, generator=generator)}
    task = {"Downstream": {"linear.weight": torch.randn(5, 2, generator=generator), "best_score": torch.ones(1)}}
    made = delta.Delta(state_sha256(base), indices, bits, sizes, added, task, {"upstream": "hubert", "step": 3})
    return base, tuned, made


def same_bits(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name].view(torch.int32), b[name].view(torch.int32)) for name in a)


def test_toggle_applies_and_reverts_bitwise():
    base, tuned, made = tuned_model()
    state = {name: value.clone() for name, value in base.items()}
    made.toggle(state)
    assert same_bits(state, tuned)
    assert not same_bits(state, base)
    made.toggle(state)
    assert same_bits(state, base)


@pytest.mark.parametrize("names", [2, 3])
def test_a_tensor_with_several_names_is_toggled_once(names):
    base, tuned = torch.zeros(6), torch.arange(6.0)
    bits = delta.difference({"w": base}, {"w": tuned})["w"]
    tied = [f"layer{number}" for number in range(names)]
    one = delta.Delta("", {"w": torch.arange(6)}, {"w": bits}, {"w": 6})
    made = replace(one, indices=dict.fromkeys(tied, torch.arange(6)), bits=dict.fromkeys(tied, bits),
                   sizes=dict.fromkeys(tied, 6))  # fmt: skip
    weight = base.clone()
    made.toggle(dict.fromkeys(tied, weight))
    assert torch.equal(weight, tuned)
    apart = {name: base.clone() for name in tied}
    made.toggle(apart)
    assert all(torch.equal(tensor, tuned) for tensor in apart.values())


def test_two_changes_of_one_tensor_are_refused():
    bits = {"a": torch.ones(6, dtype=torch.int32), "b": torch.full((6,), 2, dtype=torch.int32)}
    made = delta.Delta("", dict.fromkeys("ab", torch.arange(6)), bits, {"a": 6, "b": 6})
    weight = torch.zeros(6)
    with pytest.raises(DataError, match="two changes of one tensor, 'a' and 'b': make it again"):
        made.toggle({"a": weight, "b": weight})
    assert torch.equal(weight, torch.zeros(6))


def test_a_file_gives_back_everything(tmp_path: Path):
    base, tuned, made = tuned_model()
    delta.save(made, tmp_path / "delta.safetensors")
    read = delta.load(tmp_path / "delta.safetensors")
    assert read.base_sha256 == made.base_sha256
    assert read.info == {"upstream": "hubert", "step": 3}
    assert list(read.indices) == list(made.indices)
    assert all(torch.equal(read.indices[name], made.indices[name]) for name in made.indices)
    assert torch.equal(read.added["adapter.up"], made.added["adapter.up"])
    assert torch.equal(read.task["Downstream"]["linear.weight"], made.task["Downstream"]["linear.weight"])
    read.check_base(base)
    read.toggle(base)
    assert same_bits(base, tuned)
    assert [path.name for path in tmp_path.iterdir()] == ["delta.safetensors"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5000), unique=True), min_size=1, max_size=4))
def test_indices_survive_their_gap_code(tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]]):
    path = tmp_path_factory.mktemp("gaps") / "delta.safetensors"
    indices = {str(n): torch.tensor(sorted(row), dtype=torch.int64) for n, row in enumerate(lists)}
    bits = {name: torch.arange(len(row), dtype=torch.int32) - 2 for name, row in indices.items()}
    delta.save(delta.Delta("x", indices, bits, dict.fromkeys(indices, 5001)), path)
    read = delta.load(path)
    assert {n: i.tolist() for n, i in read.indices.items()} == {n: i.tolist() for n, i in indices.items()}
    assert {n: i.tolist() for n, i in read.bits.items()} == {n: i.tolist() for n, i in bits.items()}


def test_the_content_is_what_earlier_versions_wrote(tmp_path: Path):
    """Gaps of all tensors end to end, and byte planes, each one zlib stream: what 0.1 reads."""
    _, _, made = tuned_model(density=0.02)
    indices = {**made.indices, "empty": torch.zeros(0, dtype=torch.int64), "last": torch.tensor([700])}
    bits = {**made.bits, "empty": torch.zeros(0, dtype=torch.int32), "last": torch.tensor([-5], dtype=torch.int32)}
    sizes = {**made.sizes, "empty": 2000, "last": 701}
    delta.save(replace(made, indices=indices, bits=bits, sizes=sizes), tmp_path / "delta.safetensors")
    with safe_open(tmp_path / "delta.safetensors", framework="pt") as file:
        stored = {name: zlib.decompress(file.get_tensor(name).numpy().tobytes()) for name in ("gaps", "bits")}
    gaps, start, last = bytearray(), 0, -1
    for name, size in sizes.items():
        for index in indices[name].tolist():
            between = start + index - last - 1
            gaps += bytes([255]) * (between // 255) + bytes([between % 255])
            last = start + index
        start += size
    assert stored["gaps"] == bytes(gaps)
    flat = np.concatenate([bits[name].numpy() for name in indices]).astype("<i4")
    assert stored["bits"] == b"".join(flat.tobytes()[plane::4] for plane in range(4))


def test_saving_takes_the_memory_of_the_file_and_of_one_tensor(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    indices = {str(n): torch.arange(0, 200_000, 10, dtype=torch.int32) for n in range(40)}
    bits = {n: torch.randint(-(2**31), 2**31 - 1, i.shape, generator=generator).int() for n, i in indices.items()}
    made = delta.Delta("x", indices, bits, dict.fromkeys(indices, 200_000))
    tracemalloc.start()
    delta.save(made, tmp_path / "delta.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "delta.safetensors").stat().st_size
    assert peak < 2.5 * size, "8 times the file where all gaps are in memory at once"
    assert same_bits(delta.load(tmp_path / "delta.safetensors").bits, bits)


@pytest.mark.parametrize("mask", ["random", "columns"])
def test_gaps_take_no_more_bytes_than_either_way_of_deflating(mask: str, tmp_path: Path):
    """Gaps drawn at random hold no repeated strings; those of a mask with structure hold little else."""
    generator = torch.Generator().manual_seed(0)
    entries = torch.rand(3, 1000, 300, generator=generator)
    if mask == "columns":
        entries[:] = entries[0, 0].clone()
    indices = {str(n): (chosen < 0.1).reshape(-1).nonzero().squeeze(1) for n, chosen in enumerate(entries)}
    bits = {name: torch.zeros(len(row), dtype=torch.int32) for name, row in indices.items()}
    delta.save(delta.Delta("x", indices, bits, dict.fromkeys(indices, 300_000)), tmp_path / "d.safetensors")
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        packed = file.get_tensor("gaps").numpy().tobytes()
    gaps, sizes = zlib.decompress(packed), []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE):
        deflate = zlib.compressobj(6, strategy=strategy)
        sizes.append(len(deflate.compress(gaps) + deflate.flush()))
    assert len(packed) == min(sizes) < 0.95 * max(sizes)


def test_size_of_the_file_at_one_percent(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1_000_000, generator=generator)
    indices = torch.randperm(1_000_000, generator=generator)[:10_000].sort().values
    bits = delta.difference({"w": values[indices]}, {"w": values[indices] + 1.0})
    delta.save(delta.Delta("x", {"w": indices}, bits, {"w": values.numel()}), tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").stat().st_size < 10_000 * (4 + 1) + 2000


def test_another_base_is_refused():
    base, _, made = tuned_model()
    base["b"][0] += 1
    with pytest.raises(DataError, match="belongs to another upstream"):
        made.check_base(base)


def test_an_upstream_without_the_tensor_is_refused():
    base, _, made = tuned_model()
    kept = {name: value.clone() for name, value in base.items()}
    del base["c"]
    with pytest.raises(DataError, match="'c'"):
        made.toggle(base)
    assert same_bits(base, {name: kept[name] for name in base})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_an_upstream_in_another_type_is_refused_before_anything_is_turned(dtype: torch.dtype):
    base, _, made = tuned_model()
    last = list(made.indices)[-1]
    base[last] = base[last].to(dtype)
    kept = {name: value.clone() for name, value in base.items()}
    with pytest.raises(DataError, match=f"'{last}', which is {dtype} here"):
        made.toggle(base)
    assert all(torch.equal(base[name], kept[name]) for name in base)


@pytest.mark.parametrize("damage", ["truncated", "edited", "other", "version", "missing"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, damage: str):
    from safetensors.torch import save_file

    path = tmp_path / "delta.safetensors"
    _, _, made = tuned_model()
    delta.save(made, path)
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "edited":
        content[-3] ^= 1
        path.write_bytes(content)
    elif damage == "other":
        save_file({"x": torch.zeros(1)}, path)
    elif damage == "version":
        path.write_bytes(content.replace(b'"version":"2"', b'"version":"9"'))
    else:
        path.unlink()
    with pytest.raises(DataError) as caught:
        delta.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_byte_of_a_file_can_be_changed_unnoticed(tmp_path: Path):
    path = tmp_path / "delta.safetensors"
    _, _, made = tuned_model()
    delta.save(made, path)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in (*range(header), *range(header, len(content), 97)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << position % 7]) + content[position + 1 :])
        with pytest.raises(DataError):
            delta.load(path)


def test_a_file_of_version_1_is_read(tmp_path: Path):
    """Its checksum does not cover the header."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "delta.safetensors"
    _, _, made = tuned_model()
    delta.save(made, path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    older = header | {"version": "1", "content_sha256": state_sha256(tensors)}
    save_file(tensors, path, older)
    assert all(torch.equal(delta.load(path).bits[name], bits) for name, bits in made.bits.items())
    for spoilt in ({"tensors": "[[1]]"}, {"tensors": "{"}, {"info": "["}):
        save_file(tensors, path, older | spoilt)
        with pytest.raises(DataError, match="corrupt or was edited"):
            delta.load(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, _, made = tuned_model()
    path = tmp_path / "delta.safetensors"
    delta.save(made, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(delta, "save_file", full)
    with pytest.raises(DataError, match="No space left"):
        delta.save(replace(made, base_sha256="other"), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_only_float32_is_held():
    with pytest.raises(DataError, match="float16"):
        delta.difference({"w": torch.zeros(2).half()}, {"w": torch.ones(2).half()})


def test_the_hash_sees_name_dtype_shape_and_bits():
    state = {"w": torch.arange(6, dtype=torch.float32)}
    seen = {
        state_sha256(state),
        state_sha256({"v": state["w"]}),
        state_sha256({"w": state["w"].view(2, 3)}),
        state_sha256({"w": state["w"].double()}),
        state_sha256({"w": torch.from_numpy(np.array([-0.0, 1, 2, 3, 4, 5], np.float32))}),
    }
    assert len(seen) == 5


def rewritten(path: Path, **changes) -> None:
    """Change tensors or metadata of a delta file, with the checksum of the new content."""
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118
    for name, value in changes.items():
        (tensors if name in tensors else metadata)[name] = value
    metadata["content_sha256"] = delta.content_sha256(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"gaps": delta._deflated([bytes(50_000_000)])},
        {"bits": delta._deflated([bytes(50_000_000)])},
        {"gaps": delta._deflated([bytes(8)])[:-4]},
        {"tensors": json.dumps([["a", 3, 8]])},
        {"tensors": json.dumps([["a", 12, -8], ["b", 9, 16]])},
        {"tensors": json.dumps([["a", 12, 4], ["b", 12, 4]])},
    ],
    ids=["many gaps", "many bits", "cut", "more than there are", "negative", "outside"],
)
def test_a_crafted_file_takes_no_more_memory_than_its_header_says(tmp_path: Path, changes):
    indices = {"a": torch.arange(8)}
    made = delta.Delta("0" * 64, indices, {"a": torch.ones(8, dtype=torch.int32)}, {"a": 12}, {}, {}, {})
    path = tmp_path / "delta.safetensors"
    delta.save(made, path)
    assert torch.equal(delta.load(path).indices["a"], indices["a"])
    rewritten(path, **changes)
    tracemalloc.start()
    with pytest.raises(DataError, match="is corrupt or was edited"):
        delta.load(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
