"""What a run is made of: the checked task file and checkpoint, and the models that s3prl's Runner builds from them."""

from __future__ import annotations

import importlib
import logging
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from s3prl import hub
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from s3prl_ext.child_tuning.child_network import ChildNetwork
from s3prl_ext.configs import Record, Variables
from s3prl_ext.errors import DataError, ExtError, UsageError, is_out_of_memory, one_sentence_errors, unknown_name
from s3prl_ext.merging.learnable import loadable_state
from s3prl_ext.merging.recorded import pairs_of
from s3prl_ext.reading import check_model, file_sha256
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.settings import count
from s3prl_ext.tasks import UNAVAILABLE, remedy, task_of
from s3prl_ext.training import best_scores, checkpoint, distributed, last_hidden_state, resume
from s3prl_ext.training.batching.clip_store import ClipStore, default_folder
from s3prl_ext.training.batching.corpus_hash import Corpus
from s3prl_ext.training.batching.extractor_cache import ExtractorCache, check_frozen, extractor_of
from s3prl_ext.training.batching.feature_cache import FeatureCache
from s3prl_ext.training.checkpoint import Checkpoint, labels_in
from s3prl_ext.training.devices import check_convolutions, slow_precision
from s3prl_ext.training.divisions import check_division
from s3prl_ext.training.forward import TaskModels, unwrapped
from s3prl_ext.training.known_settings import known_tasks
from s3prl_ext.training.learnable_lambda import only_lambda_trains, prepare_head_lambda, prepare_lambda
from s3prl_ext.training.methods import METHODS, prepare_base, prepare_upstream
from s3prl_ext.training.parameter_groups import train_only
from s3prl_ext.training.racing.candidates import check_alike
from s3prl_ext.training.recomputation import recompute_layers
from s3prl_ext.training.run import Experiment
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.task_file import TaskFile
from s3prl_ext.training.tuned_upstream import TunedUpstream
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.training.upstream_checks import (
    check_choosing_split,
    check_features,
    check_frame,
    check_single_clips,
    features_given,
    first_features,
    upstream_problem,
)
from s3prl_ext.training.upstream_settings import check_settings
from s3prl_ext.upstreams.merged_attention.decoder import check_task
from s3prl_ext.upstreams.merged_attention.record import check_merge_record, with_remedy

if TYPE_CHECKING:  # importing it makes the plug-in import our Runner, which imports this file
    from s3prl.downstream.runner import ModelEntry
    from s3prl.downstream.runner import Runner as _StockRunner
else:
    _StockRunner = object  # our Runner puts s3prl's in its place

logger = logging.getLogger(__name__)


