"""Settings and flags that nothing reads: refused where they look misspelt, else mentioned.

s3prl writes whatever ``-o`` says into the task file, and its tasks take what they know from there. Which keys a task
knows is read from its source: a key may be one where it is a string, or the name of an argument or a class.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import operator
from argparse import Namespace
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.configs import PACKAGE_DIR, Section, load_yaml, package_dir, shipped_dir
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.overrides import check_kind

SECTION = "downstream_expert"
NEAR = 0.8  # similarity from which a key of -o counts as misspelt
VERY_NEAR = 0.88  # the same in a whole task file, which may be for a task that hands keys on to another package

# What s3prl's parser and the plug-in read under args.
ARGUMENTS = (
    "mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "init_ckpt", "config", "downstream",
    "downstream_variant", "hub", "upstream", "upstream_ckpt", "upstream_model_config", "upstream_refresh",
    "upstream_trainable", "upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize",
    "upstream_model_name", "upstream_revision", "expname", "expdir", "auto_resume", "push_to_hf_hub", "hf_hub_org",
    "seed", "device", "cache_dir", "verbose", "disable_cudnn", "overwrite", "track", "until", "fisher_scores",
)  # fmt: skip


def check_overrides(overrides: Mapping[str, Any], config: Section, task: str) -> list[str]:
    """Check the keys and values of ``-o`` against the task file; return a remark for each that has no effect there.

    Args:
        overrides: values by dotted key, such as ``config.downstream_expert.datarc.batch_size``.
        config: the task file without the overrides.
        task: name for ``-d``.

    Raises:
        UsageError: a key is unknown and close to one next to it, or it reaches into a value that is not a section; or a
            text is in place of a bool, number, list or section of the task.
    """
    remarks = []
    for dotted, value in overrides.items():
        first, *path = dotted.split(".")
        name = ".".join(path)
        if first == "args" and name not in ARGUMENTS:
            if difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=NEAR):
                raise unknown_name("argument", name, ARGUMENTS, where="-o")
            remarks.append(f"-o {dotted}: s3prl has no such argument; only a task of your own could read it")
        if first == "config":
            place = _deepest(dotted, config, path)
            if path[0] != SECTION:  # the other sections have checks of their own
                continue
            if len(place) < len(path):
                remarks += _unknown(dotted, config, path, len(place), task)
            else:
                check_kind(value, functools.reduce(operator.getitem, path, config), dotted)
    return remarks


def unused_flags(flags: Namespace, checkpoint: Path | None, overrides: Container[str]) -> Iterator[str]:
    """Yield a remark for each flag of a command that its other flags leave without effect.

    Args:
        flags: the command line; what is None or False was not given.
        checkpoint: the one that ``-e`` or ``-a`` resumes, or None for a new experiment.
        overrides: keys of ``-o``.
    """
    if flags.mode == "train" and flags.evaluate_split is not None:
        yield "-t has no effect on a training: runner.eval_dataloaders of the task file names what is scored"
    one_layer = flags.upstream_feature_selection not in (None, "hidden_states") or flags.upstream_layer_selection
    if flags.upstream_feature_normalize and one_layer:
        yield "--upstream_feature_normalize has no effect: it is for the weighted sum of all hidden states"
    given = flags.expdir or (flags.expname and f"result/downstream/{flags.expname}")
    elsewhere = checkpoint is not None and given and Path(given).resolve() != checkpoint.parent.resolve()
    if checkpoint is not None and elsewhere and "args.expdir" not in overrides:
        yield f"-p {given} has no effect with -e: what is written goes to {checkpoint.parent}, or to -o args.expdir=..."


def misspelt_settings(config: Section, task: str) -> list[str]:
    """Return a remark for each key below ``downstream_expert`` that nothing reads and that is close to a preset's."""
    presets = shipped_dir("downstream_configs").glob("*/*.yaml")
    published = {place[-1] for path in presets for place in _paths(load_yaml(path).get(SECTION), ())}
    known = names_in_source(task) | published
    remarks = []
    for place in _paths(config.get(SECTION), (SECTION,)):
        close = difflib.get_close_matches(place[-1], published, n=1, cutoff=VERY_NEAR)
        if place[-1] not in known and close:
            remarks.append(f"{'.'.join(place)} is not read by the task {task}; did you mean '{close[0]}'?")
    return remarks


def _deepest(dotted: str, config: Any, path: list[str]) -> list[str]:
    """Return the part of a path that is in the task file."""
    for depth, key in enumerate(path):
        if not isinstance(config, Mapping):
            raise UsageError(
                f"-o: {dotted} cannot be set: {'.'.join(path[:depth])} is a value, {config!r}, not a section."
            )
        if key not in config:
            return path[:depth]
        config = config[key]
    return path


def _unknown(dotted: str, config: Section, path: list[str], depth: int, task: str) -> Iterator[str]:
    """Judge a key that is not in the task file; `depth` is the number of parts of `path` that are."""
    section: Any = config
    for part in path[:depth]:
        section = section[part]
    key, where = path[depth], ".".join(path[:depth])
    known = names_in_source(task)
    elsewhere = [".".join(place) for place in _paths(config[SECTION], (SECTION,)) if place[-1] == key]
    close = difflib.get_close_matches(key, map(str, section), n=1, cutoff=NEAR)
    if close and key not in known:
        raise UsageError(f"-o: {dotted}: there is no '{key}' in {where}; did you mean '{close[0]}'?")
    if elsewhere:
        yield f"-o {dotted} adds a key: in the task file '{key}' is config.{' and config.'.join(elsewhere)}"
    elif known and key not in known:
        yield f"-o {dotted} has no effect: the task file has no such key, and the task {task} reads none of that name"


def _paths(section: Any, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(section, Mapping):
        for key, value in section.items():
            yield (*before, str(key))
            yield from _paths(value, (*before, str(key)))


def names_in_source(task: str) -> set[str]:
    """Return every name that the source of a task could read a setting by; empty where there is no source."""
    spec = importlib.util.find_spec(f"s3prl.downstream.{task}")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder).rglob("*.py")]
    if not files:
        return set()
    files.append(package_dir("s3prl") / "downstream" / "model.py")
    files += (PACKAGE_DIR / "compat").rglob("*.py")  # stands in for files that s3prl's package lacks
    if PACKAGE_DIR in files[0].parents:  # our own tasks share their parts
        files += (PACKAGE_DIR / "downstreams").rglob("*.py")
    return {name for path in files for name in _names(path)}


def _names(path: Path) -> Iterator[str]:
    """Yield the strings of a source file and the names of its arguments, annotated fields and classes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def known_tasks() -> list[str]:
    """Return the names for ``-d``: every folder of s3prl's downstream package that has an expert."""
    import s3prl.downstream

    return sorted(path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py"))
