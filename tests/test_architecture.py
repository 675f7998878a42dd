"""Imports go one way: commands -> s3prl-facing parts -> the science, which runs with torch alone."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "s3prl_ext"

# part -> parts it may import (besides itself); s3prl only where SEES_S3PRL says so
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "layer_sets": {"errors"},
    "package_versions": set(),
    "tables": set(),
    "settings": {"errors", "layer_sets"},
    "locks": {"errors"},
    "writing": {"errors", "locks"},
    "progress": set(),
    "hub": {"errors"},
    "downloads": {"errors"},
    "reading": {"errors"},
    "model_settings": {"errors"},
    "metrics": {"errors"},
    "tasks": {"metrics", "errors"},
    "run_folder": {"tasks", "errors"},
    "tracking": {"randomness", "errors"},
    "configs": {"errors"},
    "overrides": {"configs", "errors"},
    "models": {"errors"},
    "randomness": set(),
    "attention": {"models", "configs", "metrics", "errors"},
    "merging": {"randomness", "models", "attention", "configs", "metrics", "errors"},
    "child_tuning": {"randomness", "models", "attention", "configs", "metrics", "errors"},
    "evaluation": {"child_tuning", "merging", "models", "attention", "configs", "tasks", "metrics", "errors"},
    "papers": {"child_tuning", "evaluation", "configs", "tasks", "metrics", "errors"},
    "corpora": {"attention", "configs", "metrics", "errors"},
    "studies": {
        "models",
        "overrides",
        "child_tuning",
        "training",
        "evaluation",
        "configs",
        "tasks",
        "metrics",
        "errors",
        "run_flags",
        "run_checks",
        "plugin",
    },
    "mini_superb": {"corpora", "configs", "tasks", "errors"},
    "transformers_models": {"models", "errors"},
    "compat": {"transformers_models", "randomness", "corpora", "tasks", "attention", "configs", "errors"},
    "upstreams": {
        "overrides",
        "randomness",
        "models",
        "transformers_models",
        "merging",
        "corpora",
        "attention",
        "configs",
        "metrics",
        "errors",
    },
    "adapters": {"models", "attention", "configs", "metrics", "errors"},
    "downstreams": {"evaluation", "corpora", "training", "upstreams", "attention", "configs", "metrics", "errors"},
    "sweeps": {
        "models",
        "randomness",
        "papers",
        "studies",
        "training",
        "downstreams",
        "upstreams",
        "merging",
        "evaluation",
        "corpora",
        "attention",
        "configs",
        "tasks",
        "metrics",
        "errors",
        "run_flags",
        "run_checks",
    },
    "deltas": {
        "models",
        "transformers_models",
        "training",
        "upstreams",
        "adapters",
        "merging",
        "child_tuning",
        "attention",
        "configs",
        "tasks",
        "metrics",
        "errors",
    },
    "prediction": {
        "deltas",
        "training",
        "downstreams",
        "upstreams",
        "evaluation",
        "corpora",
        "compat",
        "configs",
        "tasks",
        "metrics",
        "errors",
    },
    "training": {
        "overrides",
        "compat",
        "models",
        "randomness",
        "transformers_models",
        "upstreams",
        "adapters",
        "merging",
        "child_tuning",
        "evaluation",
        "attention",
        "configs",
        "tasks",
        "metrics",
        "errors",
    },
}
EVERYWHERE = {
    "writing",
    "reading",
    "model_settings",
    "locks",
    "progress",
    "hub",
    "downloads",
    "layer_sets",
    "package_versions",
    "settings",
    "tables",
    "run_folder",
    "tracking",
}  # every part may import them; they import errors at most
SEES_S3PRL = {
    "compat",
    "deltas",
    "prediction",
    "upstreams",
    "training",
    "downstreams",
    "sweeps",
    "commands",
    "plugin",
    "extensions",
    "run_downstream",
    "run_checks",
    "tasks",
    "run_flags",
    "doctor",
    "cli",
    "_autoload",
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(p for p in PACKAGE.rglob("*.py") if part_of(p) != "__init__")


def forbidden_imports(path: Path) -> set[str]:
    """Return the names that a file imports and must not."""
    part, imported = part_of(path), imports_of(path)
    forbidden = set()
    if part in MAY_IMPORT:
        ours = {name.split(".")[1] for name in imported if name.startswith("s3prl_ext.")}
        forbidden |= ours - MAY_IMPORT[part] - EVERYWHERE - {part}
    if part not in SEES_S3PRL:
        forbidden |= {name for name in imported if name == "s3prl" or name.startswith("s3prl.")}
    return forbidden


def test_imports_go_one_way():
    found = {str(path.relative_to(PACKAGE)): sorted(forbidden_imports(path)) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_every_part_has_a_rule():
    parts = {part_of(p) for p in FILES}
    assert parts - set(MAY_IMPORT) <= SEES_S3PRL, "a new part needs a row in MAY_IMPORT"
