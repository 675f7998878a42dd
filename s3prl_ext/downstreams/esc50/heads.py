"""Classifiers on features averaged over time: a linear one, fitted or taken from a run, and that of a tuned BEATs."""

from __future__ import annotations

import csv
import hashlib
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s3prl_ext import hub
from s3prl_ext.attention.files import find_model
from s3prl_ext.corpora.esc50 import CLASSES
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.run_folder import DELTA_SUFFIX
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.beats.model import load_checkpoint
from s3prl_ext.upstreams.merged_attention.config import OWN_UPSTREAM, is_merged, read_config

logger = logging.getLogger(__name__)

FIT_ITERATIONS = 1000
BEATS = ("beats_local", "beats_custom")  # the upstreams of a BEATs file


def fit_linear(features: Tensor, targets: Tensor, l2: float, classes: int = len(CLASSES)) -> tuple[Tensor, Tensor]:
    """Return weight [classes, width] and bias [classes] of the logistic regression with penalty `l2`.

    Minimises the mean cross entropy plus ``l2 / 2n`` times the squared weights of the standardised features, without
    a penalty on the bias; the scaling is folded into the result. The problem is strictly convex in the weights, so the
    result does not depend on a start or an order. Computed in float64.

    Args:
        features: [clips, width].
        targets: classes [clips].
        l2: strength of the penalty, above 0.
    """
    x, y = features.double(), targets.long()
    mean, std = x.mean(0), x.std(0, correction=0).clamp(min=1e-8)
    x = (x - mean) / std
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=FIT_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + 0.5 * l2 / len(x) * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    weight, bias = weight.detach() / std, bias.detach()
    return weight.float(), (bias - weight @ mean).float()


def choose_linear(
    train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], penalties: Sequence[float]
) -> tuple[tuple[Tensor, Tensor], dict[float, float]]:
    """Fit one head per penalty; return the best on dev, of equals that with the largest penalty, and all accuracies.

    Args:
        train, dev: features [clips, width] and classes [clips].
        penalties: values of ``l2``.
    """
    accuracies: dict[float, float] = {}
    heads = {}
    for l2 in sorted(penalties, reverse=True):
        weight, bias = heads[l2] = fit_linear(*train, l2)
        found = F.linear(dev[0].float(), weight, bias).argmax(1)
        accuracies[l2] = (found == dev[1]).double().mean().item()
    best = max(accuracies, key=lambda l2: accuracies[l2])  # the first of equals: the largest penalty
    return heads[best], accuracies


