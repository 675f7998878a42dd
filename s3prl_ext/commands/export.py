"""``s3prl-ext export``: write a tuned task as a plain model, its head and a card, which need no delta."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from s3prl_ext import plugin
from s3prl_ext.commands.flags import export as flags_of
from s3prl_ext.deltas import formats
from s3prl_ext.deltas.model_card import HEAD_FILE, TASK_FILE, TRAINING_FILE, ExportRecord, Score, model_card
from s3prl_ext.deltas.plain_upstream import plain_upstream
from s3prl_ext.deltas.trained_task import TrainedTask, check_foldable
from s3prl_ext.deltas.writing import changed_tensors, check_new, write_upstream
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.scored_runs import facts_of
from s3prl_ext.locks import one_writer
from s3prl_ext.merging.learnable import PARAMETER_NAME
from s3prl_ext.model_settings import model_config
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.package_versions import versions_of
from s3prl_ext.reading import EXPORT_FILE, file_sha256, weight_files
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.tasks.record import scored_part
from s3prl_ext.training import last_hidden_state, upstream_settings
from s3prl_ext.training.checkpoint import ARGUMENTS_KEY, Checkpoint, Extension
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.task_file import untuned
from s3prl_ext.transformers_models import SPEECH_UPSTREAMS
from s3prl_ext.upstreams.merged_attention.record import MergeRecord
from s3prl_ext.writing import written_folder

logger = logging.getLogger(__name__)

SCHEMA = 1
RECORDED_PACKAGES = ("s3prl_ext", "s3prl", "torch", "transformers")
OUR_UPSTREAMS = ("beats_local", "beats_custom")


def main(argv: Sequence[str] | None = None) -> int:
    """Write a tuned task as a plain model, or show what would be written; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    args = flags_of.parser().parse_args(argv)
    if args.out is None and not args.dry_run:
        raise UsageError("--out is missing: name a new folder for the model, or look first with --dry-run.")
    with one_writer(args.out):
        if args.out is not None:
            check_new(args.out, "--out")
        task = TrainedTask.read(args.delta).tuned_from(args.upstream, args.upstream_ckpt, args.upstream_model_config)
        task.check_head()
        if args.format != "model":
            _write_change(task, args.format, args.out)
            return 0
        check_foldable(task)
        _refuse_learnt_decoder(task)
        plugin.install()
        plain = plain_upstream(task.spec)
        model, record = tune(task)
        if args.dry_run:
            sys.stdout.write(summary(task, plain, model, record) + "\nNothing was written.\n")
            return 0
        write(task, plain, model, record, args.out)
    sys.stdout.write(f"{args.out}\n")
    return 0


def _write_change(task: TrainedTask, kind: str, out: Path | None) -> None:
    if out is None:
        raise UsageError(f"--dry-run shows what a model would hold: leave it out with --format {kind}, and name --out.")
    plugin.install()
    with written_folder(out) as partial:
        formats.write(task, kind, partial, out.name)
        settings = task.info.get(upstream_settings.KEY)
        known = Extension(untuned_sha256=task.delta.base_sha256, upstream_settings=settings)
        _write_task(task, plain_upstream(task.spec), known, partial)
    sys.stdout.write(f"{out}\n")


def _refuse_learnt_decoder(task: TrainedTask) -> None:
    """Refuse a head that holds a learnable lambda, which no plain head has."""
    if any(PARAMETER_NAME in name for name in task.delta.task.get("Downstream", {})):
        raise UsageError(
            f"{task.path} holds a learnable lambda in the decoder that transcribes, which no plain head has: evaluate "
            "it with s3prl-ext run -m evaluate -e, or merge with a fixed lambda (learnable: false) before training."
        )


def tune(task: TrainedTask) -> tuple[nn.Module, ExportRecord]:
    """Build the upstream of a task with plain tuned weights; also return what is known before it is written.

    Raises:
        UsageError: the upstream is unknown, or the method cannot be folded.
        DataError: another upstream than the tuned one, or its model is missing.
    """
    model = task.build_untuned()
    task.check_features(model)
    merge = getattr(model, "merge_record", None)
    base_sha256 = state_sha256(model.state_dict())
    learnt = task.tune(model)
    changed, added = task.counts()
    record = ExportRecord(
        title="",
        upstream="",
        python="",
        source=task.path.name,
        base_sha256=base_sha256,
        tuned_sha256=state_sha256(model.state_dict()),
        changed=changed,
        added=added,
        head=sum(tensor.numel() for part in task.delta.task.values() for tensor in part.values()),
        total=sum(parameter.numel() for parameter in model.parameters()),
        merge=merge,
        learnt=learnt,
        hub_ids=_hub_ids(task.spec, merge),
        evaluations=_evaluations(task),
    )
    return model, record


