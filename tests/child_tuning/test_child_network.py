"""Training only the chosen entries: the reference trajectory, frozen entries, other optimizers, wrong masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.errors import DataError

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


def test_reference_trajectory():
    """The released AD-TUNING optimizer over 20 steps: its eps stands outside the bias correction (golden numbers)."""
    golden = np.load(GOLDEN)
    names = [k[len("init.") :] for k in golden.files if k.startswith("init.")]
    parameters = {n: torch.nn.Parameter(torch.from_numpy(golden[f"init.{n}"]).clone()) for n in names}
    mask = {}
    for name in names:
        chosen = (
            golden[f"mask.{name}"] if f"mask.{name}" in golden.files else np.ones_like(golden[f"init.{name}"], bool)
        )
        mask[name] = torch.from_numpy(np.flatnonzero(chosen))
    child = ChildNetwork(parameters, mask)
    optimizer = torch.optim.AdamW(child.parameters(), lr=5e-3, betas=(0.9, 0.999), eps=1e-7, weight_decay=0.0)
    gradients = {n: torch.from_numpy(golden[f"grads.{n}"]) for n in names}
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, (step + 1) / 5)
            group["eps"] = 1e-7 / (1 - 0.999 ** (step + 1)) ** 0.5
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        child.gather_gradients()
        optimizer.step()
        child.write_back()
        if step + 1 in (1, 5, 20):
            for name in names:
                reached, expected = parameters[name].detach().numpy(), golden[f"after{step + 1}.{name}"]
                np.testing.assert_allclose(reached, expected, rtol=0, atol=2e-7, err_msg=f"{name}, step {step + 1}")


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
