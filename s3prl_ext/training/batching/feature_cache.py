"""Features of an upstream that does not train, kept on disk (``runner.cache: features``).

A clip passes the upstream alone, so that its features depend on no other clip of its batch, and are those of a batch of
one without a cache, bit by bit. A file is named by the samples of its clip, in a folder named by everything that decides
about features: the weights, what the upstream makes of a probe, the choice of ``-s`` and ``-l``, versions, device.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ext import randomness
from s3prl_ext.configs import Record
from s3prl_ext.errors import UsageError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.models.hashing import state_sha256, tensors_sha256
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

FORMAT = 1  # of the files
DTYPES = {"float32": torch.float32, "float16": torch.float16}
PACKAGES = ("s3prl_ext", "s3prl", "torch", "torchaudio", "transformers")
PROBE_SECONDS = (1, 3)
TIMES_CLIPS = 2  # how often a clip may be written, on average: a task may cut clips at random


class FeatureCache:
    """The features of one upstream.

    Args:
        upstream: frozen; it is called in evaluation mode.
        featurizer: s3prl's, which chooses among what the upstream returns.
        facts: plain values that decide about features too, such as ``-g``.
        folder: where the folders of all upstreams are.
        dtype: ``float32``, or ``float16`` in half the room.
        device: where the upstream is.

    Attributes:
        bytes_per_second: of audio, in a file.
        room: clips that may be written still; None for any number.

    Raises:
        UsageError: the upstream gives other features each time.
    """

    def __init__(
        self,
        upstream: nn.Module,
        featurizer: Any,
        facts: Record,
        folder: Path,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        self.upstream, self.featurizer, self.facts, self.root = upstream, featurizer, facts, folder
        self.dtype, self.device = DTYPES[dtype], device
        self.room: int | None = None
        self._writes = True
        self._state = self._versions()
        self.key, self.bytes_per_second = self._identify()

    @property
    def folder(self) -> Path:
        """The folder of this upstream's features."""
        return self.root / self.key[:24]

    def hidden(self, wavs: Sequence[Tensor]) -> tuple[Record, list[int]]:
        """Return what the featurizer takes from an upstream, padded, and the frames of each clip.

        Args:
            wavs: one-dimensional, 16 kHz.
        """
        if self._versions() != self._state:  # such as another merge in place of the one before
            self._state = self._versions()
            self.key, self.bytes_per_second = self._identify()
        clips = [self._features(wav).to(self.device) for wav in wavs]  # [frames, width] or [layers, frames, width]
        name = self.featurizer.feature_selection
        if clips[0].dim() == 2:
            chosen: Any = pad_sequence(clips, batch_first=True)
        else:
            chosen = [pad_sequence(list(layer), batch_first=True) for layer in zip(*clips, strict=True)]
        return {name: chosen}, [clip.shape[-2] for clip in clips]

    # -- a clip ----------------------------------------------------------------------------------------------------

    def _features(self, wav: Tensor) -> Tensor:
        name = hashlib.sha256(wav.detach().cpu().contiguous().numpy().data).hexdigest()
        path = self.folder / name[:2] / f"{name}.safetensors"
        stored = self._read(path, name)
        if stored is None:
            computed = self._computed(wav)
            stored = computed.to(self.dtype)
            if computed.isfinite().all() and not stored.isfinite().all():
                raise UsageError("runner.cache_dtype: float16 cannot hold these features (above 65504): take float32.")
            self._write(path, name, stored)
        return stored.float()

    @torch.no_grad()
    def _computed(self, wav: Tensor) -> Tensor:
        """Return what the featurizer reads of one clip, on the CPU."""
        with modes_kept([self.upstream]):
            self.upstream.eval()
            chosen = self.featurizer._select_feature(self.upstream([wav]))
        if isinstance(chosen, (list, tuple)):
            return torch.stack([layer[0] for layer in chosen]).cpu()
        return chosen[0].cpu().contiguous()

    def _read(self, path: Path, name: str) -> Tensor | None:
        """Return the features in a file; None where there are none, or others than were written."""
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
        """Keep the features of a clip; a disk that is full ends the writing, not the run."""
        if not self._writes:
            return
        if self.room == 0:
            self._stop_writing("more clips came than the corpus has, so the task cuts them at random", "are not kept")
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
        logger.warning("further features %s to %s (%s); those that are there are used", what, self.folder, reason)

    def _said(self, name: str, features: Tensor) -> dict[str, str]:
        crc = zlib.crc32(features.contiguous().view(torch.uint8).numpy().data)
        return {"key": self.key, "clip": name, "crc32": f"{crc:08x}"}

    # -- the upstream ----------------------------------------------------------------------------------------------

    def _versions(self) -> list[tuple[int, int]]:
        """Return what changes when anything writes to a tensor of the upstream."""
        tensors = (*self.upstream.parameters(), *self.upstream.buffers())
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]

    def _identify(self) -> tuple[str, float]:
        """Return the hash of everything that decides about features, and bytes per second of audio."""
        probes = [torch.randn(n * SAMPLE_RATE, generator=torch.Generator().manual_seed(n)) / 8 for n in PROBE_SECONDS]
        answers = []
        with randomness.preserved():
            for seed in (0, 1):
                randomness.seed_all(seed)
                answers.append([self._computed(probe.to(self.device)) for probe in probes])
        first, second = (tensors_sha256(enumerate(answer)) for answer in answers)
        if first != second:
            raise UsageError(
                "runner.cache: features needs an upstream that gives a clip the same features each time, and this one does "
                "not: leave runner.cache out."
            )
        facts = self.facts | {
            "format": FORMAT,
            "state": state_sha256(self.upstream.state_dict()),
            "probes": first,
            "selection": [self.featurizer.feature_selection, self.featurizer.layer_selection],
            "dtype": str(self.dtype),
            "device": torch.device(self.device).type,
            "versions": {name: _version(name) for name in PACKAGES},
        }
        size = answers[0][-1].numel() * self.dtype.itemsize / PROBE_SECONDS[-1]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest(), size


def announce(cache: FeatureCache, loaders: Sequence[Any]) -> None:
    """Say how much room the features of all clips take, and keep the cache from writing more than twice as many.

    Args:
        cache: of the run.
        loaders: the DataLoaders of the splits that the run reads; a batch of each is looked at.
    """
    clips, size = 0, 0.0
    for loader in loaders:
        wavs, *_ = next(iter(loader))
        in_items = loader.batch_size == 1 and getattr(loader.dataset, "bucket_size", 1) <= 1 and len(wavs) > 1
        count = len(loader) * len(wavs) if in_items else len(loader.dataset)
        clips += count
        size += count * cache.bytes_per_second * sum(map(len, wavs)) / len(wavs) / SAMPLE_RATE
    cache.room = TIMES_CLIPS * clips
    cache.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.root).free
    logger.info(
        "runner.cache: the features of about %d clips take about %.3g GB in %s (%.3g GB are free there; clips that the task cuts "
        "at random are kept up to %d times that number)", clips, size / 1e9, cache.folder, free / 1e9, TIMES_CLIPS,
    )  # fmt: skip
    if free < size:
        logger.warning("runner.cache: that is more than the disk has; the features that find room are kept")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def default_folder() -> Path:
    """Return the folder of caches of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3prl_ext" / "features"
