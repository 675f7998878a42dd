"""Fisher information against a brute-force per-sample mean, and its scaling."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext.child_tuning import fisher, masks
from s3prl_ext.errors import DataError
from tests.support.reference import slow_fisher


class Classifier(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x)))


def data(n: int = 12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def estimate(model, batches, scale=1.0):
    parameters = dict(model.named_parameters())
    return fisher.estimate(parameters, batches, lambda b: scale * torch.nn.functional.cross_entropy(model(b[0]), b[1]))


def test_batches_of_one_equal_the_brute_force_mean():
    model, (x, y) = Classifier(), data()
    sums, count = estimate(model, [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    expected = slow_fisher(model, x, y)
    assert count == len(x)
    for name, score in sums.items():
        torch.testing.assert_close(score / count, expected[name], rtol=1e-5, atol=1e-8)


def test_order_of_samples_does_not_matter_but_batching_does():
    model, (x, y) = Classifier(), data()
    forward, _ = estimate(model, [(x[i : i + 1], y[i : i + 1]) for i in range(12)])
    backward, _ = estimate(model, [(x[i : i + 1], y[i : i + 1]) for i in reversed(range(12))])
    batched, count = estimate(model, [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)])
    assert count == 3
    for name in forward:
        torch.testing.assert_close(forward[name], backward[name], rtol=1e-5, atol=1e-8)
    assert any(not torch.allclose(forward[n] / 12, batched[n] / 3, rtol=1e-2) for n in forward)


def test_scaling_the_loss_squares_in_the_scores_and_keeps_the_mask():
    model, (x, y) = Classifier(), data()
    batches = [(x[i : i + 3], y[i : i + 3]) for i in range(0, 12, 3)]
    plain, _ = estimate(model, batches)
    scaled, _ = estimate(model, batches, scale=4.0)
    for name in plain:
        torch.testing.assert_close(scaled[name], 16 * plain[name])
    a, b = masks.top_k(plain, 0.3), masks.top_k(scaled, 0.3)
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_gradients_are_left_empty():
    model, (x, y) = Classifier(), data()
    estimate(model, [(x, y)])
    assert all(p.grad is None for p in model.parameters())


def test_no_batch_gives_zeros_for_a_rank_without_any():
    scores, count = estimate(Classifier(), [])
    assert count == 0 and not any(score.any() for score in scores.values())


def test_bad_loss_is_refused():
    model, (x, y) = Classifier(), data()
    with pytest.raises(DataError, match="loss of batch 0"):
        estimate(model, [(x * float("inf"), y)])


@pytest.mark.parametrize("clip", ["tensor", "global"])
def test_clipping_before_squaring(clip):
    """As torch clips: per tensor, as the released code does, or over all tensors."""
    model, (x, y) = Classifier(), data()
    loss = 50 * torch.nn.functional.cross_entropy(model(x), y)
    running = fisher.FisherEstimate(dict(model.named_parameters()), clip, max_norm=0.5)
    running.add(loss)
    (50 * torch.nn.functional.cross_entropy(model(x), y)).backward()
    groups = [[p] for p in model.parameters()] if clip == "tensor" else [list(model.parameters())]
    for group in groups:
        assert torch.nn.utils.clip_grad_norm_(group, 0.5) > 0.5
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(running.scores[name], parameter.grad**2, rtol=1e-5, atol=1e-10)


def test_small_gradients_are_not_clipped():
    model, (x, y) = Classifier(), data()
    plain, _ = estimate(model, [(x, y)])
    clipped = fisher.FisherEstimate(dict(model.named_parameters()), "global", max_norm=1e6)
    clipped.add(torch.nn.functional.cross_entropy(model(x), y))
    assert all(torch.equal(plain[n], clipped.scores[n]) for n in plain)


def test_an_estimate_can_be_stored_and_continued():
    model, (x, y) = Classifier(), data()
    batches = [(x[i : i + 2], y[i : i + 2]) for i in range(0, 12, 2)]
    whole, count = estimate(model, batches)
    first = fisher.FisherEstimate(dict(model.named_parameters()))
    for a, b in batches[:2]:
        first.add(torch.nn.functional.cross_entropy(model(a), b))
    second = fisher.FisherEstimate(dict(model.named_parameters()))
    second.load_state_dict(first.state_dict())
    for a, b in batches[2:]:
        second.add(torch.nn.functional.cross_entropy(model(a), b))
    assert second.batches == count and all(torch.equal(whole[n], second.scores[n]) for n in whole)


@pytest.mark.parametrize("clip", ["none", "tensor"])
def test_gradients_are_added_one_by_one_as_if_all_together(clip):
    """What is kept of a backward pass: never a second gradient; bitwise the sums of dense gradients."""
    model, (x, y) = Classifier(), data()
    parameters = dict(model.named_parameters())
    dense = {n: torch.zeros_like(p) for n, p in parameters.items()}
    held = []
    running = fisher.FisherEstimate(parameters, clip, max_norm=0.1)
    add = running._add_gradient
    running._add_gradient = lambda *a: held.append(sum(p.grad is not None for p in parameters.values())) or add(*a)
    for i in range(0, 12, 4):
        loss = torch.nn.functional.cross_entropy(model(x[i : i + 4]), y[i : i + 4])
        for n, g in zip(parameters, torch.autograd.grad(loss, parameters.values(), retain_graph=True)):
            factor = min(1.0, 0.1 / (float(torch.linalg.vector_norm(g)) + 1e-6)) if clip == "tensor" else 1.0
            dense[n].addcmul_(g, g, value=factor * factor)
        running.add(loss)
    assert set(held) == {1} and running.batches == 3
    assert all(torch.equal(dense[n], score) for n, score in running.scores.items())


def test_a_backward_pass_that_fails_half_way_is_not_taken_for_a_batch():
    model, (x, y) = Classifier(), data()
    running = fisher.FisherEstimate(dict(model.named_parameters()))
    loss = torch.nn.functional.cross_entropy(model(x), y)
    running.scores.pop("hidden.bias")
    with pytest.raises(KeyError):
        running.add(loss)
    assert running.torn and running.batches == 0
    assert not any(
        p._post_accumulate_grad_hooks for p in model.parameters() if p._post_accumulate_grad_hooks is not None
    )
