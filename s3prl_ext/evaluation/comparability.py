"""Whether two rows can be compared: the facts in which they differ, apart from the merge or the method."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from s3prl_ext.evaluation.merge_facts import MERGE
from s3prl_ext.evaluation.result_rows import HASHED, Row, shown, without_section
from s3prl_ext.evaluation.scored_runs import ScoredRun

TARGET = "merge.target_sha256"
# Facts, apart from those of the merge, in which a merged and an unmerged run of one target differ.
OF_MERGED = ("upstream_sha256", "upstream_model_config", "sweep", "tuning.lambda_lr")
OF_METHOD = ("method", "race", "tuning", "early_stop")
# Facts without which two scores have nothing to do with each other, in words.
DECISIVE = {
    "data": "corpus", "splits": "division into splits", "set": "set", "unmerged": "unmerged model or settings of it",
    TARGET: "target (by its weights)", "upstream_sha256": "upstream (by its weights)",
    "upstream_settings": "upstream (by its settings)",
}  # fmt: skip
OF_MODEL = (TARGET, "upstream_sha256", "upstream_settings")
LISTED = 6  # facts that a sentence names

Differences = Mapping[str, tuple[list[Any], list[Any]]]  # by fact the values of the baseline and of the row


def without_merge(run: ScoredRun) -> Mapping[str, Any]:
    """Return the facts of a run but for those of its merge; which target it has stays."""
    of_merge = {name for name, _ in run.key((*MERGE, *OF_MERGED))} - {TARGET}
    return {name: value for name, value in run.facts.items() if name not in of_merge and name != "chosen"}


def differences(base: Row, row: Row) -> Differences:
    """Return the facts in which a row differs from its baseline, apart from what is compared.

    That is the merge where the two have different ones, and otherwise the method.
    """
    runs = (*base.runs, *row.runs)
    merged = len({_merge_of(run) for run in runs}) > 1
    free = {"chosen"} if merged else {"chosen", *_names(runs, OF_METHOD)}
    if any("lambda" in run.facts for run in runs):
        free |= _names(runs, (*MERGE, *OF_MERGED)) - {TARGET}
    found = {}
    for name in sorted({name for run in runs for name in run.facts} - free):
        values = _values(base, name), _values(row, name)
        if values[0] != values[1] and not (name == TARGET and None in (*values[0], *values[1])):
            found[name] = values
    return found


def decisive(found: Differences, but: Collection[str] = ()) -> list[str]:
    """Return those differences, in words, because of which no change may be shown.

    A fact that one of the two does not know, as results of earlier versions, is none of them.

    Args:
        found: of a row and its baseline.
        but: facts that may differ, since the user compares them.
    """
    return [
        words
        for name, words in DECISIVE.items()
        if name in found and name not in but and None not in (*found[name][0], *found[name][1])
    ]


def told(found: Differences) -> str:
    """Return differences as text: ``optimizer.lr (0.1, the baseline's 0.001), data``."""
    texts = []
    for name, (before, now) in found.items():
        values = [" and ".join(shown(name, value) for value in both) for both in (now, before)]
        brief = name not in HASHED and len("".join(values)) < 60
        words = DECISIVE.get(name, without_section(name))
        texts.append(f"{words} ({values[0]}, the baseline's {values[1]})" if brief else words)
    more = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + more


def _merge_of(run: ScoredRun) -> Any:
    return run.key(MERGE) if run.facts.get("lambda") or run.facts.get("learnable") else None


def _names(runs: Sequence[ScoredRun], groups: Sequence[str]) -> set[str]:
    return {name for run in runs for name, _ in run.key(groups)}


def _values(row: Row, name: str) -> list[Any]:
    """Return the values of a fact over the runs of a row, each once, in an order of their own."""
    found: list[Any] = []
    for run in row.runs:
        if (value := run.facts.get(name)) not in found:
            found.append(value)
    return sorted(found, key=repr)
