"""The help page of ``s3prl-ext run``: short, quick, complete."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import sys

import pytest

from s3prl_ext import cli, run_downstream
from s3prl_ext.commands import run_help
from s3prl_ext.errors import show_errors_as_sentences
from tests.support import python_process


def test_the_page_fits_a_screen_and_needs_no_torch(tmp_path):
    code = "import sys; from s3prl_ext import cli; cli.main(['run', '-h']); assert not {'torch', 's3prl'} & set(sys.modules)"
    page = python_process.run(tmp_path, "-c", code).stdout
    assert page.strip() == run_help.PAGE.strip()
    assert len(page.splitlines()) < 60 and max(map(len, page.splitlines())) <= 128
    assert "-c TASK/PRESET" in page and "-g FILE,,KEY=VALUE" in page


def test_the_page_has_every_flag_of_s3prl(monkeypatch):
    import s3prl_ext

    s3prl_ext.install()
    from s3prl import run_downstream as stock

    flags: list[str] = []

    class Ready(Exception):
        pass

    def stop(parser, *_):
        flags.extend(action.option_strings[0] for action in parser._actions)
        raise Ready

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Ready):
        stock.get_downstream_args()
    missing = [flag for flag in flags if flag != "-h" and not re.search(rf"(?<![\w-]){flag}(?![\w-])", run_help.PAGE)]
    assert len(flags) > 25 and not missing, missing


def test_upstreams_are_listed_without_what_is_none(capsys):
    assert cli.main(["run", "--help-upstreams"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert {"fbank", "hubert_base", "mam_hubert_tiny_minilm", "merged_attention", "timit_posteriorgram"} <= listed
    assert not {"FileLock", "Path", "glob", "os", "torch", "options", "load_and_convert_fairseq_ckpt"} & listed


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["-m", "trian"], "argument -m/--mode: invalid choice: 'trian'"),
        (["-m", "trian"], "; did you mean 'train'?"),
        (["-p", "exp"], "the following arguments are required: -m/--mode"),
        (["-m", "evaluate", "-e"], "argument -e/--past_exp: expected one argument"),
    ],
)
def test_the_parser_complains_in_one_sentence(monkeypatch, capsys, flags, part):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as stopped:
        try:
            run_downstream.main(flags)
        finally:
            show_errors_as_sentences(False)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert stopped.value.code == 2 and part in line and line.endswith(" See s3prl-ext run --help."), line


def test_a_name_that_the_hub_lacks_has_a_hint():
    import s3prl_ext

    s3prl_ext.install()
    from s3prl import hub

    with pytest.raises(
        AttributeError, match="no upstream 'mam_hubert_tinyminilm'; did you mean 'mam_hubert_tiny_minilm'"
    ):
        _ = hub.mam_hubert_tinyminilm
    assert not hasattr(hub, "nothing_like_it") and not hasattr(hub, "__wrapped__")


@pytest.mark.parametrize("module", ["s3prl_ext.run_downstream", "s3prl_ext.cli"])
def test_modules_run_as_commands(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module)  # as in a fresh process
    with contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert "s3prl-ext run" in capsys.readouterr().out
