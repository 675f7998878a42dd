"""A trained task as a function from audio to predictions."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import s3prl_ext
from s3prl_ext.configs import check_python_names
from s3prl_ext.corpora.audio import SAMPLE_RATE
from s3prl_ext.deltas.evaluated_task import read_evaluated
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, is_out_of_memory
from s3prl_ext.prediction import recordings
from s3prl_ext.prediction.decoder import Decoder, Options, build_decoder
from s3prl_ext.prediction.recordings import Recording
from s3prl_ext.prediction.results import Failure, Result
from s3prl_ext.prediction.windows import Window
from s3prl_ext.reading import EXPORT_FILE
from s3prl_ext.training import checkpoint
from s3prl_ext.training.devices import check_device
from s3prl_ext.training.forward import TaskModels


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
        path: a run's folder, a checkpoint, a ``delta.safetensors``, a folder of ``s3prl-ext export``, or of a task
            without training the folder or ``result-SPLIT.json`` of an evaluation.
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
    task = _read(Path(path))
    check_python_names(task.expert, "downstream_expert")
    task = task.tuned_from(upstream, upstream_ckpt, upstream_model_config)
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):  # s3prl prints
        return Model(task, device, options or Options())


def _read(path: Path) -> TrainedTask:
    if (path / EXPORT_FILE).is_file():
        task = TrainedTask.read_export(path)
    elif (evaluated := read_evaluated(path)) is not None:
        return evaluated
    else:
        task = TrainedTask.read(path, prefer_delta=False)
    task.check_head()
    return task


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
        checkpoint.load_into(featurizer, trained.delta.task.get("Featurizer", {}), "featurizer", name)
        decoder = build_decoder(trained.info, featurizer.output_dim, featurizer.downsample_rate, options, name)
        checkpoint.load_into(decoder.head, trained.delta.task.get("Downstream", {}), "head", name)
        self.task = str(spec.downstream)
        self.decoder: Decoder = decoder
        self._models = TaskModels(upstream, featurizer.to(device).eval(), decoder.head.to(device).eval(), device)

    def predict(self, audio: str | os.PathLike | np.ndarray, rate: int = SAMPLE_RATE) -> Result:
        """Return the prediction for one recording.

        Args:
            audio: path of a file, or samples [samples] or [samples, channels], full scale 1.
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
        """
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
