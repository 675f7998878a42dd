"""What every task's decoder offers: how a recording is cut, what the head says of each window, how that is joined."""

from __future__ import annotations

import contextlib
import importlib
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from s3prl_ext.configs import expand_known
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, UsageError, unknown_name
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure, Result
from s3prl_ext.prediction.windows import Window
from s3prl_ext.tasks import known

DEFAULT_WINDOW = 40.0  # seconds; the longest utterance of LibriSpeech's test sets has 35
SHORTEST_WINDOW = 2.0  # seconds


@dataclass(frozen=True)
class Options:
    """What may be chosen at prediction; None takes the default.

    Attributes:
        window: longest stretch (seconds) that passes the model as a whole; no more than the model reads at once.
        top: number of labels to show; tasks with labels.
        threshold: probability from which a speaker talks, 0.5; diarization.
        median: frames of the median filter over the decisions, 11 (1 for none); diarization.
        queries: recordings that are searched for; query by example.
    """

    window: float | None = None
    top: int | None = None
    threshold: float | None = None
    median: int | None = None
    queries: Sequence[str | PathLike[str]] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not SHORTEST_WINDOW <= self.window < math.inf:
            raise UsageError(
                f"--window must be a number of seconds, {SHORTEST_WINDOW:g} or more, got {self.window:g}; to cut "
                "nothing, give as many as the longest recording has."
            )
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be at least 1, got {self.top}.")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(f"--threshold must be between 0 and 1, got {self.threshold:g}.")
        if self.median is not None and (self.median < 1 or self.median % 2 == 0):
            raise UsageError(f"--median must be an odd number of frames, got {self.median}.")


@dataclass(frozen=True)
class Inputs:
    """What a decoder is built from.

    Attributes:
        info: what was trained: arguments and, under ``config``, the task file.
        section: ``downstream_expert`` of the task file, with the paths that are known.
        width: of the features.
        rate: samples per frame.
        options: what was chosen.
    """

    info: Mapping[str, Any]
    section: Mapping[str, Any]
    width: int
    rate: int
    options: Options


class Decoder(ABC):
    """Turn features into the prediction of one task.

    Attributes:
        head: the module that the checkpoint's ``Downstream`` fits.
        longest: samples of the longest window.
        before: recordings that pass the model ahead of those that a call is about.
    """

    RESULT: ClassVar[type[Result]]
    OPTIONS: ClassVar[tuple[str, ...]] = ("window",)  # those of Options that mean something here
    WINDOW: ClassVar[float] = DEFAULT_WINDOW

    head: nn.Module
    before: Sequence[str | PathLike[str]] = ()

    def __init__(self, inputs: Inputs) -> None:
        self.options = inputs.options
        self.longest = round((inputs.options.window or self.WINDOW) * SAMPLE_RATE)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table of results, after ``file``."""
        return self.RESULT.COLUMNS

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """Return the samples as the task's corpus gives them to the model."""
        return samples

    @abstractmethod
    def windows(self, samples: np.ndarray) -> list[Window]:
        """Return the stretches that pass the model one by one: one, unless the recording is long."""

    @abstractmethod
    def decode(self, features: Sequence[Tensor], samples: Sequence[int]) -> list[Any]:
        """Return what the head says of each window of a batch.

        Args:
            features: one matrix [frames, width] per window.
            samples: length of each window.
        """

    @abstractmethod
    def join(self, recording: Recording, windows: Sequence[Window], pieces: Sequence[Any]) -> Result:
        """Return the result of a recording from the head's output for its windows."""

    def together(self, results: Iterator[Result | Failure]) -> Iterator[Result | Failure]:
        """Yield the results of a call; a task that compares recordings with each other does it here.

        Args:
            results: of :attr:`before` and of the recordings of the call, in their order.

        Raises:
            DataError: a recording failed that the others are compared with.
        """
        return results


def build_decoder(trained: TrainedTask, width: int, rate: int, options: Options) -> Decoder:
    """Build the decoder of a task, with an untrained head.

    Args:
        trained: what was trained.
        width: of the features.
        rate: samples per frame.
        options: what was chosen.

    Raises:
        UsageError: there is no decoder for the task, or an option that it does not support.
        DataError: the head needs a file that is not there, or does not come of its section of the task file.
    """
    task, name, record = str(trained.spec.downstream), str(trained.path), trained.record
    config = trained.info.get("config")
    if record.decoder is None:
        raise unknown_name("task of predict", task, [row.downstream for row in known() if row.decoder])
    if not isinstance(config, Mapping) or "downstream_expert" not in config:
        raise DataError(
            f"{name} does not say how its head is made (section downstream_expert of the task file): it was edited."
        )
    module, _, function = record.decoder.partition(":")
    try:
        section = expand_known(config["downstream_expert"])
        with contextlib.redirect_stdout(sys.stderr):  # s3prl's experts print
            build = getattr(importlib.import_module(module), function)
            decoder: Decoder = build(Inputs(trained.info, section, width, rate, options))
    except OSError as error:
        raise DataError(f"the head of -d {task} needs {error.filename}, which cannot be read: put it back.") from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise DataError(
            f"the head of -d {task} cannot be built as section downstream_expert of the task file with {name} says "
            f"({reason}): it was edited or is corrupt, use it as it was trained."
        ) from error
    for field in fields(options):
        if getattr(options, field.name) is not None and field.name not in decoder.OPTIONS:
            raise UsageError(f"--{field.name} is not supported for -d {task}: drop it.")
    return decoder
