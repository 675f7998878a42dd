"""Choosing the mask of a child network for a task: by chance, or by one Fisher pass over the training split."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from s3prl_ext.child_tuning import fisher, masks
from s3prl_ext.errors import DataError
from s3prl_ext.training import randomness
from s3prl_ext.training.config import TuningConfig
from s3prl_ext.training.forward import TaskModels

logger = logging.getLogger(__name__)


def choose_mask(
    models: TaskModels,
    parameters: Mapping[str, nn.Parameter],
    tuning: TuningConfig,
    train_split: str,
    seed: int,
) -> masks.Mask:
    """Return the mask of the child network; the models and all random states are left as found.

    Args:
        models: upstream, featurizer and downstream of the run, not yet trained.
        parameters: eligible parameters of the upstream by name.
        tuning: method ``child`` with mask and density.
        train_split: name of the training split.
        seed: seed of a random mask.
    """
    total = sum(p.numel() for p in parameters.values())
    with randomness.preserved(seed):
        if tuning.mask == "random":
            mask = masks.bernoulli({n: p.numel() for n, p in parameters.items()}, tuning.density, seed)
        else:
            mask = masks.top_k(_fisher_scores(models, parameters, tuning, train_split), tuning.density)
    logger.info(
        "child network: %d of %d eligible weights train (%.3f %%), chosen by %s",
        masks.count(mask), total, 100 * masks.count(mask) / total,
        "Fisher information" if tuning.mask == "fisher" else "chance",
    )  # fmt: skip
    return mask


def _fisher_scores(
    models: TaskModels, parameters: Mapping[str, nn.Parameter], tuning: TuningConfig, train_split: str
) -> dict[str, torch.Tensor]:
    loader = each_utterance_once(models.downstream, train_split)
    total = len(loader) if tuning.fisher_max_batches is None else min(len(loader), tuning.fisher_max_batches)
    if total == 0:
        raise DataError("the Fisher pass got no batch: the training split is empty.")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = itertools.islice(loader, rank, total, ranks)
    progress = tqdm(batches, desc="Fisher information", total=-(-total // ranks), disable=rank > 0, dynamic_ncols=True)

    def loss_of(batch: Any) -> torch.Tensor:
        wavs, *others = batch
        return models.loss(train_split, wavs, others, records=defaultdict(list), with_upstream_grad=True)

    with _evaluation_mode(models):
        scores, _ = fisher.estimate(parameters, progress, loss_of)
        for module in models.modules():
            module.zero_grad(set_to_none=True)
    for score in scores.values():
        if ranks > 1:
            dist.all_reduce(score)
        score.div_(total)
    return scores


@contextmanager
def _evaluation_mode(models: TaskModels) -> Iterator[None]:
    """Dropout off everywhere; recurrent layers stay in train mode without dropout (cuDNN needs it for backward)."""
    found = [(m, m.training) for top in models.modules() for m in top.modules()]
    dropouts = [(m, m.dropout) for m, _ in found if isinstance(m, nn.RNNBase)]
    try:
        for module, _ in found:
            module.training = isinstance(module, nn.RNNBase)
        for module, _ in dropouts:
            module.dropout = 0.0
        yield
    finally:
        for module, training in found:
            module.training = training
        for module, dropout in dropouts:
            module.dropout = dropout


def each_utterance_once(downstream: Any, split: str) -> DataLoader:
    """Return a DataLoader over the training split in file order, each utterance once.

    The tasks' own loaders draw with replacement (KS), overlap their buckets (PR, SF) or halve long batches; here the
    dataset is read sequentially with the task's batch size.

    Args:
        downstream: s3prl's downstream expert.
        split: name of the training split.
    """
    loader = downstream.get_dataloader(split)
    dataset, collate, batch_size = loader.dataset, loader.collate_fn, loader.batch_size
    bucket = getattr(dataset, "bucket_size", 1)
    if bucket > 1 and hasattr(dataset, "file_list"):  # PR, SF: item i is the bucket that starts at utterance i
        dataset.bucket_size, batch_size = 1, bucket
    if isinstance(collate, partial) and "split" in collate.keywords:  # PR, SF: "train" would drop half of long batches
        collate = partial(collate.func, *collate.args, **{**collate.keywords, "split": "dev"})
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, collate_fn=collate, num_workers=loader.num_workers)
