"""The section ``downstream_expert`` of an ESC-50 task file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from s3prl_ext.configs import shipped_dir
from s3prl_ext.corpora.esc50 import FOLDS, SPLIT_RULES
from s3prl_ext.errors import UsageError
from s3prl_ext.settings import choice, count, load, numbers, path

HEADS = ("linear", "audioset")
FITS = ("sgd", "convex")
L2_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Esc50HeadConfig:
    """The classifier on top of the features, averaged over time.

    Attributes:
        kind: ``linear``: one layer and a softmax over the 50 classes; ``audioset``: the classifier of an
            AudioSet-fine-tuned BEATs, read through a fixed map from ESC-50's classes to AudioSet's.
        fit: linear heads in training: ``sgd``: by the optimizer of the task file; ``convex``: by logistic regression
            to its unique optimum, on the features of one pass over the training folds; the upstream must be frozen.
        l2: ``convex``: strengths of the penalty to choose from on dev.
        ckpt: linear: a checkpoint of this task whose head is taken; audioset: the fine-tuned BEATs, that of ``-k``.
        class_map: audioset: table of the labels that stand for each class (default: the shipped one).
    """

    kind: Annotated[str, choice(*HEADS)] = "linear"
    fit: Annotated[str, choice(*FITS)] = "sgd"
    l2: Annotated[tuple[float, ...], numbers(above=0)] = L2_GRID
    ckpt: Annotated[Path | None, path()] = None
    class_map: Annotated[Path | None, path()] = None


@dataclass(frozen=True)
class Esc50DataConfig:
    """Section ``datarc``.

    Attributes:
        esc50_root: folder ``ESC-50-master``.
        train_batch_size, eval_batch_size, num_workers: of the loaders.
    """

    esc50_root: Annotated[Path, path()]
    train_batch_size: Annotated[int, count()] = 32
    eval_batch_size: Annotated[int, count()] = 32
    num_workers: Annotated[int, count(0)] = 0


def _fold(value: Any, where: str) -> int:
    """Return the number of an official fold."""
    if isinstance(value, bool) or value not in FOLDS:
        raise UsageError(f"{where} must be 1, 2, 3, 4 or 5 (the test fold of one run), got {value!r}.")
    return int(value)


def _head(value: Any, where: str) -> Esc50HeadConfig:
    """Read ``head: linear`` or a mapping."""
    return load(Esc50HeadConfig, {"kind": value} if isinstance(value, str) else value, where, example="{kind: linear}")


@dataclass(frozen=True)
class Esc50TaskConfig:
    """What the task reads from ``downstream_expert``.

    Attributes:
        datarc: corpus and loaders.
        head: the classifier.
        split: ``folds`` or ``hash``.
        fold: official fold that is test.
    """

    datarc: Esc50DataConfig
    head: Annotated[Esc50HeadConfig, _head] = Esc50HeadConfig()
    split: Annotated[str, choice(*SPLIT_RULES)] = "folds"
    fold: Annotated[int, _fold] = 1


def parse_config(section: Mapping[str, Any]) -> Esc50TaskConfig:
    """Check the section and return it.

    Raises:
        UsageError: with every problem, one sentence each.
    """
    where = "downstream_expert"
    datarc = section.get("datarc")
    if not isinstance(datarc, Mapping) or not datarc.get("esc50_root"):
        raise UsageError(f"{where}.datarc.esc50_root is missing: the folder ESC-50-master.")
    return load(Esc50TaskConfig, section, where)


def default_class_map() -> Path:
    """Return the shipped table of AudioSet labels for ESC-50's classes."""
    return shipped_dir("downstream_configs") / "esc50" / "audioset.tsv"
