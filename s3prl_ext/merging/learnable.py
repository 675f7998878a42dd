"""Learnable interpolation (L-MAM, Eq. 3): W = lambda * W_source + (1 - lambda) * W_target with a trained lambda.

With ``method: slerp`` it is a point of the arc: (sin((1 - lambda) a) W_target + sin(lambda a) W_source) / sin a. The
angle a of each whole matrix is that of the untouched models and stays while the target trains.

The target's matrices and lambda train, the source's are frozen. The merge acts on the weight itself, as a
``torch.nn.utils.parametrize`` parametrization, because the attention of s3prl's models and of WavLM hands weights to a
functional call, where hooks and wrapped modules never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s3prl_ext.attention.layouts import PROJECTIONS, Slot, find_attention
from s3prl_ext.attention.weights import AttentionWeights, extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.alignment import check_ungrouped
from s3prl_ext.merging.differentiable import Interpolate, WeightedSum, arc_shares
from s3prl_ext.merging.merge import Lambdas
from s3prl_ext.merging.methods import LINEAR, MethodConfig, angle_between
from s3prl_ext.models.heads import heads_of
from s3prl_ext.settings import choice, load

GRANULARITIES = ("layer", "projection", "head", "global")
CONSTRAINTS = ("raw", "clamp", "sigmoid")
SCOPES = ("all", "merged")
DEFAULT_LAMBDA = 0.1  # Adam moves a scalar by about lr a step, so the initial value matters
MODULE_NAME = "learnable_lambda"  # attribute of the model that holds lambda
PARAMETER_NAME = f"{MODULE_NAME}.values"  # its key in the model's state dict


@dataclass(frozen=True)
class LearnableConfig:
    """Section ``learnable`` of a merge.

    Attributes:
        granularity: what shares one lambda: the q, k and v of a ``layer``, one ``projection`` of a layer, a ``head``
            of a layer (its rows of q, k and v), or everything (``global``).
        constraint: ``raw`` may leave [0, 1] in training; ``clamp`` is put back into it after each optimizer step;
            ``sigmoid`` trains the logit.
        layers: which layers have a lambda: ``all``, those outside the merge's ``layers`` beginning at 0 (Eq. 3 has one
            for every layer), or only the ``merged`` ones.
    """

    granularity: Annotated[str, choice(*GRANULARITIES)] = "layer"
    constraint: Annotated[str, choice(*CONSTRAINTS)] = "raw"
    layers: Annotated[str, choice(*SCOPES)] = "all"


def parse_learnable(value: Any, where: str = "learnable") -> LearnableConfig | None:
    """Return the section ``learnable``, None where it is false.

    Args:
        value: true, false, or a mapping such as ``{granularity: head, constraint: sigmoid}``.

    Raises:
        UsageError: with one line for every problem found.
    """
    if isinstance(value, bool):
        return LearnableConfig() if value else None
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must be true, false or a mapping such as {{granularity: layer}}, got {value!r}.")
    return load(LearnableConfig, value, where)


class LearnableLambda(nn.Module):
    """All lambdas of a model, in one parameter `values` of shape [layers, projections, heads].

    A dimension that shares its lambda has size 1. With the constraint ``sigmoid`` the parameter holds logits.

    Args:
        initial: projection -> first value for each of `layers`.
        layers: layers of the target that are merged, ascending.
        heads: attention heads of each.
        config: granularity and constraint.

    Raises:
        UsageError: the initial values differ where they share one lambda, or are outside what the constraint allows.
    """

    def __init__(
        self, initial: Mapping[str, Sequence[float]], layers: Sequence[int], heads: int, config: LearnableConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = tuple(layers)
        self.projections = tuple(p for p in PROJECTIONS if p in initial)
        values = torch.tensor([initial[p] for p in self.projections], dtype=torch.float64).T.unsqueeze(-1)
        _check_initial(values, config)
        if config.granularity != "projection":
            values = values[:, :1]
        if config.granularity == "global":
            values = values[:1]
        if config.granularity == "head":
            values = values.expand(-1, -1, heads)
        if config.constraint == "sigmoid":
            values = values.logit()
        self.values = nn.Parameter(values.to(torch.float32).clone(memory_format=torch.contiguous_format))

    def forward(self, layer: int, projection: str) -> Tensor:
        """Return lambda of a matrix: [1], or [heads]."""
        row = 0 if self.config.granularity == "global" else self.layers.index(layer)
        column = self.projections.index(projection) if self.config.granularity == "projection" else 0
        return self._constrained(self.values[row, column])

    def _constrained(self, values: Tensor) -> Tensor:
        return values.sigmoid() if self.config.constraint == "sigmoid" else values

    @torch.no_grad()
    def project(self) -> None:
        """Put lambda back into [0, 1] where the constraint is ``clamp``; call it after each optimizer step."""
        if self.config.constraint == "clamp":
            self.values.clamp_(0.0, 1.0)

    def current(self) -> Tensor:
        """Return a copy of all lambdas as they act now, flat, on the CPU, in the order of :meth:`names`."""
        return self._constrained(self.values.detach()).flatten().to("cpu", torch.float32, copy=True)

    def names(self) -> list[str]:
        """Return a name for each lambda: ``layer_03``, ``layer_03/q_proj``, ``layer_03/head_11`` or ``global``."""
        if self.config.granularity == "global":
            return ["global"]
        rows = [f"layer_{layer:02d}" for layer in self.layers]
        if self.config.granularity == "layer":
            return rows
        heads = [f"head_{head:02d}" for head in range(self.values.shape[2])]
        columns = self.projections if self.config.granularity == "projection" else heads
        return [f"{row}/{column}" for row in rows for column in columns]


def _check_initial(values: Tensor, config: LearnableConfig) -> None:
    """Check initial values of shape [layers, projections, 1]."""
    if config.granularity in ("layer", "head", "global") and bool((values != values[:, :1]).any()):
        raise UsageError(
            f"lambda differs between projections, which share it with granularity {config.granularity}: give one "
            "value, or set learnable: {granularity: projection}."
        )
    if config.granularity == "global" and bool((values != values[:1]).any()):
        raise UsageError(
            "lambda differs between layers, which share it with granularity global: give one value, and for a set of "
            "layers learnable: {granularity: global, layers: merged}."
        )
    low, high = values.min().item(), values.max().item()
    if config.constraint == "clamp" and not (low >= 0.0 and high <= 1.0):
        raise UsageError(f"constraint clamp keeps lambda in [0, 1], but its first values are in [{low:g}, {high:g}].")
    if config.constraint == "sigmoid" and not (low > 0.0 and high < 1.0):
        raise UsageError(
            f"constraint sigmoid needs a first lambda above 0 and below 1, but its first values are in [{low:g}, "
            f"{high:g}]: choose another value, or constraint raw; "
            f"for a set of layers also learnable: {{constraint: sigmoid, layers: merged}}."
        )


class Interpolated(nn.Module):
    """Parametrization of one query, key or value weight.

    The source's matrix is a buffer that checkpoints do not hold: it is read again where the model is built.

    Args:
        source: [out, in], as the weight.
        shared: the model's lambdas, held elsewhere in the model.
        layer, projection: which of them.
        angle: between the untouched matrices, of slerp; None for the straight line.
    """

    source: Tensor

    def __init__(
        self, source: Tensor, shared: LearnableLambda, layer: int, projection: str, angle: float | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("source", source, persistent=False)
        self._shared = (shared,)  # in a tuple, so that it is not a submodule and lambda has one name
        self.layer, self.projection = layer, projection
        self.angle = angle

    def forward(self, weight: Tensor) -> Tensor:
        """Return the merged matrix."""
        lambda_ = self._shared[0](self.layer, self.projection)
        if self.angle is None:
            return Interpolate.apply(weight, self.source, lambda_)
        return WeightedSum.apply(weight, self.source, arc_shares(lambda_, self.angle).to(weight.dtype))


def make_learnable(
    model: nn.Module,
    source: AttentionWeights,
    initial: Lambdas,
    layers: Iterable[int],
    config: LearnableConfig,
    where: str = "the target",
    method: MethodConfig = LINEAR,
) -> LearnableLambda:
    """Put a learnable merge on the query, key and value weights of `model`, in place, and return its lambdas.

    They become the submodule ``learnable_lambda``; a weight's state-dict key changes from ``q_proj.weight`` to
    ``q_proj.parametrizations.weight.original``. :func:`fold` undoes both.

    Args:
        model: the target.
        source: matrices under the target's slots.
        initial: projection -> first lambda per layer of the target; other projections are left alone.
        layers: layers of the target to merge.
        config: granularity and constraint.
        where: what the model is called in messages.
        method: ``linear`` or ``slerp``, whose angles are taken from the model as it is now.

    Raises:
        UsageError: there is nothing to merge, q, k and v are one tensor, or the initial values do not fit.
    """
    layers = sorted(layers)
    slots = [Slot(layer, projection) for layer in layers for projection in PROJECTIONS if projection in initial]
    if not slots:
        raise UsageError("learnable: no layer is chosen, so there is no lambda to learn: set layers, such as all.")
    keys = find_attention(model.state_dict(), where)
    if keys.architecture.fused:
        raise UsageError(
            f"{where} holds q, k and v in one tensor ({keys.architecture.attention}), for which lambda cannot be "
            "learnt: use a fixed lambda (learnable: false)."
        )
    modules: dict[Slot, Any] = {slot: model.get_submodule(keys.names[slot].rpartition(".")[0]) for slot in slots}
    attention = model.get_submodule(keys.names[slots[0]].rsplit(".", 2)[0])
    heads = 1
    if config.granularity == "head":
        check_ungrouped(extract(model.state_dict(), where), where)
        heads = _heads(attention, where)
    first = {projection: [initial[projection][layer] for layer in layers] for projection in initial}
    shared = LearnableLambda(first, layers, heads, config)
    setattr(model, MODULE_NAME, shared)
    shared.to(modules[slots[0]].weight.device)
    for slot, module in modules.items():
        weight = module.weight
        matrix = source[slot].detach().to(weight.device, weight.dtype, copy=True).contiguous()
        angle = angle_between(weight.detach(), source[slot].detach()) if method.name == "slerp" else None
        parametrization = Interpolated(matrix, shared, slot.layer, slot.projection, angle)
        parametrize.register_parametrization(module, "weight", parametrization, unsafe=True)
    _keep_from_broadcast(model)
    return shared


def _heads(attention: nn.Module, where: str) -> int:
    heads = heads_of(attention)
    if heads is None:
        raise UsageError(f"{where} does not say how many attention heads it has: use another granularity than head.")
    return heads


def _keep_from_broadcast(model: nn.Module) -> None:
    """Tell DistributedDataParallel not to send the sources' matrices, equal on all ranks, around at every forward."""
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, source_names(model))


def source_names(model: nn.Module) -> list[str]:
    """Return the names of the buffers that hold the sources' matrices; none where nothing is merged learnably."""
    return [f"{name}.source" for name, module in model.named_modules() if isinstance(module, Interpolated)]


def find_lambda(model: nn.Module) -> LearnableLambda | None:
    """Return the learnable lambdas of a model, None where it has none."""
    return next((module for module in model.modules() if isinstance(module, LearnableLambda)), None)


def loadable_state(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a whole state dict from what is stored of a model, which may be lambda alone."""
    return model.state_dict() | dict(state) if set(state) == {PARAMETER_NAME} else state


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
