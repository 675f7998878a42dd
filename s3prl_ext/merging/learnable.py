"""Learnable interpolation (L-MAM, Eq. 3): W = lambda * W_source + (1 - lambda) * W_target with a trained lambda.

Of several sources each has lambdas of its own: W = (1 - sum of lambda_s) * W_target + sum of lambda_s * W_s. With
``method: slerp`` it is a point of the arc: (sin((1 - lambda) a) W_target + sin(lambda a) W_source) / sin a. The angle a
of each whole matrix is that of the untouched models and stays while the target trains.

The target's matrices and lambda train, the sources' are frozen. The merge acts on the weight itself, as a
``torch.nn.utils.parametrize`` parametrization, because the attention of s3prl's models and of WavLM hands weights to a
functional call, where hooks and wrapped modules never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s3prl_ext.attention.layouts import PROJECTIONS, Slot, find_attention
from s3prl_ext.attention.weights import AttentionWeights, extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment import check_ungrouped
from s3prl_ext.merging.differentiable import Interpolate, WeightedSum, arc_shares, line_shares
from s3prl_ext.merging.learnable_config import LearnableConfig
from s3prl_ext.merging.learnable_lambda import FirstLambdas, LearnableLambda
from s3prl_ext.merging.merge import Lambdas
from s3prl_ext.merging.methods import LINEAR, MethodConfig
from s3prl_ext.merging.slerp import angle_between
from s3prl_ext.models.heads import heads_of

MODULE_NAME = "learnable_lambda"  # attribute of the model that holds lambda
PARAMETER_NAME = f"{MODULE_NAME}.values"  # its key in the model's state dict


@dataclass(frozen=True)
class LearnableSource:
    """A model that is merged in with trained lambdas.

    Attributes:
        weights: matrices under the target's slots.
        first: projection -> first lambda per layer of the target; other projections are left alone.
        layers: layers of the target that it is merged into.
        name: what to call it.
    """

    weights: AttentionWeights
    first: Lambdas
    layers: Iterable[int]
    name: str = ""

    @property
    def slots(self) -> list[Slot]:
        """The matrices that it is merged into."""
        return [Slot(layer, p) for layer in sorted(self.layers) for p in PROJECTIONS if p in self.first]

    def first_lambdas(self) -> FirstLambdas:
        """Return where its lambdas begin."""
        layers = sorted(self.layers)
        values = {p: [self.first[p][layer] for layer in layers] for p in PROJECTIONS if p in self.first}
        return FirstLambdas(layers, values, self.name)


class Interpolated(nn.Module):
    """Parametrization of one query, key or value weight.

    The sources' matrices are a buffer that checkpoints do not hold: they are read again where the model is built.

    Args:
        source: [out, in], as the weight; of several sources [sources, out, in].
        shared: the model's lambdas, held elsewhere in the model.
        slot: which of them.
        angle: between the untouched matrices, of slerp; None for the straight line.
    """

    source: Tensor

    def __init__(self, source: Tensor, shared: LearnableLambda, slot: Slot, angle: float | None = None) -> None:
        super().__init__()
        self.register_buffer("source", source, persistent=False)
        self._shared = (shared,)  # in a tuple, so that it is not a submodule and lambda has one name
        self.slot = slot
        self.angle = angle

    def forward(self, weight: Tensor) -> Tensor:
        """Return the merged matrix."""
        lambdas = self._shared[0](self.slot)
        if self.source.dim() == 3:
            return WeightedSum.apply(weight, self.source, line_shares(lambdas).to(weight.dtype))
        if self.angle is None:
            return Interpolate.apply(weight, self.source, lambdas[0])
        shares = arc_shares(lambdas[0], self.angle).to(weight.dtype)
        return WeightedSum.apply(weight, self.source.unsqueeze(0), shares)


def make_learnable(
    model: nn.Module,
    sources: Sequence[LearnableSource],
    config: LearnableConfig,
    where: str = "the target",
    method: MethodConfig = LINEAR,
) -> LearnableLambda:
    """Put a learnable merge on the query, key and value weights of `model`, in place, and return its lambdas.

    They become the submodule ``learnable_lambda``; a weight's state-dict key changes from ``q_proj.weight`` to
    ``q_proj.parametrizations.weight.original``. :func:`fold` undoes both.

    Args:
        model: the target.
        sources: what is merged in; of the method ``slerp`` one.
        config: granularity and constraint.
        where: what the model is called in messages.
        method: ``linear`` or ``slerp``, whose angles are taken from the model as it is now.

    Raises:
        UsageError: there is nothing to merge, q, k and v are one tensor, or the initial values do not fit.
    """
    used = [source for source in sources if source.slots]
    if not used:
        raise UsageError("learnable: no layer is chosen, so there is no lambda to learn: set layers, such as all.")
    keys = find_attention(model.state_dict(), where)
    if keys.architecture.fused:
        raise UsageError(
            f"{where} holds q, k and v in one tensor ({keys.architecture.attention}), for which lambda cannot be "
            "learnt: use a fixed lambda (learnable: false)."
        )
    slots = sorted({slot for source in used for slot in source.slots}, key=_order)
    modules: dict[Slot, Any] = {slot: model.get_submodule(keys.names[slot].rpartition(".")[0]) for slot in slots}
    attention = model.get_submodule(keys.names[slots[0]].rsplit(".", 2)[0])
    heads = 1
    if config.granularity == "head":
        check_ungrouped(extract(model.state_dict(), where), where)
        heads = _heads(attention, where)
    shared = LearnableLambda([source.first_lambdas() for source in sources], heads, config)
    setattr(model, MODULE_NAME, shared)
    shared.to(modules[slots[0]].weight.device)
    for slot, module in modules.items():
        weight = module.weight
        matrices = [sources[number].weights[slot].detach() for number in shared.sources_of(slot)]
        angle = angle_between(weight.detach(), matrices[0]) if method.name == "slerp" else None
        held = _held(matrices, weight, several=len(sources) > 1)
        parametrize.register_parametrization(module, "weight", Interpolated(held, shared, slot, angle), unsafe=True)
    _keep_from_broadcast(model)
    return shared


def _order(slot: Slot) -> tuple[int, int]:
    return slot.layer, PROJECTIONS.index(slot.projection)


def _held(matrices: Sequence[Tensor], weight: Tensor, several: bool) -> Tensor:
    """Return the sources' matrices of one slot in the target's dtype: [out, in], of `several` [sources, out, in]."""
    if several:
        return torch.stack([matrix.to(weight.device, weight.dtype) for matrix in matrices])
    return matrices[0].to(weight.device, weight.dtype, copy=True).contiguous()


def _heads(attention: nn.Module, where: str) -> int:
    heads = heads_of(attention)
    if heads is None:
        raise UsageError(f"{where} does not say how many attention heads it has: use another granularity than head.")
    return heads


def _keep_from_broadcast(model: nn.Module) -> None:
    """Tell DistributedDataParallel not to send the sources' matrices, equal on all ranks, around at every forward."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, constant_names(model))


