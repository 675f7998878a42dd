"""Choosing a child network again during training, every so many steps, perhaps with another density each time.

The weights are scored as before training, by a pass over utterances drawn anew (or by their size, or by chance), with
the weights and the head of that step. Nothing is accumulated between two choices, so a checkpoint needs the chosen
entries alone. Dynamic Parameter Selection (arXiv:2211.01642) sums the squared gradients of its own training batches
instead, for which it computes and keeps a dense gradient at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from s3prl_ext import randomness
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.changing_network import ChangingChildNetwork, carry_over
from s3prl_ext.child_tuning.child_network import release
from s3prl_ext.errors import StoppedByUser
from s3prl_ext.training.distributed import Interrupted
from s3prl_ext.training.selection.child_selection import choose_mask
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.train_state import TrainState
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)


class Reselection:
    """Choose the child network of a run again; called before each step with the number of steps done.

    Args:
        state: of the run, whose child network it is.
        tuned: what the run changes in its upstream.
        parameters: eligible parameters by name.
        tuning: section ``tuning``.
        split: name of the training split.
        seed: of the run.
        total_steps: T, steps of the whole run.
        density: that the present network was chosen with.
    """

    def __init__(
        self,
        state: TrainState,
        tuned: TunedUpstream,
        parameters: Mapping[str, nn.Parameter],
        tuning: TuningConfig,
        split: str,
        seed: int,
        total_steps: int,
        density: float,
    ) -> None:
        assert isinstance(state.child, ChangingChildNetwork)
        self.state, self.child, self.tuned, self.parameters = state, state.child, tuned, parameters
        self.tuning, self.split, self.seed, self.total_steps = tuning, split, seed, total_steps
        self.density = density
        self._last = 0

    def __call__(self, step: int) -> None:
        """Choose again where it is time to.

        Raises:
            Interrupted: Ctrl-C or SIGTERM in the pass: the present network goes on, and a resumed run chooses again.
        """
        every = self.tuning.reselect_every
        if every is None or step % every or step == self._last:
            return
        try:
            mask = self._chosen(step)
        except StoppedByUser as error:
            raise Interrupted from error
        self._last, self.density = step, self.tuning.density_at(step, self.total_steps)
        before, size = list(self.child.generations), len(self.child)
        kept = self.child.rechoose(mask)
        carry_over(self.state.optimizer, before, self.child.generations, kept)
        self.state.replace_parameters(before, list(self.child.generations))
        self.tuned.extend(self.child.mask)
        stayed = sum(len(one[1]) for one in kept if one is not None)
        logger.info("step %d: %d of %d weights of the child network stay and %d enter; %d have trained so far",
                    step, stayed, size, len(self.child) - stayed, masks.count(self.tuned.indices))  # fmt: skip

    def _chosen(self, step: int) -> masks.Mask:
        """Return the mask of a step; all eligible weights require grad meanwhile, and nothing else is changed."""
        density = self.tuning.density_at(step, self.total_steps)
        tuning = replace(self.tuning, density=density, fisher=replace(self.tuning.fisher, warm_head=0))
        seed = randomness.generator_of("reselection", self.seed, step).initial_seed()
        release(self.parameters.values())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        try:
            return choose_mask(Choice(self.state.models.unwrapped(), self.parameters, tuning, self.split, seed))
        finally:
            self.child.attach()