class RunBuilder(_StockRunner):
    """Check task file and checkpoint, then build upstream, featurizer and task as s3prl's Runner does.

    Args:
        args: the parsed arguments of ``run_downstream.py``.
        config: the task file after overrides; ``${VARIABLE}`` paths are expanded here and stored unexpanded.
    """

    def __init__(self, args: Namespace, config: Record) -> None:
        with (
            one_sentence_errors(),
            RunFolder(args.expdir).removed_if_nothing_trained(active=distributed.is_leader()),
            distributed.lost_ranks_named(),
        ):
            self.args = args
            self.until = _until(args)
            self.child: ChildNetwork | None = None
            self._check(config)
            self.upstream = self._get_upstream()
            with first_features(self.args):
                self.featurizer = self._get_featurizer()
            stored = self.resumed.labels  # before the task writes its own into the task file
            self.downstream = self._get_downstream()
            check_division(self.resumed, self.config, self.args)
            resume.check_splits(self.resumed, self._splits_sha256, self.args)
            resume.check_labels(self.resumed, stored, labels_in(self.config), self.args)
            self.all_entries = [self.upstream, self.featurizer, self.downstream]
            self.clip_store: ClipStore | None = None
            self.cache = self._open_cache()

    def _check(self, config: Record) -> None:
        """Read the task file and the checkpoint, and refuse what cannot work, before anything is built."""
        self._variables = Variables(config)
        only_scored = self.args.mode != "train" and bool(self.args.past_exp)
        self.task_file = TaskFile.read(self._variables.expanded, stored=only_scored, downstream=self.args.downstream)
        if distributed.is_leader() and not only_scored:
            for remark in (*self.task_file.remarks, slow_precision(self.args.device, self.task_file.runner.amp)):
                if remark is not None:
                    logger.warning("%s", remark)
        self.config = self.task_file.config
        self.runner_config = self.task_file.runner
        self.early_stop = self.task_file.early_stop
        training = self.args.mode == "train"
        self.replaces = training and not self.args.past_exp and bool(getattr(self.args, "overwrite", False))
        if training and not self.args.past_exp and not self.replaces:
            RunFolder(self.args.expdir).refuse_overwriting()
        if self.replaces and self.args.init_ckpt:
            RunFolder(self.args.expdir).refuse_to_lose(self.args.init_ckpt)
        self.resumed = Checkpoint.read(self.args.init_ckpt) if self.args.init_ckpt else Checkpoint()
        self._begins = training and not self.args.past_exp
        self.begins_with = self.resumed.extension.begins_with
        if self._begins:
            self.begins_with = distributed.from_leader(lambda: _named_by_content(self.resumed.path))
            self.resumed = self.resumed.weights_alone()
        resume.check_origin(self.resumed, self.args)
        resume.check_trained(self.resumed, self.args)
        resume.check_same_run(self.resumed, self.args)
        self.corpus = Corpus(self.args.downstream, self.config)
        self.data = distributed.from_leader(lambda: self.corpus.hash) if training else None
        resume.check_data(self.resumed, self.data, self.args)
        resume.check_optimizer(self.resumed, self.config, self.args)
        resume.check_runner(self.resumed, self.config, self.args)
        self._resolve_candidates()
        resume.check_race(self.resumed, self.config, self.args)
        self.changed_settings = resume.changed_settings(self.resumed, self.config, self.args)
        self._resolve_features()

    def _splits_sha256(self) -> str | None:
        """Return the hash of the lists that the task divides its corpus by."""
        return self._own_splits_sha256 or distributed.from_leader(lambda: self.corpus.splits_sha256)

    @property
    def _own_splits_sha256(self) -> str | None:
        """The same of a task that says it; None of another."""
        return getattr(unwrapped(self.downstream.model), "splits_sha256", None)

    def _resolve_candidates(self) -> None:
        """Choose what runs: the only candidate, a race, or the winner of one that the checkpoint names."""
        candidates, tunings = self.task_file.candidates, self.task_file.tunings
        name = self.resumed.extension.candidate
        self.candidate = next((c for c in candidates if c.name == name), None) if name else None
        if name and self.candidate is None:
            raise UsageError(
                f"{self.args.init_ckpt} belongs to the candidate {name}, which the section tuning does not make now; "
                "go on with the same section, or start a new experiment."
            )
        self.racing = len(candidates) > 1 and self.candidate is None
        chosen = candidates.index(self.candidate) if self.candidate else 0
        self.tuning = tunings[chosen] if tunings else None
        section = self.candidate.tuning if self.candidate else self.config.get("tuning")
        resume.check_tuning(self.resumed, section, self.config, tunings if self.racing else [self.tuning], self.args)
        if self.racing and self.until is not None:
            raise UsageError(
                "args.until stops a single run, but section tuning makes candidates, which early_stop stops."
            )
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
                f"{self.args.init_ckpt} asks for an upstream whose code comes from the hub, which is not run: load the "
                "model with -u hf_hubert_custom -k OWNER/NAME or the like in a new experiment."
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
        check_convolutions(unwrapped(entry.model), self.args.device, self.task_file.runner.amp)
        return entry

    @property
    def merge_record(self) -> Record | None:
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
        if self.args.downstream in UNAVAILABLE:
            raise UsageError(f"-d {self.args.downstream} cannot run: {UNAVAILABLE[self.args.downstream]}.")
        name = f"s3prl.downstream.{self.args.downstream}.expert"
        task = task_of(self.args.downstream, self.config.get("downstream_expert"))
        if self.args.mode == "train" and not task.trains:
            raise UsageError(
                f"-d {self.args.downstream} has nothing to train: evaluate it, -m evaluate -t {task.dev}, with a layer "
                "of the upstream (-l) or the mean of all."
            )
        lacking = task.lacks()
        if lacking:
            raise UsageError(
                f"-d {self.args.downstream} needs {' and '.join(lacking)}, not installed here: {remedy(task)}."
            )
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise unknown_name("task (-d)", self.args.downstream, known_tasks()) from error
            raise
        check_task(module.DownstreamExpert, self.args.downstream, vars(self.args))
        check_single_clips(task, self.config["downstream_expert"])
        if self.args.mode == "train":
            check_choosing_split(task, self.config["downstream_expert"])
        check_frame(task, self.config["downstream_expert"], cast(Any, unwrapped(self.featurizer.model)).downsample_rate)
        try:
            entry = super()._get_downstream()
        except KeyError as error:
            raise DataError(
                f"the task {self.args.downstream} looks up {error} and does not find it: if that is a key of its "
                "section downstream_expert, add it as in the task's preset in downstream_configs; "
                "else check its corpus."
            ) from error
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if dist.is_initialized() or is_out_of_memory(error) or "CUDA" in str(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200] or 'no message'}"
            raise DataError(
                f"the task {self.args.downstream} cannot be built ({reason}): compare section downstream_expert of the "
                "task file with the task's preset in downstream_configs, and check the corpus."
            ) from error
        if (check := getattr(unwrapped(entry.model), "check_upstream", None)) is not None:
            check(self._target_sha256)
        if (check := getattr(unwrapped(entry.model), "check_pairs", None)) is not None:
            for file, split in pairs_of((self.merge_record or {}).get("sources")):
                check(file, split)
        return entry

    @property
    def _target_sha256(self) -> str:
        """Hash of the upstream as it was built, without what is merged in; the record of the merge keeps it."""
        if not self.merge_record:
            return self.tuned.base_sha256
        target: Record = self.merge_record["target"]
        if "upstream_sha256" not in target:
            unmerged = getattr(unwrapped(self.upstream.model), "unmerged_sha256", None)
            target["upstream_sha256"] = unmerged() if unmerged else self.tuned.base_sha256
        return cast(str, target["upstream_sha256"])

    def _init_model(
        self, model: nn.Module, name: str, trainable: bool, interfaces: list[str] | None = None
    ) -> ModelEntry:
        for interface in interfaces or []:
            if not hasattr(model, interface):
                raise DataError(f"the {name.lower()} '{type(model).__name__}' lacks the interface {interface}.")
        if name == "Upstream":
            prepare_base(model, self.tuning)
            self.tuned = TunedUpstream(model)
            trainable = self._prepare_upstream(model, trainable)
            self._recompute(model, trainable)
            self._refuse_to_lose_upstream(model, trainable)
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
        from s3prl.downstream.runner import ModelEntry

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

    def _refuse_to_lose_upstream(self, model: nn.Module, trainable: bool) -> None:
        """Refuse weights of the upstream given with ``-i`` where the checkpoints of this run would not hold them."""
        if not (self._begins and self.resumed.upstream):
            return
        tuning = self.tuning
        method = tuning.method if tuning is not None else None
        whole = tuning is None or method == "full" or (METHODS[tuning.method].has_mask and tuning.trains_all)
        kept = trainable and whole and not only_lambda_trains(model)
        if self.racing:
            problem = "a race begins at the pre-trained one: train one of the candidates"
        elif kept or (trainable and not self.resumed.holds_upstream):
            return
        elif not self.resumed.holds_upstream:
            raise UsageError(
                f"{self.resumed.path} holds a learnt lambda, which a run that does not train it would not store: let "
                "it train (a section tuning without lambda_lr: 0, or -f), or export it and give the exported model "
                "with -k."
            )
        else:
            what = f"tuning.method {method}" if method else "a frozen upstream"
            problem = f"a run with {what} would not store it: train all of it (tuning.method full, or -f)"
        raise UsageError(
            f"{self.resumed.path} holds a tuned upstream, and {problem}, or export it and give the exported model "
            "with -k."
        )

    def _recompute(self, model: nn.Module, trainable: bool) -> None:
        """Let the layers of an upstream that trains keep no activations, where section ``runner`` says so."""
        if not self.runner_config.checkpoint_upstream or self.args.mode != "train":
            return
        if any(tuning.method == "prefix" for tuning in self.task_file.tunings):
            raise UsageError(
                "runner.checkpoint_upstream cannot be combined with tuning.method prefix, whose layers pass on a "
                "state: leave one out."
            )
        if trainable or self.racing:
            recompute_layers(model)

    def _ready(self, model: nn.Module, tuning: TuningConfig) -> bool:
        """Make an upstream ready for a section ``tuning``; return whether anything of it trains."""
        prepare_upstream(model, tuning)
        train_only(model, tuning.rates.train_layers)
        if self.runner_config.cache == "extractor" and METHODS[tuning.method].trains_upstream:
            check_frozen(model)
        trains = METHODS[tuning.method].trains_upstream
        return prepare_lambda(model, tuning, trains, training=self.args.mode == "train")

    def _load_weight(self, model: nn.Module, name: str) -> None:
        where = str(self.resumed.path)
        if name == "Upstream" and not self.resumed.holds_upstream:
            self.tuned.check_base(self.resumed.extension.upstream_sha256, where)
            self.tuned.check_not_untuned(self.resumed.extension.untuned_sha256, where)
        if name == "Upstream" and not (self._begins and self.resumed.holds_upstream):
            check_settings(self.resumed.extension.upstream_settings, self.tuned.settings, where)
        if name == "Upstream" and self.resumed.changes is not None:
            self.tuned.load(self.resumed.changes, where)
        state = self.resumed.weights.get(name)
        if state:
            logger.info("loading %s weights from %s", name, where)
            state = loadable_state(model, state) if name == "Upstream" else state
            if name == "Downstream" and self._begins:
                state = {**state, **{key: value for key, value in best_scores.buffers(model).items() if key in state}}
            checkpoint.load_into(model, state, name.lower(), where)

    def _open_cache(self) -> FeatureCache | None:
        """Return the cache of features that section ``runner`` asks for, or let the extractor answer from its own.

        Raises:
            UsageError: the upstream trains, for an extractor: it does not.
        """
        settings = self.runner_config
        if settings.cache is None:
            return None
        methods = [METHODS[tuning.method] for tuning in self.task_file.tunings] if self.racing else []
        trains = self.upstream.trainable or any(method.trains_upstream for method in methods)
        upstream = unwrapped(self.upstream.model)
        if settings.cache == "extractor":
            if not trains and self.args.mode != "train":
                return None  # of what was merged or exported after a training with it
            if not trains:
                raise UsageError("runner.cache: this upstream does not train; take features in place of extractor.")
            if self.tuning is None:
                check_frozen(upstream)
            self._keep_extractor_output()
            return None
        if trains:
            raise UsageError(
                "runner.cache: features is for upstreams that do not train (tuning.method frozen or weighted_sum, no "
                "-f, no learnable lambda): take extractor, or leave runner.cache out."
            )
        facts = {
            "expert": f"{type(upstream).__module__}.{type(upstream).__name__}",
            "-g": self.args.upstream_model_config,
        }
        featurizer = unwrapped(self.featurizer.model)
        features = FeatureCache(upstream, featurizer, facts, self._cache_folder, settings.cache_dtype, self.args.device)
        self.clip_store = features.store
        return features

    def _keep_extractor_output(self) -> None:
        """Let the extractor answer from its files."""
        extractor = extractor_of(unwrapped(self.upstream.model))
        cache = ExtractorCache(extractor, self._cache_folder, self.runner_config.cache_dtype, self.args.device)
        cache.attach()
        self.clip_store = cache.store

    @property
    def _cache_folder(self) -> Path:
        """Where the files of ``runner.cache`` are."""
        given = self.runner_config.cache_folder
        return Path(given).expanduser() if given else default_folder()

    @property
    def models(self) -> TaskModels:
        """Upstream, featurizer and downstream as :class:`TaskModels`."""
        return Experiment.task_models(self.all_entries, self.config, self.args, self.cache)


def _named_by_content(path: Path | None) -> str | None:
    """Return name and the beginning of the hash of a file; None for none."""
    return None if path is None else f"{path.name} ({file_sha256(path)[:12]})"


def _until(args: Namespace) -> int | None:
    """Take ``args.until`` out of the arguments, which are stored: the step at which this session of the run stops."""
    value = vars(args).pop("until", None)
    if value is None:
        return None
    if args.mode != "train":
        raise UsageError("args.until says where a training stops: leave it out of other modes.")
    return int(count()(value, "args.until"))
