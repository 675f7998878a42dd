"""Training only the chosen entries: the reference trajectory, frozen entries, other optimizers, wrong masks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from s3prl_ext.child_tuning import child_network, masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.interleaving import interleaved, sorted_again
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.errors import DataError
from tests.adapters.models import build, clips, states
from tests.support.factories import SPEECH_FAMILIES

GOLDEN = Path(__file__).parent.parent / "golden" / "childnet_adamw.npz"


def train(optimizer_class, steps=8, density=0.3, accumulate=1, **kwargs):
    """Train a small regression; return parameters before and after and the chosen entries."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    parameters = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in parameters.items()}
    mask = {n: torch.nonzero(torch.rand(p.numel()) < density).squeeze(1) for n, p in parameters.items()}
    mask = {n: i for n, i in mask.items() if i.numel()}
    child = ChildNetwork(parameters, mask)
    optimizer = optimizer_class(child.parameters(), **kwargs)
    x, y = torch.randn(16, 6), torch.randn(16, 4)
    for _ in range(steps):
        for part in range(accumulate):
            loss = torch.nn.functional.mse_loss(model(x[part::accumulate]), y[part::accumulate])
            (loss / accumulate).backward()
        child.gather_gradients()
        optimizer.step()
        optimizer.zero_grad()
        child.write_back()
    return before, {n: p.detach().clone() for n, p in model.named_parameters()}, mask


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ],
    ids=["sgd_momentum", "adam", "adamw"],
)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_entries_outside_stay_bitwise(optimizer, options, accumulate):
    before, after, mask = train(optimizer, accumulate=accumulate, **options)
    for name in before:
        moved = torch.nonzero((before[name] != after[name]).reshape(-1)).squeeze(1).tolist()
        assert set(moved) == set(mask.get(name, torch.zeros(0)).tolist()), name


