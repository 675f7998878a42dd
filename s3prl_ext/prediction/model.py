"""A trained task as a function from audio to predictions."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import s3prl_ext
from s3prl_ext.configs import check_python_names
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.deltas.peft_format import is_adapter
from s3prl_ext.deltas.trained_task import WITHOUT_HEAD, TrainedTask
from s3prl_ext.errors import DataError, UsageError, is_out_of_memory
from s3prl_ext.prediction import recordings
from s3prl_ext.prediction.decoder import Decoder, Options, build_decoder
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure, Result
from s3prl_ext.prediction.windows import Window
from s3prl_ext.reading import EXPORT_FILE, parse_json
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import task_of
from s3prl_ext.training import checkpoint, last_hidden_state, upstream_settings
from s3prl_ext.training.devices import check_device
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.methods import adds_weights
from s3prl_ext.training.run_spec import RunSpec


def load(
    path: str | os.PathLike[str],
    *,
    device: str | None = None,
    upstream: str | None = None,
    upstream_ckpt: str | None = None,
    upstream_model_config: str | None = None,
    options: Options | None = None,
) -> Model:
    """Load what was trained, without the corpus it was trained on.

    Args:
        path: a run's folder, a checkpoint, a ``delta.safetensors``, a folder of ``s3prl-ext export``, or where no
            training was needed the folder or ``result-SPLIT.json`` of an evaluation.
        device: such as ``cuda`` or ``cpu``; None takes a GPU where there is one.
        upstream: its ``-u`` where the stored one does not fit any more.
        upstream_ckpt: its ``-k`` where the model has moved.
        upstream_model_config: its ``-g``.
        options: see :class:`Options`.

    Raises:
        UsageError: unknown upstream, task or device, or an option that the task does not support.
        DataError: a file is missing or corrupt, or the upstream is another one.
    """
    s3prl_ext.install()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    task = _opened(Path(path))
    check_python_names(task.expert, "downstream_expert")
    task = task.tuned_from(upstream, upstream_ckpt, upstream_model_config)
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):  # s3prl prints
        return Model(task, device, options or Options())


def _opened(path: Path) -> TrainedTask:
    """Read what was trained, with its head; where no training was needed, what evaluations say."""
    if (path / EXPORT_FILE).is_file():
        task = TrainedTask.read_export(path)
    elif (evaluated := _evaluated(path)) is not None:
        return evaluated
    elif is_adapter(path):
        raise DataError(WITHOUT_HEAD.format(path))
    else:
        task = TrainedTask.read_run(path, prefer_delta=False)
    task.check_head()
    return task


def _evaluated(path: Path) -> TrainedTask | None:
    """Return the task behind evaluations of what needed no training; None where `path` is something else.

    Args:
        path: a ``result-SPLIT.json``, or the folder that holds it.

    Raises:
        DataError: it is corrupt or of what was trained, or the folder holds evaluations of several models.
    """
    if path.is_file() and path.suffix == ".json":
        found = _evaluation(path)
        if found is None:
            raise DataError(
                f"{path} is not the evaluation of a task that needs no checkpoint: name the checkpoint, or its folder."
            )
        return found
    folder = RunFolder(path)
    if folder.is_started or folder.delta.is_file():
        return None
    tasks = [task for file in folder.evaluations() if (task := _evaluation(file)) is not None]
    if len({(task.spec, repr(task.expert)) for task in tasks}) > 1:
        names = ", ".join(task.path.name for task in tasks)
        raise DataError(f"{path} holds evaluations of several models or settings ({names}): name one of these files.")
    return next(iter(tasks), None)


def _evaluation(path: Path) -> TrainedTask | None:
    """Return the task behind an evaluation; None where it had other weights than released ones, or failed."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        spec, config = RunSpec.of(content["args"]), content["config"]
        task = task_of(str(spec.downstream), config["downstream_expert"])
        tuning = config.get("tuning") or {}
        without_weights = content["mode"] == "evaluate" and not content["args"].get("init_ckpt")
        is_whole = without_weights and task.released_head and not adds_weights(tuning.get("method"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of an evaluation ({type(error).__name__}: {error}).") from error
    if content.get("error") is not None or (task.trains and not is_whole):
        return None
    about: Mapping[str, Any] = spec.stored() | {
        "tuning": None,
        "config": config,
        last_hidden_state.KEY: content.get(last_hidden_state.KEY),
        upstream_settings.KEY: content.get(upstream_settings.KEY),
    }
    return TrainedTask.untrained(path, about, content.get("upstream_sha256"), content.get("merge"))


@dataclass
class _Job:
    """A recording in progress: its windows, and the head's output for each."""

    recording: Recording
    windows: list[Window] = field(default_factory=list)
    pieces: list[Any] = field(default_factory=list)
    error: str | None = None


class Model:
    """Upstream, featurizer and head of a trained task.

    Attributes:
        task: its ``-d``.
        decoder: turns features into results.
    """

    def __init__(self, trained: TrainedTask, device: str, options: Options) -> None:
        from s3prl.upstream.interfaces import Featurizer

        spec, name = trained.spec, str(trained.path)
        upstream = trained.build().to(device).eval()
        featurizer = Featurizer(
            upstream=upstream,
            feature_selection=spec.upstream_feature_selection or "hidden_states",
            layer_selection=spec.upstream_layer_selection,
            upstream_device=device,
            normalize=bool(spec.upstream_feature_normalize),
        )
        decoder = build_decoder(trained, featurizer.output_dim, featurizer.downsample_rate, options)
        if states := trained.delta.task:  # none where no training was needed
            checkpoint.load_into(featurizer, states.get("Featurizer", {}), "featurizer", name)
            checkpoint.load_into(decoder.head, states.get("Downstream", {}), "head", name)
        self.task = str(spec.downstream)
        self.decoder: Decoder = decoder
        self._models = TaskModels(upstream, featurizer.to(device).eval(), decoder.head.to(device).eval(), device)

    def predict(self, audio: str | os.PathLike | np.ndarray, rate: int = SAMPLE_RATE) -> Result:
        """Return the prediction for one recording.

        Args:
            audio: path of a file, or samples as :func:`s3prl_ext.prediction.recordings.from_samples` takes them.
            rate: sample rate of `audio` in Hz, where it is samples.

        Raises:
            DataError: it cannot be read, or is too short for the model.
        """
        given = recordings.from_samples(audio, rate) if isinstance(audio, np.ndarray) else audio
        *others, result = self.predict_files([given])
        for one in (*others, result):
            if isinstance(one, Failure):
                raise DataError(one.error)
        assert isinstance(result, Result)
        return result

    def predict_files(
        self, paths: Iterable[str | os.PathLike | Recording], batch_size: int = 1
    ) -> Iterator[Result | Failure]:
        """Yield the prediction for each file, in their order; one that cannot be read or decoded is a failure.

        Args:
            paths: audio files.
            batch_size: windows that pass the model together. With 1 no result depends on the other files.

        Raises:
            UsageError: `batch_size` is below 1.
            DataError: a recording failed that the others are compared with: the first of speaker verification.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
        return self.decoder.together(self._each(chain(self.decoder.before, paths), batch_size))

    def _each(self, paths: Iterator[str | os.PathLike | Recording], batch_size: int) -> Iterator[Result | Failure]:
        while group := list(islice(paths, batch_size)):
            jobs = [self._opened(path) for path in group]
            self._decode([job for job in jobs if job.error is None], batch_size)
            yield from self._results(jobs)

    def _opened(self, path: str | os.PathLike | Recording) -> _Job:
        try:
            return self._prepared(path if isinstance(path, Recording) else recordings.read(path))
        except DataError as error:
            return _Job(Recording(str(path), np.zeros(0, np.float32)), error=str(error))

    def _prepared(self, recording: Recording) -> _Job:
        try:
            return _Job(recording, self.decoder.windows(recording.samples))
        except DataError as error:
            return _Job(recording, error=f"{_length(recording.name, recording.seconds)}: {error}.")

    def _decode(self, jobs: list[_Job], batch_size: int) -> None:
        """Fill in the head's output for the windows of all jobs."""
        windows = [(job, window) for job in jobs if job.error is None for window in job.windows]
        for start in range(0, len(windows), batch_size):
            batch = windows[start : start + batch_size]
            try:
                pieces = self._pieces(batch)
            except DataError:  # find the recording that fails
                pieces = [self._piece(*one) for one in batch]
            for (job, _), piece in zip(batch, pieces, strict=True):
                job.pieces.append(piece)

    def _piece(self, job: _Job, window: Window) -> Any:
        try:
            return self._pieces([(job, window)])[0]
        except DataError as error:
            job.error = job.error or str(error)
            return None

    def _pieces(self, batch: list[tuple[_Job, Window]]) -> list[Any]:
        """Return the head's output for each window.

        Raises:
            DataError: a window is too short for the model, or memory is.
        """
        wavs = [self.decoder.prepare(job.recording.samples[start:end]) for job, (start, end) in batch]
        job, _ = min(batch, key=lambda one: one[1][1] - one[1][0])
        seconds = min(map(len, wavs)) / SAMPLE_RATE
        try:
            with torch.no_grad():
                features = self._models.features(wavs, [job.recording.name for job, _ in batch])
                return self.decoder.decode(features, [len(wav) for wav in wavs])
        except (DataError, RuntimeError, ValueError, IndexError, AssertionError) as error:
            if is_out_of_memory(error):
                raise DataError(
                    f"{job.recording.name}: out of memory with {len(wavs)} windows of up to "
                    f"{max(map(len, wavs)) / SAMPLE_RATE:.0f} s: lower --window or --batch-size."
                ) from error
            if isinstance(error, DataError) or seconds < 1:
                raise DataError(f"{_length(job.recording.name, seconds)}, too short for this model: pad it.") from error
            raise

    def _results(self, jobs: list[_Job]) -> list[Result | Failure]:
        results: list[Result | Failure] = []
        for job in jobs:
            if job.error is not None:
                results.append(Failure(job.recording.name, job.error))
            else:
                results.append(self.decoder.join(job.recording, job.windows, job.pieces))
        return results


def _length(name: str, seconds: float) -> str:
    return f"{name} is {seconds:.3f} s long"
