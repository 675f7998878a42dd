"""Damage in torch files and exports is noticed wherever they are read: one flipped bit is enough."""

from __future__ import annotations

import json
import random
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from s3prl_ext import reading
from s3prl_ext.attention.files import load_torch
from s3prl_ext.errors import DataError
from s3prl_ext.reading import EXPORT_FILE, check_archive, check_model, file_sha256
from s3prl_ext.training import checkpoint
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.upstreams.beats.model import load_checkpoint as load_beats
from tests.support import factories
from tests.training.test_race_runs import same

CONTENT = {"Downstream": {"weight": torch.arange(3000.0)}, "Step": 3, "Args": Namespace(seed=1)}


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def flip_weights(path: Path) -> None:
    """Flip a bit in the largest part of a torch file."""
    record = max(zipfile.ZipFile(path).infolist(), key=lambda one: one.file_size)
    flip(path, record.header_offset + 400 + record.file_size // 2)


@pytest.fixture
def file(tmp_path):
    torch.save(CONTENT, tmp_path / "states-3.ckpt")
    return tmp_path / "states-3.ckpt"


def test_no_flipped_bit_gives_other_weights(file, tmp_path):
    draw, whole = random.Random(0), file.read_bytes()
    expected = checkpoint.load(file)
    refused = 0
    for _ in range(150):
        path = tmp_path / "flipped.ckpt"
        path.write_bytes(whole)
        flip(path, draw.randrange(len(whole)), draw.randrange(8))
        try:
            found = checkpoint.load(path)
        except DataError:
            refused += 1
            continue
        assert same({**found, "Args": vars(found["Args"])}, {**expected, "Args": vars(expected["Args"])})
    assert refused > 100, "most of the file is weights"


@pytest.mark.parametrize("read", [checkpoint.load, Checkpoint.read, load_torch, load_beats, check_model])
def test_every_reader_names_the_file_and_what_to_do(tmp_path, read):
    path = tmp_path / "model.ckpt"
    if read is load_beats:
        factories.beats_ckpt(path)
    else:
        torch.save(CONTENT, path)
    read(path)
    flip_weights(path)
    with pytest.raises(
        DataError, match=r"model\.ckpt is corrupt: its part .*data/\d+ does not match its checksum; copy or"
    ):
        read(path)


@pytest.mark.parametrize("method", [8, 12, 14])
def test_a_part_that_reads_as_compressed_is_corrupt(file, method):
    content = bytearray(file.read_bytes())
    content[content.find(b"PK\x01\x02") + 10] = method  # deflate, bzip2, LZMA
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"states-3\.ckpt is corrupt: its part .* does not match its checksum; copy or"):
        check_archive(file)


def test_a_file_is_read_once_until_it_changes(file, monkeypatch):
    opened = []
    zip_file = zipfile.ZipFile

    def counting(*args, **options):
        opened.append(args)
        return zip_file(*args, **options)

    monkeypatch.setattr(reading.zipfile, "ZipFile", counting)
    for _ in range(3):
        checkpoint.load(file)
    assert len(opened) == 1
    flip_weights(file)
    with pytest.raises(DataError):
        checkpoint.load(file)


def test_files_without_checksums_are_taken_as_they_are(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "none.ckpt")
    finally:
        torch.serialization.set_crc32_options(before)
    torch.save(CONTENT, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("none.ckpt", "old.ckpt"):
        check_archive(tmp_path / name)
        assert torch.equal(checkpoint.load(tmp_path / name)["Downstream"]["weight"], torch.arange(3000.0))


def test_an_export_is_compared_with_its_hashes(tmp_path):
    folder = factories.hubert_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    (folder / EXPORT_FILE).write_text(json.dumps({"files": {weights.name: file_sha256(weights)}}))
    check_model(folder)
    flip(weights, weights.stat().st_size - 5)
    for name in (folder, weights):
        with pytest.raises(
            DataError, match=r"model\.safetensors is corrupt or was changed: .* SHA-256 in export\.json; export"
        ):
            check_model(name)
    (folder / EXPORT_FILE).write_text("{}")
    check_model(folder)
    check_model("facebook/hubert-base-ls960")


def test_an_archive_that_reads_as_one_of_several_disks_is_damaged(file):
    content = bytearray(file.read_bytes())
    locator = content.rfind(b"PK\x06\x07")  # of the 64-bit directory, which torch writes
    if locator < 0:
        pytest.skip("this torch writes no 64-bit directory")
    content[locator + 16] = 7  # the number of disks
    file.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.is_zipfile(file)
    with pytest.raises(DataError):
        load_torch(file)
    with pytest.raises(DataError):
        Checkpoint.read(file, mmap=True)
