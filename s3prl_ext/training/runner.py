"""The Runner that s3prl's ``run_downstream.py`` gets: builds the models, trains, evaluates, runs inference."""

from __future__ import annotations

import importlib
import logging
import time
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from s3prl import hub
from s3prl.downstream.runner import ModelEntry
from s3prl.downstream.runner import Runner as StockRunner
from tensorboardX import SummaryWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ext import locks
from s3prl_ext.child_tuning import masks
from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.configs import Variables
from s3prl_ext.errors import DataError, ExtError, UsageError, is_out_of_memory, one_sentence_errors, unknown_name
from s3prl_ext.reading import check_model
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks import task_of
from s3prl_ext.training import checkpoint, distributed, last_hidden_state, results, resume
from s3prl_ext.training.candidate_runs import CandidateRuns, draw, read_record
from s3prl_ext.training.candidates import check_alike
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.corpus_hash import corpus_hash
from s3prl_ext.training.evaluation import check_splits, evaluate, open_split
from s3prl_ext.training.forward import TaskModels, unwrapped
from s3prl_ext.training.known_settings import known_tasks
from s3prl_ext.training.learnable_lambda import loadable_state, prepare_head_lambda, prepare_lambda
from s3prl_ext.training.methods import METHODS, prepare_upstream, resolve_tuning
from s3prl_ext.training.parameter_groups import train_only
from s3prl_ext.training.provenance import ResourceUsage
from s3prl_ext.training.run import Experiment, Run
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.task_file import TaskFile
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.training.upstream_checks import check_features, features_given, first_features, upstream_problem
from s3prl_ext.upstreams.merged_attention.config import with_remedy
from s3prl_ext.upstreams.merged_attention.decoder import check_task
from s3prl_ext.upstreams.merged_attention.record import check_merge_record

logger = logging.getLogger(__name__)


