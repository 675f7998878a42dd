"""Scoring a split: s3prl's protocol, with the global random states left as they were found."""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from tensorboardX import SummaryWriter

from s3prl_ext import randomness
from s3prl_ext.errors import DataError, UsageError, is_out_of_memory
from s3prl_ext.evaluation.significance import Interval
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.models.modes import modes_kept
from s3prl_ext.progress import bar, printing
from s3prl_ext.training import best_scores
from s3prl_ext.training.batching.batches import end_with_parent
from s3prl_ext.training.forward import TaskModels, clip_names
from s3prl_ext.training.results.intervals import intervals
from s3prl_ext.training.results.task_output import whole_predictions

logger = logging.getLogger(__name__)


class MetricLogger:
    """Pass scalars on to a TensorBoard writer and remember them by metric name.

    s3prl's tasks return only checkpoint names from ``log_records``; their metrics are seen nowhere else but here.

    Args:
        writer: TensorBoard writer, or None.
        ratios: metrics that the task logs as ratios and that are remembered in per cent: one name has one unit.
    """

    def __init__(self, writer: SummaryWriter | None = None, ratios: Collection[str] = ()) -> None:
        self.values: dict[str, float] = {}
        self._writer = writer
        self._ratios = ratios

    def add_scalar(self, tag: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Record scalar `value` of a tag such as ``asr/dev-clean-wer`` under ``wer`` and pass it on."""
        name = tag.rsplit("-", 1)[-1]
        self.values[name] = float(value) * (100.0 if name in self._ratios else 1.0)
        if self._writer is not None:
            self._writer.add_scalar(tag, value, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if self._writer is None:
            return lambda *args, **kwargs: None
        return getattr(self._writer, name)


class Scores(NamedTuple):
    """What an evaluation found.

    Attributes:
        metrics: by name.
        save_names: checkpoint names under which the task wants this model saved.
        intervals: 95 % interval of each metric whose utterances are known.
        items: how many utterances were scored; of diarization recordings, or chunks where these are not handed out
            whole.
    """

    metrics: dict[str, float]
    save_names: list[str]
    intervals: dict[str, Interval]
    items: int


def evaluate(
    models: TaskModels,
    split: str,
    seed: int,
    ratio: float = 1.0,
    writer: SummaryWriter | None = None,
    step: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> Scores:
    """Score a split under a fixed seed (KS draws its dev batches at random).

    Args:
        models: upstream, featurizer, downstream; their train or eval modes are put back.
        split: name of the split, as the task's expert knows it.
        seed: seed for this evaluation.
        ratio: share of the split's batches that is scored.
        writer: TensorBoard writer, or None.
        step: global step for the log.
        check_stop: called between batches; may raise to give the evaluation up.

    Raises:
        DataError: the split is empty.
    """
    models = models.unwrapped()  # a wrapped forward would wait for ranks that are not evaluating
    metric_logger = MetricLogger(writer, models.task.ratios)
    with (
        modes_kept(models.modules()),
        randomness.preserved(seed),
        torch.no_grad(),
        whole_predictions(models.downstream),
    ):
        for module in models.modules():
            module.eval()
        loader = checked_loader(models, split)
        batches = max(1, round(len(loader) * ratio))
        records, wholes, items, bad = _score(models, split, loader, batches, check_stop)
        before = best_scores.remembered(models.downstream)
        try:
            with printing():
                save_names = models.downstream.log_records(
                    split,
                    records=records,
                    logger=metric_logger,
                    global_step=step,
                    batch_ids=list(range(batches)),
                    total_batch_num=len(loader),
                )
        except ZeroDivisionError as error:
            raise DataError(
                f"the metrics of split '{split}' divide by zero: its references contain nothing to count (SF: no slot; "
                "ASR, PR: no word); check the corpus of this task."
            ) from error
    if bad:
        best_scores.put_back(models.downstream, before)
        _warn_of_no_numbers(split, bad, batches)
        return Scores(dict.fromkeys(metric_logger.values, math.nan), [], {}, items)
    values, names = metric_logger.values, save_names if isinstance(save_names, list) else []
    return Scores(values, names, intervals(values, {**records, "recording": wholes}, models.task), items)


def _warn_of_no_numbers(split: str, bad: Sequence[str], batches: int) -> None:
    logger.warning(
        "split '%s': the features or the loss of %d of %d batches are not numbers (NaN or infinity; the first "
        "holds %s): the model has diverged, or the audio holds such samples. Its scores mean nothing: they are "
        "recorded as missing, and this model is not kept as the best.", split, len(bad), batches, bad[0],
    )  # fmt: skip


def open_split(downstream: Any, split: str, **options: Any) -> Any:
    """Return a task's DataLoader of a split.

    Args:
        downstream: the task.
        split: its name.
        **options: further arguments of the task's ``get_dataloader``.

    Raises:
        DataError: it is empty, or holds a label that the task does not know, and the task or torch finds that out here.
    """
    try:
        return end_with_parent(downstream.get_dataloader(split, **options))
    except KeyError as error:
        if split in str(error):  # there is no such split
            raise
        raise DataError(
            f"split '{split}' cannot be read: the task looks up {error} and does not find it, such as a label that its "
            "lists lack; check the corpus."
        ) from error
    except (ValueError, AssertionError) as error:
        if not any(words in str(error) for words in ("num_samples", "0 data found")):  # of torch, of ASR
            raise
        raise _empty(split) from error


def _empty(split: str) -> DataError:
    return DataError(f"split '{split}' is empty; check the corpus.")


def check_splits(models: TaskModels, splits: Iterable[str]) -> None:
    """Raise an error where the task has no split of a name, or an empty one, before a run gets to evaluate it.

    Raises:
        UsageError: there is no such split.
        DataError: it is empty.
    """
    with randomness.preserved():
        for split in splits:
            checked_loader(models, split)


def checked_loader(models: TaskModels, split: str) -> Any:
    """Return the DataLoader of a split, which has a batch.

    Raises:
        UsageError: there is no such split.
        DataError: it is empty.
    """
    loader = _loader(models, split)
    if len(loader) == 0:
        raise _empty(split)
    return loader


def _loader(models: TaskModels, split: str) -> Any:
    try:
        return open_split(models.downstream, split)
    except (NotImplementedError, KeyError, AttributeError) as error:
        # s3prl's tasks look the split up in different ways; an error about something else is not ours to explain.
        if not isinstance(error, NotImplementedError) and split not in str(error):
            raise
        raise UsageError(
            f"the task has no split '{split}' (-t, runner.eval_dataloaders); its splits are usually train, "
            f"{models.task.dev} and {models.task.test}."
        ) from error


def _score(
    models: TaskModels, split: str, loader: Any, batches: int, check_stop: Callable[[], None]
) -> tuple[dict[str, list], list[str], int, list[str]]:
    """Run the first `batches` batches.

    Returns:
        What the task recorded; names of recordings, where each batch is the chunks of one (SD); the number of items;
        for each batch whose features or loss are not finite, the clips in it.
    """
    records: dict[str, list] = defaultdict(list)
    wholes: list[str] = []
    items = 0
    bad: list[str] = []
    progress = bar(itertools.islice(loader, batches), desc=split, total=batches, leave=False)
    for batch_id, (wavs, *others) in enumerate(progress):
        check_stop()
        try:
            models.loss(split, wavs, others, records, batch_id=batch_id)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DataError(
                f"batch {batch_id} of split '{split}' ({len(wavs)} clips of up to "
                f"{max(map(len, wavs)) / SAMPLE_RATE:.0f} s) does not fit into the device's memory: lower the task's "
                "evaluation batch size in downstream_expert, or use --device cpu."
            ) from error
        if not models.finite:
            bad.append(", ".join(clip_names(others)[:3]) or f"batch {batch_id}")
        if others and isinstance(others[-1], str):
            wholes.append(others[-1])
        items += len(wavs)
    return records, wholes, len(wholes) or items, bad
