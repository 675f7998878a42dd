"""Our training loop against s3prl's own on the same task: CPU seconds per optimizer step.

``python -m benchmarks.loop_overhead`` trains a linear head on KS-like random waveforms in memory, so that almost all
the time is the loop itself, and a tiny HuBERT, where it is the model. The goal is at most 2 % dearer a step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import s3prl_ext
from benchmarks import measure


class RandomTask(nn.Module):
    """A downstream expert on random waveforms: 12 classes, mean pooling, s3prl's interface."""

    def __init__(self, upstream_dim: int, **kwargs: Any) -> None:
        super().__init__()
        self.head = nn.Linear(upstream_dim, 12)
        generator = torch.Generator().manual_seed(0)
        self.clips = [torch.randn(16000, generator=generator).numpy() for _ in range(64)]

    def get_dataloader(self, split: str) -> torch.utils.data.DataLoader:
        """Return batches of 8 clips with labels and names."""
        items = [(clip, i % 12, f"clip{i}") for i, clip in enumerate(self.clips)]
        return torch.utils.data.DataLoader(items, batch_size=8, shuffle=True, collate_fn=lambda batch: zip(*batch))

    def forward(self, split: str, features: list, labels: tuple, names: tuple, records: dict, **kwargs: Any) -> Any:
        """Return the cross entropy of a batch."""
        pooled = torch.stack([feature.mean(0) for feature in features])
        loss = nn.functional.cross_entropy(self.head(pooled), torch.LongTensor(labels))
        records["loss"].append(loss.item())
        return loss

    def log_records(self, split: str, records: dict, **kwargs: Any) -> list:
        """Log nothing."""
        return []


def runner_of(stock: bool, steps: int, upstream: Callable[..., nn.Module], trainable: bool, expdir: str) -> Any:
    """Build our Runner or s3prl's around `upstream` and :class:`RandomTask`."""
    from s3prl import hub

    from s3prl_ext.training.runner import Runner, StockRunner

    class Built(StockRunner if stock else Runner):  # type: ignore[misc]
        def _get_downstream(self) -> Any:
            return self._init_model(RandomTask(self.featurizer.model.output_dim), "Downstream", True)

    hub.benchmark_upstream = upstream
    args = Namespace(
        mode="train", expdir=expdir, init_ckpt=None, past_exp=None, upstream="benchmark_upstream", upstream_ckpt=None,
        upstream_model_config=None, upstream_refresh=False, upstream_trainable=trainable, device="cpu", local_rank=None,
        upstream_feature_selection="hidden_states", upstream_layer_selection=None, upstream_feature_normalize=False,
        downstream="example", seed=1, push_to_hf_hub=False, overwrite=True,
    )  # fmt: skip
    config = {
        "runner": {
            "total_steps": steps, "gradient_clipping": 1.0, "gradient_accumulate_steps": 1, "log_step": 10**9,
            "eval_step": 10**9, "save_step": steps, "max_keep": 1, "eval_dataloaders": [],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-4},
        "downstream_expert": {},
    }  # fmt: skip
    torch.manual_seed(1)
    return Built(args, config)


class FrameEnergies(nn.Module):
    """An upstream that costs next to nothing: 320 samples a frame, as they are."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()

    def get_downsample_rates(self, key: str) -> int:
        """Return 320 samples."""
        return 320

    def forward(self, wavs: list) -> dict:
        """Return the frames of the waveforms."""
        return {"hidden_states": torch.stack([w.view(-1, 320) for w in wavs])}


def hubert(**kwargs: Any) -> nn.Module:
    """Return a HuBERT of 2 layers, 64 wide, with random weights, in s3prl's interface."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, conv_dim=[32] * 7,
        layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip

    class Upstream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = HubertModel(config)

        def get_downsample_rates(self, key: str) -> int:
            return 320

        def forward(self, wavs: list) -> dict:
            return {"hidden_states": self.model(torch.stack(wavs), output_hidden_states=True).hidden_states}

    return Upstream()


def measure_step(steps: int, runs: int, upstream: Callable[..., nn.Module], trainable: bool) -> dict[str, Any]:
    """Compare whole training runs of `steps` steps; the ratio holds per step."""

    def train(stock: bool) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as expdir, contextlib.redirect_stderr(io.StringIO()):
                runner_of(stock, steps, upstream, trainable, expdir).train()

        return run

    row = measure.alternate(train(stock=False), train(stock=True), runs)
    return row | {"ours_ms_a_step": 1000 * row["ours_s"] / steps, "steps": steps}


def main() -> None:
    """Run both comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a run (default 200)")
    parser.add_argument("--runs", type=int, default=7, help="runs of each loop (default 7)")
    flags = parser.parse_args()
    logging.disable(logging.INFO)
    s3prl_ext.install()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        rows = {
            "loop alone (linear head)": measure_step(flags.steps, flags.runs, FrameEnergies, False),
            "HuBERT 2 x 64, -f": measure_step(max(1, flags.steps // 10), flags.runs, hubert, True),
        }
    measure.report("loop_overhead", rows, threads=torch.get_num_threads())
    sys.stdout.flush()


if __name__ == "__main__":
    main()
