"""A tuned task as a run leaves it: a delta file, a run folder that holds one, or a checkpoint of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ext import adapters
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.child_tuning.delta import Delta, difference, state_sha256
from s3prl_ext.deltas.folders import file_of, missing
from s3prl_ext.deltas.plain_upstream import is_merged, loader_of
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.merging.learnable import PARAMETER_NAME, find_lambda
from s3prl_ext.merging.learnable import fold as fold_lambda
from s3prl_ext.training import checkpoint, last_hidden_state
from s3prl_ext.training.early_stop import candidates
from s3prl_ext.training.tuned_upstream import KEY


@dataclass(frozen=True)
class TunedTask:
    """What a run changed in its upstream, and its own weights.

    Attributes:
        path: the file it was read from.
        info: what it is: upstream, task, tuning, configuration, step, metrics, seed.
        task: state dicts of ``Featurizer`` and ``Downstream``.
        delta: the changes; None where the file is a checkpoint.
        checkpoint: the changes as a checkpoint holds them, under ``UpstreamDelta`` or ``Upstream``, or neither for a
            run that left the upstream as it was; and ``base_sha256``, which s3prl's own checkpoints lack (None).
    """

    path: Path
    info: Mapping[str, Any]
    task: Mapping[str, Mapping[str, Tensor]]
    delta: Delta | None = None
    checkpoint: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> TunedTask:
        """Read a delta file, a checkpoint, or the folder of a run: its delta, else its best checkpoint, else its latest.

        Raises:
            DataError: it is missing, damaged, or something else.
        """
        path = Path(path)
        if path.is_dir():
            path = file_of(path, prefer_delta=True)
        if not path.exists():
            raise DataError(missing(path))
        if path.suffix == ".ckpt":
            states = checkpoint.load(path)
            changes = {key: states[key] for key in (KEY, "Upstream") if key in states}
            changes["base_sha256"] = states.get(checkpoint.EXTENSION_KEY, {}).get("upstream_sha256")
            return cls(path, _info(states, path), _task(states), None, changes)
        found = delta_files.load(path)
        if not found.info.get("upstream"):
            raise DataError(f"{path} does not say which upstream it belongs to: write it again with its info.")
        return cls(path, {**found.info, "tuning": tuning_of(found.info)}, found.task, found)

    def check_features(self, model: nn.Module) -> None:
        """Warn where the task may have been trained on another last hidden state than `model` gives."""
        record = self.info.get(last_hidden_state.KEY)
        last_hidden_state.warn_where_unknown(record, model, self.info, self.path)

    @property
    def method(self) -> str | None:
        """The tuning method, or None where the task file had no section ``tuning``."""
        return (self.info.get("tuning") or {}).get("method")

    def tuned_from(self, upstream: str | None, ckpt: str | None, model_config: str | None) -> TunedTask:
        """Return the task with another ``-u``, ``-k`` or ``-g`` of its upstream; None leaves what the file says.

        Another ``-u`` takes no ``-g`` of the one before; a released model such as ``hubert_base`` with a ``-k`` becomes
        the upstream that loads files of its kind.
        """
        given = {"upstream": upstream, "upstream_ckpt": ckpt, "upstream_model_config": model_config}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if upstream is not None:
            changes["upstream_model_config"] = model_config
        elif ckpt is not None and not is_merged(self.info["upstream"]):
            changes["upstream"] = loader_of(self.info["upstream"], self.info.get("upstream_ckpt"))
        return replace(self, info={**self.info, **changes})

    def counts(self) -> tuple[int | None, int]:
        """Return how many weights of the upstream trained (None: not a chosen few), and how many were added."""
        if "Upstream" in self.checkpoint:
            return None, 0
        if self.delta is not None:
            return len(self.delta), sum(tensor.numel() for tensor in self.delta.added.values())
        changes = self.checkpoint.get(KEY, {"indices": {}, "added": {}})
        return tuple(sum(t.numel() for t in changes[key].values()) for key in ("indices", "added"))

    def over(self, base: Mapping[str, Tensor]) -> Delta:
        """Return the changes as a delta over `base`, the state of the untuned upstream.

        Raises:
            DataError: `base` is another upstream, or the checkpoint holds none of the changes.
        """
        if self.delta is not None:
            self.delta.check_base(base, str(self.path))
            return self.delta
        if "Upstream" in self.checkpoint:
            raise DataError(f"{self.path} holds a whole upstream, no delta: write it as a model with s3prl-ext export.")
        self._check_base(base)
        if KEY not in self.checkpoint:  # the upstream was frozen
            return Delta(state_sha256(base), task=self.task, info=self.info)
        changes = self.checkpoint[KEY]
        indices = {name: value.long() for name, value in changes["indices"].items()}
        for name, value in indices.items():
            if name not in base or (len(value) and int(value.max()) >= base[name].numel()):
                raise DataError(f"{self.path} changes '{name}', which this upstream lacks or has in another size.")
        bits = difference({name: base[name].take(value) for name, value in indices.items()}, changes["values"])
        sizes = {name: base[name].numel() for name in indices}
        delta = Delta(changes["base_sha256"], indices, bits, sizes, {}, self.task, self.info)
        return delta.with_tensors(base, changes["added"])

    def _check_base(self, base: Mapping[str, Tensor]) -> None:
        expected = self.checkpoint.get(KEY, self.checkpoint).get("base_sha256")
        if expected is not None:
            Delta(expected).check_base(base, str(self.path))

    def tune(self, model: nn.Module) -> dict[str, float]:
        """Make the untuned upstream the tuned one with plain weights only; an adapter or learnt lambda is folded.

        Returns:
            The learnt lambdas by name, empty where none are.

        Raises:
            DataError: `model` is another upstream than the one that was tuned.
            UsageError: the adapter cannot be folded.
        """
        if "Upstream" in self.checkpoint:
            self._check_base(model.state_dict())
            load_whole(model, self.checkpoint["Upstream"], self.path)
        else:
            check_foldable(self)
            changes = self.over(model.state_dict())
            changes.toggle(model.state_dict())
            if changes.added:
                insert_added(model, changes, str(self.path))
                adapters.fold(model)
        shared = find_lambda(model)
        if shared is None:
            return {}
        fold_lambda(model)
        return dict(zip(shared.names(), shared.current().tolist(), strict=True))


def tuning_of(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the section ``tuning`` that the weights come from; of a race, that of the candidate.

    Raises:
        DataError: the section makes no candidate of that name.
    """
    section = info.get("tuning")
    if not section:
        return None
    found = candidates(section)
    named = [candidate for candidate in found if candidate.name == (info.get("candidate") or "")]
    if len(found) > 1 and not named:
        raise DataError(
            f"the tuned weights are those of candidate {info.get('candidate')}, which tuning does not make."
        )
    return (named or found)[0].tuning