class Runner(StockRunner):
    """s3prl's Runner with our training loop; same constructor, modes, files and checkpoint keys.

    Args:
        args: the parsed arguments of ``run_downstream.py``.
        config: the task file after overrides; ``${VARIABLE}`` paths are expanded here and stored unexpanded.
    """

    def __init__(self, args: Namespace, config: dict[str, Any]) -> None:
        with (
            one_sentence_errors(),
            RunFolder(args.expdir).removed_if_nothing_trained(active=distributed.is_leader()),
            distributed.lost_ranks_named(),
        ):
            self.args = args
            self.child: ChildNetwork | None = None
            self._check(config)
            self.upstream = self._get_upstream()
            with first_features(self.args):
                self.featurizer = self._get_featurizer()
            self.downstream = self._get_downstream()
            self.all_entries = [self.upstream, self.featurizer, self.downstream]

    def _check(self, config: dict[str, Any]) -> None:
        """Read the task file and the checkpoint, and refuse what cannot work, before anything is built."""
        self._variables = Variables(config)
        only_scored = self.args.mode != "train" and bool(self.args.past_exp)
        self.task_file = TaskFile.read(self._variables.expanded, stored=only_scored)
        if distributed.is_leader() and not only_scored:
            for remark in self.task_file.remarks:
                logger.warning("%s", remark)
        self.config = self.task_file.config
        self.runner_config = self.task_file.runner
        self.early_stop = self.task_file.early_stop
        training = self.args.mode == "train"
        if training and not self.args.past_exp and not getattr(self.args, "overwrite", False):
            RunFolder(self.args.expdir).refuse_overwriting()
        self.resumed = Checkpoint.read(self.args.init_ckpt) if self.args.init_ckpt else Checkpoint()
        resume.check_origin(self.resumed, self.args)
        self.data = (
            distributed.from_leader(lambda: corpus_hash(self.args.downstream, self.config)) if training else None
        )
        resume.check_data(self.resumed, self.data, self.args)
        resume.check_optimizer(self.resumed, self.config, self.args)
        self._resolve_candidates()
        self._resolve_features()

    def _resolve_candidates(self) -> None:
        """Choose what runs: the only candidate, a race, or the winner of one that the checkpoint names."""
        candidates, tunings = self.task_file.candidates, self.task_file.tunings
        name = self.resumed.extension.candidate
        self.candidate = next((c for c in candidates if c.name == name), None) if name else None
        if name and self.candidate is None:
            raise UsageError(
                f"{self.args.init_ckpt} belongs to the candidate {name}, which the section tuning does not make now; go "
                "on with the same section, or start a new experiment."
            )
        self.racing = len(candidates) > 1 and self.candidate is None
        chosen = candidates.index(self.candidate) if self.candidate else 0
        self.tuning = tunings[chosen] if tunings else None
        section = self.candidate.tuning if self.candidate else self.config.get("tuning")
        resume.check_tuning(self.resumed, section, tunings if self.racing else [self.tuning], self.args)
        if self.racing:
            check_alike(candidates, tunings, features_given(self.args))

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
        if not resumed and not features_given(self.args) and not method.weighted_sum:
            self.args.upstream_feature_selection = "last_hidden_state"
        self.args.tuning_method = self.tuning.method

    # -- models ----------------------------------------------------------------------------------------------------

    def _get_upstream(self) -> ModelEntry:
        if getattr(self.args, "from_hf_hub", False):  # s3prl imports code from such a repository
            raise UsageError(
                f"{self.args.init_ckpt} asks for an upstream whose code comes from the hub, which is not run: load the model "
                "with -u hf_hubert_custom -k OWNER/NAME or the like in a new experiment."
            )
        if not hasattr(hub, self.args.upstream or ""):
            raise unknown_name("upstream", self.args.upstream, hub.options())
        check_model(self.args.upstream_ckpt or "")
        try:
            entry = super()._get_upstream()
        except Exception as error:  # whatever s3prl's and transformers' constructors raise
            lost_rank = isinstance(error, RuntimeError) and dist.is_initialized()
            if isinstance(error, ExtError) and self.resumed and not lost_rank:
                raise with_remedy(error, self.args.upstream, self.args.init_ckpt) from error
            problem = None if lost_rank or isinstance(error, ExtError) else upstream_problem(self.args, error)
            if problem is None:
                raise
            raise problem from error
        return entry

    @property
    def merge_record(self) -> dict[str, Any] | None:
        """The resolved merge and the hashes of its models, or None where the upstream is not merged."""
        return getattr(unwrapped(self.upstream.model), "merge_record", None)

    def _get_featurizer(self) -> ModelEntry:
        selection, layer = self.args.upstream_feature_selection, self.args.upstream_layer_selection
        if selection != "hidden_states" or layer is not None:
            probe = torch.zeros(16000, device=self.args.device)
            with torch.no_grad():
                self.upstream.model.eval()
                offered = self.upstream.model([probe])
            if selection == "last_hidden_state" and layer is None and selection not in offered:
                # transformers upstreams return the list of hidden states only
                self.args.upstream_feature_selection, self.args.upstream_layer_selection = "hidden_states", -1
            elif not self.args.past_exp:  # s3prl has a default for what an old checkpoint may name wrongly
                check_features(offered, self.args)
        resume.check_head_features(self.resumed, self.args)
        return super()._get_featurizer()

    def _get_downstream(self) -> ModelEntry:
        name = f"s3prl.downstream.{self.args.downstream}.expert"
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise unknown_name("task (-d)", self.args.downstream, known_tasks()) from error
            raise
        check_task(module.DownstreamExpert, self.args.downstream, vars(self.args))
        try:
            return super()._get_downstream()
        except KeyError as error:
            raise DataError(
                f"the task {self.args.downstream} looks up {error} and does not find it: if that is a key of its section "
                "downstream_expert, add it as in the task's preset in downstream_configs; else check its corpus."
            ) from error
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if dist.is_initialized() or is_out_of_memory(error) or "CUDA" in str(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no message'}"
            raise DataError(
                f"the task {self.args.downstream} cannot be built ({reason}): compare section downstream_expert of the task "
                "file with the task's preset in downstream_configs, and check the corpus."
            ) from error

    def _init_model(
        self, model: nn.Module, name: str, trainable: bool, interfaces: list[str] | None = None
    ) -> ModelEntry:
        for interface in interfaces or []:
            if not hasattr(model, interface):
                raise DataError(f"the {name.lower()} '{type(model).__name__}' lacks the interface {interface}.")
        if name == "Upstream":
            self.tuned = TunedUpstream(model)
            trainable = self._prepare_upstream(model, trainable)
        if name == "Downstream":
            prepare_head_lambda(model, self.tuning)
        self._load_weight(model, name)
        return self._entry(model, name, trainable, interfaces, self.tuning)

    def _entry(
        self, model: nn.Module, name: str, trainable: bool, interfaces: list[str] | None, tuning: TuningConfig | None
    ) -> ModelEntry:
        """Return a model as s3prl's Runner keeps it, wrapped where several processes train it."""
        # The ranks of a child network share the gradient of its k entries alone (TrainState), not the dense one.
        dense = name != "Upstream" or tuning is None or not METHODS[tuning.method].has_mask
        if dist.is_initialized() and trainable and dense and any(p.requires_grad for p in model.parameters()):
            # No device_ids: inputs are on their device already, and moving them would copy the shared `records`.
            model = DistributedDataParallel(model, find_unused_parameters=True)
            for interface in interfaces or []:
                setattr(model, interface, getattr(model.module, interface))
        return ModelEntry(model, name, trainable, interfaces)

    def _prepare_upstream(self, model: nn.Module, trainable: bool) -> bool:
        """Check merge and features, freeze what does not train, and return whether anything of the upstream trains."""
        stored = self.resumed.extension
        if self.resumed.is_ours:
            check_merge_record(stored.merge, getattr(model, "merge_record", None))
        if self.resumed:
            spec = RunSpec.of(self.args)
            last_hidden_state.warn_where_unknown(stored.last_hidden_state, model, spec, self.resumed.path)
        if self.racing:
            for tuning in self.task_file.tunings:  # one that does not fit is refused before any has trained
                self._ready(model, tuning)
                self.tuned.revert()
        if self.tuning is not None:
            return self._ready(model, self.tuning)
        return prepare_lambda(model, None, trainable, training=self.args.mode == "train")

    def _ready(self, model: nn.Module, tuning: TuningConfig) -> bool:
        """Make an upstream ready for a section ``tuning``; return whether anything of it trains."""
        prepare_upstream(model, tuning)
        train_only(model, tuning.rates.train_layers)
        trains = METHODS[tuning.method].trains_upstream
        return prepare_lambda(model, tuning, trains, training=self.args.mode == "train")

    def _load_weight(self, model: nn.Module, name: str) -> None:
        where = str(self.resumed.path)
        if name == "Upstream" and not self.resumed.upstream:
            self.tuned.check_base(self.resumed.extension.upstream_sha256, where)
        if name == "Upstream" and self.resumed.changes is not None:
            self.tuned.load(self.resumed.changes, where)
        state = self.resumed.weights.get(name)
        if state:
            logger.info("loading %s weights from %s", name, where)
            state = loadable_state(model, state) if name == "Upstream" else state
            checkpoint.load_into(model, state, name.lower(), where)

    @property
    def models(self) -> TaskModels:
        """Upstream, featurizer and downstream as :class:`TaskModels`."""
        return Experiment.task_models(self.all_entries, self.config, self.args)

    # -- training --------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to ``runner.total_steps``, evaluating and saving on the way and at the end."""
        leader, folder = distributed.is_leader(), RunFolder(self.args.expdir)
        with (
            one_sentence_errors(),
            locks.one_run(folder.path, active=leader),
            folder.removed_if_nothing_trained(active=leader),
            results.failures_recorded(self.args, self.config, active=leader),
            distributed.lost_ranks_named(),
        ):
            spent = ResourceUsage(folder, self.resumed)
            writer = None
            try:
                if leader:
                    if getattr(self.args, "overwrite", False) and not self.args.past_exp:
                        folder.clear()
                    folder.remove_parts()
                distributed.barrier()  # nobody takes masks from a folder that is being cleared
                check_splits(self.models.unwrapped(), self._splits())
                if self.candidate is not None:
                    read_record(folder)  # corrupt, it is said before anything has trained
                self.total_steps = self.runner_config.total_steps or self._steps_of_epochs()
                experiment = self._experiment(spent)
                if self.racing:
                    self._race(experiment)
                writer = SummaryWriter(self.args.expdir) if leader else None
                name = self.candidate.name if self.candidate else None
                run = Run(experiment, self.tuning, folder, self.resumed, writer, name)
                self.child = run.child
                first_step, loop_started = run.state.step, time.monotonic()
                run.trainer.run()
                if leader:
                    per_step = (time.monotonic() - loop_started) / max(1, run.state.step - first_step)
                    self._finish(run, first_step, spent, per_step)
            finally:
                if writer is not None:
                    writer.close()
                if dist.is_initialized():
                    dist.destroy_process_group()

    def _splits(self) -> list[str]:
        """Return the splits that must not be empty: those that are scored, and before a race that of training."""
        splits = [self.runner_config.train_dataloader] if self.racing else []
        splits += self.runner_config.eval_dataloaders
        if self.early_stop is not None and self.early_stop.split not in (None, *splits):
            splits.append(str(self.early_stop.split))
        return splits

    def _finish(self, run: Run, first_step: int, spent: ResourceUsage, seconds_per_step: float) -> None:
        """Write what the run measured; nothing where that was done already."""
        folder = RunFolder(self.args.expdir)
        if run.trainer.history and not folder.best():
            logger.warning(
                "no best checkpoint%s: none of the %d evaluations beat the initial score (accuracy 0, word error rate "
                "100 %%); use %s/states-%d.ckpt, which has the last step",
                "" if self.upstream.trainable and not self.tuned.is_small else " and no delta.safetensors",
                len(run.trainer.history), self.args.expdir, run.state.step,
            )  # fmt: skip
        record = read_record(folder) if self.candidate else None
        if record is not None:
            draw(folder, record, run.trainer.history, self.args.downstream)
        if run.state.step > first_step or results.step_of(folder) != run.state.step:
            per_step = round(seconds_per_step, 4) if run.state.step > first_step else None
            rows = run.trainer.last_rows
            self._write_result(
                run.trainer.last_metrics, run.state.step, spent.seconds, peak_memory=spent.peak_memory,
                intervals={split: row.get("intervals") or {} for split, row in rows.items()},
                items={split: row.get("items") for split, row in rows.items()},
                history=run.trainer.history, race=record, seconds_per_step=per_step,
            )  # fmt: skip

    def _experiment(self, spent: ResourceUsage | None = None) -> Experiment:
        """Return what the runs of this experiment share."""
        lists = {"splits_sha256": results.splits_sha256(self.args, self.config)}
        return Experiment(
            self.args, self.config, self._variables, self.runner_config, self.total_steps, self.all_entries, self.tuned,
            spent or ResourceUsage(RunFolder(self.args.expdir), self.resumed), data=self.data and self.data | lists,
        )  # fmt: skip

    def _race(self, experiment: Experiment) -> None:
        """Race the candidates; the models and the checkpoint are then those of the winner."""
        assert self.early_stop is not None
        start = self.resumed.extension.race_start
        runs = CandidateRuns(
            experiment,
            start,
            lambda c: resolve_tuning(self.config, c.tuning),
            self._prepare_candidate,
        )
        winner = runs.race(self.early_stop, self.task_file.candidates)
        self.resumed = runs.promote(winner)
        self.candidate = winner
        self.tuning = resolve_tuning(self.config, winner.tuning)

    def _prepare_candidate(self, tuning: TuningConfig) -> None:
        """Make the upstream, which is as it was built, ready for a candidate."""
        module = self.tuned.model
        trainable = self._ready(module, tuning)
        prepare_head_lambda(unwrapped(self.downstream.model), tuning)
        self.upstream = self._entry(module, "Upstream", trainable, self.upstream.interfaces, tuning)
        self.all_entries[0] = self.upstream

    def _steps_of_epochs(self) -> int:
        loader = open_split(self.downstream.model, self.runner_config.train_dataloader)
        batches = len(loader) * (self.runner_config.epochs or 0)
        return max(1, int(batches // self.runner_config.gradient_accumulate_steps))

    # -- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
        """Score one split; without arguments the split of ``-t``, whose metrics are written to ``result.json``."""
        with one_sentence_errors(), ExitStack() as stack:
            from_command_line = split is None
            split = split or self._evaluate_split()
            started = time.monotonic()
            writes = from_command_line and distributed.is_leader()
            stack.enter_context(locks.evaluation(self.args.expdir, active=writes))
            with results.failures_recorded(self.args, self.config, split, active=writes):
                scores = evaluate(
                    self.models, split, self.args.seed, self.runner_config.evaluate_ratio, logger, global_step
                )
            if from_command_line:
                self._write_result(
                    {split: scores.metrics}, self.resumed.weights_step, time.monotonic() - started,
                    intervals={split: scores.intervals}, items={split: scores.items},
                )  # fmt: skip
            return scores.save_names

    def _write_result(self, metrics: dict[str, dict[str, float]], step: int, seconds: float, **more: Any) -> None:
        counts = {entry.name: self._trainable(entry) for entry in self.all_entries}
        facts: dict[str, Any] = {
            "candidate": self.candidate.name if self.candidate else None,
            "upstream_sha256": self.tuned.base_sha256,
            "task": getattr(unwrapped(self.downstream.model), "facts", None),
            last_hidden_state.KEY: last_hidden_state.result_of(unwrapped(self.upstream.model), RunSpec.of(self.args)),
        }
        results.write(self.args, self.config, metrics, step, seconds, counts, self.merge_record, **facts, **more)

    def _trainable(self, entry: ModelEntry) -> int:
        if entry.name == "Upstream" and self.tuned.indices:
            return masks.count(self.tuned.indices)
        return sum(p.numel() for p in entry.model.parameters() if p.requires_grad) if entry.trainable else 0

    def _evaluate_split(self) -> str:
        """Return the split of ``-t``; its default ``test`` means ``test-clean`` where only that exists (ASR)."""
        split = self.args.evaluate_split
        datarc = self.config["downstream_expert"].get("datarc", {})
        reported = task_of(self.args.downstream).test
        return reported if split == "test" and "test" not in datarc and reported in datarc else split

    def inference(self) -> None:
        """Run the task's inference on the audio file given by ``-t``."""
        with one_sentence_errors():
            if not Path(self.args.evaluate_split).is_file():
                raise UsageError(f"no such audio file: {self.args.evaluate_split} (-t names the file to transcribe).")
            if not hasattr(self.downstream.model, "inference"):
                raise UsageError(f"the task '{self.args.downstream}' has no inference in s3prl.")
            super().inference()
