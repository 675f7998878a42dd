"""Several tuned tasks on one upstream in one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning.delta import Delta
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.training import upstream_settings
from s3prl_ext.training.racing.candidates import chosen_tuning


class TaskSwitch:
    """Turn one loaded upstream into that of any of several tuned tasks, and back, bitwise.

    Only the entries that a task changed are touched, so a switch takes milliseconds. While a task is active, the
    weights of the upstream must not be changed by anything else.

    Args:
        upstream: the untuned upstream, on any device; it is changed in place.
        tasks: name -> delta, delta file, run folder or checkpoint.

    Attributes:
        active: name of the active task, or None.

    Raises:
        DataError: a file is missing, corrupt, or belongs to another upstream.

    Example::

        switch = TaskSwitch(hub.hubert_base(), {"ks": "exp/ks", "asr": "exp/asr"})
        switch.switch("ks")
    """

    def __init__(
        self, upstream: nn.Module, tasks: Mapping[str, Delta | TrainedTask | str | Path] | None = None
    ) -> None:
        if adapters.inserted(upstream):
            raise UsageError("the upstream holds an adapter already: give the untuned one.")
        self.upstream = upstream
        self.active: str | None = None
        self._trainable = {name: parameter.requires_grad for name, parameter in upstream.named_parameters()}
        self._deltas: dict[str, Delta] = {}
        for name, task in (tasks or {}).items():
            self.add(name, task)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self._deltas)

    def add(self, name: str, task: Delta | TrainedTask | str | Path) -> None:
        """Add a task under a new name; the active task stays active.

        Raises:
            UsageError: the name is taken.
            DataError: as for the class; nothing is added then.
        """
        if name in self._deltas:
            raise UsageError(f"there is a task '{name}' already: choose another name.")
        if not isinstance(task, (Delta, TrainedTask)):
            task = TrainedTask.read(task)
            task.check_features(self.upstream)
        active = self.active
        self.switch(None)
        try:
            if isinstance(task, TrainedTask):
                self._deltas[name] = task.over(self.upstream)
            else:
                now = upstream_settings.stated_settings(self.upstream)
                upstream_settings.check_settings(task.info.get(upstream_settings.KEY), now, f"the delta '{name}'")
                task.check_base(self.upstream.state_dict(), f"the delta '{name}'")
                self._deltas[name] = task
        finally:
            self.switch(active)

    def switch(self, name: str | None) -> None:
        """Activate a task in place of the present one; None turns the upstream into the untuned one.

        Raises:
            UsageError: there is no task of that name; the present one stays active.
            DataError: the upstream was cast to another type than float32 since; nothing is turned then.
        """
        if name is not None and name not in self._deltas:
            raise unknown_name("task", name, self._deltas)
        if name == self.active:
            return
        state = adapters.base_state(self.upstream) if adapters.inserted(self.upstream) else self.upstream.state_dict()
        for one in (self.active, name):
            if one is not None:
                self._deltas[one].check_fits(state)
        if self.active is not None:
            self._turn(self._deltas[self.active], on=False)
        self.active = None
        if name is not None:
            self._turn(self._deltas[name], on=True)
        self.active = name

    def _turn(self, delta: Delta, on: bool) -> None:
        if delta.added and not on:
            adapters.remove(self.upstream)
            for name, parameter in self.upstream.named_parameters():
                parameter.requires_grad_(self._trainable[name])
        if delta.indices:
            delta.toggle(self.upstream.state_dict())
        if delta.added and on:
            try:
                tuning = chosen_tuning(delta.info.get("tuning"), delta.info.get("candidate"))
                adapters.insert_trained(self.upstream, tuning, delta.added, "the delta")
            except DataError:
                delta.toggle(self.upstream.state_dict())
                raise

    def weights(self, part: str) -> Mapping[str, Tensor]:
        """Return the state dict of ``Featurizer`` or ``Downstream`` of the active task.

        Raises:
            UsageError: no task is active, or it has no such part.
        """
        if self.active is None:
            raise UsageError("no task is active; call switch(NAME) first.")
        task = self._deltas[self.active].task
        if part not in task:
            raise unknown_name("part", part, task)
        return task[part]

    @property
    def info(self) -> Mapping[str, Any]:
        """What the active task says of itself; empty where none is."""
        return {} if self.active is None else self._deltas[self.active].info
