"""The arguments that identify a run.

Stored with it, compared on resume, printed as flags. They are listed here alone.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from s3prl_ext.configs import Record, Section

FLAGS = {
    "upstream": "-u", "upstream_ckpt": "-k", "upstream_model_config": "-g", "downstream": "-d",
    "downstream_variant": "-v",
    "upstream_feature_selection": "-s", "upstream_layer_selection": "-l",
    "upstream_feature_normalize": "--upstream_feature_normalize", "seed": "--seed", "upstream_trainable": "-f",
}  # fmt: skip
UPSTREAM_ARGUMENTS = ("upstream", "upstream_ckpt", "upstream_model_config")
TASK_ARGUMENTS = ("downstream", "downstream_variant", "upstream_feature_selection", "upstream_layer_selection",
        "upstream_feature_normalize")  # fmt: skip
FEATURES = TASK_ARGUMENTS[2:]  # what a task reads
_DECIDED_BY_METHOD = "upstream_trainable"  # stored as the section tuning


def arguments_in_override(args: Namespace) -> set[str]:
    """Return the names of the arguments that ``-o`` gives."""
    return set(re.findall(r"(?:^|,,)\s*args\.(\w+)\s*=", getattr(args, "override", None) or ""))


@dataclass(frozen=True)
class RunSpec:
    """Upstream, task, features and seed of a run, under the names that ``run_downstream.py`` gives its arguments.

    Attributes:
        upstream: ``-u``.
        upstream_ckpt: ``-k``.
        upstream_model_config: ``-g``.
        downstream: ``-d``.
        downstream_variant: ``-v``.
        upstream_feature_selection: ``-s``.
        upstream_layer_selection: ``-l``.
        upstream_feature_normalize: of the weighted sum.
        seed: of the run.
        upstream_trainable: ``-f``.
    """

    upstream: str | None = None
    upstream_ckpt: str | None = None
    upstream_model_config: str | None = None
    downstream: str | None = None
    downstream_variant: str | None = None
    upstream_feature_selection: str | None = None
    upstream_layer_selection: int | None = None
    upstream_feature_normalize: bool | None = None
    seed: int | None = None
    upstream_trainable: bool | None = None

    @classmethod
    def of(cls, arguments: Namespace | Section | None) -> RunSpec:
        """Take what identifies a run from all arguments, or from what was stored; what is missing there is None."""
        values = vars(arguments) if isinstance(arguments, Namespace) else arguments or {}
        return cls(**{field.name: values.get(field.name) for field in fields(cls)})

    @property
    def model(self) -> Path:
        """Path of the model that ``-k`` names."""
        return Path(str(self.upstream_ckpt))

    def stored(self) -> Record:
        """Return plain values for a delta or an export."""
        return {name: value for name, value in asdict(self).items() if name != _DECIDED_BY_METHOD}

    def flags(self, *names: str) -> list[str]:
        """Return the flags of ``run_downstream`` for some of the arguments, without those that are not set."""
        found: list[str] = []
        for name in names:
            value = getattr(self, name)
            if value is not None and value is not False and value != "":
                found += [FLAGS[name]] if value is True else [FLAGS[name], str(value)]
        return found

    @property
    def task_flags(self) -> list[str]:
        """The flags for the task and the features that it reads; the default of ``-s`` is left out."""
        default = self.upstream_feature_selection == "hidden_states"
        return self.flags(*(name for name in TASK_ARGUMENTS if not (default and name == "upstream_feature_selection")))

    @property
    def reads_last_layer(self) -> bool:
        """Whether the features are the last hidden state of an upstream without an output of that name."""
        layer = self.upstream_layer_selection
        return self.upstream_feature_selection == "hidden_states" and layer is not None and int(layer) == -1

    @property
    def reads_last_hidden_state(self) -> bool:
        """Whether the features are the last hidden state, under either of its names."""
        named = self.upstream_feature_selection == "last_hidden_state" and self.upstream_layer_selection is None
        return named or self.reads_last_layer

    @property
    def features(self) -> str:
        """What the task reads, in words; the last of all hidden states is the last hidden state."""
        selection, layer = self.upstream_feature_selection, self.upstream_layer_selection
        if self.reads_last_layer:
            selection, layer = "last_hidden_state", None
        return (
            f"{selection}"
            + (f", layer {layer}" if layer is not None else "")
            + (", normalised" if self.upstream_feature_normalize else "")
        )

    def differences(self, command: RunSpec) -> Iterator[tuple[str, Any, Any]]:
        """Yield flag, stored and given value where a command says something else than this run.

        Args:
            command: what the command says; None or False where it does not. A path may be written in several ways, and
                ``-s`` may name a last hidden state that is stored as the last layer.
        """
        for name, flag in FLAGS.items():
            before, now = getattr(self, name), getattr(command, name)
            same_path = isinstance(before, str) and Path(before).resolve() == Path(str(now)).resolve()
            if now is None or now is False or str(before) == str(now) or same_path:
                continue
            if not (name == "upstream_feature_selection" and self.reads_last_layer):
                yield flag, before, now
