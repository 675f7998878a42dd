"""Choosing a child network again: the state of entries that stay, that of new ones, values of those that leave."""

from __future__ import annotations

import copy

import pytest
import torch

from s3prl_ext.child_tuning.changing_network import ChangingChildNetwork, carry_over, chosen_of
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.sparse_adamw import ChildnetAdamW
from s3prl_ext.errors import DataError

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "childnet": lambda p: ChildnetAdamW(p, lr=0.05, eps=0.5, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
}
MASKS = [{"a": [0, 2, 5], "b": [1, 3]}, {"a": [0, 1, 5, 7]}, {"a": [1, 2, 5], "b": [0, 3]}, {"b": [0, 1, 2, 3]}]


def mask_of(plain):
    return {name: torch.tensor(indices, dtype=torch.int32) for name, indices in plain.items()}


def gradients(steps):
    generator = torch.Generator().manual_seed(1)
    return [
        {"a": torch.randn(2, 4, generator=generator), "b": torch.randn(4, generator=generator)} for _ in range(steps)
    ]


def start():
    generator = torch.Generator().manual_seed(0)
    return {n: torch.nn.Parameter(torch.randn(s, generator=generator)) for n, s in (("a", (2, 4)), ("b", (4,)))}


def rechosen(child, optimizer, plain):
    before = list(child.generations)
    kept = child.rechoose(mask_of(plain))
    carry_over(optimizer, before, child.generations, kept)
    return kept


def one_by_one(make, every, steps):
    """The oracle: an optimizer of its own for each entry, made when the entry enters and dropped when it leaves."""
    values, running = {n: p.detach().clone().reshape(-1) for n, p in start().items()}, {}
    for step, found in enumerate(gradients(steps)):
        if step % every == 0:
            wanted = {(n, i) for n, indices in MASKS[step // every].items() for i in indices}
            running = {key: one for key, one in running.items() if key in wanted}
            for name, index in wanted - running.keys():
                entry = torch.nn.Parameter(values[name][index : index + 1].clone())
                running[name, index] = entry, make([entry])
        for (name, index), (entry, optimizer) in running.items():
            entry.grad = found[name].reshape(-1)[index : index + 1].clone()
            optimizer.step()
            values[name][index] = entry.detach()[0]
    return values


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stored", [False, True], ids=["", "stored_and_loaded"])
def test_each_entry_trains_as_by_an_optimizer_of_its_own_since_it_entered(name, stored):
    make, every = OPTIMIZERS[name], 3
    weights = start()
    child = ChangingChildNetwork(weights, mask_of(MASKS[0]))
    optimizer = make(child.parameters())
    trained = {n: set() for n in weights}
    for step, found in enumerate(gradients(4 * every)):
        if step % every == 0 and step:
            rechosen(child, optimizer, MASKS[step // every])
        for n, indices in MASKS[step // every].items():
            trained[n] |= set(indices)
        if stored and step in (4, 7):  # after a checkpoint everything is made anew
            every_entry = {n: torch.tensor(sorted(i), dtype=torch.int32) for n, i in trained.items()}
            members, states = child.members_in(every_entry), copy.deepcopy(optimizer.state_dict())
            child = ChangingChildNetwork(weights, *chosen_of(every_entry, members))
            optimizer = make(child.parameters())
            optimizer.load_state_dict(states)
        for n, parameter in weights.items():
            parameter.grad = found[n].clone()
        child.gather_gradients(step)
        optimizer.step()
        optimizer.zero_grad()
        child.write_back()
    for n, expected in one_by_one(make, every, 4 * every).items():
        torch.testing.assert_close(weights[n].detach().reshape(-1), expected, rtol=2e-6, atol=2e-7)


def test_choosing_the_same_again_changes_nothing_bitwise():
    ends = []
    for again in (False, True):
        weights = start()
        child = ChangingChildNetwork(weights, mask_of(MASKS[0]))
        optimizer = OPTIMIZERS["adamw"](child.parameters())
        for step, found in enumerate(gradients(6)):
            if again and step in (2, 4):
                assert all(one is not None for one in rechosen(child, optimizer, MASKS[0]))
            for n, parameter in weights.items():
                parameter.grad = found[n].clone()
            child.gather_gradients()
            optimizer.step()
            child.write_back()
        ends.append([p.detach().clone() for p in weights.values()])
    plain_weights = start()
    plain = ChildNetwork(plain_weights, mask_of(MASKS[0]))
    optimizer = OPTIMIZERS["adamw"](plain.parameters())
    for found in gradients(6):
        for n, parameter in plain_weights.items():
            parameter.grad = found[n].clone()
        plain.gather_gradients()
        optimizer.step()
        plain.write_back()
    for once, twice, fixed in zip(*ends, plain_weights.values()):
        assert torch.equal(once, twice) and torch.equal(once, fixed), "and is the child network that never changes"


def test_the_place_among_other_parameters_is_kept():
    weights, head = start(), torch.nn.Parameter(torch.ones(2))
    child = ChangingChildNetwork(weights, mask_of(MASKS[0]))
    optimizer = torch.optim.Adam([{"params": [*child.parameters(), head], "lr": 0.1}])
    kept = rechosen(child, optimizer, MASKS[1])
    assert optimizer.param_groups[0]["params"][-1] is head and len(optimizer.param_groups[0]["params"]) == 3
    assert [None if one is None else one[1].tolist() for one in kept] == [[0, 2], None]
    assert len(child) == 4 and {n: i.tolist() for n, i in child.mask.items()} == {"a": [0, 1, 5, 7]}
    with pytest.raises(DataError, match="does not fit the upstream: 'c'"):
        child.rechoose(mask_of({"c": [1]}))


def test_every_entry_of_the_model_can_be_chosen_and_left():
    weights = start()
    child = ChangingChildNetwork(weights, mask_of({"a": range(8), "b": range(4)}))
    assert not child.whole and len(child) == 12
    child.rechoose(mask_of({"b": [2]}))
    assert len(child) == 1 and not weights["a"].requires_grad and weights["b"].requires_grad
