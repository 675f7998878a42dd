"""The validated section ``tuning`` of a task file: which weights of the upstream train, and how they are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from s3prl_ext import adapters
from s3prl_ext.configs import check_keys
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.training import parameter_groups
from s3prl_ext.training.parameter_groups import RatesConfig
from s3prl_ext.training.values import (
    raise_all,
    read_choice,
    read_count,
    read_names,
    read_number,
    read_positive,
    read_switch,
)

MASKS = ("fisher", "random", "magnitude")
MASK_OPTIONS = {"fisher": "fisher", "random": "redraw"}  # mask -> the key that no other one reads
MASK_KEYS = ("mask", "density", "eligible", "fisher", "redraw", "sparse_gradients", "clip_scope")


@dataclass(frozen=True)
class FisherConfig:
    """Section ``tuning.fisher``: how the Fisher information of the weights is estimated.

    Attributes:
        granularity: ``batch``: squares of the gradient of each batch's mean loss; ``sample``: of each utterance's.
        clip: ``none``, ``tensor`` (each tensor's gradient before squaring) or ``global`` (all of them together).
        max_norm: limit of `clip`; by default ``runner.gradient_clipping``.
        mode: ``eval`` or ``train`` (with dropout and SpecAugment).
        loader: ``split``: each utterance of the training split once; ``task``: the task's own training loader.
        max_batches: so many batches (utterances with ``granularity: sample``), drawn from the whole split; None = all.
        loss_divisor: the loss is divided by so much before the gradient is clipped.
        warm_head: steps that copies of featurizer and downstream train on the frozen upstream before the pass.
        warm_lr: learning rate (Adam) of these steps; by default ``optimizer.lr``.
    """

    granularity: str = "batch"
    clip: str = "none"
    max_norm: float = 1.0
    mode: str = "eval"
    loader: str = "split"
    max_batches: int | None = None
    loss_divisor: int = 1
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
        if preset == "official":
            steps = (config.get("runner") or {}).get("gradient_accumulate_steps", 1)
            section = {**FISHER_PRESETS[preset], "loss_divisor": steps, **section}
        values: dict[str, Any] = {
            key: read_choice(section, key, choices, where, problems) for key, choices in FISHER_CHOICES.items()
        }
        if values["loader"] == "task" and values["granularity"] == "sample":
            problems.append(
                f"{where}.granularity: sample reads single utterances, loader: task the task's own batches: add loader: "
                "split, or leave granularity out."
            )
        for key in ("max_batches", "warm_head", "loss_divisor"):
            if section.get(key) is not None and (key, section[key]) != ("warm_head", 0):
                values[key] = read_count(section[key], f"{where}.{key}", problems)
        defaults = {"max_norm": ("runner", "gradient_clipping", 1.0, values["clip"] != "none"),
                    "warm_lr": ("optimizer", "lr", 1.0e-3, bool(values.get("warm_head")))}  # fmt: skip
        for key, (part, name, default, used) in defaults.items():
            value = section.get(key, (config.get(part) or {}).get(name, default))
            if used or key in section:
                values[key] = read_positive(value, f"{where}.{key}", problems)
        return cls(**values)


FISHER_CHOICES = {
    "granularity": ("batch", "sample"),
    "clip": ("none", "tensor", "global"),
    "mode": ("eval", "train"),
    "loader": ("split", "task"),
}  # the first of each is the default
# The released code; it also divides the loss by runner.gradient_accumulate_steps.
FISHER_PRESETS = {"official": {"granularity": "batch", "clip": "tensor", "mode": "train", "loader": "task"}}


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
            methods: the known methods, by name; each has the attributes ``trains_upstream`` and ``has_mask``.
        """
        if "tuning" not in config:
            return None
        section = config["tuning"]
        if not isinstance(section, Mapping):
            raise UsageError(f"tuning must be a mapping such as {{method: child}}, but is {section!r}.")
        method = str(section.get("method", ""))
        options = adapters.options(method) if method in adapters.METHODS else ()
        problems = _key_problems(section, method, methods)
        values: dict[str, Any] = {}
        if method in methods and methods[method].has_mask:
            values = _mask_values(section, config, problems)
        if method in adapters.METHODS:
            values["adapter"] = _adapter_options(method, {k: section[k] for k in options if k in section}, problems)
        if method in methods:
            values["rates"] = RatesConfig.from_section(section, problems)
        raise_all(problems)
        return cls(method=method, **values)


def keys_of(method: str, methods: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of section ``tuning`` that a method takes.

    Args:
        method: its name.
        methods: the known methods, by name; each has the attributes ``trains_upstream`` and ``has_mask``.
    """
    keys = ["method", "lambda_lr"]
    keys += parameter_groups.UPSTREAM_KEYS if methods[method].trains_upstream else ()
    keys += parameter_groups.FULL_KEYS if method == "full" else ()
    keys += MASK_KEYS if methods[method].has_mask else ()
    keys += adapters.options(method) if method in adapters.METHODS else ()
    return tuple(keys)


def _key_problems(section: Mapping[str, Any], method: str, methods: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the method's name and with the keys beside it."""
    owners: dict[str, list[str]] = {}
    for name in methods:
        for key in keys_of(name, methods):
            owners.setdefault(key, []).append(name)
    if method not in methods:
        named = str(unknown_name("method", method, methods, where="tuning"))
        missing = f"tuning.method is missing; known: {', '.join(methods)}."
        return [*check_keys(section, owners, "tuning"), named if method else missing]
    own = keys_of(method, methods)
    foreign = [key for key in section if key in owners and key not in own]
    return check_keys({key: section[key] for key in section if key not in foreign}, own, "tuning") + [
        f"tuning.{key} belongs to method {_either(owners[key])}, not to {method}; remove it." for key in foreign
    ]


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
    else:
        density = read_number(density, "tuning.density", problems)
        if density is not None and not 0 < density <= 1:
            problems.append(f"tuning.density must lie in (0, 1], but is {density}.")
    eligible = None
    if section.get("eligible") is not None:
        eligible = read_names(section["eligible"], "tuning.eligible", problems)
        if not eligible:
            problems.append("tuning.eligible is empty; name at least one pattern, or leave it out.")
    problems += [
        f"tuning.{key} belongs to mask {owner}, not to {mask}; remove it."
        for owner, key in MASK_OPTIONS.items()
        if section.get(key) and mask != owner
    ]
    return {
        "mask": mask,
        "density": density,
        "eligible": eligible,
        "fisher": FisherConfig.from_section(section.get("fisher") or {}, config, problems),
        "redraw": read_switch(section, "redraw", False, "tuning", problems),
        "sparse_gradients": read_switch(section, "sparse_gradients", True, "tuning", problems),
        "clip_scope": read_choice(section, "clip_scope", ("active", "all"), "tuning", problems),
    }