@pytest.mark.parametrize("name", [f"transformers-{family}" for family in SPEECH_FAMILIES])
def test_entries_outside_stay_bitwise_in_every_family(name, tmp_path):
    model = build(name, tmp_path)
    parameters = eligible_parameters(model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    mask = {
        n: torch.nonzero(torch.rand(p.numel(), generator=generator) < 0.02).squeeze(1) for n, p in parameters.items()
    }
    child = ChildNetwork(parameters, mask)
    optimizer = torch.optim.AdamW(child.parameters(), lr=1.0e-2, weight_decay=0.1)
    for _ in range(2):
        states(model, clips())[-2].square().mean().backward()
        child.gather_gradients()
        optimizer.step()
        optimizer.zero_grad()
        child.write_back()
    moved = {n: torch.nonzero((t != before[n]).reshape(-1)).squeeze(1).tolist() for n, t in model.state_dict().items()}
    assert all(set(found) <= set(mask[n].tolist()) if n in mask else not found for n, found in moved.items())
    assert sum(map(len, moved.values())) > 0.8 * sum(map(len, mask.values()))


def test_reference_trajectory():
    """The released AD-TUNING optimizer over 20 steps: its eps stands outside the bias correction (golden numbers)."""
    golden = np.load(GOLDEN)
    names = [k[len("init.") :] for k in golden.files if k.startswith("init.")]
    start = {n: torch.from_numpy(golden[f"init.{n}"]) for n in names}
    parameters = {n: torch.nn.Parameter(w.clone()) for n, w in start.items()}
    chosen = {n: golden[f"mask.{n}"] if f"mask.{n}" in golden.files else np.ones(start[n].shape, bool) for n in names}
    child = ChildNetwork(parameters, {n: torch.from_numpy(np.flatnonzero(c)) for n, c in chosen.items()})
    optimizer = ChildnetAdamW(child.parameters(), lr=5e-3, eps=1e-7)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    gradients = {n: torch.from_numpy(golden[f"grads.{n}"]) for n in names}
    for step in range(20):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        child.gather_gradients()
        optimizer.step()
        warm_up.step()
        child.write_back()
        if step == 9:  # the state can be stored
            stored, optimizer = optimizer.state_dict(), ChildnetAdamW(child.parameters(), lr=1.0)
            optimizer.load_state_dict(stored)
            warm_up.optimizer = optimizer
        if step + 1 in (1, 5, 20):
            for name in names:
                reached, expected = parameters[name].detach().numpy(), golden[f"after{step + 1}.{name}"]
                np.testing.assert_allclose(reached, expected, rtol=0, atol=2e-7, err_msg=f"{name}, step {step + 1}")
    for name in names:
        outside = torch.from_numpy(~chosen[name])
        assert torch.equal(parameters[name].detach()[outside], start[name][outside])
    assert optimizer.param_groups[0]["eps"] == 1e-7


def test_skipped_steps_do_not_count_in_the_bias_correction():
    """A GradScaler that finds an infinite gradient leaves weights, moments and step count alone."""
    weights = {n: torch.nn.Parameter(torch.ones(3)) for n in ("plain", "skipping")}
    optimizers = {n: ChildnetAdamW([w], lr=0.1) for n, w in weights.items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    for gradient in (float("inf"), 2e-7, 1e-7):
        for weight in weights.values():
            weight.grad = torch.full((3,), gradient)
        if gradient != float("inf"):
            optimizers["plain"].step()
        scaler.scale(torch.ones(()))
        weights["skipping"].grad.mul_(scaler.get_scale())
        scaler.step(optimizers["skipping"])
        scaler.update()
    torch.testing.assert_close(weights["plain"], weights["skipping"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("density", [0.3, 0.02], ids=["dense_gradients", "sparse_gradients"])
def test_entries_outside_stay_bitwise_under_autocast(dtype, density):
    with torch.autocast("cpu", dtype):
        before, after, mask = train(torch.optim.AdamW, density=density, lr=0.01, weight_decay=0.1)
    for name in before:
        moved = torch.nonzero((before[name] != after[name]).reshape(-1)).squeeze(1).tolist()
        assert set(moved) == set(mask.get(name, torch.zeros(0)).tolist()), name


def test_whole_network_trains_the_weights_themselves():
    parameters = {n: torch.nn.Parameter(torch.randn(4, 3)) for n in ("a", "b")}
    child = ChildNetwork(parameters, masks.full({n: 12 for n in parameters}))
    assert [p.data_ptr() for p in child.parameters()] == [p.data_ptr() for p in parameters.values()]
    assert len(child) == 24 and {n: len(i) for n, i in child.mask.items()} == {"a": 12, "b": 12}


def test_redrawn_masks_keep_and_rescale_a_share_of_each_gradient():
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    child = ChildNetwork({"w": weight}, masks.full({"w": 10_000}), redraw=0.1, seed=5)
    kept = []
    for step in (0, 1, 1):
        weight.grad = torch.ones(100, 100)
        child.gather_gradients(step)
        assert set(weight.grad.unique().tolist()) == {0.0, 10.0}
        kept.append(weight.grad > 0)
    assert abs(int(kept[0].sum()) - 1000) < 5 * (10_000 * 0.1 * 0.9) ** 0.5
    assert not torch.equal(kept[0], kept[1]) and torch.equal(kept[1], kept[2]), "the step and the seed decide"


def test_another_seed_redraws_other_entries():
    kept = []
    for seed in (5, 6, 6 + 2**31):
        weight = torch.nn.Parameter(torch.zeros(100, 100))
        child = ChildNetwork({"w": weight}, masks.full({"w": 10_000}), redraw=0.1, seed=seed)
        weight.grad = torch.ones(100, 100)
        child.gather_gradients(step=3)
        kept.append(weight.grad > 0)
    for one, other in itertools.combinations(kept, 2):
        assert int((one & other).sum()) < 200, "about 100 of 1000 by chance"


def test_clip_scope_all_counts_every_eligible_gradient():
    parameters = {n: torch.nn.Parameter(torch.randn(20, 10)) for n in ("a", "b")}
    gradients = {n: torch.randn(20, 10) for n in parameters}
    total = torch.cat([g.reshape(-1) for g in gradients.values()]).norm()
    norms = {}
    for dense_norm in (False, True):
        child = ChildNetwork(parameters, {"a": torch.arange(4)}, dense_norm=dense_norm)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].clone()
        child.gather_gradients()
        norms[dense_norm] = torch.nn.utils.clip_grad_norm_(child.parameters(), 1.0)
        assert torch.allclose(child.values.grad, gradients["a"].reshape(-1)[:4] / max(norms[dense_norm], 1.0))
        assert all(p.grad is None for p in parameters.values()) or not dense_norm
    torch.testing.assert_close(norms[False], gradients["a"].reshape(-1)[:4].norm())
    torch.testing.assert_close(norms[True], total)


def test_optimizer_state_is_compact():
    torch.manual_seed(0)
    parameters = {"w": torch.nn.Parameter(torch.randn(100, 10))}
    child = ChildNetwork(parameters, {"w": torch.arange(0, 1000, 50)})
    optimizer = torch.optim.AdamW(child.parameters())
    (parameters["w"] ** 2).sum().backward()
    child.gather_gradients()
    optimizer.step()
    sizes = [v.numel() for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert sizes == [20, 20]
    assert len(child) == 20


def test_tensors_without_a_chosen_entry_need_no_gradient():
    parameters = {n: torch.nn.Parameter(torch.randn(4)) for n in ("a", "b")}
    ChildNetwork(parameters, {"a": torch.tensor([1])})
    assert parameters["a"].requires_grad and not parameters["b"].requires_grad


@pytest.mark.parametrize("mask", [{"x": torch.tensor([0])}, {"a": torch.tensor([4])}])
def test_mask_of_another_model_is_refused(mask):
    with pytest.raises(DataError, match="does not fit the upstream"):
        ChildNetwork({"a": torch.nn.Parameter(torch.randn(4))}, mask)


@pytest.mark.parametrize("many", [1, 1 << 15])
@pytest.mark.parametrize("fewest", [1, 1 << 12], ids=["interleaved", "sorted"])
@pytest.mark.parametrize("density", [0.02, 0.1])
def test_a_step_is_the_dense_step_of_the_chosen_entries_bit_by_bit(many, fewest, density, monkeypatch):
    """Twenty steps of several batches; one weight gets no gradient in some steps, another step is given up."""
    monkeypatch.setattr(child_network, "MANY", many)
    monkeypatch.setattr(child_network, "FEWEST", fewest)
    torch.manual_seed(0)
    weights = {
        "a": nn.Parameter(torch.randn(40, 30)),
        "b": nn.Parameter(torch.randn(50)),
        "c": nn.Parameter(torch.randn(9, 7).t()),
    }
    plain = {name: nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    mask = masks.bernoulli({name: w.numel() for name, w in weights.items()}, density, seed=1)
    mask |= {"b": torch.tensor([3, 4, 49], dtype=torch.int32), "c": torch.tensor([0, 8, 62], dtype=torch.int32)}
    child = ChildNetwork(weights, mask, sparse_gradients=False)
    ours = torch.optim.AdamW(child.parameters(), lr=0.01)
    theirs = torch.optim.AdamW(plain.values(), lr=0.01, weight_decay=0.0)
    ours.param_groups[0]["weight_decay"] = 0.0
    kept = {
        name: torch.zeros(w.numel()).index_fill_(0, mask[name].long(), 1.0).view(w.shape) for name, w in weights.items()
    }
    for step in range(20):
        theirs.zero_grad(set_to_none=False)
        for _ in range(1 + step % 3):
            x = torch.randn(5, 40)
            for made in (weights, plain):
                loss = (
                    (x @ made["a"]).tanh().sum()
                    + (made["b"].square().sum() if step % 4 else 0.0)
                    + made["c"].sin().sum()
                )
                loss.backward()
        for name, w in plain.items():
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad * kept[name]
        if step == 7:
            child.zero_grad()
            continue
        child.gather_gradients()
        ours.step()
        child.write_back()
        theirs.step()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    assert all(torch.equal(child.mask[name], mask[name]) for name in plain)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1001])
def test_interleaved_entries_are_every_eighth_part_in_turn(size):
    entries = torch.arange(size)
    found = interleaved(entries)
    assert torch.equal(sorted_again(found), entries)
    assert sorted(found.tolist()) == entries.tolist()
    if size == 64:
        assert found[:9].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 1]


def test_stored_state_is_in_the_order_of_the_mask(monkeypatch):
    """One network has one weight interleaved, the other none: each reads what the other stored."""
    start = torch.randn(2, 60, 50)
    mask = {"a": torch.arange(0, 3000, 7, dtype=torch.int32), "b": torch.arange(5, dtype=torch.int32)}
    gradients = torch.randn(4, 2, 60, 50)

    def network(fewest):
        monkeypatch.setattr(child_network, "FEWEST", fewest)
        weights = {name: nn.Parameter(w.clone()) for name, w in zip("ab", start)}
        child = ChildNetwork(weights, mask)
        head = nn.Parameter(torch.ones(len(child)))  # of the same size, first in the optimizer
        optimizer = torch.optim.AdamW([{"params": [head]}, {"params": child.parameters()}], lr=0.1)
        child.store_sorted(optimizer)
        return weights, child, head, optimizer

    def steps(weights, child, head, optimizer, which):
        for step in which:
            head.grad = torch.arange(len(head)) / 100.0
            for weight, gradient in zip(weights.values(), gradients[step]):
                weight.grad = gradient.clone()
            child.gather_gradients()
            optimizer.step()
            child.write_back()

    mixed, plain = network(16), network(1 << 40)
    assert mixed[1]._interleaved == [True, False]
    assert not torch.equal(mixed[1].values, plain[1].values)
    for one in (mixed, plain):
        steps(*one, range(2))
    stored = [one[3].state_dict() for one in (mixed, plain)]
    for number, of in stored[0]["state"].items():
        for key, value in of.items():  # the last few entries of a vector are rounded otherwise than the rest
            torch.testing.assert_close(value, stored[1]["state"][number][key], rtol=1e-6, atol=0)
    mixed[3].load_state_dict(stored[1])
    plain[3].load_state_dict(stored[0])
    for one in (mixed, plain):
        steps(*one, range(2, 4))
    for found, expected in zip([*mixed[0].values(), mixed[2]], [*plain[0].values(), plain[2]]):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
