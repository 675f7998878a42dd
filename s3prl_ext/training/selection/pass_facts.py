"""Everything that the scores of a pass depend on, as plain values: the key under which passes and masks are kept.

It holds weights and structure of upstream, featurizer and head before training, the task file's sections that a pass
reads (so batch size and SpecAugment), the corpus, the seed, the settings of the pass, versions and device.
"""

from __future__ import annotations

import hashlib
import json
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from s3prl_ext.child_tuning.names import OF_THE_TASK
from s3prl_ext.configs import Record, Section
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.tasks import Task, task_of
from s3prl_ext.tasks.record import without_labels
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.results.provenance import versions
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.selection.fisher_batches import ORDER
from s3prl_ext.training.tuning_config import TuningConfig
from s3prl_ext.training.upstream_settings import KEY, certain_differences, stated_settings

NOT_READ = ("runner", "optimizer", "scheduler", "tuning", "early_stop")  # sections that a Fisher pass does not read
BATCH_SIZE = "batch size"
SETTINGS = "settings"  # fact that files of earlier versions lack
ENVIRONMENT = ("versions", "device")  # facts that decide about the last bits of a score, not about its meaning


def facts_of(
    models: TaskModels,
    parameters: Mapping[str, torch.Tensor],
    tuning: TuningConfig,
    args: Namespace,
    config: Section,
    data: Section | None,
) -> Record:
    """Return everything that the scores of a pass depend on.

    Args:
        models: upstream, featurizer and head before training, without wrappers.
        parameters: eligible parameters by name.
        tuning: method ``child`` with a mask that is chosen by scores.
        args: of the run.
        config: its task file, variables expanded.
        data: hashes of the corpus and of its division.
    """
    modules, runner = models.modules(), config.get("runner") or {}
    configs = {str(c) for top in modules for m in top.modules() if (c := getattr(m, "config", None)) is not None}
    return {
        "versions": versions(),
        "device": [str(next(iter(parameters.values())).device.type), _device_name(args), torch.get_num_threads()],
        "pass": {"mask": tuning.mask, **_pass_settings(tuning)},
        "run": RunSpec.of(args).stored(),
        "task file": {key: value for key, value in config.items() if key not in NOT_READ},
        "training split": runner.get("train_dataloader"),
        "cache": [runner.get("cache"), runner.get("cache_dtype")],
        "corpus": data,
        "weights": [state_sha256(module.state_dict()) for module in modules],
        SETTINGS: [stated_settings(module) for module in modules],
        "structure": [hashlib.sha256(text.encode()).hexdigest() for text in (*map(repr, modules), *sorted(configs))],
        "eligible": sorted(parameters),
    }


def differences(facts: Section, info: Section) -> list[str]:
    """Return in what a pass was not over what a task was trained on, in words.

    That is its task, features, task file, corpus and settings of the upstream.

    Args:
        facts: of the pass, see :func:`facts_of`.
        info: of the trained task, see :class:`s3prl_ext.deltas.trained_task.TrainedTask`; a corpus that it does not
            know is not compared.
    """
    run, corpus = facts.get("run") or {}, facts.get("corpus") or {}
    read = _trained_on(run, expert_of(facts.get("task file")), corpus)
    trained = _trained_on(info, expert_of(info.get("config")), info.get("data") or corpus)
    found = [what for what, value in read.items() if value != trained[what]]
    same = same_settings([info.get(KEY) or {}], facts.get(SETTINGS))
    return found + ([] if same else ["settings of the upstream"])


def same_settings(before: Sequence[Section] | None, now: Sequence[Section] | None) -> bool:
    """Return whether the facts :data:`SETTINGS` of two passes agree, model by model, as far as they can be compared.

    What an earlier version left out is not compared, nor what two versions of transformers have read.
    """
    return not any(certain_differences(one, other) for one, other in zip(before or (), now or (), strict=False))


def _trained_on(run: Section, expert: Record, corpus: Section) -> Record:
    return {
        "task": (task_in(run, expert).name, run.get("downstream_variant")),
        "features": RunSpec.of(run).features,
        "section downstream_expert": expert,
        "corpus": [corpus.get(key) for key in ("sha256", "splits_sha256")],
    }


def task_in(run: Section, expert: Any) -> Task:
    """Return the task of a run: of its arguments and section ``downstream_expert``."""
    return task_of(str(run.get("downstream")), expert)


def estimated_by(facts: Section) -> Record:
    """Return the settings of a pass that decide about the size of its scores: those of several tasks must agree.

    The mean of g^2 over batches of b clips is about 1 / b of that over single clips, so b is one of them.
    """
    settings = {key: value for key, value in (facts.get("pass") or {}).items() if key not in OF_THE_TASK}
    if settings.get("granularity") != "sample":
        expert = expert_of(facts.get("task file"))
        size = batch_size_in(expert)
        settings[BATCH_SIZE] = size and size // task_in(facts.get("run") or {}, expert).divides_batches
    return settings


def batch_size_in(expert: Any) -> int | None:
    """Return the clips of a training batch by a section ``downstream_expert``; None where it does not say.

    Tasks call it ``batch_size``, ``train_batch_size`` or ``train_batchsize``; ASR's file has the first two and s3prl
    reads the first.
    """
    found: dict[str, Any] = {}
    sections = [expert]
    while sections:
        section = sections.pop(0)
        for key, value in section.items() if isinstance(section, Mapping) else ():
            sections.append(value)
            found.setdefault(str(key).replace("batchsize", "batch_size"), value)
    return found.get("batch_size", found.get("train_batch_size"))


def expert_of(config: Section | None) -> Record:
    """Return section ``downstream_expert`` of a task file as JSON holds it, without the names of the head's outputs."""
    section = without_labels(config or {}).get("downstream_expert") or {}
    content: Record = json.loads(json.dumps(section, default=str))
    return content


def _pass_settings(tuning: TuningConfig) -> Record:
    if tuning.mask == "lottery":
        return {"order": ORDER, **asdict(tuning.lottery)}
    if not tuning.has_pass:
        return {}
    settings = tuning.fisher.stored()
    if not tuning.fisher.warm_head:
        del settings["warm_lr"]  # by default optimizer.lr, which nothing else of a pass depends on
    return {"order": ORDER, **settings}


def _device_name(args: Namespace) -> str:
    gpu = str(args.device).startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name() if gpu else platform.machine()
