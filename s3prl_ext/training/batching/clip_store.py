"""Tensors that are made of clips, kept on disk: one checked file for each clip (``runner.cache``).

A file is named by the samples of its clip, in a folder named by everything else that decides about the tensor.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from s3prl_ext import randomness
from s3prl_ext.configs import Record
from s3prl_ext.errors import UsageError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.models.hashing import state_sha256, tensors_sha256
from s3prl_ext.package_versions import versions_of
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers")
PROBE_SECONDS = (1, 3)
TIMES_CLIPS = 2  # how often a clip may be written, on average: a task may cut or pad clips differently each time

REPEATED = "more clips came than the corpus has: the task cuts them at random, or pads them to another length each time"


class ClipStore:
    """One tensor for each clip, in files that are never taken for those of anything else.

    Args:
        model: what the tensors come from.
        compute: makes the tensor of a clip [samples], on the CPU.
        facts: plain values that decide about the tensors too.
        folder: where the folders of all models are.
        dtype: ``float32``, or ``float16`` in half the room.
        device: where the model is.
        what: names the tensors in messages.

    Attributes:
        key: hash of everything that decides about the tensors but the clips.
        bytes_per_second: of audio, in a file.
        room: clips that may be written still; None for any number.

    Raises:
        UsageError: the same clip gets another tensor each time.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Callable[[Tensor], Tensor],
        facts: Record,
        folder: Path,
        dtype: str,
        device: str | torch.device,
        what: str,
    ) -> None:
        self.model, self.compute, self.facts, self.what = model, compute, dict(facts), what
        self.root, self.dtype, self.device = folder, DTYPES[dtype], device
        self.room: int | None = None
        self._writes = True
        self._state = self._versions()
        self.key, self.bytes_per_second = self._identify()

    @property
    def folder(self) -> Path:
        """The folder of this model's tensors."""
        return self.root / self.key[:24]

    def check_model(self) -> None:
        """Look whether the model is still the same one; another one has files of its own."""
        if self._versions() != self._state:  # such as another merge in place of the one before
            self._state = self._versions()
            self.key, self.bytes_per_second = self._identify()

    def get(self, clip: Tensor) -> Tensor:
        """Return the tensor of a clip, float32 on the CPU, from its file or computed."""
        name = hashlib.sha256(clip.detach().cpu().contiguous().numpy().data).hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        stored = self._read(path, name)
        if stored is None:
            computed = self.compute(clip)
            stored = computed.to(self.dtype)
            if computed.isfinite().all() and not stored.isfinite().all():
                raise UsageError(
                    f"runner.cache_dtype: float16 cannot hold these {self.what} (above 65504): take float32."
                )
            self._write(path, name, stored)
        return stored.float()

    def _read(self, path: Path, name: str) -> Tensor | None:
        """Return the tensor in a file; None where there is none, or another than was written."""
        try:
            with safe_open(path, framework="pt") as file:
                said, features = file.metadata() or {}, file.get_tensor("features")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s is corrupt (%s): its clip is computed again", path, str(error).splitlines()[0][:80])
            return None
        if said != self._said(name, features) or features.dtype != self.dtype:
            logger.warning("%s is corrupt (its content does not match its checksum): its clip is computed again", path)
            return None
        return features

    def _write(self, path: Path, name: str, features: Tensor) -> None:
        """Keep the tensor of a clip; a disk that is full ends the writing, not the run."""
        if not self._writes:
            return
        if self.room == 0:
            self._stop_writing(REPEATED, "are not written")
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as temporary:
                save_file({"features": features}, temporary, metadata=self._said(name, features))
        except (OSError, SafetensorError) as error:
            self._stop_writing(str(error).splitlines()[0][:120], "cannot be written")
            return
        if self.room is not None:
            self.room -= 1

    def _stop_writing(self, reason: str, what: str) -> None:
        self._writes = False
        logger.warning("further %s %s to %s (%s); those that are there are used", self.what, what, self.folder, reason)

    def _said(self, name: str, features: Tensor) -> dict[str, str]:
        crc = zlib.crc32(features.contiguous().view(torch.uint8).numpy().data)
        return {"key": self.key, "clip": name, "crc32": f"{crc:08x}"}

    def _versions(self) -> list[tuple[int, int]]:
        """Return what changes when anything writes to a tensor of the model."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def _identify(self) -> tuple[str, float]:
        """Return the hash of everything that decides about the tensors, and bytes per second of audio."""
        probes = [torch.randn(n * SAMPLE_RATE, generator=torch.Generator().manual_seed(n)) / 8 for n in PROBE_SECONDS]
        answers = []
        with randomness.preserved():
            for seed in (0, 1):
                randomness.seed_all(seed)
                answers.append([self.compute(probe.to(self.device)) for probe in probes])
        first, second = (tensors_sha256(enumerate(answer)) for answer in answers)
        if first != second:
            raise UsageError(
                "runner.cache needs an upstream that gives a clip the same features each time, and this one does not: "
                "leave runner.cache out."
            )
        facts = self.facts | {
            "format": FORMAT,
            "state": state_sha256(self.model.state_dict()),
            "probes": first,
            "dtype": str(self.dtype),
            "device": torch.device(self.device).type,
            "versions": versions_of(PACKAGES),
        }
        size = answers[0][-1].numel() * self.dtype.itemsize / PROBE_SECONDS[-1]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest(), size


def announce(store: ClipStore, loaders: Iterable[Any], padded: bool = False) -> None:
    """Say how much room all clips take, and keep the store from writing more than twice as many.

    Args:
        store: of the run.
        loaders: the DataLoaders of the splits that the run reads; a batch of each is looked at.
        padded: clips are as long as the longest one of their batch.

    Raises:
        UsageError: the folder cannot be created.
    """
    try:
        store.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"runner.cache: the folder {store.root} cannot be created ({error.strerror}): name another one with "
            "runner.cache_folder."
        ) from error
    clips, size = 0, 0.0
    for loader in loaders:
        wavs, *_ = next(iter(loader))
        in_items = loader.batch_size == 1 and getattr(loader.dataset, "bucket_size", 1) <= 1 and len(wavs) > 1
        count = len(loader) * len(wavs) if in_items else len(loader.dataset)
        length = max(map(len, wavs)) if padded else sum(map(len, wavs)) / len(wavs)
        clips += count
        size += count * store.bytes_per_second * length / SAMPLE_RATE
    store.room = TIMES_CLIPS * clips
    free = shutil.disk_usage(store.root).free
    logger.info(
        "runner.cache: the %s of about %d clips take about %.3g GB in %s (%.3g GB are free there; clips that the task "
        "cuts or pads differently each time are kept up to %d times that number)",
        store.what, clips, size / 1e9, store.folder, free / 1e9, TIMES_CLIPS,
    )  # fmt: skip
    if free < size:
        logger.warning("runner.cache: that is more than the disk has; those that find room are kept")


def default_folder() -> Path:
    """Return the folder of caches of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3prl_ext" / "features"
