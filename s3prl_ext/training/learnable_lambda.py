"""A learnable lambda (L-MAM) in a run.

What trains, what a checkpoint holds of the upstream, and its course over the steps.

A merged decoder of a Whisper is the head of its task: its lambda is there, and trains and is stored with the head. The
course goes to TensorBoard, ``lambda.json`` and ``lambda.png``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tensorboardX import SummaryWriter
from torch import nn

from s3prl_ext.configs import Record, Section
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.plots import picture
from s3prl_ext.merging.learnable import PARAMETER_NAME, find_lambda
from s3prl_ext.merging.learnable_lambda import LearnableLambda
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training.task_file import RunnerConfig
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

LAMBDA_METHODS = ("full", "weighted_sum", "frozen")  # of tuning.method; without it -f decides


def prepare_lambda(upstream: nn.Module, tuning: TuningConfig | None, trainable: bool, training: bool) -> bool:
    """Set whether lambda trains, and return whether anything of the upstream does.

    The methods that freeze the upstream train lambda alone. ``lambda_lr: 0`` keeps it at its first values.

    Args:
        upstream: prepared by its method, not yet wrapped for several devices.
        tuning: section ``tuning``, or None.
        trainable: whether the method, or ``-f``, trains the upstream.
        training: whether this run trains at all.

    Raises:
        UsageError: ``lambda_lr`` without a learnable lambda, or a method that cannot train it.
    """
    shared = find_lambda(upstream)
    lambda_lr = tuning.rates.lambda_lr if tuning is not None else None
    if shared is None:
        if lambda_lr is not None and not _learns_in_head(upstream):
            raise UsageError("tuning.lambda_lr needs a merged upstream with learnable: true; remove it.")
        return trainable
    if tuning is not None and tuning.method not in LAMBDA_METHODS:
        raise UsageError(
            f"tuning.method '{tuning.method}' does not train lambda; use full, weighted_sum or frozen, or fix lambda "
            "(learnable: false)."
        )
    if tuning is None and not trainable:
        if training:
            logger.warning("lambda stays at its first values: without -f or a section tuning the upstream is frozen")
        return False
    shared.requires_grad_(lambda_lr != 0)
    return trainable or lambda_lr != 0


def _learns_in_head(upstream: nn.Module) -> bool:
    """Return whether the merge of an upstream learns lambda in the decoder that is the task's head."""
    record = getattr(upstream, "merge_record", None) or {}
    return bool(record.get("learnable") and record["config"]["target"]["prefix"])


def prepare_head_lambda(head: nn.Module, tuning: TuningConfig | None) -> None:
    """Set whether the lambda of a merged decoder trains, whatever the method does with the upstream.

    Args:
        head: the task, not yet wrapped for several devices.
        tuning: section ``tuning``, or None.
    """
    shared = find_lambda(head)
    if shared is not None:
        shared.requires_grad_(tuning is None or tuning.rates.lambda_lr != 0)


def learnt_lambda(upstream: nn.Module | None, head: nn.Module) -> LearnableLambda | None:
    """Return the learnable lambda of a run, of its upstream or of the decoder in its task, None where there is none.

    Args:
        upstream: None where nothing of it trains.
    """
    shared = find_lambda(upstream) if upstream is not None else None
    return find_lambda(head) if shared is None else shared


def only_lambda_trains(upstream: nn.Module) -> bool:
    """Return whether lambda is all that trains in an upstream."""
    return [name for name, parameter in upstream.named_parameters() if parameter.requires_grad] == [PARAMETER_NAME]


def stored_state(upstream: nn.Module, state: Section) -> Record:
    """Return what a checkpoint holds of the upstream's state dict: lambda alone where nothing else trains."""
    return {PARAMETER_NAME: state[PARAMETER_NAME]} if only_lambda_trains(upstream) else dict(state)


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
        writer: SummaryWriter,
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
        outside = self.shared.outside()
        if outside and not self._warned:
            self._warned = True
            logger.warning(
                "step %d: lambda%s has left [0, 1] in %s%s: lower tuning.lambda_lr, "
                "or set the constraint clamp or sigmoid",
                step,
                " or its sum over the sources" if len(self.shared.sources) > 1 else "",
                ", ".join(outside[:4]),
                f" and {len(outside) - 4} more" if len(outside) > 4 else "",
            )

    def state(self) -> dict[str, torch.Tensor]:
        """Return the course so far as steps [n] and values [n, lambdas], for a checkpoint."""
        return {"steps": torch.tensor(self.steps), "values": torch.stack(self.values)}

    def write(self) -> None:
        """Write ``lambda.json`` and ``lambda.png``; each appears only when it is complete."""
        names, config = self.shared.names(), self.shared.config
        rows = [[round(value, 7) for value in values.tolist()] for values in self.values]
        content = {"schema": SCHEMA, "granularity": config.granularity, "constraint": config.constraint}
        if len(self.shared.sources) > 1:
            content["sources"] = list(self.shared.sources)
        content |= {"names": names, "steps": self.steps, "lambda": rows}
        write_json(self.folder.lambda_curve, content, indent=None)
        draw(names, self.steps, rows, self.folder.lambda_picture)


def draw(names: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float]], path: Path) -> None:
    """Draw lambda over training in shades of grey, with its first and last value, as PNG.

    Args:
        names: one for each lambda.
        steps: optimizer steps, ascending, at least two.
        values: [steps, lambdas].
        path: the PNG file.
    """
    size = 9, min(12.0, 2.5 + 0.18 * len(names))
    with picture(path, size, 2, sharey=True, width_ratios=(3, 2)) as (figure, (course, ends)):
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
