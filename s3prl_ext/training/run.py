"""One run of an experiment: what trains, with which optimizer, from which checkpoint, in which folder."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from s3prl.schedulers import get_scheduler
from s3prl.utility.helper import get_model_state
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.optim import Optimizer

from s3prl_ext.child_tuning import delta, masks
from s3prl_ext.child_tuning.changing_network import ChangingChildNetwork, chosen_of
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.masks import Mask
from s3prl_ext.configs import Record, Section, Variables
from s3prl_ext.errors import DataError
from s3prl_ext.merging.learnable_lambda import LearnableLambda
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import task_of
from s3prl_ext.training import best_scores, checkpoint, distributed, last_hidden_state, upstream_settings
from s3prl_ext.training.batching.corpus_hash import SPLITS_RULE, CorpusHash
from s3prl_ext.training.batching.feature_cache import FeatureCache
from s3prl_ext.training.checkpoint import Checkpoint, Extension
from s3prl_ext.training.forward import TaskModels, unwrapped
from s3prl_ext.training.learnable_lambda import LambdaCurve, learnt_lambda, only_lambda_trains, stored_state
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.optimizers import build_optimizer, set_length
from s3prl_ext.training.parameter_groups import RatesConfig, lambda_rates, parameter_groups, upstream_rates
from s3prl_ext.training.results.provenance import ResourceUsage
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.selection.child_selection import Share, announce, choose_masks
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.pass_facts import facts_of
from s3prl_ext.training.selection.reselection import Reselection
from s3prl_ext.training.selection.shared_scores import SharedScores
from s3prl_ext.training.statistics import hold_statistics
from s3prl_ext.training.task_file import RunnerConfig
from s3prl_ext.training.train_state import TrainState
from s3prl_ext.training.trainer import Trainer
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.training.tuning_config import TuningConfig

if TYPE_CHECKING:  # importing it makes the plug-in import the Runner, which imports this file
    from s3prl.downstream.runner import ModelEntry


@dataclass
class Experiment:
    """What all runs of an experiment share.

    Attributes:
        args: the arguments of ``run_downstream.py``.
        config: the task file after overrides, variables expanded.
        variables: puts the variables back for what is stored.
        runner_config: section ``runner``.
        total_steps: T, optimizer steps of a whole run.
        entries: upstream, featurizer, downstream, as built by the Runner, which may put another entry in a place.
        tuned: what runs change in the upstream.
        spent: wall time and memory over all sessions.
        densities: of all child networks that share one choice of masks.
        masks: folder of that choice; None: that of the experiment.
        masks_in_use: whether candidates of a race have trained on it.
        data: hash of the corpus and of its split lists.
        cache: features of the upstream, or None.
        changed_settings: what it was resumed with, see :func:`s3prl_ext.training.resume.changed_settings`.
        begins_with: name and hash of the checkpoint whose weights it began with, or None.
    """

    args: Namespace
    config: Record
    variables: Variables
    runner_config: RunnerConfig
    total_steps: int
    entries: list[ModelEntry]
    tuned: TunedUpstream
    spent: ResourceUsage
    densities: tuple[float, ...] = ()
    masks: RunFolder | None = None
    masks_in_use: bool = False
    data: CorpusHash | None = None
    cache: FeatureCache | None = None
    changed_settings: Sequence[Section] = ()
    begins_with: str | None = None

    @property
    def shared_facts(self) -> Extension:
        """What every checkpoint says of the circumstances: hash of the untouched upstream, features, merge, corpus."""
        return Extension(
            upstream_sha256=self.tuned.base_sha256,
            upstream_settings=self.tuned.settings or None,
            data=self.data,
            splits_rule=SPLITS_RULE,
            merge=getattr(self.tuned.model, "merge_record", None),
            last_hidden_state=last_hidden_state.PRESENT,
            changed_settings=self.changed_settings,
            begins_with=self.begins_with,
        )

    @property
    def models(self) -> TaskModels:
        """Upstream, featurizer and downstream as they are called."""
        return self.task_models(self.entries, self.config, self.args, self.cache)

    @staticmethod
    def task_models(
        entries: Sequence[ModelEntry], config: Section, args: Namespace, cache: FeatureCache | None = None
    ) -> TaskModels:
        """Return the models of `entries` with the SpecAugment of a task file."""
        specaug = None
        if config.get("specaug"):
            from s3prl.downstream.specaug import SpecAug

            specaug = SpecAug(**config["specaug"])
        upstream, featurizer, downstream = (entry.model for entry in entries)
        task = task_of(args.downstream, config.get("downstream_expert"))
        return TaskModels(upstream, featurizer, downstream, args.device, task, specaug, cache=cache)


class Run:
    """Train the models of an experiment under one section ``tuning``.

    Args:
        experiment: models and settings.
        tuning: section ``tuning``, or None.
        folder: where checkpoints and pictures go.
        resumed: the checkpoint to resume, loaded into the models already; empty for none.
        writer: TensorBoard writer on rank 0, None on the others.
        candidate: name of the candidate in a race, or None.
        label: what the progress bar is called; by default ``train`` and the candidate.

    Attributes:
        child: the child network that trains, or None.
        state: optimizer, scheduler, step counter.
        trainer: the training loop.
    """

    def __init__(
        self,
        experiment: Experiment,
        tuning: TuningConfig | None,
        folder: RunFolder,
        resumed: Checkpoint,
        writer: SummaryWriter | None,
        candidate: str | None = None,
        label: str | None = None,
    ) -> None:
        self.experiment = experiment
        self.tuning = tuning
        self.folder = folder
        self.resumed = resumed
        self.writer = writer
        self.candidate = candidate
        self.upstream = experiment.entries[0]
        best_scores.load(self._head, resumed.extension.best_scores)
        self.child = self._child_network()
        self.reselection: Reselection | None = None
        self.state = self._train_state()
        self.curve = self._lambda_curve()
        self.trainer = Trainer(
            self.state, experiment.total_steps, folder, experiment.args.seed, self._states, writer, resumed,
            on_best=self._write_delta, on_the_way=self._on_the_way, resume_from=experiment.args.expdir,
            label=label or f"train {candidate or ''}".strip(),
        )  # fmt: skip

    @property
    def _head(self) -> nn.Module:
        return unwrapped(self.experiment.entries[2].model)

    @property
    def _lambda(self) -> LearnableLambda | None:
        """The learnable lambda of what trains: upstream or head."""
        return learnt_lambda(self.experiment.tuned.model if self.upstream.trainable else None, self._head)

    def _child_network(self) -> ChildNetwork | None:
        """Choose the child network, or take it from the checkpoint: a mask is never computed a second time."""
        tuning, experiment = self.tuning, self.experiment
        if tuning is None or not METHODS[tuning.method].has_mask:
            return None
        parameters = eligible_parameters(experiment.tuned.model, tuning.eligible)
        mask, members = experiment.tuned.indices, self.resumed.extension.members
        if members is not None:
            mask, members = chosen_of(mask, members)
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        if tuning.trains_all:
            mask = masks.full(sizes)
            announce(mask, sizes, "all of them")
        elif mask and (members is not None or tuning.reselect_every is None):
            announce(mask, sizes, f"those of {self.resumed.path}")
        else:  # also where an earlier version's delta does not say which of all that have trained train now
            mask = self._chosen(parameters, tuning)
        child: ChildNetwork
        dense_norm = tuning.clip_scope == "all"
        if tuning.reselect_every is not None:
            child = ChangingChildNetwork(parameters, mask, members, tuning.sparse_gradients, dense_norm)
            experiment.tuned.extend(child.mask)
            return child
        child = ChildNetwork(
            parameters,
            mask,
            sparse_gradients=tuning.sparse_gradients,
            dense_norm=dense_norm,
            redraw=tuning.density if tuning.redraw else None,
            seed=experiment.args.seed,
            held=tuning.held,
        )
        if not tuning.trains_all:
            experiment.tuned.track(child.mask)
        return child

    def _chosen(self, parameters: Mapping[str, nn.Parameter], tuning: TuningConfig) -> Mask:
        """Choose the weights of the child network, with those of other densities that share the choice.

        Raises:
            DataError: the run goes on from a checkpoint without them; tuned weights would choose others.
        """
        if self.resumed.step:
            raise DataError(
                f"{self.resumed.path} does not hold which weights its child network trains, as 0.1.0 left out where "
                "these are whole tensors: start a new experiment."
            )
        experiment, models = self.experiment, self.experiment.models.unwrapped()
        tuning = replace(tuning, density=tuning.first_density)
        config = experiment.variables.restored(experiment.config)
        facts = facts_of(models, parameters, tuning, experiment.args, config, experiment.data)
        shared = tuning.density in experiment.densities
        split, seed = experiment.runner_config.train_dataloader, experiment.args.seed
        folder = experiment.masks or RunFolder(experiment.args.expdir)
        choice = Choice(models, parameters, tuning, split, seed, folder, facts)
        densities = experiment.densities if shared else (tuning.density,)
        share = self._share(parameters, facts)
        return choose_masks(choice, densities, share, experiment.masks_in_use).at(tuning.density)

    def _share(self, parameters: Mapping[str, nn.Parameter], facts: Section) -> Share | None:
        """Return what takes scores from the folder of ``--fisher_scores``; None where the corpus is not known."""
        folder = getattr(self.experiment.args, "fisher_scores", None)
        if not folder or self.experiment.data is None:
            return None
        return lambda compute: SharedScores(Path(folder), facts).get(parameters, compute)

    def _train_state(self) -> TrainState:
        experiment, modules = self.experiment, []
        for entry in experiment.entries:
            if not entry.trainable:
                entry.model.eval()
                continue
            entry.model.train(not only_lambda_trains(unwrapped(entry.model))).to(experiment.args.device)
            if entry.name == "Upstream" and self.tuning is not None:
                full = self.tuning.method == "full"
                hold_statistics(unwrapped(entry.model), self.tuning.rates.train_layers if full else None)
            modules.append(self.child if self.child is not None and entry.name == "Upstream" else entry.model)
        optimizer = self._optimizer(modules)
        if self.child is not None:
            self.child.store_sorted(optimizer)
        scheduler = None
        if experiment.config.get("scheduler"):
            scheduler = get_scheduler(optimizer, experiment.total_steps, experiment.config["scheduler"])
            if self.resumed.scheduler:
                scheduler.load_state_dict(self.resumed.scheduler)
        if self.resumed.optimizer:  # after the scheduler, which sets the rates of step 0 when it is made
            checkpoint.load_into(optimizer, self.resumed.optimizer, "optimizer", self.resumed.path)
            set_length(optimizer, experiment.total_steps)
        trial = TrainState(
            experiment.models, self.upstream.trainable, [p for module in modules for p in module.parameters()],
            optimizer, scheduler, experiment.runner_config, self.child,
        )  # fmt: skip
        trial.resume(self.resumed)
        if self.child is not None and self.tuning is not None and self.tuning.reselect_every is not None:
            self.reselection = self._reselection(trial, self.tuning)
            trial.before_step.append(self.reselection)
        return trial

    def _reselection(self, state: TrainState, tuning: TuningConfig) -> Reselection:
        experiment = self.experiment
        parameters = eligible_parameters(experiment.tuned.model, tuning.eligible)
        split, seed = experiment.runner_config.train_dataloader, experiment.args.seed
        step, total, density = self.resumed.step, experiment.total_steps, self.resumed.extension.density
        if not step or density is None:  # the latter in checkpoints of earlier versions
            density = tuning.density_at(max(0, tuning.last_choice(step)), total)
        return Reselection(state, experiment.tuned, parameters, tuning, split, seed, total, density)

    def _on_the_way(self) -> float | None:
        """Return the share of the eligible weights that trains, where ``gradual`` has not reached ``density`` yet."""
        chosen = self.reselection
        if chosen is None or self.child is None or chosen.density == chosen.tuning.density:
            return None
        return len(self.child) / sum(parameter.numel() for parameter in chosen.parameters.values())

    def _optimizer(self, modules: list[nn.Module | ChildNetwork]) -> Optimizer:
        experiment = self.experiment
        section = experiment.config["optimizer"]
        optimizer = build_optimizer(modules, experiment.total_steps, section, fused=self.child is not None)
        config = self.tuning.rates if self.tuning is not None else RatesConfig()
        rates = lambda_rates(self._head, config)
        if self.upstream.trainable:
            rates |= upstream_rates(experiment.tuned.model, config, self.child)
        if rates:
            optimizer.param_groups[:] = parameter_groups(optimizer.param_groups, rates)
        shared = self._lambda
        if shared is not None:
            optimizer.register_step_post_hook(lambda *_: shared.project())
        return optimizer

    def _lambda_curve(self) -> LambdaCurve | None:
        """Record the course of a learnable lambda that trains."""
        shared = self._lambda
        if self.writer is None or shared is None:
            return None
        config, total = self.experiment.runner_config, self.experiment.total_steps
        resumed = self.resumed.extension.lambda_curve
        curve = LambdaCurve(shared, config, total, self.folder, self.writer, self.state.step, resumed)
        self.state.after_step.append(curve.after_step)
        return curve

    # -- what is stored --------------------------------------------------------------------------------------------

    def _states(self, epoch: int, extension: Extension) -> Checkpoint:
        """Return the checkpoint of the present step: s3prl's keys, the upstream's changes, and what only we store."""
        experiment, weights, changes = self.experiment, self._task(), None
        if self.upstream.trainable and experiment.tuned.is_small:
            if self.state.step >= experiment.total_steps:
                experiment.tuned.check_untouched()
            changes = experiment.tuned.state()
        elif self.upstream.trainable:
            weights["Upstream"] = stored_state(experiment.tuned.model, get_model_state(self.upstream.model))
        shared = experiment.shared_facts
        extension = replace(
            shared, positions=extension.positions, evaluation_due=extension.evaluation_due, history=extension.history,
            usage=experiment.spent.state(), candidate=self.candidate,
            lambda_curve=self.curve.state() if self.curve is not None else None, members=self._members(),
            density=self.reselection.density if self.tuning and self.tuning.gradual and self.reselection else None,
            best_scores=best_scores.stored(self._head),
        )  # fmt: skip
        return replace(
            self.state.checkpoint(extension), epoch=epoch, args=experiment.args,
            config=experiment.variables.restored(experiment.config), weights=weights, changes=changes,
            processes=distributed.world_size() if distributed.active() else 0,
        )  # fmt: skip

    def _members(self) -> dict[str, Tensor] | None:
        child = self.child
        return child.members_in(self.experiment.tuned.indices) if isinstance(child, ChangingChildNetwork) else None

    def _task(self) -> dict[str, Record]:
        """Return the state dicts of featurizer and downstream, as far as they train."""
        entries = self.experiment.entries[1:]
        return {entry.name: get_model_state(entry.model) for entry in entries if entry.trainable}

    def _write_delta(self, name: str, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Write the task as a small file next to a best checkpoint, unless the whole upstream was tuned."""
        experiment = self.experiment
        if self.upstream.trainable and not experiment.tuned.is_small:
            return
        stored = experiment.variables.restored(experiment.config)
        info = RunSpec.of(experiment.args).stored() | {
            "tuning": stored.get("tuning"),
            "candidate": self.candidate,
            "density": self.tuning.density if self.child is not None and self.tuning is not None else None,
            "config": stored,
            "step": self.state.step,
            "checkpoint": name,
            "metrics": {split: dict(row) for split, row in metrics.items()},
            "data": experiment.data,
            "splits_rule": SPLITS_RULE,
            last_hidden_state.KEY: last_hidden_state.PRESENT,
            upstream_settings.KEY: experiment.tuned.settings or None,
            "merge": getattr(experiment.tuned.model, "merge_record", None),
        }
        if experiment.changed_settings:
            info["changed_settings"] = list(experiment.changed_settings)
        if experiment.begins_with:
            info["begins_with"] = experiment.begins_with
        if distributed.active():
            info["processes"] = distributed.world_size()
        members = {name: every > 0 for name, every in (self._members() or {}).items()}
        delta.save(replace(experiment.tuned.delta(self._task(), info), members=members), self.folder.delta)
