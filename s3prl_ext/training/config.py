"""The validated sections ``runner`` and ``tuning`` of a task file."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from s3prl_ext import adapters
from s3prl_ext.configs import as_number, check_keys
from s3prl_ext.errors import UsageError, nearest, unknown_name
from s3prl_ext.training import parameter_groups
from s3prl_ext.training.parameter_groups import RatesConfig

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


MASKS = ("fisher", "random", "magnitude")
MASK_KEYS = ("mask", "density", "eligible", "fisher", "redraw", "sparse_gradients", "clip_scope")


@dataclass(frozen=True)
class FisherConfig:
    """Section ``tuning.fisher``: how the Fisher information of the weights is estimated.

    Attributes:
        granularity: ``batch``: squares of the gradient of each batch's mean loss; ``sample``: of each utterance's.
        clip: ``none``, ``tensor`` (each tensor's gradient before squaring) or ``global`` (all of them together).
        max_norm: limit of `clip`; by default ``runner.gradient_clipping``.
        mode: ``eval`` or ``train`` (with dropout and SpecAugment).
        max_batches: end after so many batches (utterances with ``granularity: sample``); None = all of the split.
        warm_head: steps that copies of featurizer and downstream train on the frozen upstream before the pass.
        warm_lr: learning rate (Adam) of these steps; by default ``optimizer.lr``.
    """

    granularity: str = "batch"
    clip: str = "none"
    max_norm: float = 1.0
    mode: str = "eval"
    max_batches: int | None = None
    warm_head: int = 0
    warm_lr: float = 0.0

    @classmethod
    def from_section(cls, section: Any, config: Mapping[str, Any], problems: list[str]) -> FisherConfig:
        """Check the section; problems are appended to `problems`.

        Args:
            section: what stands under ``tuning.fisher``.
            config: the whole task file, for the defaults of `max_norm` and `warm_lr`.
            problems: sentences that the caller reports together.
        """
        if not isinstance(section, Mapping):
            problems.append(f"tuning.fisher must be a mapping such as {{max_batches: 100}}, but is {section!r}.")
            return cls()
        where = "tuning.fisher"
        problems += check_keys(section, (*(f.name for f in fields(cls)), "preset"), where)
        preset = section.get("preset")
        if preset not in (None, *FISHER_PRESETS):
            problems.append(str(unknown_name("preset", str(preset), FISHER_PRESETS, where=where)))
        section = {**FISHER_PRESETS.get(str(preset), {}), **section}
        values: dict[str, Any] = {
            key: _one_of(section, key, choices, where, problems) for key, choices in FISHER_CHOICES.items()
        }
        for key in ("max_batches", "warm_head"):
            if section.get(key) is not None and (key, section[key]) != ("warm_head", 0):
                values[key] = _positive_integer(section[key], f"{where}.{key}", problems)
        defaults = {"max_norm": ("runner", "gradient_clipping", 1.0, values["clip"] != "none"),
                    "warm_lr": ("optimizer", "lr", 1.0e-3, bool(values.get("warm_head")))}  # fmt: skip
        for key, (part, name, default, used) in defaults.items():
            value = section.get(key, (config.get(part) or {}).get(name, default))
            if used or key in section:
                values[key] = _positive(value, f"{where}.{key}", problems)
        return cls(**values)


FISHER_CHOICES = {
    "granularity": ("batch", "sample"),
    "clip": ("none", "tensor", "global"),
    "mode": ("eval", "train"),
}  # the first of each is the default
FISHER_PRESETS = {"official": {"granularity": "batch", "clip": "tensor", "mode": "train"}}  # the released code


@dataclass(frozen=True)
class TuningConfig:
    """Section ``tuning``: which weights of the upstream train.

    Attributes:
        method: a name of :data:`s3prl_ext.training.methods.METHODS`.
        mask: child networks: ``fisher`` (CHILD-TUNING_D), ``random`` (CHILD-TUNING_F), or as a control ``magnitude``,
            the weights of largest absolute value.
        density: child networks: fraction of the eligible weights that trains, in (0, 1]; 1 for other methods.
        eligible: name patterns (shell wildcards) of weights that may join a child network; None = by architecture.
        fisher: how the Fisher information is estimated.
        redraw: random masks: draw anew at each step and divide by the density, as the original NLP code does.
        sparse_gradients: compute no dense gradient for weight matrices of which at most 3 % train.
        clip_scope: ``active``: ``runner.gradient_clipping`` limits the norm of what trains; ``all``: the norm counts
            the gradient of every eligible weight (as the released code does).
        rates: learning rates of the upstream's weights and of a learnable lambda, and which encoder blocks train.
        adapter: options of a method of :mod:`s3prl_ext.adapters`, an instance of its ``Config``; None for others.
    """

    method: str
    mask: str = "fisher"
    density: float = 1.0
    eligible: tuple[str, ...] | None = None
    fisher: FisherConfig = FisherConfig()
    redraw: bool = False
    sparse_gradients: bool = True
    clip_scope: str = "active"
    rates: RatesConfig = field(default_factory=RatesConfig)
    adapter: Any = None

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
        method = str(section.get("method", ""))
        options = adapters.options(method) if method in adapters.METHODS else ()
        problems = check_keys(section, ("method", *MASK_KEYS, *parameter_groups.KEYS, *options), "tuning")
        if not method:
            problems.append(f"tuning.method is missing; known: {', '.join(methods)}.")
        elif method not in methods:
            problems.append(str(unknown_name("method", method, methods, where="tuning")))
        elif not methods[method].has_mask:
            problems += [
                f"tuning.{key} belongs to method child, not to {method}; remove it."
                for key in MASK_KEYS
                if key in section
            ]
        values: dict[str, Any] = {}
        if method in methods and methods[method].has_mask:
            values = _mask_values(section, config, problems)
        if method in adapters.METHODS:
            values["adapter"] = _adapter_options(method, {k: section[k] for k in options if k in section}, problems)
        if method in methods:
            trains = methods[method].trains_upstream
            values["rates"] = RatesConfig.from_section(section, method, trains, problems)
        raise_all(problems)
        return cls(method=method, **values)


def _adapter_options(method: str, given: Mapping[str, Any], problems: list[str]) -> Any:
    try:
        return adapters.parse_options(method, given)
    except UsageError as error:
        problems.append(f"tuning: {error}")
        return None


def _mask_values(section: Mapping[str, Any], config: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    mask = section.get("mask", "fisher")
    if mask not in MASKS:
        problems.append(str(unknown_name("mask", mask, MASKS, where="tuning")))
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
    if section.get("fisher") and mask != "fisher":
        problems.append(f"tuning.fisher belongs to mask fisher, not to {mask}; remove it.")
    if section.get("redraw") and mask != "random":
        problems.append(f"tuning.redraw belongs to mask random, not to {mask}; remove it.")
    return {
        "mask": mask,
        "density": density,
        "eligible": eligible,
        "fisher": FisherConfig.from_section(section.get("fisher") or {}, config, problems),
        "redraw": _switch(section, "redraw", False, problems),
        "sparse_gradients": _switch(section, "sparse_gradients", True, problems),
        "clip_scope": _one_of(section, "clip_scope", ("active", "all"), "tuning", problems),
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


def _one_of(section: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str, problems: list[str]) -> str:
    value = section.get(key, choices[0])
    if value not in choices:
        problems.append(str(unknown_name(key, str(value), choices, where=where)))
    return value


def _switch(section: Mapping[str, Any], key: str, default: bool, problems: list[str]) -> bool:
    value = section.get(key, default)
    if not isinstance(value, bool):
        problems.append(f"tuning.{key} must be true or false, but is {value!r}.")
    return bool(value)


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
