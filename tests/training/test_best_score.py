"""A task's memory of its best score stays where it was: s3prl's tasks replace it by a tensor on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from s3prl_ext.training.trainer import Trainer


def test_best_score_stays_on_its_device():
    expert = torch.nn.Module()
    expert.register_buffer("best_score", torch.zeros(1, device="meta"))
    loop = SimpleNamespace(state=SimpleNamespace(models=SimpleNamespace(downstream=expert)))
    with Trainer._best_scores_kept(loop):
        expert.best_score = torch.ones(1) * 0.5
    assert expert.best_score.device.type == "meta"
    assert dict(expert.named_buffers())["best_score"] is expert.best_score
