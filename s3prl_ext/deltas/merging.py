"""Merge what several tasks changed in one upstream, so that one set of weights serves all of them.

Each task's change is a task vector, tuned minus untuned weights, whatever its method: child network, whole upstream,
LoRA, BitFit. A single task with lambda below 1 is the average of a tuned model with its pre-trained self (Speech-FT,
arXiv:2502.12672; WiSE-FT, arXiv:2109.01903).
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from s3prl_ext.child_tuning.delta import Delta, difference
from s3prl_ext.configs import value_at
from s3prl_ext.deltas.trained_task import TrainedTask, check_foldable
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.learnable import find_lambda
from s3prl_ext.merging.methods import MethodConfig, Part
from s3prl_ext.merging.names import DELTA_MEANS, REGMEAN_SHRINK
from s3prl_ext.merging.regmean import regression_mean_of_tasks
from s3prl_ext.merging.task_vectors import fisher_mean
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.models.linear_inputs import LinearInputs
from s3prl_ext.models.tied import first_names
from s3prl_ext.progress import bar
from s3prl_ext.training import upstream_settings
from s3prl_ext.training.batching.corpus_hash import named_lists
from s3prl_ext.training.checkpoint import TASK_PARTS
from s3prl_ext.training.divisions import division_of
from s3prl_ext.training.selection.shared_scores import Scores
from s3prl_ext.training.task_file import untuned
from s3prl_ext.upstreams.valid_frames import valid_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TunedWeights:
    """One task and the tensors of the upstream that it changed.

    Attributes:
        task: as read.
        changed: tuned parameters by name, those that differ from the untuned upstream's; one that modules share is here
            once, under its first name.
        statistics: the same of buffers, such as the running mean and variance of a batch norm.
    """

    task: TrainedTask
    changed: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class MergedTasks:
    """One upstream for several tasks.

    Attributes:
        base: state dict of the untuned upstream.
        tasks: what was merged.
        weights: lambda of each.
        merged: tensors of the merged upstream by name, those that any task changed, each once.
        first_names: of every tensor of `base`, see :func:`s3prl_ext.models.tied.first_names`.
    """

    base: Mapping[str, Tensor]
    tasks: Sequence[TunedWeights]
    weights: Sequence[float]
    merged: Mapping[str, Tensor]
    first_names: Mapping[str, str]

    def state(self) -> dict[str, Tensor]:
        """Return the state dict of the merged upstream."""
        return {name: self.merged.get(self.first_names[name], tensor) for name, tensor in self.base.items()}

    def delta(self, number: int, info: Mapping[str, Any]) -> Delta:
        """Return a delta that holds the merged upstream with the head of one task.

        Args:
            number: of the task.
            info: what it says of the merge, next to what the task says of itself.
        """
        task = self.tasks[number].task
        about = {**task.info, "tuning": None, "candidate": None, "density": None, "metrics": {}, **info}
        about["config"] = untuned(task.info["config"])
        heads = {part: state for part, state in task.delta.task.items() if part in TASK_PARTS}
        indices, bits = {}, {}
        for name, tensor in self.merged.items():
            xor = difference({name: self.base[name].reshape(-1)}, {name: tensor.reshape(-1)})[name]
            indices[name] = xor.nonzero().flatten()
            bits[name] = xor[indices[name]]
        sizes = {name: self.base[name].numel() for name in self.merged}
        return Delta(state_sha256(self.base), indices, bits, sizes, task=heads, info=about)


def merge_tasks(
    tasks: Sequence[TrainedTask],
    weights: Sequence[float],
    method: MethodConfig,
    fishers: Callable[[Sequence[TrainedTask], str], Sequence[Scores]] | None = None,
    clips: Sequence[Iterable[Tensor]] = (),
) -> MergedTasks:
    """Merge the changes of several tasks; entries that no task changed keep their bits.

    With delta_j = W_j - B: W = B + sum of lambda_j * delta_j (linear), or its TIES, DARE or Fisher form, see
    :mod:`s3prl_ext.merging.methods`.

    Args:
        tasks: at least one, all tuned from one upstream.
        weights: lambda of each.
        method: one of :data:`s3prl_ext.merging.names.DELTA_METHODS`.
        fishers: for the method ``fisher``: returns the Fisher information of each task by the name of the tensor, given
            the hash of the untuned upstream.
        clips: for the method ``regmean``: recordings of each task, [samples] at 16 kHz.

    Raises:
        UsageError: a task has modules of its own in the upstream, or a learnable lambda, or two divide one corpus
            differently.
        DataError: the tasks were tuned from different upstreams, or a model is missing.
    """
    check_one_division(tasks)
    base: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    tuned = []
    for task in tasks:
        state, first, one = _tuned_weights(task)
        if base and state_sha256(state) != state_sha256(base):
            raise DataError(
                f"{task.path} was tuned from another upstream than {tasks[0].path}: merge tasks of one upstream, or "
                "name where it is now with -k."
            )
        settings = [other.info.get(upstream_settings.KEY) for other in (tasks[0], task)]
        if changed := upstream_settings.certain_differences(*settings):
            raise DataError(
                f"{task.path} was tuned with other settings of the upstream than {tasks[0].path} "
                f"({', '.join(changed[:3])}): merge tasks of one upstream."
            )
        base = base or state
        tuned.append(one)
    if method.name == "regmean" and not clips:
        raise UsageError("regmean weighs tasks by what their models read: give recordings of each.")
    names = [name for name in base if any(name in one.changed for one in tuned)]
    scores: Sequence[Scores] = [{}] * len(tasks)
    if fishers is not None:
        scores = fishers(tasks, state_sha256(base))
    read = [moments_read(one, base, names, own) for one, own in zip(tuned, clips, strict=True)] if clips else []
    merged = {name: _merge_tensor(name, base[name], tuned, weights, method, scores, read) for name in names}
    measured = [name for name in base if any(name in one.statistics for one in tuned)]
    merged |= {name: _mean_statistics(name, base[name], tuned, weights, method) for name in measured}
    return MergedTasks(base, tuned, weights, merged, first)


def check_one_division(tasks: Sequence[TrainedTask]) -> None:
    """Check that runs of one task divide its corpus alike: else each may have trained on what another tests.

    Runs on different corpora are merged with a warning, as these may be parts of one. Lists are compared where both
    files hold their hash, made by one rule. Those that the task files write out, such as the speakers of slot filling,
    may differ where none for train has a name of one for dev or test of the other run.

    Raises:
        UsageError: two differ in a fold or ratio, or in the lists of one corpus.
    """
    for one, other in itertools.combinations(tasks, 2):
        if one.spec.downstream is None or other.spec.downstream is None or not _of_one_corpus(one, other):
            continue
        before, now = _division(one), _division(other)
        key = next((key for key, value in now.items() if before.get(key, value) != value), None)
        if key is not None:
            raise UsageError(
                f"{one.path} was trained with {key} {before[key]} and {other.path} with {now[key]}, so that a "
                "test of their merge would score training clips: merge runs with the same value."
            )
        data = [task.info.get("data") or {} for task in (one, other)]
        lists = [found.get("splits_sha256") for found in data]
        rules = [task.info.get("splits_rule") for task in (one, other)]
        if None in lists or lists[0] == lists[1] or rules[0] != rules[1]:
            continue
        if data[0].get("sha256") == data[1].get("sha256"):
            if _tested_apart(one, other):
                continue
            raise UsageError(
                f"{one.path} and {other.path} were trained with different lists of train, dev and test of one corpus, "
                "so that a test of their merge may score training clips: merge runs with the same lists."
            )
        logger.warning(
            "%s and %s were trained on other data with other lists of train, dev and test: unless these are different "
            "corpora, a test of their merge may score training clips", one.path, other.path,
        )  # fmt: skip


def _tested_apart(one: TrainedTask, other: TrainedTask) -> bool:
    """Return whether two runs on one corpus differ only in lists in their task files, and neither tests the other's.

    That is: no list for train of one has a name of a list for dev or test of the other. Of lists in files, or of those
    that a task makes itself, only a hash is known.
    """
    if {reads.divides for reads in one.record.reads} - {None} != {()}:
        return False
    lists = [named_lists(task.record, task.expert) for task in (one, other)]
    trained, rest = ([_names(found, of_train) for found in lists] for of_train in (True, False))
    return lists[0] != lists[1] and trained[0].isdisjoint(rest[1]) and trained[1].isdisjoint(rest[0])


def _names(lists: Mapping[str, Sequence[object]], of_train: bool) -> set[str]:
    return {str(name) for key, names in lists.items() if key.startswith("train") == of_train for name in names}


def _of_one_corpus(one: TrainedTask, other: TrainedTask) -> bool:
    """Return whether two runs are of one task and, of a task with several corpora, of the same one as far as named."""
    sets = [_corpus_in_set(task) for task in (one, other)]
    return one.record.name == other.record.name and (None in sets or sets[0] == sets[1])


def _corpus_in_set(task: TrainedTask) -> str | None:
    sets = task.record.sets
    return sets and sets.named_in(value_at(task.info.get("config"), key) for key in sets.keys)


def _division(task: TrainedTask) -> dict[str, object]:
    spec = task.spec
    return division_of(str(spec.downstream), task.info.get("config") or {}, spec.downstream_variant)


def _tuned_weights(task: TrainedTask) -> tuple[dict[str, Tensor], dict[str, str], TunedWeights]:
    """Return the state of a task's untuned upstream, the first names of its tensors, and what the task changed."""
    check_foldable(task)
    if task.is_rounded:
        raise UsageError(f"{task.path} was tuned with base_dtype bfloat16, on a base of its own: export it instead.")
    model = task.build_untuned()
    if find_lambda(model) is not None:
        raise UsageError(f"{task.path} has a learnable lambda, which is part of its upstream: export it first.")
    first = first_names(model.state_dict())
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task.tune(model)
    state = model.state_dict()
    once = dict.fromkeys(first.values())
    floats = [name for name in once if base[name].is_floating_point()]  # not the counter of a batch norm
    changed = {name: state[name].clone() for name in floats if not torch.equal(state[name], base[name])}
    buffers = {first[name] for name, _ in model.named_buffers() if name in first}
    statistics = {name: changed.pop(name) for name in list(changed) if name in buffers}
    return base, first, TunedWeights(task, changed, statistics)


