"""Scores of weights that several runs share: one pass for all that would compute the same, ``--fisher_scores FOLDER``.

A file is called by the hash of everything that the scores depend on (:mod:`s3prl_ext.training.selection.pass_facts`),
and holds all of it. A run that finds the file takes the scores from it, bitwise those of its own pass; one that meets
another run making it waits. What is damaged, or was made of anything else, is not taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from s3prl_ext.child_tuning.delta import content_sha256
from s3prl_ext.configs import Section
from s3prl_ext.errors import DataError
from s3prl_ext.locks import InUse, one_writer
from s3prl_ext.reading import parse_json
from s3prl_ext.training.selection.pass_facts import BATCH_SIZE, differences, estimated_by, expert_of, task_in
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

Scores = Mapping[str, torch.Tensor]
FORMAT = "s3prl_ext.fisher_scores"
SUFFIX = ".safetensors"
WAIT_S = 1.0  # between two looks at what another run is making


def scores_of_tasks(folder: Path, tasks: Sequence[Section], upstream_sha256: str) -> list[Scores]:
    """Return the Fisher information of each of several tasks from a folder that their runs shared.

    It is that of a pass over the task's own corpus with its own features and section ``downstream_expert``.

    Args:
        folder: that was given as ``--fisher_scores`` when child networks with ``mask: fisher`` were chosen for them.
        tasks: what is known of each, see :class:`s3prl_ext.deltas.trained_task.TrainedTask`.
        upstream_sha256: hash of the untuned upstream, on which it was estimated.

    Raises:
        DataError: the folder has none for a task and upstream, or several, or passes of two tasks had other settings.
    """
    passes = list(_fisher_passes(folder, upstream_sha256))
    chosen = [_pass_over(info, passes, folder) for info in tasks]
    settings = [estimated_by(one.facts) for one in chosen]
    for info, own in zip(tasks, settings):
        unlike = sorted(key for key in {*own, *settings[0]} if own.get(key) != settings[0].get(key))
        if unlike:
            said = "; ".join(f"{key}: {settings[0].get(key)} and {own.get(key)}" for key in unlike)
            advice = ", {granularity: sample}, which reads single clips" if BATCH_SIZE in unlike else ""
            raise DataError(
                f"the Fisher information of {_name(tasks[0])} and {_name(info)} in {folder} was estimated with other "
                f"settings ({said}), so the two cannot be weighed against each other: train child networks on both "
                f"with the same section tuning.fisher{advice}."
            )
    return [_read(one.path)[1] for one in chosen]


class _FisherPass(NamedTuple):
    path: Path
    facts: Section


def _fisher_passes(folder: Path, upstream_sha256: str) -> Iterator[_FisherPass]:
    """Yield the passes over an upstream whose Fisher information a folder holds.

    Raises:
        DataError: a file is damaged.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            facts, _ = _read(path)
        except DataError as error:
            raise DataError(f"{error}: remove it and run its task again.") from error
        if (facts.get("pass") or {}).get("mask") == "fisher" and (facts.get("weights") or [0])[0] == upstream_sha256:
            yield _FisherPass(path, facts)


def _pass_over(info: Section, passes: Sequence[_FisherPass], folder: Path) -> _FisherPass:
    """Return the only pass over what a task was trained on."""
    unlike = [(differences(one.facts, info), one) for one in passes]
    found = [one for different, one in unlike if not different]
    if not found:
        nearest = min((different for different, _ in unlike if "task" not in different), key=len, default=[])
        only = f", only of another {' and '.join(nearest)}" if nearest else ""
        raise DataError(
            f"{folder} has no Fisher information of {_name(info)} on this upstream{only}: train a child network with "
            f"mask: fisher on it with --fisher_scores {folder}."
        )
    if len(found) > 1:
        raise DataError(
            f"{folder} has the Fisher information of {len(found)} passes over {_name(info)}, of other settings or "
            "seeds: give a folder with one for each task."
        )
    return found[0]


def _name(info: Section) -> str:
    return " ".join(filter(None, (task_in(info, expert_of(info.get("config"))).name, info.get("downstream_variant"))))


def _read(path: Path) -> tuple[Section, Scores]:
    """Return what scores depend on, and the scores; both empty where the file is something else.

    Raises:
        DataError: its content is damaged; the caller adds what to do.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                return {}, {}
            scores = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is not readable ({error})") from error
    if metadata.get("content_sha256") != content_sha256(scores, metadata):
        raise DataError(f"{path} is damaged")
    facts: Section = parse_json(metadata["facts"])
    return facts, scores


class SharedScores:
    """The scores of one pass in a folder.

    Args:
        folder: of all shared scores; made where it is missing.
        facts: everything that the scores depend on, see :func:`s3prl_ext.training.selection.pass_facts.facts_of`.
    """

    def __init__(self, folder: Path, facts: Section) -> None:
        self.facts = json.dumps(facts, sort_keys=True, default=str)
        self.path = folder / f"{hashlib.sha256(self.facts.encode()).hexdigest()[:32]}{SUFFIX}"

    def get(self, parameters: Mapping[str, torch.Tensor], compute: Callable[[], Scores]) -> Scores:
        """Return the scores of the parameters, from the file where it is there; else compute them and write it.

        Args:
            parameters: eligible parameters by name; scores are on their devices.
            compute: the pass itself.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("Fisher scores are not shared: %s", error)
            return compute()
        waited = False
        while True:
            try:
                with one_writer(self.path):
                    found = self._load(parameters)
                    if found is None:
                        found = compute()
                        self._save(found)
                    return found
            except InUse:
                if not waited:
                    logger.info("waiting for the Fisher scores that another run computes for %s", self.path)
                waited = True
                time.sleep(WAIT_S)

    def _load(self, parameters: Mapping[str, torch.Tensor]) -> Scores | None:
        if not self.path.is_file():
            return None
        try:
            facts, scores = _read(self.path)
        except DataError as error:
            logger.warning("%s: the Fisher scores are computed again", error)
            return None
        fits = {name: tuple(score.shape) for name, score in scores.items()} == {
            name: tuple(parameter.shape) for name, parameter in parameters.items()
        }
        if facts != parse_json(self.facts) or not fits:
            logger.warning("%s is damaged: the Fisher scores are computed again", self.path)
            return None
        logger.info("taking the Fisher scores from %s", self.path)
        return {name: scores[name].to(parameter.device) for name, parameter in parameters.items()}

    def _save(self, scores: Scores) -> None:
        tensors = {name: score.detach().cpu().contiguous() for name, score in scores.items()}
        metadata = {"format": FORMAT, "facts": self.facts}
        metadata["content_sha256"] = content_sha256(tensors, metadata)
        try:
            with written(self.path) as temporary:
                save_file(tensors, temporary, metadata)
        except (OSError, SafetensorError, DataError) as error:
            logger.warning("the Fisher scores are not shared, %s cannot be written: %s", self.path, error)
