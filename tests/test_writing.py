"""Files and folders appear whole or not at all, and leave no part behind."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from s3prl_ext.writing import unfinished_folder, write_json, write_text, written, written_folder

FAILURES = (ValueError, KeyboardInterrupt, SystemExit)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.json"
    with written(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == tmp_path
        assert temporary.name.startswith(".a.json."), "clean-up finds parts by the name of their file"
        temporary.write_text("whole")
    assert path.read_text() == "whole" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_keeps_the_old_file_and_leaves_no_part(tmp_path, failure):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(failure), written(path) as temporary:
        temporary.write_text("new")
        raise failure
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "text")
        with written(tmp_path / "weights") as temporary:
            save_file({"a": torch.zeros(3)}, temporary)  # puts a file of its own there, which is private
        with written_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert modes == {"file": 0o666 & ~umask, "weights": 0o666 & ~umask, "folder": 0o777 & ~umask}


def test_writers_of_one_name_do_not_share_a_part(tmp_path):
    path = tmp_path / "a"
    with written(path) as first:
        with written(path) as second:
            second.write_text("second")
            first.write_text("first")
            assert first != second
        assert path.read_text() == "second"
    assert path.read_text() == "first" and names(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "text")
    assert names(tmp_path) == ["folder"]


def test_json_is_indented_and_takes_the_options_of_dumps(tmp_path):
    write_json(tmp_path / "a.json", {"λ": [0.5]})
    write_json(tmp_path / "b.json", {"λ": tmp_path}, indent=None, ensure_ascii=False, default=str)
    assert (tmp_path / "a.json").read_text() == '{\n  "\\u03bb": [\n    0.5\n  ]\n}\n'
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == f'{{"λ": {json.dumps(str(tmp_path))}}}\n'
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": tmp_path})
    assert json.loads((tmp_path / "a.json").read_text()) == {"λ": [0.5]}


def test_a_folder_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "out"
    with written_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("text")
        assert not path.exists() and folder.parent == path.parent
    assert (path / "inner" / "file").read_text() == "text" and names(path.parent) == ["out"]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_no_part_of_a_folder(tmp_path, failure):
    with pytest.raises(failure), written_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        raise failure
    assert names(tmp_path) == []


def test_a_folder_replaces_an_empty_one_and_no_other(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with written_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    with pytest.raises(OSError), written_folder(tmp_path / "full"):
        pass
    assert names(tmp_path / "empty") == ["file"] and names(tmp_path / "full") == ["notes"]
    assert names(tmp_path) == ["empty", "full"]


def test_a_unfinished_folder_a_place_is_gone_at_the_end(tmp_path):
    with unfinished_folder(tmp_path / "out") as first, unfinished_folder(tmp_path / "out") as second:
        assert first != second and {first.parent, second.parent} == {tmp_path}
        (first / "file").touch()
        os.replace(second, tmp_path / "out")
    assert names(tmp_path) == ["out"]
