"""The validated section ``runner`` of a task file, and the names of all its sections."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3prl_ext.configs import check_keys
from s3prl_ext.errors import nearest
from s3prl_ext.training.values import raise_all, read_count, read_names, read_positive

logger = logging.getLogger(__name__)

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

    total_steps: int | None = None
    epochs: float | None = None
    gradient_clipping: float = 1.0
    gradient_accumulate_steps: int = 1
    log_step: int = 100
    eval_step: int = 5000
    save_step: int = 1000
    max_keep: int = 1
    eval_dataloaders: tuple[str, ...] = ("dev",)
    train_dataloader: str = "train"
    evaluate_ratio: float = 1.0
    fp16: bool = False
    amp: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], stored: bool = False) -> RunnerConfig:
        """Check section ``runner`` of a task file; all problems are reported in one UsageError.

        Args:
            config: the whole task file.
            stored: it comes from a checkpoint that is only evaluated: unknown keys are warned about, not refused.
        """
        section = dict(config.get("runner") or {})
        problems = check_keys(section, [f.name for f in fields(cls)], "runner")
        if stored:
            _warn_of_stored(problems)
            problems = []
        values: dict[str, Any] = {}
        for name in ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep"):
            if section.get(name) is not None:
                values[name] = read_count(section[name], f"runner.{name}", problems)
        for name in ("epochs", "gradient_clipping", "evaluate_ratio"):
            if section.get(name) is not None:
                values[name] = read_positive(section[name], f"runner.{name}", problems)
        values["eval_dataloaders"] = read_names(
            section.get("eval_dataloaders", ["dev"]), "runner.eval_dataloaders", problems
        )
        if values.get("evaluate_ratio") is not None and values["evaluate_ratio"] > 1:
            problems.append(f"runner.evaluate_ratio must lie in (0, 1], but is {values['evaluate_ratio']:g}.")
        if not isinstance(section.get("fp16", False), bool):
            problems.append(f"runner.fp16 must be true or false, but is {section['fp16']!r}.")
        values["train_dataloader"] = section.get("train_dataloader", "train")
        values["fp16"] = bool(section.get("fp16", False))
        values["amp"] = section.get("amp") or ("fp16" if values["fp16"] else None)
        if values["amp"] not in (None, "fp16", "bf16"):
            problems.append(f"runner.amp must be bf16 or fp16, but is {values['amp']!r}.")
        if (section.get("total_steps") is None) == (section.get("epochs") is None):
            problems.append("runner needs either total_steps or epochs (one of the two).")
        raise_all(problems)
        return cls(**values)


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
        problems += check_keys(config["specaug"], known, "specaug")
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
        elif str(key).endswith(("batch_size", "batchsize")) and value is not None:
            read_count(value, place, problems)
        elif key == "num_workers" and value is not None:
            read_count(value, place, problems, least=0)
    return problems
