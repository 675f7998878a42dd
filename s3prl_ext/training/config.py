"""The validated sections ``runner`` and ``tuning`` of a task file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from s3prl_ext.configs import as_number, check_keys
from s3prl_ext.errors import UsageError, nearest, unknown_name

logger = logging.getLogger(__name__)

TOP_LEVEL = ("runner", "optimizer", "scheduler", "specaug", "downstream_expert", "tuning")


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
    def from_config(cls, config: Mapping[str, Any]) -> RunnerConfig:
        """Check section ``runner`` of a task file; all problems are reported in one UsageError."""
        section = dict(config.get("runner") or {})
        problems = check_keys(section, [f.name for f in fields(cls)], "runner")
        values: dict[str, Any] = {}
        for name in ("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step", "max_keep"):
            if section.get(name) is not None:
                values[name] = _positive_integer(section[name], f"runner.{name}", problems)
        for name in ("epochs", "gradient_clipping", "evaluate_ratio"):
            if section.get(name) is not None:
                values[name] = _positive(section[name], f"runner.{name}", problems)
        values["eval_dataloaders"] = _names(
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


@dataclass(frozen=True)
class TuningConfig:
    """Section ``tuning``: which weights of the upstream train.

    Attributes:
        method: a name of :data:`s3prl_ext.training.methods.METHODS`.
        mask: child networks: ``fisher`` (CHILD-TUNING_D) or ``random`` (CHILD-TUNING_F).
        density: child networks: fraction of the eligible weights that trains, in (0, 1]; 1 for other methods.
        eligible: name patterns (shell wildcards) of weights that may join a child network; None = by architecture.
        fisher_max_batches: largest number of batches of the Fisher pass; None = the whole training split.
    """

    method: str
    mask: str = "fisher"
    density: float = 1.0
    eligible: tuple[str, ...] | None = None
    fisher_max_batches: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], methods: Mapping[str, Any]) -> TuningConfig | None:
        """Check section ``tuning`` of a task file; None where there is no such section.

        Args:
            config: the whole task file.
            methods: the known methods, by name; each has the attribute ``has_mask``.
        """
        if "tuning" not in config:
            return None
        section = config["tuning"]
        if not isinstance(section, Mapping):
            raise UsageError(f"tuning must be a mapping such as {{method: child}}, but is {section!r}.")
        problems = check_keys(section, ("method", "mask", "density", "eligible", "fisher"), "tuning")
        method = str(section.get("method", ""))
        if not method:
            problems.append(f"tuning.method is missing; known: {', '.join(methods)}.")
        elif method not in methods:
            problems.append(str(unknown_name("method", method, methods, where="tuning")))
        elif not methods[method].has_mask:
            problems += [
                f"tuning.{key} belongs to method child, not to {method}; remove it."
                for key in ("mask", "density", "eligible", "fisher")
                if key in section
            ]
        values: dict[str, Any] = {}
        if method in methods and methods[method].has_mask:
            values = _mask_values(section, problems)
        raise_all(problems)
        return cls(method=method, **values)


def _mask_values(section: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    mask = section.get("mask", "fisher")
    if mask not in ("fisher", "random"):
        problems.append(str(unknown_name("mask", mask, ("fisher", "random"), where="tuning")))
    density = section.get("density")
    if density is None:
        problems.append("tuning.density is missing: the fraction of the upstream's weights to train, such as 0.01.")
    elif isinstance(density, (list, tuple)):
        problems.append("tuning.density is a list; a race of several sizes is not supported yet, give one number.")
    else:
        density = _number(density, "tuning.density", problems)
        if density is not None and not 0 < density <= 1:
            problems.append(f"tuning.density must lie in (0, 1], but is {density}.")
    eligible = None
    if section.get("eligible") is not None:
        eligible = _names(section["eligible"], "tuning.eligible", problems)
        if not eligible:
            problems.append("tuning.eligible is empty; name at least one pattern, or leave it out.")
    fisher = section.get("fisher") or {}
    if not isinstance(fisher, Mapping):
        problems.append(f"tuning.fisher must be a mapping such as {{max_batches: 100}}, but is {fisher!r}.")
        fisher = {}
    if fisher and mask == "random":
        problems.append("tuning.fisher belongs to mask fisher, not to random; remove it.")
    problems += check_keys(fisher, ("max_batches",), "tuning.fisher")
    batches = fisher.get("max_batches")
    if batches is not None:
        batches = _positive_integer(batches, "tuning.fisher.max_batches", problems)
    return {
        "mask": mask,
        "density": density,
        "eligible": eligible,
        "fisher_max_batches": batches,
    }


def check_top_level(config: Mapping[str, Any]) -> None:
    """Refuse top-level keys of a task file that look like a misspelt known one.

    Other keys are left alone: s3prl hands them to the downstream expert.
    """
    problems = []
    for key in config:
        if key not in TOP_LEVEL and nearest(key, TOP_LEVEL) != ".":
            problems.append(f"unknown section '{key}'{nearest(key, TOP_LEVEL)}")
    for key in ("runner", "optimizer", "downstream_expert"):
        if not isinstance(config.get(key), Mapping):
            problems.append(f"section '{key}' is missing; see the presets in downstream_configs for a complete file.")
    raise_all(problems)


def raise_all(problems: list[str]) -> None:
    """Raise one UsageError with all `problems`, if there are any."""
    if problems:
        raise UsageError(" ".join(p if p.endswith((".", "?")) else p + "." for p in problems))


def _names(value: Any, where: str, problems: list[str]) -> tuple[str, ...]:
    """Return a name or a list of names as a tuple; an empty value gives an empty one."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        problems.append(f"{where} must be a list of names, but is {value!r}.")
        return ()
    return tuple(names)


def _number(value: Any, where: str, problems: list[str]) -> float | None:
    try:
        return as_number(value, where)
    except UsageError as error:
        problems.append(str(error))
        return None


def _positive(value: Any, where: str, problems: list[str]) -> float | None:
    number = _number(value, where, problems)
    if number is not None and not number > 0:
        problems.append(f"{where} must be above 0, but is {number:g}.")
    return number


def _positive_integer(value: Any, where: str, problems: list[str]) -> int | None:
    number = _number(value, where, problems)
    if number is None:
        return None
    if not math.isfinite(number) or number < 1 or number != int(number):
        problems.append(f"{where} must be a whole number of at least 1, but is {number:g}.")
        return None
    return int(number)
