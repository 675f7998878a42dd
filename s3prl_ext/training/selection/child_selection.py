"""Choosing the masks of child networks for a task: by chance, by size of the weights, or by one Fisher pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from s3prl_ext import randomness
from s3prl_ext.child_tuning import mask_files, masks
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import distributed
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.selection.fisher_batches import ORDER
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)

Scores = Mapping[str, torch.Tensor]
Share = Callable[[Callable[[], Scores]], Scores]
CHOSEN_BY = {
    "fisher": "Fisher information",
    "random": "chance",
    "magnitude": "magnitude",
    "snip": "connection sensitivity (SNIP)",
}


def choose_mask(
    models: TaskModels,
    parameters: Mapping[str, nn.Parameter],
    tuning: TuningConfig,
    train_split: str,
    seed: int,
    folder: RunFolder | None = None,
) -> masks.Mask:
    """Return the mask of ``tuning.density``; :func:`choose_masks` for a single density."""
    return choose_masks(models, parameters, tuning, train_split, seed, [tuning.density], folder).at(tuning.density)


def choose_masks(
    models: TaskModels,
    parameters: Mapping[str, nn.Parameter],
    tuning: TuningConfig,
    train_split: str,
    seed: int,
    densities: Sequence[float],
    folder: RunFolder | None = None,
    data: str | None = None,
    share: Share | None = None,
) -> masks.NestedMask:
    """Return the nested masks of several densities from one pass; models and all random states are left as found.

    Args:
        models: upstream, featurizer and downstream of the run, not yet trained.
        parameters: eligible parameters of the upstream by name.
        tuning: method ``child`` with its mask; its `density` is read for the log alone.
        train_split: name of the training split.
        seed: seed of a random mask and of everything random in a Fisher pass.
        densities: fractions of the eligible weights, in (0, 1].
        folder: for ``masks.safetensors`` and, during a Fisher pass, ``fisher.partial``; None writes nothing.
        data: hash of the corpus; masks and passes of another one are not taken over.
        share: takes the Fisher scores of an equal pass from where runs share them, or does the pass that it is given.

    Raises:
        DataError: the training split is empty, a loss is not finite, or all scores are zero.
        StoppedByUser: Ctrl-C or SIGTERM in a Fisher pass; the same call resumes it.
    """
    sizes = {name: p.numel() for name, p in parameters.items()}
    origin = _origin(parameters, tuning, train_split, seed, densities, data) if folder is not None else {}
    found = _load(folder, origin)
    told = (
        [tuning.density] if found is not None else None
    )  # what was logged for one candidate is not repeated for the next
    if distributed.any_of(found is None):  # a rank that does not see the file needs the others in the pass
        with randomness.preserved(seed):
            found = _choose(models, parameters, tuning, train_split, seed, densities, folder, origin, share)
    assert found is not None
    for density in told or found.densities:
        k = masks.count(found.at(density))
        logger.info("child network: %d of %d eligible weights train (%.3f %%), chosen by %s",
                    k, sum(sizes.values()), 100 * k / sum(sizes.values()), CHOSEN_BY[tuning.mask])  # fmt: skip
    return found


def _choose(
    models: TaskModels,
    parameters: Mapping[str, nn.Parameter],
    tuning: TuningConfig,
    train_split: str,
    seed: int,
    densities: Sequence[float],
    folder: RunFolder | None,
    origin: dict[str, Any],
    share: Share | None,
) -> masks.NestedMask:
    sizes = {name: p.numel() for name, p in parameters.items()}
    if set(densities) == {1.0}:
        return masks.nested_full(sizes, densities)
    if tuning.mask == "random":
        if tuning.redraw:  # every weight may be drawn at some step
            return masks.nested_full(sizes, densities)
        return masks.nested_bernoulli(sizes, densities, seed)
    scores: Scores
    if tuning.mask == "magnitude":
        scores, fisher = {name: p.detach().abs() for name, p in parameters.items()}, None
    else:
        fisher = FisherPass(
            models, parameters, tuning.fisher, train_split, seed, folder, origin.get("data"), tuning.mask
        )
        shared = share is not None and fisher.ranks == 1 and tuning.mask == "fisher"
        scores = share(fisher.scores) if share is not None and shared else fisher.scores()
    try:
        chosen = masks.nested_top_k(scores, densities)
    except DataError:
        if fisher is not None:
            fisher.finish()  # what it has saved would be refused for ever
        raise
    if folder is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        mask_files.save(chosen, folder.masks, origin, masks.score_histogram(scores))
    if fisher is not None:
        fisher.finish()
    return chosen


def _origin(
    parameters: Mapping[str, nn.Parameter],
    tuning: TuningConfig,
    split: str,
    seed: int,
    densities: Sequence[float],
    data: str | None,
) -> dict[str, Any]:
    """Return what the masks depend on, as plain values."""
    return {
        "mask": tuning.mask,
        "densities": sorted(set(densities), reverse=True),
        "fisher": {"order": ORDER, **asdict(tuning.fisher)} if tuning.has_pass else {},
        "training split": split,
        "seed": seed,
        "data": data,
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "weights": state_sha256(parameters),
    }


def _load(folder: RunFolder | None, origin: dict[str, Any]) -> masks.NestedMask | None:
    """Return the masks that the same run chose before it was stopped short of its first checkpoint."""
    if folder is None or not folder.masks.is_file():
        return None
    path = folder.masks
    try:
        found, before, _ = mask_files.load(path)
    except DataError as error:
        logger.warning("%s; the masks are chosen again", error)
        return None
    if before != origin:
        _refuse_older_order(folder, before, origin)
        changed = ", ".join(key for key in origin if before.get(key) != origin[key])
        logger.warning("%s was chosen with another %s; the masks are chosen again", path, changed)
        return None
    logger.info("taking the masks from %s", path)
    folder.fisher.unlink(missing_ok=True)  # of a pass that was killed right after its end
    return found


def _refuse_older_order(folder: RunFolder, before: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Refuse to choose masks anew where candidates of a race train already on those of an earlier version."""
    orders = [one["fisher"].get("order") for one in (before, origin) if one.get("fisher")]
    race = folder.race_record.parent
    trained = any(candidate.numbered() for candidate in folder.candidates())
    if len(orders) == 2 and orders[0] != orders[1] and trained:
        raise UsageError(
            f"{folder.masks} was chosen by an earlier version, which read the utterances in another order, and candidates "
            f"in {race} have trained on it; remove both to start the race over, or finish it with that version."
        )