def check_foldable(task: TunedTask) -> None:
    """Raise UsageError where the task's method puts modules into the upstream that no plain model has."""
    method = task.method
    if method in adapters.METHODS and not adapters.can_fold(method):
        raise UsageError(
            f"{task.path}: {method} puts modules of its own into the upstream, which no plain model has: evaluate it "
            "with s3prl-ext run -m evaluate -e, or use the delta with s3prl_ext.deltas.TaskSwitch."
        )


def insert_added(model: nn.Module, delta: Delta, where: str) -> None:
    """Insert the adapter of a delta with its trained weights; where they do not fit, the model stays as it was.

    Raises:
        DataError: the delta does not say which adapter, or the weights do not fit it.
    """
    tuning = tuning_of(delta.info) or {}
    method = tuning.get("method")
    if method not in adapters.METHODS:
        raise DataError(f"{where} holds added weights, but its tuning method is {method}: it was edited or is damaged.")
    options = {key: tuning[key] for key in adapters.options(method) if key in tuning}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    adapters.insert(model, method, adapters.parse_options(method, options, where))
    try:
        adapters.load_adapter_state(model, delta.added)
    except DataError:
        adapters.remove(model, method)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
        raise


@torch.no_grad()
def load_whole(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Load all weights of a tuned upstream.

    Raises:
        DataError: they do not fit.
    """
    if set(state) == {PARAMETER_NAME}:  # all that trained
        state = model.state_dict() | dict(state)
    wrong = [
        name for name, tensor in model.state_dict().items() if getattr(state.get(name), "shape", ()) != tensor.shape
    ]
    if wrong or len(state) != len(model.state_dict()):
        named = ", ".join(wrong[:3]) or "more tensors than the upstream has"
        raise DataError(f"{where} does not fit this upstream ({named}): give the -u, -k and -g it was trained with.")
    model.load_state_dict(state)


def _info(states: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return for a checkpoint what a delta's info holds."""
    args, config = states.get("Args"), states.get("Config")
    if args is None or config is None or not getattr(args, "upstream", None):
        raise DataError(f"{path} does not say which upstream and task it belongs to: it lacks Args or Config.")
    keys = ("upstream", "upstream_ckpt", "upstream_model_config", "downstream", "downstream_variant", "seed",
            "upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize")  # fmt: skip
    about = {key: getattr(args, key, None) for key in keys}
    about |= {"tuning": config.get("tuning"), "config": config, "step": states.get("Step")}
    kept = ("candidate", "data", checkpoint.LAST_HIDDEN_STATE_KEY)
    about |= {key: states.get(checkpoint.EXTENSION_KEY, {}).get(key) for key in kept}
    return about | {"tuning": tuning_of(about), "checkpoint": path.name, "metrics": {}}


def _task(states: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    return {part: states[part] for part in ("Featurizer", "Downstream") if part in states}
