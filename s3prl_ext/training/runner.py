"""The Runner that s3prl's ``run_downstream.py`` gets: builds the models, trains, evaluates, runs inference."""

from __future__ import annotations

import importlib
import logging
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from s3prl import hub
from s3prl.downstream.runner import ModelEntry
from s3prl.downstream.runner import Runner as StockRunner
from s3prl.optimizers import get_optimizer
from s3prl.schedulers import get_scheduler
from s3prl.utility.helper import get_model_state
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.configs import Variables, with_numbers
from s3prl_ext.errors import DataError, UsageError, one_sentence_errors, unknown_name
from s3prl_ext.training import checkpoint, checks, results
from s3prl_ext.training.child_selection import choose_mask
from s3prl_ext.training.config import RunnerConfig, TuningConfig, check_top_level
from s3prl_ext.training.evaluation import check_splits, evaluate
from s3prl_ext.training.forward import TaskModels, unwrapped
from s3prl_ext.training.loop import TrainingLoop
from s3prl_ext.training.methods import METHODS, prepare_upstream
from s3prl_ext.training.trial import Trial
from s3prl_ext.upstreams.merged_attention.record import check_merge_record

logger = logging.getLogger(__name__)


class Runner(StockRunner):
    """s3prl's Runner with our training loop; same constructor, modes, files and checkpoint keys.

    Args:
        args: the parsed arguments of ``run_downstream.py``.
        config: the task file after overrides; ``${VARIABLE}`` paths are expanded here and stored unexpanded.
    """

    def __init__(self, args: Namespace, config: dict[str, Any]) -> None:
        with one_sentence_errors():
            self.args = args
            self.child: ChildNetwork | None = None
            try:
                self._check(config)
                self.upstream = self._get_upstream()
                self.featurizer = self._get_featurizer()
                self.downstream = self._get_downstream()
            except Exception:
                if _is_leader():
                    checks.remove_empty_folder(args.expdir)
                raise
            self.all_entries = [self.upstream, self.featurizer, self.downstream]

    def _check(self, config: dict[str, Any]) -> None:
        """Read the task file and the checkpoint, and refuse what cannot work, before anything is built."""
        self._variables = Variables(config)
        self.config = with_numbers(self._variables.expanded, ("optimizer", "scheduler"))
        check_top_level(self.config)
        self.runner_config = RunnerConfig.from_config(self.config)
        self.tuning = TuningConfig.from_config(self.config, METHODS)
        checks.check_optimization(self.config)
        checks.check_folder(self.args)
        self.init_ckpt = checkpoint.load(self.args.init_ckpt) if self.args.init_ckpt else {}
        checks.check_origin(self.init_ckpt, self.args)
        checks.check_tuning(self.init_ckpt, self.tuning, self.args.init_ckpt)
        self._resolve_features()

    def _resolve_features(self) -> None:
        """Let ``tuning.method`` decide what the task reads and whether the upstream trains, unless the user did."""
        if self.tuning is None:
            return
        method = METHODS[self.tuning.method]
        resumed = getattr(self.args, "tuning_method", None) == self.tuning.method
        if self.args.upstream_trainable and not method.trains_upstream:
            raise UsageError(
                f"-f trains the upstream, but tuning.method '{self.tuning.method}' freezes it; drop one of the two."
            )
        self.args.upstream_trainable = method.trains_upstream
        if not resumed and not checks.features_given(self.args) and not method.weighted_sum:
            self.args.upstream_feature_selection = "last_hidden_state"
        self.args.tuning_method = self.tuning.method

    # -- models ----------------------------------------------------------------------------------------------------

    def _get_upstream(self) -> ModelEntry:
        if not hasattr(hub, self.args.upstream or ""):
            raise unknown_name("upstream", self.args.upstream, hub.options())
        try:
            entry = super()._get_upstream()
        except (AssertionError, AttributeError, TypeError, OSError) as error:
            problem = checks.upstream_problem(self.args, error)
            if problem is None:
                raise
            raise problem from error
        if checkpoint.EXTENSION_KEY in self.init_ckpt:
            stored = self.init_ckpt[checkpoint.EXTENSION_KEY].get("merge")
            check_merge_record(stored, getattr(unwrapped(entry.model), "merge_record", None))
        return entry

    @property
    def merge_record(self) -> dict[str, Any] | None:
        """The resolved merge and the hashes of its models, or None where the upstream is not merged."""
        return getattr(unwrapped(self.upstream.model), "merge_record", None)

    def _get_featurizer(self) -> ModelEntry:
        selection = self.args.upstream_feature_selection
        if selection == "last_hidden_state" and self.args.upstream_layer_selection is None:
            probe = torch.zeros(16000, device=self.args.device)
            with torch.no_grad():
                self.upstream.model.eval()
                offered = self.upstream.model([probe])
            if selection not in offered:  # transformers upstreams return the list of hidden states only
                self.args.upstream_feature_selection, self.args.upstream_layer_selection = "hidden_states", -1
        return super()._get_featurizer()

    def _get_downstream(self) -> ModelEntry:
        name = f"s3prl.downstream.{self.args.downstream}.expert"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise unknown_name("task (-d)", self.args.downstream, checks.known_tasks()) from error
            raise
        return super()._get_downstream()

    def _init_model(
        self, model: nn.Module, name: str, trainable: bool, interfaces: list[str] | None = None
    ) -> ModelEntry:
        for interface in interfaces or []:
            if not hasattr(model, interface):
                raise DataError(f"the {name.lower()} '{type(model).__name__}' lacks the interface {interface}.")
        self._load_weight(model, name)
        if name == "Upstream" and self.tuning is not None:
            prepare_upstream(model, self.tuning)
        # The ranks of a child network share the gradient of its k entries alone (Trial), not the dense one.
        dense = name != "Upstream" or self.tuning is None or not METHODS[self.tuning.method].has_mask
        if dist.is_initialized() and trainable and dense and any(p.requires_grad for p in model.parameters()):
            # No device_ids: inputs are on their device already, and moving them would copy the shared `records`.
            model = DistributedDataParallel(model, find_unused_parameters=True)
            for interface in interfaces or []:
                setattr(model, interface, getattr(model.module, interface))
        return ModelEntry(model, name, trainable, interfaces)

    def _load_weight(self, model: Any, name: str) -> None:
        state = self.init_ckpt.get(name)
        if not state:
            return
        logger.info("loading %s weights from %s", name, self.args.init_ckpt)
        try:
            model.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{self.args.init_ckpt} does not fit this {name.lower()} (another upstream, task or size?): {reason}"
            ) from error

    @property
    def models(self) -> TaskModels:
        """Upstream, featurizer and downstream as :class:`TaskModels`."""
        specaug = None
        if self.config.get("specaug"):
            from s3prl.downstream.specaug import SpecAug

            specaug = SpecAug(**self.config["specaug"])
        return TaskModels(self.upstream.model, self.featurizer.model, self.downstream.model, self.args.device, specaug)

    # -- training --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to ``runner.total_steps``, evaluating and saving on the way and at the end."""
        with one_sentence_errors():
            if _is_leader():
                checks.clear_folder(self.args)
            writer = SummaryWriter(self.args.expdir) if _is_leader() else None
            started = time.time()
            try:
                check_splits(self.models.unwrapped(), self.runner_config.eval_dataloaders)
                self.total_steps = self.runner_config.total_steps or self._steps_of_epochs()
                self.child = self._child_network()
                trial = self._trial(self.child)
                first_step = trial.step
                loop = TrainingLoop(
                    trial,
                    self.total_steps,
                    self.args.expdir,
                    self.args.seed,
                    partial(self._states, trial),
                    writer,
                    self.init_ckpt,
                )
                loop.run()
                if _is_leader() and trial.step > first_step:  # else the run was complete already
                    self._write_result(loop.last_metrics, trial.step, time.time() - started)
            finally:
                if writer is not None:
                    writer.close()
                if dist.is_initialized():
                    dist.destroy_process_group()

    def _child_network(self) -> ChildNetwork | None:
        """Choose the child network, or take it from the checkpoint: a mask is never computed a second time."""
        if self.tuning is None or not METHODS[self.tuning.method].has_mask:
            return None
        module = unwrapped(self.upstream.model)
        parameters = eligible_parameters(module, self.tuning.eligible)
        mask = self.init_ckpt.get(checkpoint.EXTENSION_KEY, {}).get("mask")
        if mask is None:
            split = self.runner_config.train_dataloader
            mask = choose_mask(self.models.unwrapped(), parameters, self.tuning, split, self.args.seed)
        return ChildNetwork(parameters, {name: i.long() for name, i in mask.items()}).to(self.args.device)

    def _trial(self, child: ChildNetwork | None) -> Trial:
        modules = []
        for entry in self.all_entries:
            if entry.trainable:
                entry.model.train().to(self.args.device)
                modules.append(child if child is not None and entry.name == "Upstream" else entry.model)
            else:
                entry.model.eval()
        optimizer = self._get_optimizer(modules)
        scheduler = self._get_scheduler(optimizer) if self.config.get("scheduler") else None
        parameters = [p for module in modules for p in module.parameters()]
        trial = Trial(self.models, self.upstream.trainable, parameters, optimizer, scheduler, self.runner_config, child)
        trial.step = self.init_ckpt.get("Step") or 0
        trial.load_extension(self.init_ckpt.get(checkpoint.EXTENSION_KEY, {}))
        return trial

    def _get_optimizer(self, model_params: list[nn.Module]) -> Any:
        optimizer = get_optimizer(model_params, self.total_steps, self.config["optimizer"])
        self._load_weight(optimizer, "Optimizer")
        return optimizer

    def _get_scheduler(self, optimizer: Any) -> Any:
        scheduler = get_scheduler(optimizer, self.total_steps, self.config["scheduler"])
        self._load_weight(scheduler, "Scheduler")
        return scheduler

    def _steps_of_epochs(self) -> int:
        loader = self.downstream.model.get_dataloader(self.runner_config.train_dataloader)
        batches = len(loader) * (self.runner_config.epochs or 0)
        return max(1, int(batches // self.runner_config.gradient_accumulate_steps))

    def _states(self, trial: Trial, epoch: int, extension: dict[str, Any]) -> dict[str, Any]:
        """Return a checkpoint's content: s3prl's keys, and ours under one key of its own."""
        states = trial.state_dict() | {
            "Epoch": epoch,
            "Args": self.args,
            "Config": self._variables.restored(self.config),
        }
        for entry in self.all_entries:
            if entry.trainable:
                states[entry.name] = get_model_state(entry.model)
        if dist.is_initialized():
            states["WorldSize"] = dist.get_world_size()
        extension = extension | trial.extension()
        if trial.child is not None:
            extension = extension | {"mask": {name: i.to(torch.int32) for name, i in trial.child.mask.items()}}
        if self.merge_record is not None:
            extension = extension | {"merge": self.merge_record}
        states[checkpoint.EXTENSION_KEY] = extension
        return states

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
        """Score one split; without arguments the split of ``-t``, whose metrics are written to ``result.json``."""
        with one_sentence_errors():
            from_command_line = split is None
            split = split or self._evaluate_split()
            started = time.time()
            metrics, names = evaluate(
                self.models, split, self.args.seed, self.runner_config.evaluate_ratio, logger, global_step
            )
            if from_command_line:
                step = self.init_ckpt.get("Step") or 0
                self._write_result({split: metrics}, step, time.time() - started)
            return names

    def _write_result(self, metrics: dict[str, dict[str, float]], step: int, seconds: float) -> None:
        counts = {entry.name: self._trainable(entry) for entry in self.all_entries}
        results.write(self.args, self.config, metrics, step, seconds, counts, self.merge_record)

    def _trainable(self, entry: ModelEntry) -> int:
        mask = self.child.mask if self.child else self.init_ckpt.get(checkpoint.EXTENSION_KEY, {}).get("mask")
        if entry.name == "Upstream" and mask is not None:
            return masks.count(mask)
        return sum(p.numel() for p in entry.model.parameters() if p.requires_grad) if entry.trainable else 0

    def _evaluate_split(self) -> str:
        """Return the split of ``-t``; its default ``test`` means ``test-clean`` where only that exists (ASR)."""
        split = self.args.evaluate_split
        datarc = self.config["downstream_expert"].get("datarc", {})
        if split == "test" and self.args.downstream == "asr" and "test" not in datarc and "test-clean" in datarc:
            return "test-clean"
        return split

    def inference(self) -> None:
        """Run the task's inference on the audio file given by ``-t``."""
        with one_sentence_errors():
            if not Path(self.args.evaluate_split).is_file():
                raise UsageError(f"no such audio file: {self.args.evaluate_split} (-t names the file to transcribe).")
            if not hasattr(self.downstream.model, "inference"):
                raise UsageError(f"the task '{self.args.downstream}' has no inference in s3prl.")
            super().inference()


def _is_leader() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
