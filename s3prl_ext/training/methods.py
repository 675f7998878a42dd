"""The tuning methods: which weights of the upstream train, and which features the task reads.

One row per value of ``tuning.method``. A method with `has_mask` trains a child network, whose mask is chosen at the
start of training by :mod:`s3prl_ext.training.selection.child_selection`. The methods of :mod:`s3prl_ext.adapters` put
weights of their own into the frozen upstream, which runs in train mode, with its dropout, as in full tuning; but a
batch norm of it uses its running statistics and leaves them as they are. Full tuning moves those of the batch norms
that train, and stores them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.held_weight import round_base
from s3prl_ext.child_tuning.masks import child_size
from s3prl_ext.configs import Section
from s3prl_ext.errors import UsageError
from s3prl_ext.training.parameter_groups import FULL_KEYS, UPSTREAM_KEYS
from s3prl_ext.training.tuning_config import MASK_KEYS, TuningConfig


@dataclass(frozen=True)
class TuningMethod:
    """What a tuning method does to the upstream.

    Attributes:
        trains_upstream: the upstream runs in train mode, gets gradients and is stored in checkpoints.
        weighted_sum: the task reads the learnt weighted sum of all hidden states; else the last hidden state.
        has_mask: only a chosen subset of the weights trains.
        source: where the method is described.
        needs: fields of a row of :mod:`s3prl_ext.models.architectures` without which it does not fit a family.
        options: keys of section ``tuning`` that are its own.
    """

    trains_upstream: bool
    weighted_sum: bool
    has_mask: bool
    source: str
    needs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of section ``tuning`` that it takes."""
        shared = UPSTREAM_KEYS if self.trains_upstream else ()
        return ("method", "lambda_lr", *shared, *(MASK_KEYS if self.has_mask else ()), *self.options)


def adapter_method(file: Any) -> TuningMethod:
    """Return the row of a method of :mod:`s3prl_ext.adapters`, given its file."""
    options = tuple(field.name for field in fields(file.Config))
    return TuningMethod(True, True, False, file.PAPER, getattr(file, "NEEDS", ("linears",)), options)


METHODS: dict[str, TuningMethod] = {
    "frozen": TuningMethod(False, False, False, "AD-TUNING, Table 2, Baseline"),
    "weighted_sum": TuningMethod(False, True, False, "SUPERB; AD-TUNING, Table 2, Weighted-sum"),
    "full": TuningMethod(True, False, False, "AD-TUNING, Table 2, FT", options=FULL_KEYS),
    "child": TuningMethod(True, True, True, "AD-TUNING, sections 2.2 and 2.3", ("eligible",)),
    **{name: adapter_method(file) for name, file in adapters.ADAPTERS.items()},
}


def adds_weights(method: str | None) -> bool:
    """Return whether a tuning method puts new weights into the upstream, which no released model has."""
    return method in adapters.ADAPTERS


def prepare_base(upstream: nn.Module, section: TuningConfig | Section | None) -> None:
    """Make an upstream the one that a section ``tuning`` starts from, in place: rounded where its base is bfloat16.

    Args:
        upstream: untuned, in float32.
        section: checked, or as a file holds it that was written after a check; None where nothing was tuned.

    Raises:
        DataError: a weight is not finite, or not in bfloat16.
    """
    if isinstance(section, TuningConfig):
        section = vars(section)
    if section and section.get("base_dtype") == "bfloat16":
        round_base(eligible_parameters(upstream, section.get("eligible")))


def prepare_upstream(upstream: nn.Module, tuning: TuningConfig) -> None:
    """Set ``requires_grad`` of the upstream's weights as `tuning` asks, before it is wrapped for several devices.

    The convolutional feature extractor never trains (AD-TUNING, section 4.1), and layerdrop is off, because the
    weighted sum needs every layer. The adapters of `tuning` are inserted, so a checkpoint of an upstream with adapters
    is loaded after this; a second call leaves them as they are.

    Raises:
        UsageError: the upstream has no weights that the method could train, or cannot take the adapters; a density is
            so small that it chooses no weight.
    """
    method = METHODS[tuning.method]
    module: Any
    for module in upstream.modules():
        extractor = getattr(module, "feature_extractor", None)
        if isinstance(extractor, nn.Module):
            extractor.requires_grad_(False)
            freeze: Any = getattr(extractor, "_freeze_parameters", lambda: None)
            freeze()  # transformers: otherwise its input requires grad in train mode
        if isinstance(getattr(module, "layerdrop", None), float):
            module.layerdrop = 0.0
        if hasattr(getattr(module, "config", None), "layerdrop"):
            module.config.layerdrop = 0.0
    if tuning.method in adapters.ADAPTERS:
        _insert_adapters(upstream, tuning)
    elif not method.trains_upstream:
        upstream.requires_grad_(False)
    elif method.has_mask:
        chosen = eligible_parameters(upstream, tuning.eligible)
        _refuse_empty_child(
            sum(parameter.numel() for parameter in chosen.values()), min(tuning.density, tuning.first_density)
        )
        upstream.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
    if method.trains_upstream and not any(p.requires_grad for p in upstream.parameters()):
        raise UsageError(f"the upstream has no weights that tuning.method '{tuning.method}' could train; use frozen.")


def _refuse_empty_child(eligible: int, density: float) -> None:
    if child_size(eligible, density) == 0:
        raise UsageError(
            f"tuning.density {density:g} of {eligible:,} eligible weights is less than one weight, so nothing of the "
            "upstream would train: choose a larger density, or method weighted_sum to train only the head."
        )


def _insert_adapters(upstream: nn.Module, tuning: TuningConfig) -> None:
    present = adapters.inserted(upstream)
    if tuning.method not in present:
        adapters.insert(upstream, tuning.method, tuning.adapter)
        return
    for name, parameter in upstream.named_parameters():
        parameter.requires_grad_(name in present[tuning.method].names)


def resolve_tuning(config: Section, section: Section) -> TuningConfig:
    """Return the checked form of a section ``tuning`` that a task file has in place of its own."""
    tuning = TuningConfig.from_config({**config, "tuning": section}, METHODS)
    assert tuning is not None
    return tuning
