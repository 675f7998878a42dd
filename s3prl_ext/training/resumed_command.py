"""A command that goes on from a checkpoint says the same as the one that made it, or it is refused.

s3prl takes arguments and task file from the checkpoint and ignores what the command line says beside ``-o``: another
upstream, corpus, seed or task file would be given up without a word.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ext.configs import expand_variables, with_numbers
from s3prl_ext.errors import UsageError
from s3prl_ext.training.released_keys import translate

# flag -> name among the arguments of run_downstream.py
FLAGS = {
    "-u": "upstream", "-k": "upstream_ckpt", "-g": "upstream_model_config", "-d": "downstream",
    "-v": "downstream_variant", "-f": "upstream_trainable", "-s": "upstream_feature_selection",
    "-l": "upstream_layer_selection", "--upstream_feature_normalize": "upstream_feature_normalize", "--seed": "seed",
}  # fmt: skip
COMPLETED = "downstream_expert."  # the section to which a task may add what its file leaves open
LAST_LAYER = ("hidden_states", -1)  # -s and -l of the last hidden state where an upstream has no output of that name
_SHOWN = 4  # differences that the message names
_MISSING = "(nothing)"


def check_command(
    states: Mapping[str, Any],
    path: Path,
    flags: Namespace,
    asked: Mapping[str, Any] | None,
    stored: Mapping[str, Any] | None,
    overridden: Collection[str],
) -> None:
    """Raise UsageError where a command contradicts the checkpoint that it goes on from.

    Args:
        states: the checkpoint.
        path: its file.
        flags: the command line; what is None or False was not given.
        asked: the task file that the command names, with its ``-o``; None where it names none.
        stored: the task file of the checkpoint with the same ``-o``.
        overridden: keys of ``-o``, such as ``args.upstream``: these are changed on purpose.
    """
    differences = list(_flags(states.get("Args"), flags, overridden))
    if asked is not None and stored is not None:
        found = _between(_plain(stored), _plain(asked))
        differences += [row for row in found if not (row[0].startswith(COMPLETED) and row[2] in (_MISSING, None))]
    if not differences:
        return
    named = "; ".join(f"{what} {before} there, {now} here" for what, before, now in differences[:_SHOWN])
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    raise UsageError(
        f"{path} was made with other settings than this command gives ({named}{more}): repeat the first command, change "
        "a setting on purpose with -o (config.KEY=VALUE, args.NAME=VALUE), or start a new experiment with another -p."
    )


def _flags(stored: Any, flags: Namespace, overridden: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    for flag, name in FLAGS.items():
        now = getattr(flags, name, None)
        if now in (None, False) or f"args.{name}" in overridden or not hasattr(stored, name):
            continue
        before = getattr(stored, name)
        if str(before) == str(now) or (isinstance(before, str) and Path(before).resolve() == Path(str(now)).resolve()):
            continue
        if name == "upstream_feature_selection" and (before, stored.upstream_layer_selection) == LAST_LAYER:
            continue
        yield flag, before, now


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return translate(with_numbers(expand_variables(dict(config)), ("optimizer", "scheduler")))


def _between(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Return place and both values of everything that differs between two nested task files."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [(where, before, now)]
    found = []
    for key in [*before, *(key for key in now if key not in before)]:
        place = f"{where}.{key}" if where else str(key)
        found += _between(before.get(key, _MISSING), now.get(key, _MISSING), place)
    return found
