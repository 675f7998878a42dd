"""What can be done with what: the data of the page docs/artefacts.md and of the test that runs every cell of it.

``python -m tests.support.artefact_table`` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "artefacts.md"

# what was tuned: name -> heading of its column
TUNED = {
    "frozen": "head alone",
    "plain": "child network",
    "full": "whole upstream",
    "merged": "child network on a merged upstream",
    "learnable": "learnable λ",
    "lora": "`lora`, `bitfit`",
    "adapter": "other adapters",
}

# name -> what it is, as the page says it
ARTEFACTS = {
    "checkpoint": "A checkpoint: `exp/dev-best.ckpt`, `exp/states-N.ckpt`",
    "delta": "A delta: `exp/delta.safetensors`",
    "folder": "The folder of a run or a race: `exp`",
    "export": "A folder of `s3prl-ext export`",
    "merge": "A folder of `s3prl-ext merge`",
    "sweep": "The folder of a sweep",
}

# name -> what the page calls it
USES = {
    "evaluate": "evaluate (`-m evaluate -e`)",
    "predict": "`predict`",
    "begin": "begin a training (`-i`)",
    "resume": "resume (`-m train -e`)",
    "apply": "`apply`",
    "revert": "`revert`",
    "export": "`export`",
    "report": "`report`",
    "head": "head of a `sweep` (`-e`)",
}


@dataclass(frozen=True)
class Refusal:
    """A use that is refused.

    Attributes:
        code: exit status.
        sentence: part of the error, as a regular expression.
        instead: what the page says: why, and what to do.
    """

    code: int
    sentence: str
    instead: str


def _usage(sentence: str, instead: str) -> Refusal:
    return Refusal(2, sentence, instead)


def _data(sentence: str, instead: str) -> Refusal:
    return Refusal(1, sentence, instead)


NO_DELTA = _data("no such delta: .*name .*dev-best.ckpt", "Such a run writes no delta: take its checkpoint.")
NO_DELTA_FLAG = _usage(NO_DELTA.sentence, NO_DELTA.instead)
NO_FILE = _usage("no such file or folder", NO_DELTA.instead)
WHOLE = _usage("holds a whole upstream, no delta", "There is no small change to apply: export it.")
WHOLE_BACK = _usage("holds a whole upstream, which cannot be taken out", "The base is not in it: keep the base.")
NOT_BACK = _usage(
    "holds tuned weights only", "A checkpoint holds tuned weights, not what they replaced: take the delta."
)
REPLACED = _usage("not the ones they replaced", "It does not hold what it replaced: keep the base.")
MODULES = _usage(
    "puts modules of its own into the upstream",
    "No plain model has its modules: evaluate it, or use it with `TaskSwitch`.",
)
NO_STATE = _usage("has no optimizer state", "It has no optimizer state: take `states-N.ckpt`, or begin with `-i`.")
WEIGHTS = _data("holds weights, not results", "It holds weights, not results: give the run's folder.")
FILE = _usage("-i takes a file", "Name one of its checkpoints or its delta.")
UNCHANGED = _data("is the base of .* already", "The upstream was not changed: nothing to take out.")
TUNED_HEAD = _data("holds a tuned upstream", "The head belongs to a tuned upstream: sweep an export of it.")
NO_HEAD_FILE = _usage("no such checkpoint", NO_DELTA.instead)
NO_HEAD = _usage("no such checkpoint", "There is no head that was trained on the target.")
NO_RESULT = _usage("contains no result.json", "Nothing was scored there.")
EXPORTED_FLAG = _usage(
    "is a folder of s3prl-ext export", "Its README.md has the command that scores it, with `-i head.ckpt`."
)
EXPORTED = _data(EXPORTED_FLAG.sentence, "It is a plain model already.")
MERGED_FLAG = _usage("is a folder of s3prl-ext merge", "It is a model without a task: give it to `-k` of a training.")
MERGED = _data(MERGED_FLAG.sentence, MERGED_FLAG.instead)
SWEPT_FLAG = _usage(
    "is the folder of a sweep", "It keeps scores, not weights: train or merge with the λ that it found."
)
SWEPT = _data(SWEPT_FLAG.sentence, SWEPT_FLAG.instead)
NOT_MADE = _usage(
    "a learnable lambda is known after training only", "There is none: λ is known after training, so train and export."
)
NOT_EXPORTED = _usage(MODULES.sentence, "There is none: no plain model has its modules.")

_SMALL = ("frozen", "plain", "merged", "lora", "adapter")  # runs that write a delta


def _by_column(**cells: Refusal | None) -> dict[str, Refusal | None]:
    """Return a row with a cell for each column: None where it works; columns that are left out work."""
    return {column: cells.get(column) for column in TUNED}


_DELTA_LIKE = {
    "apply": _by_column(full=WHOLE, learnable=WHOLE, adapter=MODULES),
    "export": _by_column(adapter=MODULES),
}
_HEADS = _by_column(**dict.fromkeys(TUNED, TUNED_HEAD)) | {"frozen": None}
_NONE = dict.fromkeys(("full", "learnable"), NO_DELTA)
_NONE_FLAG = dict.fromkeys(("full", "learnable"), NO_DELTA_FLAG)
_MADE = {"adapter": NOT_EXPORTED}

# artefact -> use -> column -> None where it works, else how it is refused. One column, "", where nothing depends on it.
CELLS: Mapping[str, Mapping[str, Mapping[str, Refusal | None]]] = {
    "checkpoint": {
        "evaluate": _by_column(),
        "predict": _by_column(),
        "begin": _by_column(),
        "resume": _by_column(),
        **_DELTA_LIKE,
        "revert": _by_column(**dict.fromkeys(_SMALL, NOT_BACK), full=WHOLE_BACK, learnable=WHOLE_BACK),
        "report": _by_column(**dict.fromkeys(TUNED, WEIGHTS)),
        "head": _HEADS,
    },
    "delta": {
        "evaluate": _by_column(**_NONE_FLAG),
        "predict": _by_column(**_NONE),
        "begin": _by_column(**_NONE_FLAG),
        "resume": _by_column(**dict.fromkeys(_SMALL, NO_STATE), **_NONE_FLAG),
        "apply": _by_column(**_NONE, adapter=MODULES),
        "revert": _by_column(**_NONE, frozen=UNCHANGED, lora=REPLACED, adapter=REPLACED),
        "export": _by_column(**_NONE, adapter=MODULES),
        "report": _by_column(**dict.fromkeys(_SMALL, WEIGHTS), full=NO_FILE, learnable=NO_FILE),
        "head": _HEADS | dict.fromkeys(("full", "learnable"), NO_HEAD_FILE),
    },
    "folder": {
        "evaluate": _by_column(),
        "predict": _by_column(),
        "begin": _by_column(**dict.fromkeys(TUNED, FILE)),
        "resume": _by_column(),
        **_DELTA_LIKE,
        "revert": _by_column(frozen=UNCHANGED, full=WHOLE_BACK, learnable=WHOLE_BACK, lora=REPLACED, adapter=REPLACED),
        "report": _by_column(),
        "head": _HEADS,
    },
    "export": {
        "evaluate": _by_column(**dict.fromkeys(TUNED, EXPORTED_FLAG) | _MADE),
        "predict": _by_column(**_MADE),
        "begin": _by_column(**_MADE),
        "resume": _by_column(**dict.fromkeys(TUNED, EXPORTED_FLAG) | _MADE),
        "apply": _by_column(**dict.fromkeys(TUNED, EXPORTED) | _MADE),
        "revert": _by_column(**dict.fromkeys(TUNED, EXPORTED) | _MADE),
        "export": _by_column(**dict.fromkeys(TUNED, EXPORTED) | _MADE),
        "report": _by_column(**dict.fromkeys(TUNED, NO_RESULT) | _MADE),
        "head": _by_column(**_MADE),
    },
    "merge": {
        "evaluate": {"merged": MERGED_FLAG, "learnable": NOT_MADE},
        "predict": {"merged": MERGED, "learnable": NOT_MADE},
        "begin": {"merged": MERGED_FLAG, "learnable": NOT_MADE},
        "resume": {"merged": MERGED_FLAG, "learnable": NOT_MADE},
        "apply": {"merged": MERGED, "learnable": NOT_MADE},
        "revert": {"merged": MERGED, "learnable": NOT_MADE},
        "export": {"merged": MERGED, "learnable": NOT_MADE},
        "report": {"merged": NO_RESULT, "learnable": NOT_MADE},
        "head": {"merged": NO_HEAD, "learnable": NOT_MADE},
    },
    "sweep": {
        "evaluate": {"merged": SWEPT_FLAG},
        "predict": {"merged": SWEPT},
        "begin": {"merged": SWEPT_FLAG},
        "resume": {"merged": SWEPT_FLAG},
        "apply": {"merged": SWEPT},
        "revert": {"merged": SWEPT},
        "export": {"merged": SWEPT},
        "report": {"merged": None},
        "head": {"merged": NO_HEAD},
    },
}  # fmt: skip


def cells() -> Iterator[tuple[str, str, str, Refusal | None]]:
    """Yield every cell: artefact, use, column, and how it is refused."""
    for artefact, rows in CELLS.items():
        for use, columns in rows.items():
            for column, refusal in columns.items():
                yield artefact, use, column, refusal


INTRODUCTION = """# What can be done with what

