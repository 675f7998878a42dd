"""Choosing the masks of child networks for a task: by chance, by size of the weights, or by one Fisher pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist

from s3prl_ext import randomness
from s3prl_ext.child_tuning import mask_files, masks
from s3prl_ext.child_tuning.budgets import nested_random, nested_top_k_in
from s3prl_ext.child_tuning.names import MASKS
from s3prl_ext.child_tuning.units import nested_units, places_of, random_units
from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.heads import head_counts
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import distributed
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import ORDER
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.selection.lottery_pass import LotteryPass
from s3prl_ext.training.selection.pass_facts import ENVIRONMENT, SETTINGS, same_settings
from s3prl_ext.training.selection.shared_scores import Scores

logger = logging.getLogger(__name__)

Share = Callable[[Callable[[], Scores]], Scores]


def choose_mask(choice: Choice) -> masks.Mask:
    """Return the mask of ``tuning.density``; :func:`choose_masks` for a single density."""
    return choose_masks(choice, [choice.tuning.density]).at(choice.tuning.density)


def choose_masks(
    choice: Choice, densities: Sequence[float], share: Share | None = None, trained: bool = False
) -> masks.NestedMask:
    """Return the nested masks of several densities from one pass; models and all random states are left as found.

    Args:
        choice: its ``tuning.density`` is read for the log alone.
        densities: fractions of the eligible weights, in (0, 1].
        share: takes the scores of an equal pass from where runs share them, or does the pass that it is given.
        trained: candidates of a race have trained on the masks in the folder.

    Raises:
        DataError: the training split is empty, a loss is not finite, or all scores are zero.
        StoppedByUser: Ctrl-C or SIGTERM in a Fisher pass; the same call resumes it.
        UsageError: the masks that candidates have trained on were chosen otherwise.
    """
    tuning, folder = choice.tuning, choice.folder
    found, origin = None, {}
    if folder is not None and tuning.mask != "random" and set(densities) != {1.0}:
        origin = _origin(choice, densities)
        found = _load(folder, origin, trained)
    # what was logged for one candidate is not repeated for the next
    told = [tuning.density] if found is not None else None
    if distributed.any_of(found is None):  # a rank that does not see the file needs the others in the pass
        with randomness.preserved(choice.seed):
            found = _choose(replace(choice, facts=origin.get("facts")), densities, origin, share)
    assert found is not None
    sizes = {name: parameter.numel() for name, parameter in choice.parameters.items()}
    for density in told or found.densities:
        announce(found.at(density), sizes, f"chosen by {MASKS[tuning.mask]}")
    return found


def announce(mask: masks.Mask, sizes: Mapping[str, int], origin: str) -> None:
    """Log how many of the eligible weights train, and which these are."""
    k, total = masks.count(mask), sum(sizes.values())
    logger.info("child network: %d of %d eligible weights train (%.3f %%), %s", k, total, 100 * k / total, origin)


def _choose(choice: Choice, densities: Sequence[float], origin: Record, share: Share | None) -> masks.NestedMask:
    tuning, folder = choice.tuning, choice.folder
    sizes = {name: p.numel() for name, p in choice.parameters.items()}
    if set(densities) == {1.0} or tuning.redraw:  # where masks are redrawn every weight may be drawn at some step
        return masks.nested_full(sizes, densities)
    places = None
    if tuning.unit != "entry":
        shapes = {name: tuple(p.shape) for name, p in choice.parameters.items()}
        places = places_of(shapes, tuning.unit, head_counts(choice.models.upstream))
    if tuning.mask == "random":
        if places is not None:
            return _refuse_empty(random_units(densities, places, choice.seed, tuning.budget), sizes, choice.seed)
        return _refuse_empty(nested_random(sizes, densities, choice.seed, tuning.budget), sizes, choice.seed)
    work = _pass_of(choice)
    scores: Scores
    if work is None:
        scores = {name: p.detach().abs() for name, p in choice.parameters.items()}
    else:
        scores = share(work.scores) if share is not None and work.ranks == 1 else work.scores()
    try:
        if places is not None:
            chosen = nested_units(scores, densities, places, tuning.budget)
        else:
            chosen = nested_top_k_in(scores, densities, tuning.budget)
    except DataError:
        if work is not None:
            work.finish()  # what it has saved would be refused for ever
        raise
    if folder is not None and (not dist.is_initialized() or dist.get_rank() == 0):
        mask_files.save(chosen, folder.masks, origin, masks.score_histogram(scores))
    if work is not None:
        work.finish()
    return chosen


def _refuse_empty(drawn: masks.NestedMask, sizes: Mapping[str, int], seed: int) -> masks.NestedMask:
    """Return drawn masks; UsageError where one of them has no entry, which happens where few are expected."""
    for density in drawn.densities:
        if masks.count(drawn.at(density)) == 0:
            raise UsageError(
                f"the draw of seed {seed} with density {density:g} chose none of {sum(sizes.values()):,} eligible "
                "weights, so that nothing of the upstream would train: choose a larger density, or another --seed."
            )
    return drawn


def _pass_of(choice: Choice) -> FisherPass | LotteryPass | None:
    """Return the pass over the training split that scores weights for a mask; None for one that needs none."""
    if choice.tuning.mask == "lottery":
        return LotteryPass(choice)
    return FisherPass(choice) if choice.tuning.has_pass else None


def _origin(choice: Choice, densities: Sequence[float]) -> Record:
    """Return what the masks depend on, as plain values."""
    tuning, facts = choice.tuning, choice.facts
    if facts is None:
        facts = {"weights": state_sha256(choice.parameters)}
    origin = {
        "mask": tuning.mask,
        "densities": sorted(set(densities), reverse=True),
        "budget": tuning.budget,
        "unit": tuning.unit,
        "fisher": {"order": ORDER, **tuning.fisher.stored()} if tuning.has_pass else {},
        "lottery": asdict(tuning.lottery) if tuning.mask == "lottery" else {},
        "training split": choice.split,
        "seed": choice.seed,
        "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        "facts": facts,
    }
    stored: Record = json.loads(json.dumps(origin, default=str))  # as it comes back from a file
    return stored


def _load(folder: RunFolder, origin: Record, trained: bool) -> masks.NestedMask | None:
    """Return the masks that the same run chose before it was stopped short of its first checkpoint."""
    if not folder.masks.is_file():
        return None
    path = folder.masks
    try:
        found, before, _ = mask_files.load(path)
    except DataError as error:
        logger.warning("%s; the masks are chosen again", error)
        return None
    changed = _changed(before, origin)
    if changed and trained:
        _refuse_other_choice(path, before, origin, changed)
        logger.warning("%s was chosen with other %s, and is kept: candidates of the race have trained on it", path,
                       " and ".join(changed))  # fmt: skip
    elif changed:
        logger.warning("%s was chosen with another %s; the masks are chosen again", path, ", ".join(changed))
        return None
    logger.info("taking the masks from %s", path)
    folder.fisher.unlink(missing_ok=True)  # of a pass that was killed right after its end
    return found


def _changed(before: Section, now: Section) -> list[str]:
    """Return the names of what differs in two origins; density 1, which 0.1.0 listed in a race, chooses nothing."""
    listed = [density for density in before.get("densities") or [] if density != 1 or density in now["densities"]]
    before = {**before, "densities": listed}
    pairs = [(name, before.get(name), value) for name, value in now.items() if name != "facts"]
    facts = before.get("facts") or {}
    pairs += [(name, facts.get(name), value) for name, value in now["facts"].items()]
    return [
        name for name, then, value in pairs if then != value and not (name == SETTINGS and same_settings(then, value))
    ]


def _refuse_other_choice(path: Path, before: Section, now: Section, changed: list[str]) -> None:
    """Refuse to choose masks anew where candidates of a race train already on those in the file.

    Other versions or another device would choose all but the same: these are let through.
    """
    orders = [one["fisher"].get("order") for one in (before, now) if one.get("fisher")]
    if len(orders) == 2 and orders[0] != orders[1]:
        raise UsageError(
            f"{path} was chosen by an earlier version, which read the utterances in another order, and candidates of "
            "this race have trained on it; remove it and the folder race to start over, or finish it with that version."
        )
    content = [name for name in changed if name not in ENVIRONMENT]
    if content:
        raise UsageError(
            f"{path} was chosen with another {', '.join(content)}, and candidates of this race have trained on it: "
            "resume with what it was started with, or start a new experiment."
        )
