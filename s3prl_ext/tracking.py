"""Trackers of experiments next to TensorBoard: ``--track wandb`` or ``--track mlflow`` of any training.

What a task logs goes to TensorBoard as always, and to the tracker as well. ``--track KIND:PROJECT`` names the project
and, where a folder of that name is on the way to the experiment's, the run by the rest of the way. The id of the
tracker's run is kept in the experiment's folder, so that a training that goes on continues it. A tracker that fails is
left out with one warning.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import TRACKER_FILE
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
DEFAULT_PROJECT = "s3prl_ext"
LONGEST = 500  # characters of a setting


class Tracker(Protocol):
    """A run of a tracker; what it raises is caught by :class:`TrackedWriter`."""

    id: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars of an optimizer step."""

    def close(self) -> None:
        """End the session."""


class Wandb:
    """A run of Weights & Biases; its own variables, such as ``WANDB_MODE``, hold.

    Args:
        folder: of the experiment.
        project: None takes that of ``WANDB_PROJECT``.
        name: of the run.
        known: id of the run that goes on, or None.
        settings: of the experiment, by dotted key.
    """

    def __init__(
        self, folder: Path, project: str | None, name: str, known: str | None, settings: Mapping[str, Any]
    ) -> None:
        import wandb

        self.id = known or uuid.uuid4().hex[:12]
        self.run = wandb.init(
            project=project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT, name=name, id=self.id,
            resume="allow",
            dir=str(folder), config={} if known else dict(settings), settings=wandb.Settings(console="off"),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")  # a step that is repeated after an interruption is not refused

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars of an optimizer step."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """End the session."""
        self.run.finish()


class Mlflow:
    """A run of MLflow; its own variables, such as ``MLFLOW_TRACKING_URI``, hold. Arguments as of :class:`Wandb`."""

    def __init__(
        self, folder: Path, project: str | None, name: str, known: str | None, settings: Mapping[str, Any]
    ) -> None:
        for variable, value in (
            ("MAX_RETRIES", "2"),
            ("TIMEOUT", "20"),
        ):  # MLflow's own make a training wait for minutes
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{variable}", value)
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(), Metric
        if known:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        experiment = self._experiment(project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_PROJECT)
        self.id = str(self.client.create_run(experiment, run_name=name).info.run_id)
        params = [Param(_plain(key), str(value)[:LONGEST]) for key, value in settings.items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[first : first + 100])

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:  # another run has just made it
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars of an optimizer step."""
        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[self.metric(_plain(k), v, now, step) for k, v in values.items()])

    def close(self) -> None:
        """End the session."""
        self.client.set_terminated(self.id)


TRACKERS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "mlflow": Mlflow}


def _plain(key: str) -> str:
    """Return a key with the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /]", "_", key)


def check(track: str) -> None:
    """Raise UsageError where a value of ``--track`` names no tracker, or one whose package is not installed."""
    kind = track.partition(":")[0]
    if kind not in (TENSORBOARD, *TRACKERS):
        raise unknown_name("tracker", kind, (TENSORBOARD, *TRACKERS), where="--track")
    if kind != TENSORBOARD and importlib.util.find_spec(kind) is None:
        raise UsageError(f"--track {kind} needs the package '{kind}': pip install 's3prl_ext[{kind}]'.")


class TrackedWriter:
    """A TensorBoard writer whose scalars go to a tracker too, in one call for each step.

    Args:
        writer: gets everything.
        tracker: gets scalars, until it fails.
    """

    def __init__(self, writer: Any, tracker: Tracker) -> None:
        self._writer = writer
        self._tracker: Tracker | None = tracker
        self._step, self._values = 0, dict[str, float]()

    def add_scalar(self, tag: str, value: Any, global_step: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Log a scalar."""
        self._writer.add_scalar(tag, value, global_step, *args, **kwargs)
        step = global_step or 0
        if step != self._step:
            self._send()
            self._step = step
        self._values[tag] = float(value)

    def close(self) -> None:
        """Close both."""
        self._writer.close()
        self._send()
        if self._tracker is not None:
            _attempt(self._tracker.close)

    def _send(self) -> None:
        values, self._values = self._values, {}
        if values and self._tracker and not _attempt(functools.partial(self._tracker.log, values, self._step)):
            self._tracker = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def _attempt(action: Callable[[], Any]) -> bool:
    """Do what a tracker may fail at; say so where it does."""
    try:
        action()
    except Exception as error:  # noqa: BLE001  whatever a tracker raises, the training goes on
        sentence = " ".join(str(error).split())[:200] or type(error).__name__
        logger.warning("the tracker fails and is left out from here on, TensorBoard's files go on: %s", sentence)
        return False
    return True


def open_writer(folder: Path, args: Namespace, config: Mapping[str, Any]) -> Any:
    """Return the writer of a training: TensorBoard's, with the tracker that the run asks for.

    Args:
        folder: of the training.
        args: of the run; ``track`` names the tracker.
        config: its task file.
    """
    from tensorboardX import SummaryWriter

    from s3prl_ext import randomness

    writer = SummaryWriter(str(folder))
    with randomness.preserved():
        tracker = _open(folder, getattr(args, "track", None), _settings(args, config))
    return TrackedWriter(writer, tracker) if tracker else writer


def log_scores(folder: Path, args: Namespace, scores: Mapping[str, float], step: int) -> None:
    """Add scores of an evaluation of its own to the tracker's run of an experiment, where there is one."""
    if not (folder / TRACKER_FILE).is_file():
        return
    tracker = _open(folder, getattr(args, "track", None), {})
    if tracker and _attempt(lambda: tracker.log(scores, step)):
        _attempt(tracker.close)


def _open(folder: Path, track: str | None, settings: Mapping[str, Any]) -> Tracker | None:
    kind, _, project = (track or TENSORBOARD).partition(":")
    if kind not in TRACKERS:
        return None
    path, opened = folder / TRACKER_FILE, []

    def open_() -> None:
        known = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
        name = run_name(folder, project)
        tracker = TRACKERS[kind](folder, project or None, name, known.get(kind), settings)
        opened.append(tracker)
        write_json(path, {**known, kind: tracker.id}, indent=None)

    return opened[0] if _attempt(open_) else None


def run_name(folder: Path, project: str) -> str:
    """Return what a run is called: the way from the folder of its project, or the last two folders."""
    parts = folder.absolute().parts
    if project in parts:
        last = len(parts) - 1 - parts[::-1].index(project)
        if rest := parts[last + 1 :]:
            return "/".join(rest)
    return "/".join(parts[-2:])


def _settings(args: Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    named = {f"args.{key}": value for key, value in vars(args).items() if isinstance(value, (str, int, float, bool))}
    return named | dict(_flat(config, "config"))


def _flat(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{where}.{key}")
    else:
        yield where, value