Every cell is run by a test; what is not possible is refused with one sentence, an exit status of 1 or 2, and nothing written. A number leads to the
reason below the table.

"""
NOTES = """## What the cells mean

- **Begin** (`-i`) takes weights, and of a child network its entries, into a new experiment with the same `-u`, `-d` and section `tuning`: at step 0, with an
  optimizer, learning rates and a best score of its own. Of an export it is `-i X/head.ckpt`, with the exported model as `-k`. **Resume** continues with the
  optimizer where a checkpoint stopped.
- **Of a folder**, `-e` takes the newest `states-N.ckpt`, `predict` the best checkpoint, and `apply`, `revert` and `export` the delta, else the best checkpoint.
- **A merged upstream** is merged again from its target and its sources whenever it is loaded, and compared by hashes. Where they have moved: `-g` and
  `-k`. `apply` and `revert` work on the merged model that `s3prl-ext merge` writes; an export has the merge folded in and needs no source.
- **A learnable λ** is in checkpoints and folded into exports. There is no delta.
- **A race** is the folder of its winner: all that is said of a run's folder holds for it.
- **A sweep** scores a head that was trained on the target as it is. Of an export: `-i X/head.ckpt` and the `-s` of its README.md, with the exported model
  as the target. A merged model without a task is the `-k` of a training.
"""


def page() -> str:
    """Return the page."""
    return INTRODUCTION + "\n".join(_section(artefact) for artefact in ARTEFACTS) + "\n" + NOTES


def _section(artefact: str) -> str:
    rows = CELLS[artefact]
    columns = [column for column in TUNED if any(column in row for row in rows.values())]
    numbers: dict[str, int] = {}

    def shown(use: str, column: str) -> str:
        refusal = rows[use][column]
        return "yes" if refusal is None else f"no, {numbers.setdefault(refusal.instead, len(numbers) + 1)}"

    lines = [f"## {ARTEFACTS[artefact]}", "", "| | " + " | ".join(TUNED[column] for column in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for use, name in USES.items():
        lines.append(f"| {name} | " + " | ".join(shown(use, column) for column in columns) + " |")
    lines += ["", *(f"{number}. {text}" for text, number in numbers.items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
