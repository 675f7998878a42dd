"""A task file as a whole: every section of it that says how to train, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from s3prl_ext.configs import with_numbers
from s3prl_ext.errors import UsageError
from s3prl_ext.training.config import RunnerConfig, check_top_level
from s3prl_ext.training.early_stop import Candidate, EarlyStopConfig, candidates
from s3prl_ext.training.methods import METHODS, resolve_tuning
from s3prl_ext.training.optimizers import check_optimization
from s3prl_ext.training.released_keys import translate
from s3prl_ext.training.tuning_config import TuningConfig

# keys of section downstream_expert whose values s3prl looks up as names of Python
NAMES = ("select", "pooling", "module", "agg_module", "utter_module", "ObjectiveLoss", "metric", "activation")


@dataclass(frozen=True)
class TaskFile:
    """The checked sections of a task file.

    Attributes:
        config: the whole file, the keys of the released AD-TUNING code replaced by ours.
        runner: section ``runner``.
        candidates: what its section ``tuning`` makes: none without such a section, one without lists.
        tunings: the configuration of each candidate.
        early_stop: section ``early_stop``, or None where there is nothing to race.
        remarks: settings that are right but have no effect, one sentence each.
    """

    config: dict[str, Any]
    runner: RunnerConfig
    candidates: list[Candidate]
    tunings: list[TuningConfig]
    early_stop: EarlyStopConfig | None
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, Any], stored: bool = False) -> TaskFile:
        """Check a task file whose variables are expanded.

        Args:
            config: the whole file.
            stored: it comes from a checkpoint that is only evaluated. What says how to train is then not judged, and
                keys that another program added are warned about.

        Raises:
            UsageError: with what is wrong in the first section that has a fault.
        """
        config = translate(with_numbers(config, ("optimizer", "scheduler")))
        check_top_level(config, stored)
        check_names(config.get("downstream_expert"), "downstream_expert")
        runner = RunnerConfig.from_config(config, stored)
        if not stored:
            check_optimization(config)
        section = config.get("tuning")
        if not isinstance(section, Mapping):
            TuningConfig.from_config(config, METHODS)  # there is none, or it is no mapping
        made = candidates(section) if isinstance(section, Mapping) else []
        early_stop = EarlyStopConfig.from_config(config, max(1, len(made)))
        tunings = [resolve_tuning(config, c.tuning) for c in made]
        return cls(config, runner, made, tunings, early_stop, tuple(_without_effect(config, early_stop)))


def _without_effect(config: Mapping[str, Any], early_stop: EarlyStopConfig | None) -> Iterator[str]:
    """Yield a sentence for each setting that a run would silently leave out."""
    if "early_stop" in config and early_stop is None:
        yield (
            "section early_stop has no effect: it races the candidates that a list in section tuning makes, such as "
            "density: [0.1, 0.01], and there is only one setting to train"
        )
    if config["optimizer"].get("lr") == 0:
        yield "optimizer.lr is 0: whatever has no learning rate of its own in section tuning keeps its first weights"


def check_names(section: Any, where: str) -> None:
    """Raise UsageError where a section says something else than a name under a key of :data:`NAMES`.

    s3prl passes such text to ``eval``, and a task file may come with a checkpoint or a delta of somebody else.

    Args:
        section: mapping, list or value.
        where: its dotted name.
    """
    if isinstance(section, Mapping):
        for key, value in section.items():
            if key in NAMES:
                for name in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(name, str) and not name.isidentifier():
                        raise UsageError(
                            f"config.{where}.{key} must be a name, got '{name[:80]}'; s3prl would run it as Python: "
                            "correct it, and do not trust the file if it is not yours."
                        )
            check_names(value, f"{where}.{key}")
    elif isinstance(section, (list, tuple)):
        for item in section:
            check_names(item, where)
