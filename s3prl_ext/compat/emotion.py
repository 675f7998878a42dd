"""Emotion recognition: the fold of a run is checked, and the seed of its dev split stays inside."""

from __future__ import annotations

import functools
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim
from s3prl_ext.corpora.iemocap import check_fold
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.tasks.er import FOLDS, UNNAMED


def fold_of(datarc: dict[str, Any], variant: str | None) -> str:
    """Return the test fold of a run, as s3prl reads it.

    Args:
        datarc: section of the task file.
        variant: ``-v``.

    Raises:
        UsageError: there is none of that name, or the task file and ``-v`` name different ones.
    """
    named = datarc.get("test_fold")
    fold = named or variant or UNNAMED
    if fold not in FOLDS:
        raise unknown_name("fold (datarc.test_fold)", str(fold), FOLDS)
    if named and variant and named != variant:
        raise UsageError(
            f"-v {variant} has no effect, since the task file says test_fold: {named}; drop -v and give "
            f"-o config.downstream_expert.datarc.test_fold={variant}."
        )
    return str(fold)


def _check_and_split(module: ModuleType) -> None:
    from s3prl_ext import randomness

    initialise, split = module.DownstreamExpert.__init__, module.random_split

    @functools.wraps(initialise)
    def initialise_checked(self: Any, *args: Any, **kwargs: Any) -> None:
        datarc = kwargs["downstream_expert"]["datarc"]
        fold = fold_of(datarc, kwargs.get("downstream_variant"))
        datarc["test_fold"] = fold  # results and reports read it there
        check_fold(Path(datarc["root"]), Path(datarc["meta_data"]), fold)
        before = randomness.get_state()

        def split_alone(*arguments: Any, **options: Any) -> Any:
            parts = split(*arguments, **options)  # s3prl has just set the seed 0
            randomness.set_state(before)
            return parts

        module.random_split = split_alone
        initialise(self, *args, **kwargs)

    module.DownstreamExpert.__init__ = initialise_checked


SHIMS = (
    Shim(
        name="s3prl-emotion-fold",
        module="s3prl.downstream.emotion.expert",
        needed=lambda module: not hasattr(module.DownstreamExpert.__init__, "__wrapped__"),
        apply=_check_and_split,
        reason="s3prl's emotion recognition takes any list for a fold, and sets the seed 0 for the whole process where "
        "it draws its dev split, so that runs of different seeds start from one head and draw the same batches",
        remove_when="s3prl checks that no session is in training and test, and splits with a generator of its own",
    ),
)
