"""The course of a learnable lambda: TensorBoard scalars, ``lambda.json`` and ``lambda.png`` in the experiment's folder."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_ext.evaluation.plots import save_figure
from s3prl_ext.merging.learnable import LearnableLambda
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.config import RunnerConfig
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

SCHEMA = 1


class LambdaCurve:
    """Record every lambda at each ``log_step``, and write file and picture at each ``eval_step`` and at the end.

    Args:
        shared: the lambdas of the upstream in training.
        config: section ``runner``.
        total_steps: optimizer step at which the run ends.
        folder: for the files.
        writer: TensorBoard writer.
        step: optimizer steps done so far.
        resumed: what :meth:`state` returned when the checkpoint was saved, or an empty mapping.
    """

    def __init__(
        self,
        shared: LearnableLambda,
        config: RunnerConfig,
        total_steps: int,
        folder: RunFolder,
        writer: Any,
        step: int = 0,
        resumed: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.shared = shared
        self.config = config
        self.total_steps = total_steps
        self.folder = folder
        self.writer = writer
        self.steps: list[int] = resumed["steps"].tolist() if resumed else []
        self.values: list[torch.Tensor] = list(resumed["values"]) if resumed else []
        self._warned = False
        if not self.steps:
            self._record(step)

    def after_step(self, step: int) -> None:
        """Record and write what is due after optimizer step `step`."""
        end = step == self.total_steps
        evaluated = end or step % self.config.eval_step == 0
        if evaluated or step % self.config.log_step == 0:
            self._record(step)
        if evaluated:
            self.write()

    def _record(self, step: int) -> None:
        values = self.shared.current()
        self.steps.append(step)
        self.values.append(values)
        for name, value in zip(self.shared.names(), values.tolist(), strict=True):
            self.writer.add_scalar(f"lambda/{name}", value, global_step=step)
        outside = [name for name, v in zip(self.shared.names(), values.tolist(), strict=True) if not 0.0 <= v <= 1.0]
        if outside and not self._warned:
            self._warned = True
            logger.warning(
                "step %d: lambda has left [0, 1] in %s%s: lower tuning.lambda_lr, or set the constraint clamp or sigmoid",
                step, ", ".join(outside[:4]), f" and {len(outside) - 4} more" if len(outside) > 4 else "",
            )  # fmt: skip

    def state(self) -> dict[str, torch.Tensor]:
        """Return the course so far as steps [n] and values [n, lambdas], for a checkpoint."""
        return {"steps": torch.tensor(self.steps), "values": torch.stack(self.values)}

    def write(self) -> None:
        """Write ``lambda.json`` and ``lambda.png``; each appears only when it is complete."""
        names, config = self.shared.names(), self.shared.config
        rows = [[round(value, 7) for value in values.tolist()] for values in self.values]
        content = {"schema": SCHEMA, "granularity": config.granularity, "constraint": config.constraint}
        content |= {"names": names, "steps": self.steps, "lambda": rows}
        write_json(self.folder.lambda_curve, content, indent=None)
        draw(names, self.steps, rows, self.folder.lambda_picture)


def draw(names: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float]], path: Path) -> None:
    """Draw lambda over training in shades of grey, and its first and last value beside it, as PNG.

    Args:
        names: one for each lambda.
        steps: optimizer steps, ascending, at least two.
        values: [steps, lambdas].
        path: the PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, min(12.0, 2.5 + 0.18 * len(names))), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    course, ends = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    rows = range(len(names))
    middles = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    edges = [steps[0], *middles, steps[-1]], [row - 0.5 for row in range(len(names) + 1)]
    shades = course.pcolormesh(*edges, list(zip(*values)), cmap="gray_r")
    course.set(title=f"lambda over training, n = {len(names)}", xlabel="optimizer step")
    shown = rows[:: -(-len(names) // 32)]  # at most 32 labels
    course.set_yticks(shown, [names[row] for row in shown])
    figure.colorbar(shades, ax=course, label="lambda")
    ends.plot(values[0], rows, "o", mfc="white", mec="black", label=f"step {steps[0]}")
    ends.plot(values[-1], rows, "s", mfc="black", mec="black", ms=4, label=f"step {steps[-1]}")
    ends.set(title="first and last", xlabel="lambda (0 = target, 1 = source)")
    ends.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower right", ncols=2)
    save_figure(figure, path)
