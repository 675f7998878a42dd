"""The validated section ``runner`` of a task file, and the names of all its sections."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from s3prl_ext.errors import UsageError, nearest
from s3prl_ext.settings import choice, count, load, name, names, number, raise_all, switch, unknown_keys

logger = logging.getLogger(__name__)

MOST_BATCHES = 100_000  # of an optimizer step: with more of them it would never end, nor could it be interrupted
MOST_WORKERS = 1024
TOP_LEVEL = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert", "tuning", "early_stop")


@dataclass(frozen=True)
class RunnerConfig:
    """Section ``runner``: s3prl's keys, and ours where marked.

    Attributes:
        total_steps: optimizer steps; None where `epochs` is given.
        epochs: ours: passes over the training loader in place of `total_steps`.
        gradient_clipping: largest norm of the gradient of everything that trains.
        gradient_accumulate_steps: batches per optimizer step.
        log_step, eval_step, save_step: every how many optimizer steps; the end of the run counts as well.
        max_keep: how many ``states-N.ckpt`` files stay.
        eval_dataloaders: splits that are scored during training.
        train_dataloader: name of the training split.
        evaluate_ratio: share of each evaluation split that is scored.
        fp16: s3prl's switch for mixed precision, the same as ``amp: fp16``.
        amp: ours: ``bf16`` or ``fp16`` mixed precision.
    """

    total_steps: Annotated[int | None, count()] = None
    epochs: Annotated[float | None, number(above=0)] = None
    gradient_clipping: Annotated[float, number(above=0)] = 1.0
    gradient_accumulate_steps: Annotated[int, count(most=MOST_BATCHES)] = 1
    log_step: Annotated[int, count()] = 100
    eval_step: Annotated[int, count()] = 5000
    save_step: Annotated[int, count()] = 1000
    max_keep: Annotated[int, count()] = 1
    eval_dataloaders: Annotated[tuple[str, ...], names(least=0)] = ("dev",)
    train_dataloader: Annotated[str, name()] = "train"
    evaluate_ratio: Annotated[float, number(above=0, most=1)] = 1.0
    fp16: Annotated[bool, switch()] = False
    amp: Annotated[str | None, choice("bf16", "fp16")] = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], stored: bool = False) -> RunnerConfig:
        """Check section ``runner`` of a task file; all problems are reported in one UsageError.

        Args:
            config: the whole task file.
            stored: it comes from a checkpoint that is only evaluated: unknown keys are warned about, not refused.
        """
        section = dict(config.get("runner") or {})
        if stored:
            known = [field.name for field in fields(cls)]
            _warn_of_stored(unknown_keys(section, known, "runner"))
            section = {key: value for key, value in section.items() if key in known}
        if "eval_dataloaders" in section:
            section["eval_dataloaders"] = section["eval_dataloaders"] or []  # an empty key: no split is scored
        runner = load(cls, section, "runner")
        return replace(runner, amp=runner.amp or "fp16") if runner.fp16 else runner

    def conflicts(self, where: str) -> Iterator[str]:
        """Yield what does not go together."""
        if (self.total_steps is None) == (self.epochs is None):
            yield f"{where} needs either total_steps or epochs (one of the two)."


def _warn_of_stored(problems: list[str]) -> None:
    for problem in problems:
        logger.warning("the checkpoint's task file has a setting of another program, which is not used: %s", problem)


def check_top_level(config: Mapping[str, Any], stored: bool = False) -> None:
    """Refuse top-level keys of a task file that look like a misspelt known one.

    Other keys are left alone: s3prl hands them to the downstream expert.

    Args:
        config: the whole task file.
        stored: it comes from a checkpoint that is only evaluated: such keys are warned about, not refused.
    """
    problems: list[str] = []
    for key in config:
        if key not in TOP_LEVEL and nearest(key, TOP_LEVEL) != ".":
            problems.append(f"unknown section '{key}'{nearest(key, TOP_LEVEL)}")
    if stored:
        _warn_of_stored(problems)
        problems = []
    if isinstance(config.get("specaug"), Mapping):
        from s3prl.downstream.specaug import SpecAug

        known = list(inspect.signature(SpecAug).parameters)
        problems += unknown_keys(config["specaug"], known, "specaug")
    problems += _count_problems(config.get("downstream_expert"), "downstream_expert")
    for key in ("runner", "optimizer", "downstream_expert"):
        if not isinstance(config.get(key), Mapping):
            problems.append(f"section '{key}' is missing; see the presets in downstream_configs for a complete file.")
    raise_all(problems)


def _count_problems(section: Any, where: str) -> list[str]:
    """Return what is wrong with the batch sizes and numbers of workers below a section."""
    problems: list[str] = []
    for key, value in section.items() if isinstance(section, Mapping) else ():
        place = f"{where}.{key}"
        if isinstance(value, Mapping):
            problems += _count_problems(value, place)
            continue
        batch = str(key).endswith(("batch_size", "batchsize"))
        check = count() if batch else count(0, MOST_WORKERS) if key == "num_workers" else None
        if check is not None:  # no default: a null reaches s3prl's loaders as it is
            try:
                check(value, place)
            except UsageError as error:
                problems.append(str(error))
    return problems
