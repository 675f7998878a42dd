"""What README and docs show: their commands, files and blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    """Return what a page is called in the name of a test."""
    return page.stem.lower()


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the command lines of a page in their order."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    return [" ".join(line.split()) if "'" not in line else line.strip() for line in text.splitlines() if line.strip()]


def files(page: Path) -> dict[str, str]:
    """Return the files that a page shows: blocks that begin with their own name, as in ``# my_merge.yaml``."""
    shown = [block for language in ("yaml", "python", "toml") for block in blocks(page, language)]
    named = [(re.match(r"# (\S+\.(?:yaml|py|toml))\n", block), block) for block in shown]
    return {match[1]: block for match, block in named if match}


def experiments() -> dict[str, str]:
    """Return the first command of the pages that makes each experiment: name after ``-p exp/`` -> command."""
    lines = [line for page in reversed(PAGES) for line in reversed(commands(page))]
    return {match[1]: line for line in lines if (match := re.search(r"-p exp/(\w+)", line))}
