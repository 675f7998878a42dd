"""A task file: its sections checked before anything is built, and the keys of the released AD-TUNING code.

========================================  =====================================================
released                                  ours
========================================  =====================================================
``optimizer.name: ChildnetAdamW``         the same name
``optimizer.reserve_p: [0.1, 0.01]``      ``tuning: {method: child, mask: fisher, density: [...],``
                                          ``fisher: {preset: official}}``
``runner.strive_ratio: 0.2``              ``early_stop.ratio``
``runner.observation: [dev, per]``        ``early_stop.split`` and ``early_stop.metric``
========================================  =====================================================

The preset ``official`` is the released Fisher pass: the task's own training loader, in train mode, the loss of a batch
divided by ``runner.gradient_accumulate_steps``, each tensor's gradient clipped before it is squared.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from s3prl_ext.configs import Record, Section, check_python_names, value_at, with_numbers
from s3prl_ext.errors import UsageError, nearest
from s3prl_ext.metrics import METRICS
from s3prl_ext.settings import choice, count, load, name, names, number, raise_all, switch, unknown_keys
from s3prl_ext.tasks import known, task_of
from s3prl_ext.training.known_settings import TOP_LEVEL
from s3prl_ext.training.methods import METHODS, resolve_tuning
from s3prl_ext.training.optimizers import OF_WHOLE_TENSORS, check_optimization
from s3prl_ext.training.racing.candidates import Candidate, candidates_of
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from s3prl_ext.training.tuning_config import TuningConfig

logger = logging.getLogger(__name__)

MOST_BATCHES = 100_000  # of an optimizer step: with more of them it would never end, nor could it be interrupted
MOST_WORKERS = 1024
DIRECTION = "metric_higher_better"  # key of -d ctc
CORPUS_NAME = "downstream_expert.corpus.name"


@dataclass(frozen=True)
class RunnerConfig:
    """Section ``runner``: s3prl's keys, and ours where marked.

    Attributes:
        total_steps: optimizer steps; None where `epochs` is given.
        epochs: ours: passes over the training loader in place of `total_steps`.
        gradient_clipping: largest norm of the gradient of everything that trains.
        gradient_accumulate_steps: batches per optimizer step.
        log_step, eval_step, save_step: every how many optimizer steps; the end of the run counts as well.
        max_keep: how many ``states-N.ckpt`` files stay.
        eval_dataloaders: splits that are scored during training.
        train_dataloader: name of the training split.
        evaluate_ratio: share of each evaluation split that is scored.
        fp16: s3prl's switch for mixed precision, the same as ``amp: fp16``.
        amp: ours: ``bf16`` or ``fp16`` mixed precision.
        group_by_length: ours: so many batches exchange their clips, for batches of like length.
        checkpoint_upstream: ours: compute the layers of an upstream that trains again in the backward pass, in less
            memory.
        cache: ours: keep on disk the ``features`` of an upstream that does not train, or the output of the frozen
            ``extractor`` of one that does.
        cache_folder: where; None for ``~/.cache/s3prl_ext/features``.
        cache_dtype: ``float32``, or ``float16`` in half the room.
    """

    total_steps: Annotated[int | None, count()] = None
    epochs: Annotated[float | None, number(above=0)] = None
    gradient_clipping: Annotated[float, number(above=0)] = 1.0
    gradient_accumulate_steps: Annotated[int, count(most=MOST_BATCHES)] = 1
    log_step: Annotated[int, count()] = 100
    eval_step: Annotated[int, count()] = 5000
    save_step: Annotated[int, count()] = 1000
    max_keep: Annotated[int, count()] = 1
    eval_dataloaders: Annotated[tuple[str, ...], names(least=0)] = ("dev",)
    train_dataloader: Annotated[str, name()] = "train"
    evaluate_ratio: Annotated[float, number(above=0, most=1)] = 1.0
    fp16: Annotated[bool, switch()] = False
    amp: Annotated[str | None, choice("bf16", "fp16")] = None
    group_by_length: Annotated[int | None, count(2)] = None
    checkpoint_upstream: Annotated[bool, switch()] = False
    cache: Annotated[str | None, choice("features", "extractor")] = None
    cache_folder: Annotated[str | None, name()] = None
    cache_dtype: Annotated[str, choice("float32", "float16")] = "float32"

    @classmethod
    def from_config(cls, config: Section, stored: bool = False) -> RunnerConfig:
        """Check section ``runner`` of a task file; all problems are reported in one UsageError.

        Args:
            config: the whole task file.
            stored: it comes from a checkpoint that is only evaluated: unknown keys are warned about, not refused.
        """
        section = dict(config.get("runner") or {})
        if stored:
            known = [field.name for field in fields(cls)]
            _warn_of_stored(unknown_keys(section, known, "runner"))
            section = {key: value for key, value in section.items() if key in known}
        if "eval_dataloaders" in section:
            section["eval_dataloaders"] = section["eval_dataloaders"] or []  # an empty key: no split is scored
        runner = load(cls, section, "runner")
        return replace(runner, amp=runner.amp or "fp16") if runner.fp16 else runner

    def conflicts(self, where: str) -> Iterator[str]:
        """Yield what does not go together."""
        if (self.total_steps is None) == (self.epochs is None):
            yield f"{where} needs either total_steps or epochs (one of the two)."
        if self.fp16 and self.amp not in (None, "fp16"):
            yield f"{where}.fp16: true and {where}.amp: {self.amp} contradict each other: keep one of the two."
        if self.cache and (self.amp or self.fp16):
            yield f"{where}.cache and {where}.amp do not go together: what is kept is computed once, in float32."
        if not self.cache and (self.cache_folder or self.cache_dtype != "float32"):
            yield f"{where}.cache_folder and {where}.cache_dtype are options of {where}.cache."


def _warn_of_stored(problems: list[str]) -> None:
    for problem in problems:
        logger.warning("the checkpoint's task file has a setting of another program, which is not used: %s", problem)


def check_top_level(config: Section, stored: bool = False, downstream: str | None = None) -> None:
    """Refuse top-level keys of a task file that look like a misspelt known one.

    Other keys are left alone: s3prl hands them to the downstream expert.

    Args:
        config: the whole task file.
        stored: it comes from a checkpoint that is only evaluated: such keys are warned about, not refused.
        downstream: name for ``-d``; None where it is not known.
    """
    problems: list[str] = []
    for key in config:
        if key not in TOP_LEVEL and nearest(key, TOP_LEVEL) != ".":
            problems.append(f"unknown section '{key}'{nearest(key, TOP_LEVEL)}")
    if stored:
        _warn_of_stored(problems)
        problems = []
    if isinstance(config.get("specaug"), Mapping):
        from s3prl.downstream.specaug import SpecAug

        known = list(inspect.signature(SpecAug).parameters)
        problems += unknown_keys(config["specaug"], known, "specaug")
    problems += _count_problems(config.get("downstream_expert"), "downstream_expert")
    problems += [] if stored or downstream is None else _best_problems(config.get("downstream_expert"), downstream)
    for key in ("runner", "optimizer", "downstream_expert"):
        if not isinstance(config.get(key), Mapping):
            problems.append(f"section '{key}' is missing; see the presets in downstream_configs for a complete file.")
    raise_all(problems)


def _best_problems(expert: Any, downstream: str) -> list[str]:
    """Return what is wrong with the metric by which a task keeps its best checkpoint: the first of those it reports."""
    if not isinstance(expert, Mapping) or DIRECTION not in expert:
        return []
    key = task_of(downstream, expert).reports
    if key is None:  # a task of an extension may mean something else by these keys
        return []
    try:
        first = names(example="[wer, cer]")(expert.get(key), f"downstream_expert.{key}")[0]
    except UsageError as error:
        return [str(error)]
    if isinstance(expert[key], str):
        return [f"downstream_expert.{key} must be a list of names such as [{first}], got {first!r}."]
    known = METRICS.get(first)
    if known is None or bool(expert[DIRECTION]) == known.higher_is_better:
        return []
    return [
        f"downstream_expert.{DIRECTION} is {expert[DIRECTION]!r}, but the best checkpoint is kept by the first of "
        f"{key}, {first}, of which {'higher' if known.higher_is_better else 'lower'} is better, so that the worst one "
        f"would be kept: set {DIRECTION} to {known.higher_is_better}, or put another metric first."
    ]


def _count_problems(section: Any, where: str) -> list[str]:
    """Return what is wrong with the batch sizes and numbers of workers below a section."""
    problems: list[str] = []
    for key, value in section.items() if isinstance(section, Mapping) else ():
        place = f"{where}.{key}"
        if isinstance(value, Mapping):
            problems += _count_problems(value, place)
            continue
        batch = str(key).endswith(("batch_size", "batchsize"))
        check = count() if batch else count(0, MOST_WORKERS) if key == "num_workers" else None
        if check is not None:  # no default: a null reaches s3prl's loaders as it is
            try:
                check(value, place)
            except UsageError as error:
                problems.append(str(error))
    return problems


@dataclass(frozen=True)
class TaskFile:
    """The checked sections of a task file.

    Attributes:
        config: the whole file, the keys of the released AD-TUNING code replaced by ours.
        runner: section ``runner``.
        candidates: what its section ``tuning`` makes: none without such a section, one without lists.
        tunings: the configuration of each candidate.
        early_stop: section ``early_stop``, or None where there is nothing to race.
        remarks: settings that are right but have no effect, one sentence each.
    """

    config: Record
    runner: RunnerConfig
    candidates: list[Candidate]
    tunings: list[TuningConfig]
    early_stop: EarlyStopConfig | None
    remarks: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Section, stored: bool = False, downstream: str | None = None) -> TaskFile:
        """Check a task file whose variables are expanded.

        Args:
            config: the whole file.
            stored: it comes from a checkpoint that is only evaluated. What says how to train is then not judged, and
                keys that another program added are warned about.
            downstream: name for ``-d``; None where it is not known, and what only some tasks mean is not judged.

        Raises:
            UsageError: with what is wrong in the first section that has a fault.
        """
        config = translate(with_numbers(config, ("optimizer", "scheduler")))
        check_top_level(config, stored, downstream)
        check_python_names(config.get("downstream_expert"), "downstream_expert")
        runner = RunnerConfig.from_config(config, stored)
        if not stored:
            check_optimization(config)
        section = config.get("tuning")
        if not isinstance(section, Mapping):
            TuningConfig.from_config(config, METHODS)  # it is missing, or not a mapping
        made = candidates_of(section) if isinstance(section, Mapping) else []
        early_stop = EarlyStopConfig.from_config(config, max(1, len(made)))
        if early_stop is not None and runner.total_steps:
            early_stop.check_length(runner.total_steps)
        tunings = [resolve_tuning(config, c.tuning) for c in made]
        if not stored:
            _check_child_optimizer(config, tunings)
            for tuning in tunings if runner.total_steps else ():
                tuning.check_length(int(runner.total_steps or 0))
        remarks = [*_without_effect(config, early_stop, len(made)), *never_chosen_again(tunings, runner.total_steps)]
        return cls(config, runner, made, tunings, early_stop, tuple(remarks))


def _check_child_optimizer(config: Section, tunings: Sequence[TuningConfig]) -> None:
    """Refuse optimizers that need to know the tensor of an entry: a child network is a vector of entries alone.

    Those of s3prl tell weights apart by name, others of torch take means over a tensor.
    """
    name, torch_name = (str(config["optimizer"].get(key)) for key in ("name", "torch_optim_name"))
    child = [tuning.method for tuning in tunings if METHODS[tuning.method].has_mask]
    vectors = [tuning for tuning in tunings if METHODS[tuning.method].has_mask and not tuning.trains_all]
    if vectors and name == "TorchOptim" and torch_name in OF_WHOLE_TENSORS:
        raise UsageError(
            f"optimizer.torch_optim_name {torch_name} scales the step of an entry by means over its whole tensor, but "
            f"tuning.method {vectors[0].method} of density {vectors[0].density:g} trains the chosen entries of all "
            "tensors as one vector: take an optimizer that looks at each entry alone, such as {name: TorchOptim, "
            "torch_optim_name: AdamW, lr: 1e-4}, or density: 1."
        )
    if child and name.endswith("_with_schedule"):
        raise UsageError(
            f"optimizer.name {name} leaves biases and layer norms out of its weight decay by their names, which the "
            f"entries of tuning.method {child[0]} do not have, and its schedule counts the steps of each entry: take "
            "another one, such as {name: TorchOptim, torch_optim_name: AdamW, lr: 1e-4}, with a section scheduler."
        )


def _without_effect(config: Section, early_stop: EarlyStopConfig | None, candidates: int) -> Iterator[str]:
    """Yield a sentence for each setting that a run would silently leave out."""
    if "early_stop" in config and early_stop is None:
        yield (
            "section early_stop has no effect: it races the candidates that a list in section tuning makes, such as "
            "density: [0.1, 0.01], and there is only one setting to train"
        )
    if early_stop is not None and (idle := early_stop.without_effect(candidates)):
        yield (
            f"early_stop.rungs {', '.join(map(str, idle))} of {candidates} candidates have no effect: with eta "
            f"{early_stop.eta:g} as many are left after as before"
        )
    for part in (task.part for task in known() if task.part and task.reads_corpus(value_at(config, CORPUS_NAME))):
        ratio, offset = (value_at(config, f"downstream_expert.{key}") for key in part)
        if offset and ratio in (None, 1):
            yield f"downstream_expert.{part.offset} {offset} has no effect: it counts where {part.ratio} is below 1"
    if config["optimizer"].get("lr") == 0:
        yield "optimizer.lr is 0: whatever has no learning rate of its own in section tuning keeps its first weights"


def never_chosen_again(tunings: Sequence[TuningConfig], total_steps: int | None) -> list[str]:
    """Return a sentence for each ``reselect_every`` that a run is too short for; none where its steps are not known."""
    every = {tuning.reselect_every or 0 for tuning in tunings if total_steps and not tuning.last_choice(total_steps)}
    return [
        f"tuning.reselect_every {steps} has no effect in a run of {total_steps} steps: its child network is chosen once"
        for steps in sorted(every - {0})
    ]


def untuned(config: Section) -> Record:
    """Return the task file of an upstream that holds what was tuned: without what tunes, and the cache of what did.

    A cache of features stays, because it decides what the head reads, but not its folder on the machine of then.
    """
    kept = {key: value for key, value in config.items() if key not in ("tuning", "early_stop")}
    runner = kept.get("runner")
    if isinstance(runner, Mapping):
        dropped = ("cache_folder", *(("cache", "cache_dtype") if runner.get("cache") == "extractor" else ()))
        kept["runner"] = {key: value for key, value in runner.items() if key not in dropped}
    return kept


OPTIMIZER = "ChildnetAdamW"


def translate(config: Section) -> Record:
    """Return a task file in which the released keys are replaced by sections ``tuning`` and ``early_stop``.

    A file without such a key is returned unchanged.

    Raises:
        UsageError: released and our own keys say the same thing, or a value has no counterpart.
    """
    optimizer, runner = config.get("optimizer"), config.get("runner")
    released = [f"optimizer.{key}" for key in ("reserve_p",) if isinstance(optimizer, Mapping) and key in optimizer]
    race = [f"runner.{key}" for key in ("strive_ratio", "observation") if isinstance(runner, Mapping) and key in runner]
    if not released and not race:
        return dict(config)
    result = copy.deepcopy(dict(config))
    for keys, section in ((released, "tuning"), (race, "early_stop")):
        if keys and section in result:
            raise UsageError(
                f"{' and '.join(keys)} of the released AD-TUNING code and the section {section} say the same thing: "
                "keep one of the two."
            )
    if released:
        density = result["optimizer"].pop("reserve_p")
        result["tuning"] = {"method": "child", "mask": "fisher", "density": density, "fisher": {"preset": "official"}}
    if race:
        result["early_stop"] = _early_stop(result["runner"])
    if isinstance(result.get("tuning", {}).get("density"), list) and len(result["tuning"]["density"]) == 1:
        result["tuning"]["density"] = result["tuning"]["density"][0]
    if isinstance(result.get("tuning", {}).get("density"), list):
        result.setdefault("early_stop", {})
    logger.info("read %s as in the released AD-TUNING code", ", ".join(released + race))
    return result


def _early_stop(runner: Record) -> Record:
    """Take the keys of the race out of section ``runner`` and return them as a section ``early_stop``."""
    section = {}
    if (ratio := runner.pop("strive_ratio", None)) is not None:
        section["ratio"] = ratio
    observation = runner.pop("observation", None)
    if observation is None:
        return section
    parts = [observation] if isinstance(observation, str) else list(observation)
    if parts[0] == "train":
        raise UsageError(
            "runner.observation: train compares candidates by their training loss, which the released code could not "
            "run; write [dev, METRIC], such as [dev, per]."
        )
    if parts[0] in (runner.get("eval_dataloaders") or ["dev"]):
        section["split"] = parts[0]
    if len(parts) > 1:
        section["metric"] = {"f1": "slot_type_f1"}.get(parts[1], parts[1])
    return section
