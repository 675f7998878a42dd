"""Diagonal empirical Fisher information (AD-TUNING, Eq. 6, after CHILD-TUNING_D), and sums of gradients.

The sums are for connection sensitivities (SNIP, Lee et al., 2019, arXiv:1810.02340).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from s3prl_ext.errors import DataError

CLIPS = ("none", "tensor", "global")


class FisherEstimate:
    """Running sums of the gradients of a loss, squared or as they are, one entry per weight.

    Each batch contributes the square of the gradient of its mean loss; with batches of one this is Eq. 6 times the
    number of samples. The mean over ranks and batches is left to the caller, who knows all counts. Each tensor's
    gradient is added and dropped as soon as the backward pass has it, so that the gradients never exist all together,
    unless their common norm is limited.

    Args:
        parameters: eligible parameters by name; they must require grad. Their ``.grad`` must be None.
        clip: ``none``; ``tensor``: each tensor's gradient is scaled to at most `max_norm` before it is squared (as
            the released code does); ``global``: the gradient of all eligible tensors together is.
        max_norm: largest L2 norm where `clip` is not ``none``.
        squared: sum the squares; False sums the gradients themselves.

    Attributes:
        scores: the sums by name (float32, shapes of the parameters).
        batches: number of batches in the sums.
        torn: a backward pass has failed half way, so the sums hold a part of a batch.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        clip: str = "none",
        max_norm: float = 1.0,
        squared: bool = True,
    ) -> None:
        if clip not in CLIPS:
            raise ValueError(f"clip must be one of {CLIPS}, not {clip!r}")
        self.parameters = parameters
        self.clip = clip
        self.max_norm = max_norm
        self.squared = squared
        self.batches = 0
        self.torn = False
        self.scores = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}

    def add(self, loss: torch.Tensor) -> None:
        """Add one batch: go backward from its mean loss (a scalar), square, and leave the gradients empty.

        Raises:
            DataError: the loss is not finite.
        """
        self.differentiate(loss)
        self.accumulate()

    def differentiate(self, loss: torch.Tensor) -> None:
        """Go backward from the mean loss of the next batch; :meth:`accumulate` then adds it.

        Raises:
            DataError: the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss of batch {self.batches} of the Fisher pass is {loss.item()}; check the training data."
            )
        seen: set[str] = set()
        handles = [] if self.clip == "global" else [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._add_one, name, seen))
            for name, parameter in self.parameters.items()
        ]  # fmt: skip
        self.torn = bool(handles)
        try:
            loss.backward()
        finally:
            for handle in handles:
                handle.remove()
        self.torn = False

    def _add_one(self, name: str, seen: set[str], parameter: torch.Tensor) -> None:
        if name in seen:
            raise DataError(
                f"the gradient of '{name}' came in parts, so it cannot be squared: the upstream's code computes layers "
                "again by reentrant checkpoints; switch its gradient checkpointing off."
            )
        seen.add(name)
        assert parameter.grad is not None
        self._add_gradient(name, parameter.grad, self._factors([parameter.grad])[0])
        parameter.grad = None

    def accumulate(self) -> None:
        """Add the gradients that the parameters hold, squared if asked for, and leave the gradients empty."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        for (name, gradient), factor in zip(gradients.items(), self._factors(list(gradients.values()))):
            self._add_gradient(name, gradient, factor)
            self.parameters[name].grad = None
        self.batches += 1

    def _add_gradient(self, name: str, gradient: torch.Tensor, factor: float) -> None:
        gradient = gradient.float()  # no copy where it is float32 already
        if self.squared:
            self.scores[name].addcmul_(gradient, gradient, value=factor * factor)
        else:
            self.scores[name].add_(gradient, alpha=factor)

    def _factors(self, gradients: list[torch.Tensor]) -> list[float]:
        """Return what the norm's limit multiplies each gradient with, as torch's ``clip_grad_norm_`` does."""
        if self.clip == "none" or not gradients:
            return [1.0] * len(gradients)
        norms = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients]).tolist()
        if self.clip == "global":
            norms = [math.hypot(*norms)] * len(norms)
        return [min(1.0, self.max_norm / (norm + 1e-6)) for norm in norms]

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the number of batches; the tensors are not copied."""
        return {"scores": dict(self.scores), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        for name, score in self.scores.items():
            score.copy_(state["scores"][name])
        self.batches = state["batches"]


def estimate(
    parameters: Mapping[str, torch.Tensor],
    batches: Iterable[Any],
    loss_of: Callable[[Any], torch.Tensor],
    clip: str = "none",
    max_norm: float = 1.0,
) -> tuple[dict[str, torch.Tensor], int]:
    """Sum the squared gradients of the loss over batches; see :class:`FisherEstimate`.

    Args:
        parameters: eligible parameters by name.
        batches: what `loss_of` takes.
        loss_of: returns the mean loss of a batch, a scalar.
        clip: ``none``, ``tensor`` or ``global``.
        max_norm: largest norm of a clipped gradient.

    Returns:
        The sums by name and the number of batches.

    Raises:
        DataError: a loss is not finite.
    """
    running = FisherEstimate(parameters, clip, max_norm)
    for batch in batches:
        running.add(loss_of(batch))
    return running.scores, running.batches