@torch.no_grad()
def moments_read(
    one: TunedWeights, base: Mapping[str, Tensor], names: Sequence[str], clips: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return the second moments of what matrices are multiplied with in the tuned upstream of a task, in float64.

    Each recording passes the upstream alone, in evaluation mode; the mean is over all frames but those of padding.

    Args:
        base: state dict of the untuned upstream.
        names: tensors to look at; those that are in no product, such as biases, are left out.
        clips: recordings, [samples] at 16 kHz.
    """
    model = one.task.build_untuned().eval()
    model.load_state_dict(base)
    state = model.state_dict()
    for name, tensor in (*one.changed.items(), *one.statistics.items()):
        state[name].copy_(tensor)  # in place: other names of the same tensor see it too
    weights = {name: tensor for name, tensor in state.items() if name in names and tensor.dim() == 2}
    inputs = LinearInputs(weights)
    for clip in bar(clips, desc=f"inputs of {one.task.path.parent.name}"):
        inputs.valid = valid_rows(model, clip)
        with inputs:
            model([clip])
    return inputs.means()


def _regmean_of(
    name: str,
    base: Tensor,
    tuned: Sequence[TunedWeights],
    weights: Sequence[float],
    read: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    """Return the RegMean of a tensor, or where it is in no product the mean with weights lambda."""
    used = [(one, weight, own) for one, weight, own in zip(tuned, weights, read, strict=True) if weight != 0.0]
    if not used:
        return base
    deltas = [one.changed.get(name, base).double() - base.double() for one, _, _ in used]
    lambdas = [weight for _, weight, _ in used]
    if all(name in own for _, _, own in used):
        merged = regression_mean_of_tasks(base, deltas, lambdas, [own[name] for _, _, own in used], REGMEAN_SHRINK)
        untouched = (torch.stack(deltas) == 0).all(dim=0).all(dim=-1, keepdim=True)
    else:
        merged = fisher_mean(base, deltas, lambdas, [None] * len(used))
        untouched = (torch.stack(deltas) == 0).all(dim=0)
    return torch.where(untouched, base, merged)


def _mean_statistics(
    name: str, base: Tensor, tuned: Sequence[TunedWeights], weights: Sequence[float], method: MethodConfig
) -> Tensor:
    """Return the mean of a buffer, such as a running variance, which no sum, trimming or rescaling would leave valid.

    Each task counts with its lambda, one below 0 not at all; the untuned upstream has the rest up to 1, unless lambda
    is the weight of a task in the method's own mean.
    """
    shares = [max(0.0, weight) for weight in weights]
    total = math.fsum(shares)
    if total == 0:
        return base
    scale = total if method.name in DELTA_MEANS else max(1.0, total)
    mean = base.double() * (1 - total / scale)
    for one, share in zip(tuned, shares, strict=True):
        mean += one.statistics.get(name, base).double() * (share / scale)
    untouched = torch.stack([one.statistics.get(name, base) == base for one in tuned]).all(dim=0)
    return torch.where(untouched, base, mean.to(base.dtype))


def _merge_tensor(
    name: str,
    base: Tensor,
    tuned: Sequence[TunedWeights],
    weights: Sequence[float],
    method: MethodConfig,
    fishers: Sequence[Scores],
    read: Sequence[Mapping[str, Tensor]],
) -> Tensor:
    if method.name == "regmean":
        return _regmean_of(name, base, tuned, weights, read)
    parts = [  # in a mean, a task that left the tensor as it was counts too
        Part(one.changed.get(name, base), weight, base, number, fisher.get(name))
        for number, (one, weight, fisher) in enumerate(zip(tuned, weights, fishers, strict=True))
        if weight != 0.0 and (name in one.changed or method.method.of_tasks)
    ]
    if not parts:
        return base
    if method.name == "linear" and len(parts) > 1:  # a sum of task vectors: what no task changed stays, bit for bit
        method = MethodConfig("task_arithmetic")
    merged = method.combine(base, parts, (name,))
    untouched = torch.stack([part.matrix == base for part in parts]).all(dim=0)
    return torch.where(untouched, base, merged)  # a sum turns -0 into 0