class TrainingFeatures:
    """The averaged features of the training clips, gathered during one pass."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self._rows: dict[str, tuple[Tensor, int]] = {}

    def add(self, names: Sequence[str], features: Tensor, targets: Sequence[int]) -> None:
        """Keep the features [clips, width] of a batch."""
        for name, row, target in zip(names, features.detach().cpu(), targets):
            self._rows[name] = (row, target)

    def collected(self) -> tuple[Tensor, Tensor]:
        """Return features and classes of all training clips, in the order of their names.

        Raises:
            UsageError: some clips have not been seen.
        """
        missing = len(self.names) - len(self._rows)
        if missing:
            raise UsageError(
                f"head.fit: convex needs the features of all {len(self.names)} training clips, but {missing} have not "
                "been seen when dev is scored: set runner.epochs: 1 and runner.eval_step to at least the steps of an "
                "epoch, and begin an interrupted run anew (-o args.overwrite=True)."
            )
        rows = [self._rows[name] for name in self.names]
        return torch.stack([row for row, _ in rows]), torch.tensor([target for _, target in rows])


class AudioSetHead(nn.Module):
    """The classifier of an AudioSet-fine-tuned BEATs as one of ESC-50: the score of a class is its labels' largest.

    The classifier is linear and averaged over tokens, so it may be applied to the averaged features.

    Args:
        ckpt: fine-tuned BEATs checkpoint in the released format.
        class_map: see :func:`read_class_map`.

    Raises:
        DataError: the checkpoint is only pre-trained, has other labels, or is unreadable.
    """

    def __init__(self, ckpt: Path, class_map: Path):
        super().__init__()
        model, labels = load_checkpoint(ckpt)
        if model.predictor is None:
            raise DataError(
                f"{ckpt} is only pre-trained: head.kind: audioset needs a BEATs fine-tuned on AudioSet, which holds a "
                "classifier (or use head.kind: linear)."
            )
        index = {mid: int(number) for number, mid in labels.items()}
        mids = read_class_map(class_map)
        unknown = sorted({mid for row in mids for mid in row} - set(index))
        if unknown:
            raise DataError(
                f"{ckpt} has {len(index)} labels, but not {unknown[0]} of {class_map.name}: it was not fine-tuned on "
                "AudioSet; take a checkpoint that was, or a class map for its labels (head.class_map)."
            )
        self.predictor = model.predictor.requires_grad_(False)
        self.rows = [[index[mid] for mid in row] for row in mids]

    def forward(self, features: Tensor) -> Tensor:
        """Return the score (logit) of each class, [clips, 50], for averaged features [clips, width]."""
        logits = self.predictor(features)
        return torch.stack([logits[:, row].amax(1) for row in self.rows], dim=1)


def read_class_map(path: Path) -> list[list[str]]:
    """Return for each class of ESC-50 the AudioSet labels (mids) that stand for it.

    Args:
        path: tab-separated table with the columns ``category`` and ``mids`` (separated by commas).

    Raises:
        DataError: the table is missing, or a class is missing, unknown or without a label.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = {row["category"]: row["mids"].split(",") for row in csv.DictReader(file, delimiter="\t")}
    except (OSError, KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a class map (a table with the columns category and mids): {error}.") from error
    wrong = sorted(set(rows) ^ set(CLASSES)) or [name for name, mids in rows.items() if not all(mids)]
    if wrong:
        raise DataError(f"{path} must name labels for each of the 50 classes of ESC-50 once; see '{wrong[0]}'.")
    return [rows[name] for name in CLASSES]


def tuned_beats(ckpt: Path | None, args: Namespace) -> str:
    """Return the fine-tuned BEATs whose classifier reads the features of the present upstream: the upstream's target.

    Args:
        ckpt: ``head.ckpt``: nothing, or the same file.
        args: the present arguments.

    Raises:
        UsageError: the target is not a BEATs, or its last hidden state is not read.
        DataError: `ckpt` is another file, whose classifier was trained on other features.
    """
    if not RunSpec.of(args).reads_last_hidden_state:
        raise UsageError(
            "head.kind: audioset reads the last hidden state, which the BEATs classifies: leave -s and -l out, or give "
            "-s last_hidden_state."
        )
    upstream, target = args.upstream, getattr(args, "upstream_ckpt", None)
    if is_merged(upstream):
        preset = None if upstream == OWN_UPSTREAM else upstream
        config = read_config(getattr(args, "upstream_model_config", None), target, preset)
        upstream, target = config.target.upstream, config.target.ckpt
    if upstream not in BEATS or target is None:
        raise UsageError(
            "head.kind: audioset classifies with a BEATs that was fine-tuned on AudioSet: give its file with -k to -u "
            "beats_local, or to a merge with such a target."
        )
    if ckpt is not None and _content(find_file(str(ckpt))) != _content(find_file(target)):
        raise DataError(
            f"head.ckpt {ckpt} is another model than the upstream's target, {target}, so its classifier was not "
            "trained on these features: give the fine-tuned BEATs with -k, and leave head.ckpt out."
        )
    return target


def find_file(ckpt: str) -> Path:
    """Return the path of a checkpoint on this disk or the hub (``ID:FILE``)."""
    return find_model(ckpt) if hub.is_file_reference(ckpt) else Path(ckpt).expanduser()


def _content(path: Path) -> bytes:
    """Return the SHA-256 of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a BEATs fine-tuned on AudioSet.") from error


def take_head(path: Path, head: nn.Linear, digest: Tensor, now: Namespace) -> tuple[dict[str, Any], set[str]]:
    """Load the linear head of another run of this task.

    Return where it comes from, and the hashes of the unmerged upstreams that it belongs to: see :func:`check_belongs`.

    Args:
        path: checkpoint of a run with ``-d esc50``, of whatever upstream.
        head: its weights are replaced.
        digest: hash of the present split lists, uint8 [32].
        now: the present arguments, whose feature selection must be that of the run.

    Raises:
        DataError: no such checkpoint, another task, other splits, features or width, or a head that reads a weighted
            sum of layers.
    """
    if path.suffix == DELTA_SUFFIX:
        raise DataError(f"{path} is a delta: give the checkpoint of its run, which says what its head was trained on.")
    ckpt = Checkpoint.read(path)
    made, downstream = RunSpec.of(ckpt.args), ckpt.weights.get("Downstream", {})
    if made.downstream != "esc50" or "head.weight" not in downstream:
        raise DataError(f"{path} contains no linear head of -d esc50: train one with -c esc50/mam.")
    if not torch.equal(downstream["split_digest"], digest):
        raise DataError(
            f"the head in {path} was trained on another split (fold "
            f"{(ckpt.config or {})['downstream_expert'].get('fold')} or other clips): its training clips may be among "
            "the present test clips; use one head per fold."
        )
    before, present = made.features, RunSpec.of(now).features
    if before != present:
        raise DataError(
            f"the head in {path} was trained on {before}, but would read {present}: repeat its -s, -l and "
            "--upstream_feature_normalize, or its tuning section."
        )
    if ckpt.weights.get("Featurizer"):
        raise DataError(
            f"the head in {path} reads a weighted sum of layers whose weights were trained with it, and head.ckpt "
            "takes the head alone: give the checkpoint itself (-i with the same -u, -e to s3prl-ext sweep), or train a "
            "head on one layer (tuning: {method: frozen}, or -l)."
        )
    weight = downstream["head.weight"]
    if weight.shape != head.weight.shape:
        raise DataError(
            f"the head in {path} reads {weight.shape[1]} features, this upstream gives {head.weight.shape[1]}: "
            "it belongs to another model."
        )
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(downstream["head.bias"])
    return {
        "ckpt": str(path),
        "upstream": made.upstream,
        "upstream_ckpt": made.upstream_ckpt,
        "upstream_trained": bool(made.upstream_trainable),
        "upstream_merged": _is_merged(ckpt.extension.merge),
    }, _read_by(ckpt)


def check_belongs(path: Path, known: set[str], target_sha256: str) -> None:
    """Refuse a head that was fitted on another model than the present upstream, or than its target where it is merged.

    Args:
        path: checkpoint of the head.
        known: as :func:`take_head` returns them; empty where the checkpoint does not say.
        target_sha256: hash of the present upstream without what is merged in.

    Raises:
        DataError: it is another model.
    """
    if not known:
        logger.warning("%s does not say which model its head was fitted on; it must be this one", path)
    elif target_sha256 not in known:
        raise DataError(
            f"the head in {path} was fitted on another upstream (hash {min(known)[:12]}) than the present one or its "
            f"target ({target_sha256[:12]}): give that model with -k or as the target of the merge, or fit a head on "
            "this one."
        )


def _read_by(ckpt: Checkpoint) -> set[str]:
    """Return the hashes of the models whose features a head reads; empty where its checkpoint does not say.

    The head of a merge belongs to its target, and to the merge itself, which may have been written as a model.
    """
    record = ckpt.extension.merge
    target = record["target"].get("upstream_sha256") if isinstance(record, dict) and record else None
    if RunSpec.of(ckpt.args).upstream_trainable or (_is_merged(record) and target is None):  # trained, or of 0.1.0
        return set()
    return {sha256 for sha256 in (ckpt.extension.upstream_sha256, target) if sha256 is not None}


def _is_merged(record: Mapping[str, Any] | str | None) -> bool:
    """Return whether the record of a merge says that a source has a share in any matrix."""
    if record is None or isinstance(record, str):
        return False
    shares = (value for source in record["sources"] for row in source["lambda"].values() for value in row)
    return bool(record.get("learnable")) or any(shares)
