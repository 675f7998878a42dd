"""What the repository asks of people: issue templates, hooks before a commit, the versions that are stated."""

from __future__ import annotations

import re

import yaml

import s3prl_ext
from tests.support.documentation import ROOT


def test_every_issue_template_asks_for_doctor():
    templates = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(templates) == 2
    for path in templates:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))["body"]
        assert any("s3prl-ext doctor" in field["attributes"]["label"] for field in fields), path.name


def test_hooks_before_a_commit_are_the_linters_of_make():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    for command in ("ruff check", "ruff format", "mypy"):
        assert any(hook["entry"].startswith(command) for hook in hooks) and f"/{command}" in lint, command


def test_one_version_is_stated():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert str(citation["version"]) == s3prl_ext.__version__
    heads = re.findall(r"^## (.+)$", changes, re.MULTILINE)
    if heads[0] == "Unreleased":  # what lies between two releases is told from both
        assert re.fullmatch(r"\d+\.\d+\.\d+\.dev0", s3prl_ext.__version__)
        assert s3prl_ext.__version__ > heads[1]
    else:
        assert s3prl_ext.__version__ == heads[0]


def test_every_file_of_the_map_of_the_tests_is_there():
    page = (ROOT / "tests" / "support" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    here = ROOT / "tests" / "support"
    assert not {name for name in named if not ((here / name).is_file() or (ROOT / "tests" / name).is_file())}
    support = {path.name for path in here.glob("*.py")}
    assert support - named == set(), "say in tests/support/README.md what it is for"