def summary(task: TrainedTask, plain: RunSpec, model: nn.Module, record: ExportRecord) -> str:
    """Return in a few lines what would be written."""
    state = model.state_dict()
    changed = changed_tensors(plain, state)
    trained = "all" if record.trained is None else f"{record.trained:,}"
    return "\n".join(
        [
            f"task       {task.info.get('downstream')}, method {task.method or 'none'}, from {record.source}",
            f"base       {plain.model}, hash {record.base_sha256[:12]}",
            f"trained    {trained} of {record.total:,} weights of the upstream, {record.head:,} of featurizer and head",
            f"changes    {len(changed)} of {len(state)} tensors of the base's files",
        ]
    )


def write(task: TrainedTask, plain: RunSpec, model: nn.Module, record: ExportRecord, out: Path) -> None:
    """Write model, head, task files, card and record into a new folder, which appears only when it is complete.

    Args:
        task: what was tuned.
        plain: how to load the model on disk that the weights go into.
        model: the upstream with plain tuned weights.
        record: what is known of it.
        out: missing.

    Raises:
        DataError: the base's file cannot hold the tuned weights.
    """
    with written_folder(out) as partial:
        written = write_upstream(plain, model.state_dict(), partial)
        flags, python = _usage(plain, written)
        record = replace(record, title=out.name, upstream=flags, python=python)
        known = Extension(record.tuned_sha256, upstream_settings=upstream_settings.stated_settings(model))
        _write_task(task, plain, known, partial)
        content = {
            "schema": SCHEMA,
            "info": {key: value for key, value in task.info.items() if key not in ("config", "merge")},
            "model": asdict(record),
            "files": {file.name: file_sha256(file) for file in weight_files(partial)},
            "versions": versions_of(RECORDED_PACKAGES),
        }
        _write_text(partial / EXPORT_FILE, json.dumps(content, indent=2, default=str) + "\n")
        _write_text(partial / "README.md", model_card(task.info, record))
    logger.info("the task %s is written to %s", task.info.get("downstream"), out)


