"""Memory and time of a training step with ``runner.checkpoint_upstream``, against the same step without it.

``python -m benchmarks.recomputation``: HuBERT of base size with random weights, convolutions frozen, a batch of
``--clips`` clips of ``--seconds``, forward and backward pass. Each way is a process of its own: CPU time,
and what the peak of memory is above the model.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks import measure
from benchmarks.delta_size import base_model
from s3prl_ext.training.recomputation import recompute_layers


def main() -> None:
    """Measure both ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=4, help="in the batch (default 4)")
    parser.add_argument("--seconds", type=int, default=5, help="of each clip (default 5)")
    flags = parser.parse_args()
    model = base_model().train()
    model.requires_grad_(True)
    model.feature_extractor._freeze_parameters()
    wavs = torch.randn(flags.clips, 16000 * flags.seconds, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(wavs).last_hidden_state.square().mean().backward()
        model.zero_grad(set_to_none=True)

    rows = {"all activations": measure.apart(step)}
    recompute_layers(model)
    rows["layers computed again"] = measure.apart(step)
    measure.report("recomputation", rows, clips=flags.clips, seconds=flags.seconds)


if __name__ == "__main__":
    main()