def constant_names(model: nn.Module) -> list[str]:
    """Return the names of the buffers that the merge reads and nothing writes; none where nothing is merged learnably.

    They hold the sources' matrices, and which lambdas there are.
    """
    of = {Interpolated: "source", LearnableLambda: "present"}
    return [f"{name}.{of[type(module)]}" for name, module in model.named_modules() if type(module) in of]


def find_lambda(model: nn.Module) -> LearnableLambda | None:
    """Return the learnable lambdas of a model, None where it has none."""
    return next((module for module in model.modules() if isinstance(module, LearnableLambda)), None)


def is_whole(state: Mapping[str, Any] | None) -> bool:
    """Return whether what is stored of a model is all of it: neither nothing nor lambda alone."""
    return bool(state) and set(state or ()) != {PARAMETER_NAME}


def loadable_state(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a whole state dict from what is stored of a model, which may be lambda alone."""
    return state if is_whole(state) else model.state_dict() | dict(state)


def fold(model: nn.Module) -> None:
    """Replace the learnable merge by plain weights with lambda folded in, in place.

    Names and order of the state dict become those of the plain target, which needs neither the source nor this
    package. A model without learnable lambda is left as it is.
    """
    for module in list(model.modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        if any(isinstance(step, Interpolated) for step in module.parametrizations["weight"]):  # type: ignore[index]
            _fold_weight(module)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LearnableLambda):
                delattr(module, name)


def _fold_weight(module: nn.Module) -> None:
    # Copies of a module share the class that holds the property `weight`; removing it there would break the others.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    parametrize.remove_parametrizations(module, "weight")
    if isinstance(getattr(module, "bias", None), nn.Parameter):  # weight was registered again, after the bias
        bias = module.bias
        del module.bias
        module.bias = bias
