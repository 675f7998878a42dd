"""How alike heads are by outputs and patterns: what makes no difference, and what does."""

from __future__ import annotations

import itertools

import pytest
import torch

from s3prl_ext.merging.alignment import align_heads, alike_by_outputs, alike_by_patterns, assign
from s3prl_ext.merging.head_projection import place_heads
from tests.merging.test_head_projection import model, orthonormal, randn

ALL = ("q_proj", "k_proj", "v_proj")


def test_outputs_of_a_head_are_alike_up_to_turn_scale_and_constant():
    x = randn(60, 3, 4)
    y = torch.stack([5 * x[:, head] @ orthonormal(4, 4, seed=head).T + head for head in (2, 0, 1)], dim=1)
    alike = alike_by_outputs(x, y)
    assert alike.shape == (3, 3) and alike.min() >= 0 and alike.max() <= 1 + 1e-12
    for head, other in itertools.product(range(3), repeat=2):
        assert (alike[head, other] > 1 - 1e-9) == ((2, 0, 1)[other] == head)
    assert assign(alike) == [1, 2, 0]
    wider = alike_by_outputs(x, torch.cat([x, torch.zeros(60, 3, 2, dtype=torch.float64)], dim=2))
    assert torch.diagonal(wider).tolist() == pytest.approx([1] * 3)
    constant = alike_by_outputs(x, torch.ones(60, 2, 4))
    assert torch.equal(constant, torch.zeros(3, 2, dtype=torch.float64))


def test_patterns_are_compared_by_their_cosine():
    x = randn(2, 5, 5).softmax(-1)
    alike = alike_by_patterns(x, x.flip(0).float())
    assert torch.diagonal(alike.flip(1)).tolist() == pytest.approx([1, 1], abs=1e-6) and alike.max() <= 1 + 1e-6
    assert alike[0, 0].item() == pytest.approx(
        torch.cosine_similarity(x[0].flatten(), x[1].flatten(), dim=0).item(), abs=1e-6
    )


def test_what_heads_do_takes_the_place_of_their_matrices_in_an_assignment():
    target, source = model(0, 3, 2, 6), model(1, 3, 2, 6)
    alike = torch.eye(3)[[2, 0, 1]]
    _, orders = align_heads(target, source, 3, ALL, {0: alike})
    assert orders == {0: [2, 0, 1]}
    fewer = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.2, 0.9]])
    assert place_heads(target, model(1, 2, 2, 6), (3, 2), ALL, True, {0: fewer})[0].order == (1, 1, 0)
