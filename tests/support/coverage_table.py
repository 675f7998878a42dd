"""Which tasks, tuning methods and model families go together: the page docs/coverage.md, made from their records.

``python -m tests.support.coverage_table`` writes the page.
"""

from __future__ import annotations

from pathlib import Path

from s3prl_ext.metrics import METRICS
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.models.architectures import ARCHITECTURES, Architecture
from s3prl_ext.tables import grid
from s3prl_ext.tasks import TASKS
from s3prl_ext.training.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"

# field of a family's row -> why a method that needs it does not fit
REASONS = {
    "eligible": "Which weights may be chosen is not known: give `tuning.eligible`.",
    "linears": "Where its layers keep their linear maps is not known.",
    "blocks": "It has no convolution blocks on the waveform: choose `houlsby`, `adapter_bias`, `lora` or `bitfit`.",
    "mask": "Its encoder takes no mask of positions, or changes their number: choose `houlsby`, `adapter_bias`, `lora` or `bitfit`.",
}
INTRODUCTION = """# Tasks, methods, families

What goes together, from the records of [tasks](tasks.md), [tuning methods](tuning.md#methods) and model families. A task reads frames of features and
nothing else of an upstream, so a method that fits a family works with it on every task. Tests try every method on every family, and train and evaluate
runs in which every task meets every family, and every task that trains every method. What does not fit is refused with one sentence before anything is trained.

"""
NOTES = """A family is told by the names of its modules, one row in
[architectures.py](../s3prl_ext/models/architectures.py); [Extending](extending.md#a-model-family) adds one. Every family is also a target of
[merges](upstreams.md#merged-upstreams), and takes `layer_decay`, `export` and `predict`.

"""
TASK_NOTES = """
- Two more have no miniature corpus: `ctc` on any other corpus is the code of `pr` and `sf`, `librispeech_zeroshot` that of `ljspeech`.
- Recognition, phonemes and slots train with CTC, which needs at least as many frames as labels: a state of AST (100 ms) or BEATs (160 ms without
  `tokens: all`) stands for more than one sound.
- XVector, the head of `asv`, needs 16 frames of a clip: 2.6 s of BEATs, 1.6 s of AST; shorter clips are refused by name.
- `se` and `ss` make a spectrum for each frame of the upstream, so a frame must be shorter than their window: AST and BEATs are refused.
- `head.init: target` (LJ Speech, VCTK, LibriSpeech) needs a model with a CTC head, or a Whisper.
"""


def families() -> list[Architecture]:
    """Return the rows of families that can be upstreams, without those that describe files alone."""
    disk = {row.on_disk for row in ARCHITECTURES}
    return [row for row in ARCHITECTURES if row.eligible is not None and row.name not in disk]


def refusal(method: str, row: Architecture) -> str | None:
    """Return why a method does not fit a family, or None where it does."""
    lacking = row.lacks(METHODS[method].needs)
    return REASONS[lacking[0]] if lacking else None


def page() -> str:
    """Return the page."""
    numbers: dict[str, int] = {}

    def cell(method: str, row: Architecture) -> str:
        reason = refusal(method, row)
        return "yes" if reason is None else f"no, {numbers.setdefault(reason, len(numbers) + 1)}"

    rows = [[row.models, *(cell(method, row) for method in METHODS)] for row in families()]
    fits = grid(["", *(f"`{method}`" for method in METHODS)], rows)
    reasons = "\n".join(f"{number}. {reason}" for reason, number in numbers.items())
    return (
        f"{INTRODUCTION}## Methods and families\n\n{fits}\n\n{reasons}\n\n{NOTES}## Tasks\n\n{_tasks()}\n{TASK_NOTES}"
    )


def _tasks() -> str:
    rows = []
    for task in (task for task in TASKS if task.name in LAYOUTS):
        metrics = [name for name in task.metrics if name in METRICS][:1] if task.superb == () else task.superb
        rows.append(
            (
                task.name,
                f"`{task.downstream}`",
                ", ".join(metrics),
                "all" if task.trains else "none: it has nothing to train",
                "frames below its window, 512 samples" if task.frame_below else "all",
                "yes" if task.decoder else "no",
                "yes" if task.superb else "no",
            )
        )
    return grid(["task", "`-d`", "metric", "methods", "families", "`predict`", "in SUPERB's row"], rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
