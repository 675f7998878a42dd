"""From waveforms to the loss of a task: upstream, featurizer, downstream, with clear errors for unsuitable clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ext.errors import DataError, ExtError, is_of_precision, is_out_of_memory
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.tasks import OTHER, Task
from s3prl_ext.training.batching.feature_cache import FeatureCache


class TaskFailed(ExtError):
    """The code of a task raised an error on a batch: a crash, of which the message names the clips."""


@dataclass
class TaskModels:
    """The three models of an s3prl experiment, in the order in which a waveform passes them.

    Attributes:
        upstream, featurizer, downstream: as called, so possibly wrapped for several devices.
        specaug: s3prl's SpecAugment on features, or None; used in training only.
        device: where the models are.
        task: record of the task.
        finite: whether features and loss of the last batch were numbers.
        cache: features of the upstream, which does not train; None to compute them.
    """

    upstream: Any
    featurizer: Any
    downstream: Any
    device: str | torch.device
    task: Task = OTHER
    specaug: Any = None
    finite: bool = True
    cache: FeatureCache | None = None

    def unwrapped(self) -> TaskModels:
        """Return the models without their wrappers for several devices, for work that one rank does alone."""
        return replace(
            self,
            upstream=unwrapped(self.upstream),
            featurizer=unwrapped(self.featurizer),
            downstream=unwrapped(self.downstream),
        )

    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return upstream, featurizer and downstream."""
        return self.upstream, self.featurizer, self.downstream

    def features(
        self, wavs: Iterable[Any], names: Sequence[str] = (), with_upstream_grad: bool = False
    ) -> list[torch.Tensor]:
        """Return one feature matrix [frames, width] per waveform.

        Args:
            wavs: one-dimensional float arrays, 16 kHz.
            names: names of the clips for error messages, same order.
            with_upstream_grad: record gradients through the upstream.

        Raises:
            DataError: a clip has several channels or is shorter than a frame of the upstream.
        """
        wavs = [torch.FloatTensor(wav).to(self.device) for wav in wavs]
        for index, wav in enumerate(wavs):
            if wav.dim() != 1:
                raise DataError(
                    f"{_clip(names, index)} has shape {tuple(wav.shape)} instead of one channel; "
                    "convert it to 16 kHz mono."
                )
        try:
            if self.cache is not None and not with_upstream_grad:
                hidden, frames = self.cache.hidden(wavs)
                features = [clip[:count] for clip, count in zip(self.featurizer(wavs, hidden), frames, strict=True)]
            else:
                with torch.set_grad_enabled(with_upstream_grad and torch.is_grad_enabled()):
                    hidden = self.upstream(wavs)
                features = self.featurizer(wavs, hidden)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torchaudio's Kaldi features
            shortest = min(range(len(wavs)), key=lambda i: len(wavs[i]))
            if len(wavs[shortest]) < SAMPLE_RATE // 10 and "out of memory" not in str(error):
                raise _too_short(names, shortest, wavs) from error
            raise
        for index, feature in enumerate(features):
            if len(feature) == 0:
                raise _too_short(names, index, wavs)
        return features

    def loss(
        self,
        split: str,
        wavs: Iterable[Any],
        others: Sequence[Any],
        records: dict[str, list],
        with_upstream_grad: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the task's loss of a batch and append its results to `records`, as s3prl's experts do."""
        features = self.features(wavs, clip_names(others), with_upstream_grad)
        if self.specaug is not None and self.downstream.training:
            features, _ = self.specaug(features)
        with _clips_named(split, clip_names(others), len(features), torch.device(self.device).type):
            loss = self.downstream(split, features, *others, records=records, **kwargs)
        if not torch.is_grad_enabled():  # in training the norm of the gradient tells
            self.finite = all(bool(torch.isfinite(value).all()) for value in (*features, loss))
        return loss


@contextmanager
def _clips_named(split: str, names: Sequence[str], count: int, device: str) -> Iterator[None]:
    """Add to an error of a task's code which clips it was about; in a run of several processes it stays as it is.

    An error about number formats in mixed precision is about that, not about the clips.
    """
    try:
        yield
    except (ValueError, AssertionError, LookupError, TypeError, RuntimeError) as error:
        if dist.is_initialized() or is_out_of_memory(error) or isinstance(error, NotImplementedError):
            raise
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no message'}"
        advice = "check these clips and their labels in the corpus"
        if torch.is_autocast_enabled(device) and is_of_precision(error):
            advice = "the task cannot be trained in this precision: leave runner.amp out"
        raise TaskFailed(
            f"the task failed on a batch of {count} clips of split '{split}'{f' ({shown})' if names else ''}: "
            f"{reason}; {advice}."
        ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside a DistributedDataParallel wrapper, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def clip_names(others: Sequence[Any]) -> Sequence[str]:
    """Return the clip names of a batch: the last of its parts that is a sequence of strings."""
    for part in reversed(others):
        if isinstance(part, (list, tuple)) and part and all(isinstance(name, str) for name in part):
            return part
    return ()


def _clip(names: Sequence[str], index: int) -> str:
    return f"clip '{names[index]}'" if index < len(names) else f"clip {index} of the batch"


def _too_short(names: Sequence[str], index: int, wavs: Sequence[torch.Tensor]) -> DataError:
    return DataError(
        f"{_clip(names, index)} has {len(wavs[index])} samples ({len(wavs[index]) / SAMPLE_RATE:.3f} s), less than one "
        "frame of the upstream; remove it from the corpus or pad it."
    )
