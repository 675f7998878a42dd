"""A task file as a whole: every section of it that says how to train, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_ext.configs import with_numbers
from s3prl_ext.training.config import RunnerConfig, check_top_level
from s3prl_ext.training.early_stop import Candidate, EarlyStopConfig, candidates
from s3prl_ext.training.methods import METHODS, resolve_tuning
from s3prl_ext.training.optimizers import check_optimization
from s3prl_ext.training.released_keys import translate
from s3prl_ext.training.tuning_config import TuningConfig


@dataclass(frozen=True)
class TaskFile:
    """The checked sections of a task file.

    Attributes:
        config: the whole file, the keys of the released AD-TUNING code replaced by ours.
        runner: section ``runner``.
        candidates: what its section ``tuning`` makes: none without such a section, one without lists.
        tunings: the configuration of each candidate.
        early_stop: section ``early_stop``, or None where there is nothing to race.
    """

    config: dict[str, Any]
    runner: RunnerConfig
    candidates: list[Candidate]
    tunings: list[TuningConfig]
    early_stop: EarlyStopConfig | None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> TaskFile:
        """Check a task file whose variables are expanded.

        Raises:
            UsageError: with what is wrong in the first section that has a fault.
        """
        config = translate(with_numbers(config, ("optimizer", "scheduler")))
        check_top_level(config)
        runner = RunnerConfig.from_config(config)
        check_optimization(config)
        section = config.get("tuning")
        if not isinstance(section, Mapping):
            TuningConfig.from_config(config, METHODS)  # there is none, or it is no mapping
        made = candidates(section) if isinstance(section, Mapping) else []
        early_stop = EarlyStopConfig.from_config(config, max(1, len(made)))
        return cls(config, runner, made, [resolve_tuning(config, c.tuning) for c in made], early_stop)
