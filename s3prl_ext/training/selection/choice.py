"""What a child network is chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from s3prl_ext.configs import Section
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.tuning_config import TuningConfig


@dataclass(frozen=True)
class Choice:
    """What a child network is chosen by, and where what that takes is kept.

    Attributes:
        models: upstream, featurizer and downstream of the run, without wrappers for several devices.
        parameters: eligible parameters of the upstream by name.
        tuning: method ``child`` with its mask.
        split: name of the training split.
        seed: of a random mask, and of everything random in a pass.
        folder: for ``masks.safetensors`` and, during a pass, ``fisher.partial``; None: nothing is written, and an
            interrupted pass starts over.
        facts: what scores depend on (:func:`s3prl_ext.training.selection.pass_facts.facts_of`): masks and passes of
            others are not taken over; None: the eligible weights alone.
    """

    models: TaskModels
    parameters: Mapping[str, nn.Parameter]
    tuning: TuningConfig
    split: str
    seed: int
    folder: RunFolder | None = None
    facts: Section | None = None
