"""Training batches of clips of like length (``runner.group_by_length``): less padding, of the same clips."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from s3prl_ext import randomness
from s3prl_ext.randomness import RandomState

logger = logging.getLogger(__name__)


class LikeLength:
    """Iterate over a DataLoader once, with the clips of every few batches exchanged among them by length.

    Which clips come, and how many a batch holds, is the loader's; the order of the new batches is drawn. A batch that
    is not made of one entry per clip, as of ASR, PR and SF, whose batches are of like length already, is left as it is.

    Args:
        loader: of the training split.
        batches: how many batches exchange their clips.
        resume_at: number of the group that a resumed run is in, which is read from the state `resume_from`: the
            augmentation of its clips may depend on it.
        resume_from: the random state at the start of that group.

    Attributes:
        group_start: the random state at the start of the present group.
    """

    def __init__(
        self, loader: Any, batches: int, resume_at: int | None = None, resume_from: RandomState | None = None
    ) -> None:
        self.loader, self.batches = loader, batches
        self._resume_at, self._resume_from = resume_at, resume_from
        self.group_start: RandomState | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        iterator = iter(self.loader)
        for number in itertools.count():
            if number == self._resume_at and self._resume_from is not None:
                randomness.set_state(self._resume_from)
            self.group_start = randomness.get_state()
            group = [tuple(batch) for batch in itertools.islice(iterator, self.batches)]  # KS gives iterators
            if not group:
                return
            made = exchanged(group, generator)
            if number == 0:
                say_padding("group_by_length", group, made)
            yield from made


def exchanged(group: Sequence[tuple[Any, ...]], generator: torch.Generator) -> list[tuple[Any, ...]]:
    """Return batches of the same sizes and clips, each of clips of like length, in a drawn order."""
    if len(group[0][0]) < 2 or not all(map(_is_of_clips, group)):
        return list(group)
    clips = sorted((clip for batch in group for clip in zip(*batch, strict=True)), key=lambda clip: -len(clip[0]))
    made = []
    for size in sorted((len(batch[0]) for batch in group), reverse=True):
        made.append(tuple(zip(*clips[:size], strict=True)))
        clips = clips[size:]
    return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]


def _is_of_clips(batch: tuple[Any, ...]) -> bool:
    return all(isinstance(part, (list, tuple)) and len(part) == len(batch[0]) for part in batch)


def padding(batches: Sequence[tuple[Any, ...]]) -> float:
    """Return the share of samples that is padding, where each batch is padded to its longest clip."""
    lengths = [[len(wav) for wav in batch[0]] for batch in batches]
    whole = sum(max(batch) * len(batch) for batch in lengths)
    return 1 - sum(map(sum, lengths)) / whole if whole else 0.0


def say_padding(option: str, group: Sequence[tuple[Any, ...]], made: Sequence[tuple[Any, ...]]) -> None:
    """Log how much of the first batches was padding, and how much is now."""
    before, after = 100 * padding(group), 100 * padding(made)
    logger.info("%s: %.0f %% of the samples of a batch were padding, and now %.0f %% are", option, before, after)
