"""The section ``downstream_expert`` of an ESC-50 task file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from s3prl_ext.configs import as_number, check_keys, shipped_dir
from s3prl_ext.corpora.esc50 import FOLDS, SPLIT_RULES
from s3prl_ext.errors import UsageError, unknown_name

KINDS = ("linear", "audioset")
FITS = ("sgd", "convex")
L2_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class HeadConfig:
    """The classifier on top of the features, averaged over time.

    Attributes:
        kind: ``linear``: one layer and a softmax over the 50 classes; ``audioset``: the classifier of an
            AudioSet-fine-tuned BEATs, read through a fixed map from ESC-50's classes to AudioSet's.
        fit: linear heads in training: ``sgd``: by the optimizer of the task file; ``convex``: by logistic regression
            to its unique optimum, on the features of one pass over the training folds; the upstream must be frozen.
        l2: ``convex``: strengths of the penalty to choose from on dev.
        ckpt: linear: a checkpoint of this task whose head is taken; audioset: the fine-tuned BEATs (default: ``-k``).
        class_map: audioset: table of the labels that stand for each class (default: the shipped one).
    """

    kind: str = "linear"
    fit: str = "sgd"
    l2: tuple[float, ...] = L2_GRID
    ckpt: Path | None = None
    class_map: Path | None = None


@dataclass(frozen=True)
class TaskConfig:
    """What the task reads from ``downstream_expert``.

    Attributes:
        root: folder ``ESC-50-master``.
        split: ``folds`` or ``hash``.
        fold: official fold that is test.
        train_batch_size, eval_batch_size, num_workers: of the loaders.
    """

    root: Path
    head: HeadConfig
    split: str = "folds"
    fold: int = 1
    train_batch_size: int = 32
    eval_batch_size: int = 32
    num_workers: int = 0


def parse_config(section: Mapping[str, Any]) -> TaskConfig:
    """Check the section and return it.

    Raises:
        UsageError: with every problem, one sentence each.
    """
    where = "downstream_expert"
    problems = check_keys(section, ("datarc", "split", "fold", "head"), where)
    datarc = section.get("datarc")
    if not isinstance(datarc, Mapping) or not datarc.get("esc50_root"):
        raise UsageError(f"{where}.datarc.esc50_root is missing: the folder ESC-50-master.")
    sizes = ("train_batch_size", "eval_batch_size", "num_workers")
    problems += check_keys(datarc, ("esc50_root", *sizes), f"{where}.datarc")
    values = {name: _whole(datarc[name], f"{where}.datarc.{name}", problems) for name in sizes if name in datarc}
    split, fold = section.get("split", "folds"), section.get("fold", 1)
    if split not in SPLIT_RULES:
        problems.append(str(unknown_name("split", split, SPLIT_RULES, where)))
    if isinstance(fold, bool) or fold not in FOLDS:
        problems.append(f"{where}.fold must be 1, 2, 3, 4 or 5 (the test fold of one run), but is {fold!r}.")
    head = _head(section.get("head", "linear"), f"{where}.head", problems)
    if problems:
        raise UsageError(" ".join(problems))
    return TaskConfig(Path(datarc["esc50_root"]), head, split, fold, **values)


def default_class_map() -> Path:
    """Return the shipped table of AudioSet labels for ESC-50's classes."""
    return shipped_dir("downstream_configs") / "esc50" / "audioset.tsv"


def _head(section: Any, where: str, problems: list[str]) -> HeadConfig:
    """Read ``head: linear`` or a mapping."""
    section = {"kind": section} if isinstance(section, str) else section
    if not isinstance(section, Mapping):
        problems.append(f"{where} must be a name ({', '.join(KINDS)}) or a mapping, but is {section!r}.")
        return HeadConfig()
    problems += check_keys(section, [field.name for field in fields(HeadConfig)], where)
    values: dict[str, Any] = {}
    for name, known in (("kind", KINDS), ("fit", FITS)):
        values[name] = section.get(name, known[0])
        if values[name] not in known:
            problems.append(str(unknown_name(name, values[name], known, where)))
    for name in ("ckpt", "class_map"):
        values[name] = Path(str(section[name])).expanduser() if section.get(name) else None
    if section.get("l2") is not None:
        values["l2"] = _penalties(section["l2"], f"{where}.l2", problems)
    return HeadConfig(**values)


def _penalties(value: Any, where: str, problems: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(as_number(one, where) for one in (value if isinstance(value, (list, tuple)) else [value]))
    except UsageError as error:
        problems.append(str(error))
        return L2_GRID
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        problems.append(f"{where} must hold numbers above 0: without a penalty the optimum is not unique.")
    return numbers


def _whole(value: Any, where: str, problems: list[str]) -> int:
    least = 0 if where.endswith("num_workers") else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        problems.append(f"{where} must be a whole number of at least {least}, but is {value!r}.")
        return least
    return value
