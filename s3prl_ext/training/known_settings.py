"""Settings and flags that nothing reads: refused where they look misspelt, else mentioned.

s3prl writes whatever ``-o`` says into the task file, and its tasks take what they know from there. Which keys and
sections a task knows is read from its source (:mod:`s3prl_ext.training.source_keys`).
"""

from __future__ import annotations

import difflib
import functools
import operator
from argparse import Namespace
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.configs import DOWNSTREAM_DIR, Section, load_yaml, shipped_dir
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.overrides import check_kind
from s3prl_ext.tasks import of_downstream
from s3prl_ext.training.source_keys import keys_of

SECTION = "downstream_expert"
TOP_LEVEL = ("runner", "optimizer", "scheduler", "specaug", SECTION, "tuning", "early_stop")
NEAR = 0.8  # similarity from which a key of -o counts as misspelt
VERY_NEAR = 0.88  # the same in a whole task file, which may be for a task that hands keys on to another package

# What s3prl's parser and the plug-in read under args.
ARGUMENTS = (
    "mode", "evaluate_split", "override", "backend", "local_rank", "past_exp", "init_ckpt", "config", "downstream",
    "downstream_variant", "hub", "upstream", "upstream_ckpt", "upstream_model_config", "upstream_refresh",
    "upstream_trainable", "upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize",
    "upstream_model_name", "upstream_revision", "expname", "expdir", "auto_resume", "push_to_hf_hub", "hf_hub_org",
    "seed", "device", "cache_dir", "verbose", "disable_cudnn", "overwrite", "track", "until", "fisher_scores",
    "untrained_head",
)  # fmt: skip
GIVEN = (*ARGUMENTS, "upstream_dim", "upstream_rate")  # what an expert is made with, apart from sections


def check_overrides(overrides: Mapping[str, Any], config: Section, task: str) -> list[str]:
    """Check the keys and values of ``-o`` against the task file; return a remark for each that has no effect there.

    Args:
        overrides: values by dotted key, such as ``config.downstream_expert.datarc.batch_size``.
        config: the task file without the overrides.
        task: name for ``-d``.

    Raises:
        UsageError: no task file has its section, nor does this task take one of that name; a key is unknown and close
            to one next to it, or it reaches into a value that is not a section; or a text is in place of a bool,
            number, list or section of a task that does not check its settings itself.
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
            if path[0] not in config and not _is_section(path[0], task):
                raise _unknown_section(dotted, config, path)
            place = _deepest(dotted, config, path)
            if path[0] != SECTION:  # the other sections have checks of their own
                continue
            if len(place) < len(path):
                remarks += _unknown(dotted, config, path, len(place), task)
            else:
                before = functools.reduce(operator.getitem, path, config)
                if not (DOWNSTREAM_DIR / task).is_dir():  # ours check their settings, of which some may be of two kinds
                    check_kind(value, before, dotted)
                if not isinstance(before, Mapping) and _is_idle(path[1:], task):
                    remarks.append(f"-o {dotted} has no effect: the task {task} does not use this key")
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
    if flags.expname and flags.expdir:
        yield f"-n {flags.expname} has no effect: -p names the folder, {flags.expdir}"
    given = flags.expdir or (flags.expname and f"result/downstream/{flags.expname}")
    elsewhere = checkpoint is not None and given and Path(given).resolve() != checkpoint.parent.resolve()
    if checkpoint is not None and elsewhere and "args.expdir" not in overrides:
        yield f"-p {given} has no effect with -e: what is written goes to {checkpoint.parent}, or to -o args.expdir=..."


def unread_settings(config: Section, task: str) -> list[str]:
    """Return a remark for each section that nothing reads, and each misspelt key below ``downstream_expert``.

    A key counts as misspelt where nothing reads it and it is close to one of a shipped task file.
    """
    remarks = []
    for key in config:
        if not _is_section(key, task):
            meant = _meant(config, [key])
            hint = f"; did you mean {meant}?" if meant else ""
            remarks.append(f"section {key} of the task file has no effect: the task {task} does not read it{hint}")
    presets = shipped_dir("downstream_configs").glob("*/*.yaml")
    published = {place[-1] for path in presets for place in _paths(load_yaml(path).get(SECTION), ())}
    keys = keys_of(task)
    for place in _paths(config.get(SECTION), (SECTION,)):
        close = difflib.get_close_matches(place[-1], published, n=1, cutoff=VERY_NEAR)
        if close and place[-1] not in published and not (keys and keys.may_read(place[1:])):
            remarks.append(f"{'.'.join(place)} is not read by the task {task}; did you mean '{close[0]}'?")
    return remarks


def _is_section(name: str, task: str) -> bool:
    """Tell whether a task file may have a section of this name: one of s3prl's, or for another task its own."""
    if name in TOP_LEVEL:
        return True
    keys = keys_of(task)
    return keys is not None and not keys.known and name not in GIVEN and keys.may_read([name])


def _unknown_section(dotted: str, config: Section, path: list[str]) -> UsageError:
    """Build the error for a key in a section that there is not."""
    if meant := _meant(config, path):
        return UsageError(f"-o {dotted}: unknown section of a task file '{path[0]}'; did you mean config.{meant}?")
    return unknown_name("section of a task file", path[0], {*TOP_LEVEL, *config}, where=f"-o {dotted}")


def _meant(config: Section, path: list[str]) -> str | None:
    """Return the only place of a task file that ends as a path does, or else in its key."""
    places = [list(place) for place in _paths(config, ()) if len(place) > 1]
    for end in (path, path[-1:]):
        found = [".".join(place) for place in places if place[-len(end) :] == end]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _is_idle(path: list[str], task: str) -> bool:
    """Tell whether a task does not use a key of its task file."""
    keys = keys_of(task)
    left_alone = any(path[-1] in record.not_used for record in of_downstream(task))
    return left_alone or (keys is not None and keys.known and not keys.may_read(path))


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
    keys = keys_of(task)
    read = keys is not None and keys.may_read(path[1 : depth + 1])
    elsewhere = [".".join(place) for place in _paths(config[SECTION], (SECTION,)) if place[-1] == key]
    close = difflib.get_close_matches(key, map(str, section), n=1, cutoff=NEAR)
    if close and not read:
        raise UsageError(f"-o: {dotted}: there is no '{key}' in {where}; did you mean '{close[0]}'?")
    if elsewhere:
        yield f"-o {dotted} adds a key: in the task file '{key}' is config.{' and config.'.join(elsewhere)}"
    elif keys is not None and not read:
        yield f"-o {dotted} has no effect: the task file has no such key, and the task {task} reads none of that name"


def _paths(section: Any, before: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(section, Mapping):
        for key, value in section.items():
            yield (*before, str(key))
            yield from _paths(value, (*before, str(key)))


def known_tasks() -> list[str]:
    """Return the names for ``-d``: every folder of s3prl's downstream package that has an expert."""
    import s3prl.downstream

    return sorted(path.parent.name for folder in s3prl.downstream.__path__ for path in Path(folder).glob("*/expert.py"))
