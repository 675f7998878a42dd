"""Help and wrong flags are answered before torch is imported; upstreams that are not used import nothing."""

from __future__ import annotations

import json

import pytest

from s3prl_ext import cli
from s3prl_ext.adapters import DIMENSIONS
from s3prl_ext.commands import flags
from s3prl_ext.commands.prepare import CORPORA
from s3prl_ext.merging.names import SIMILARITY_NAMES
from s3prl_ext.merging.similarity import SIMILARITIES
from s3prl_ext.models.sizes import SIZES
from tests.support import python_process

HEAVY = ("torch", "transformers", "s3prl", "torchaudio", "pandas", "soundfile", "scipy", "matplotlib")
ANSWERED = [*sorted(flags.PARSERS), *(f"prepare {corpus}" for corpus in CORPORA)]

# runs every command in one interpreter, with --help and with a flag that does not exist
COMMANDS = """
import contextlib, io, json, sys
from s3prl_ext import cli
found = {}
for command in %r:
    command = command.split()
    for flag in ("--help", "--no-such-flag"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = cli.main([*command, flag])
            except SystemExit as error:
                code = error.code
        found[" ".join([*command, flag])] = [code, said.getvalue(), [name for name in %r if name in sys.modules]]
print(json.dumps(found))
"""

EVALUATION = """
import json, sys
import s3prl_ext
s3prl_ext.install()
from s3prl import hub
before = [name for name in ("transformers", "torch._dynamo") if name in sys.modules]
hub.fbank()
print(json.dumps([before, [name for name in ("transformers", "torch._dynamo") if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    code = COMMANDS % (ANSWERED, HEAVY)
    done = python_process.run(tmp_path_factory.mktemp("help"), "-c", code, hook=False)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_and_wrong_flags_import_no_library(answers):
    assert len(answers) == 2 * len(ANSWERED)
    for call, (code, said, imported) in answers.items():
        command, _, flag = call.rpartition(" ")
        allowed = ["soundfile"] if command.startswith("prepare ") else []  # 0.1 s, with numpy
        assert [name for name in imported if name not in allowed] == [], call
        assert code == (0 if flag == "--help" else 2) and f"s3prl-ext {command}" in said, call


def test_every_parser_belongs_to_a_command():
    assert set(flags.PARSERS) < set(cli.COMMANDS)


def test_an_upstream_without_transformers_does_not_import_it(tmp_path):
    before, after = json.loads(python_process.run(tmp_path, "-c", EVALUATION).stdout.splitlines()[-1])
    assert before == after == []


def test_names_of_flags_are_those_of_what_they_choose():
    assert tuple(DIMENSIONS) == SIZES and tuple(SIMILARITIES) == SIMILARITY_NAMES