def _write_task(task: TrainedTask, plain: RunSpec, upstream: Extension, folder: Path) -> None:
    """Write the head as a checkpoint that s3prl takes with -i, and the task file with and without what tuned.

    Args:
        task: what was trained.
        plain: how to load a model of its kind.
        upstream: what the head says of the upstream that it belongs to.
        folder: existing.
    """
    training = json.loads(json.dumps(task.info.get("config") or {}, default=str))
    config = untuned(training)
    known: dict[str, Any] = {name: task.info.get(name) for name in ("data", "splits_rule", last_hidden_state.KEY)}
    weights = {part: dict(state) for part, state in task.delta.task.items()}
    head = Checkpoint(config=config, weights=weights, extension=replace(upstream, **known))
    arguments = replace(plain, upstream_ckpt=None).stored()  # plain values: torch.load takes them without this package
    given = {name: value for name, value in arguments.items() if value is not None}
    torch.save(head.stored() | {ARGUMENTS_KEY: given}, folder / HEAD_FILE)
    _write_text(folder / TRAINING_FILE, yaml.safe_dump(training, sort_keys=False, allow_unicode=True))
    _write_text(folder / TASK_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _evaluations(task: TrainedTask) -> dict[str, dict[str, Score]]:
    """Return the scores of evaluations of the same checkpoint on splits that training did not score.

    An evaluation counts only where it scored the whole split with the task's upstream, data and settings; others are
    left out with a warning.
    """
    found: dict[str, dict[str, Score]] = {}
    for path in RunFolder(task.path.parent).evaluations():
        try:
            record = read_record(path)
        except DataError as error:
            logger.warning("%s", error)
            continue
        if record["error"] is not None:
            continue
        if reason := _other_evaluation(task, record):
            logger.warning("%s is left out of the model card: %s.", path, reason)
            continue
        for split, rows in record["metrics"].items():
            ends = record["intervals"].get(split, {})
            values = {name: row["value"] for name, row in rows.items() if row["value"] is not None}
            found[split] = {name: (value, ends.get(name)) for name, value in values.items()}
    return found


def _other_evaluation(task: TrainedTask, record: ResultRecord) -> str | None:
    """Return in which way an evaluation is not one of this task as it was trained; None where it is.

    Paths count by their last part. What the task does not know of itself, such as the corpus of one that s3prl
    trained, is not compared.
    """
    if record["step"] != task.info.get("step"):
        return f"it is of step {record['step']}, and the exported weights are of step {task.info.get('step')}"
    scored, folder = Path(str(record.at("args.init_ckpt"))), record.at("args.expdir")
    names = {str(task.info.get("checkpoint") or task.path.name), task.path.name}
    places = {task.path.parent.resolve(), *([Path(str(folder)).resolve()] if folder else [])}  # it may have moved since
    if scored.name not in names or scored.parent.resolve() not in places:
        return f"it scored {scored}, another checkpoint than {' or '.join(sorted(names))} of this run"
    ours, theirs, part = _scoring_facts(task), facts_of(record), task.record.part
    for split in record["metrics"]:
        if found := scored_part(task.record, split, theirs.get):
            return f"it scored a part of the split ({found})"
    ours["upstream_sha256"] = task.delta.base_sha256 or None
    theirs["upstream_sha256"] = record["upstream_sha256"]  # of draws of noise too
    read = set(task.record.corpus_paths) if ours.get("data") else set()  # what the hash covers
    read |= {f"downstream_expert.{key}" for key in part or ()}  # judged above
    keys = {key for key in {*ours, *theirs} if key.startswith("downstream_expert.") or key in ("set", "variant")}
    keys |= {key for key in ("upstream_sha256", "data", "splits", "features") if ours.get(key) is not None}
    for key in sorted(keys - read):
        value, other = ours.get(key), theirs.get(key)
        if value != other and "${" not in str(value):
            return f"{key} is {str(other)[:64]}, and that of the exported task {str(value)[:64]}"
    return None


def _scoring_facts(task: TrainedTask) -> dict[str, Any]:
    """Return what decides the scores of a task, by the names of the facts of results."""
    data = task.info.get("data") or {}
    about = {
        "upstream": task.info.get("upstream"),
        "downstream": task.info.get("downstream"),
        "args": task.spec.stored(),
        "config": task.info.get("config") or {},
        "data": data,
        "splits_sha256": data.get("splits_sha256"),
    }
    facts = facts_of(ResultRecord(task.path, about))
    if task.info.get("upstream_feature_selection") is None:
        facts.pop("features")
    return facts


def _usage(plain: RunSpec, written: Path) -> tuple[str, str]:
    """Return the flags that load the exported model (empty where no upstream does), and the Python that does."""
    name, options = plain.upstream, plain.upstream_model_config
    if written.is_dir():
        config = model_config(written)
        architecture = (config.get("architectures") or ["AutoModel"])[0]
        name = name or SPEECH_UPSTREAMS.get(str(config.get("model_type")))
        python = f'from transformers import {architecture}\n\nmodel = {architecture}.from_pretrained(".")'
    else:
        ours = "import s3prl_ext\n\ns3prl_ext.install()\n" if name in OUR_UPSTREAMS else ""
        given = f', model_config="{options}"' if options else ""
        python = f'{ours}from s3prl import hub\n\nupstream = hub.{name}(ckpt="{written.name}"{given})'
    ckpt = "." if written.is_dir() else written.name
    flags = ["-u", name, "-k", shlex.quote(ckpt), *(["-g", shlex.quote(options)] if options else [])] if name else []
    return " ".join(flags), python


def _hub_ids(spec: RunSpec, merge: MergeRecord | None) -> list[str]:
    """Return the names of models that are neither local files nor upstreams of s3prl."""
    named = [spec.upstream_ckpt]
    if merge is not None:
        config = merge["config"]
        bases = [source.get("base") or {} for source in config["sources"]]
        named = [model.get("model") for model in (config["target"], *config["sources"], *bases)]
    return [
        str(name) for name in named if name and not Path(str(name)).expanduser().exists() and "://" not in str(name)
    ]
