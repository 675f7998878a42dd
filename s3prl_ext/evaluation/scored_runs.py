"""One model scored on one split: what a table of results is made of, from result files or from a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.clusters import UTTERANCE
from s3prl_ext.evaluation.merge_facts import described_method, last_part, merge_facts
from s3prl_ext.evaluation.result_records import NO_METRICS, ResultRecord, numbers, read_record
from s3prl_ext.run_folder import DELTA_FILE, RunFolder, step_of
from s3prl_ext.tasks import named, task_of
from s3prl_ext.tasks.record import Folds, Task, without_labels

UNNAMED_MERGE = "merged_attention"  # -u of a merge that -g names
# Settings that do not change what a model learns or how it is scored.
WITHOUT_EFFECT = (
    "num_workers", "log_step", "save_step", "max_keep", "eval_dataloaders",
    "save_predictions", "save_best_on", "cache_folder", "checkpoint_upstream", "max_workers", "pre_load",
)  # fmt: skip

CHECKPOINT = "checkpoint"  # fact: which of its training was scored, best (on dev), last, or another
BEGINS_WITH = "begins_with"  # fact: the checkpoint whose weights its training began with
UPSTREAM = ("upstream", "upstream_ckpt", "upstream_sha256", "upstream_model_config")  # facts: which one was run

Facts = Mapping[str, Any]  # what decides a run's result, by flat names; values are numbers, texts and lists
RowKey = tuple[tuple[str, str], ...]  # names and values of the facts that runs of one row share


@dataclass(frozen=True)
class ScoredRun:
    """One model scored on one split.

    Attributes:
        task: short name, such as ``ks``, ``pr``, ``ljspeech``.
        split: where it was scored.
        values: by metric, as the task reports them.
        intervals: 95 % interval by metric, where the task gives one.
        seed: of the training, with the number of a noise control's draw and the fold of a cross-validation.
        facts: everything that decides the result besides the seed, by flat names such as ``tuning.density``; the names
            without a dot (``upstream``, ``method``) are made here, those of a merge by
            :func:`~s3prl_ext.evaluation.merge_facts.merge_facts`. ``chosen`` is there for arms of a sweep: whether dev
            chose their lambda.
        mode: ``train``, ``evaluate`` or ``sweep``.
        step: optimizer steps behind the model.
        source: the file that says so.
        utterances: folder with the transcripts or predictions of single utterances; None where there is none.
        intervals_over: what intervals are over: a kind of :mod:`s3prl_ext.evaluation.clusters`.
        drawn: how many of these there are; None where the interval is the task's own.
        fold: of a cross-validation; runs of several folds make one row.
        dev: scores of this very model on the split that chooses, by metric, as far as they are known.
        judged_by: metrics by which its task file has it judged, the first that is reported; empty where that is not
            known: as its task is.
    """

    task: str
    split: str
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    seed: str
    facts: Facts
    mode: str
    step: int
    source: Path
    utterances: Path | None
    intervals_over: str = UTTERANCE
    drawn: int | None = None
    fold: str | None = None
    dev: Mapping[str, float] = field(default_factory=dict)
    judged_by: Sequence[str] = ()

    @property
    def main_metric(self) -> str | None:
        """The metric that it is judged by."""
        return next((name for name in self.judged_by or named(self.task).metrics if name in self.values), None)

    @property
    def part(self) -> str:
        """The set of its task that it is of, such as a language, or its other figure; empty for neither."""
        return str(self.facts.get("set", ""))

    @property
    def trained_key(self) -> RowKey:
        """The facts of :meth:`key` without which checkpoint of the training was scored."""
        return tuple(pair for pair in self.key() if pair[0] != CHECKPOINT)

    def key(self, names: Sequence[str] | None = None) -> RowKey:
        """Return the facts that runs of one row share, as something that can be compared.

        Args:
            names: facts or groups of facts (``tuning`` is all of ``tuning.*``); None for all.
        """
        return tuple(
            (name, repr(value))
            for name, value in sorted(self.facts.items())
            if name != "chosen"  # says how a sweep counts, not what it scored
            if names is None or any(name == wanted or name.startswith(f"{wanted}.") for wanted in names)
        )


def runs_of(record: ResultRecord) -> list[ScoredRun]:
    """Return one run for each split that a result file has metrics of."""
    task = task_of(record["downstream"], record.at("config.downstream_expert"))
    facts, draw = facts_of(record), _draw(record["merge"])
    fold = _pop_fold(facts, task.folds) if task.folds else None
    seed = ", ".join(
        [f"{record['seed']}"] + ([f"draw {draw}"] if draw is not None else []) + ([str(fold)] if fold else [])
    )
    return [
        ScoredRun(
            task.name, split, numbers({name: row["value"] for name, row in rows.items()}),
            record["intervals"].get(split, {}),
            seed, facts, record["mode"], record["step"], record.path, record.path.parent, fold=fold,
            dev=_on_dev(record, task.dev), judged_by=task.metrics,
        )
        for split, rows in record["metrics"].items()
        if rows
    ]  # fmt: skip


def _pop_fold(facts: dict[str, Any], folds: Folds) -> str | None:
    """Take the fold out of the facts of a run, wherever it was named: in the task file, with ``-v``, or in both."""
    fold, variant = facts.pop(folds.key, None), facts.get("variant")
    if variant in folds.names and fold in (None, variant):
        fold = facts.pop("variant")
    return fold


def _on_dev(record: ResultRecord, split: str) -> dict[str, float]:
    """Return what the model of a result file scored on a split: where it ended, or when its checkpoint was kept."""
    if split in record["metrics"]:
        return numbers({name: row["value"] for name, row in record["metrics"][split].items()})
    training = training_of(record)
    rows = training["history"] or [] if training is not None and training is not record else []
    found = [row for row in rows if row["split"] == split and row["step"] == record["step"]]
    return numbers({name: value for name, value in found[-1].items() if name not in NO_METRICS} if found else {})


def training_of(record: ResultRecord) -> ResultRecord | None:
    """Return the result of the training that a result is of: itself, or the one in its folder; None without one."""
    path = RunFolder(record.path.parent).result()
    if record["mode"] == "train" or path == record.path:
        return record
    try:
        return read_record(path) if path.is_file() else None
    except DataError:
        return None  # named where it is read itself


def _processes(record: ResultRecord) -> int | None:
    """Return how many processes trained a model; None for one, and where it is not known.

    Results of earlier versions say how many scored it, and so does that of its training.
    """
    number = record["processes"]
    if number is None:
        number = (training_of(record) or record).at("machine.processes")
    return number if isinstance(number, int) and number > 1 else None


def begun_with(record: ResultRecord) -> str | None:
    """Return the checkpoint whose weights a training began with; None without one, and where it is not known."""
    if "begins_with" in record.content:
        return record["begins_with"]
    training = training_of(record)  # of an earlier version, which says so until it is resumed
    given = None if training is None or training["mode"] != "train" else training["args"]
    return None if given is None or given.get("past_exp") else last_part(given.get("init_ckpt"))


def _checkpoint(record: ResultRecord, task: Task) -> str | None:
    """Return which checkpoint of its training was scored: ``best`` on dev, ``last``, or another; None if not known."""
    if record["mode"] == "train":
        return "last" if task.trains else None
    name = last_part(record["args"].get("init_ckpt"))
    if not isinstance(name, str) or record["merged_tasks"]:
        return None
    if name in (task.best, DELTA_FILE):
        return "best"
    step = step_of(Path(name))
    if step is None:
        return name
    return "last" if step == _end(record) else f"step {step}"


def _end(record: ResultRecord) -> int | None:
    """Return the step at which the training of a checkpoint ends; None where it is not known.

    A task file may give epochs in place of steps, and a training may have been prolonged since: the later end counts.
    """
    training = training_of(record)
    ends = [record.at("config.runner.total_steps")]
    ends += [training["step"]] if training is not None and training["mode"] == "train" else []
    return max((end for end in ends if isinstance(end, int)), default=None)


def main_metric_of(runs: Sequence[ScoredRun]) -> str | None:
    """Return the metric by which runs of one task are compared, or None where they report none that is known.

    That is what they are all judged by; where their task files differ in it, the first one of the task's record that
    any of them reports.
    """
    judged = {run.main_metric for run in runs}
    if len(judged) == 1:
        return judged.pop()
    return named(runs[0].task).main_metric({name for run in runs for name in run.values})


def on_dev(run: ScoredRun, metric: str, every: Sequence[ScoredRun]) -> float | None:
    """Return the score on dev of the very model that a run has scored, or None where there is none.

    An evaluation on dev counts before what the training has noted at that step.

    Args:
        run: of any split.
        metric: the one to choose by.
        every: all runs, of all splits.
    """
    dev = named(run.task).dev
    same = (
        one.values
        for one in every
        if one.split == dev
        and one.mode != "train"
        and (one.task, one.trained_key, one.seed, one.step) == (run.task, run.trained_key, run.seed, run.step)
    )
    return next(same, run.dev).get(metric)


def facts_of(record: ResultRecord) -> dict[str, Any]:
    """Return what decides a run besides its seed; of paths only the last part counts, so that runs may be moved."""
    merge = merge_facts(record["merge"])
    raced = record["candidate"] is not None
    config = without_labels(record["config"])
    config = {name: value for name, value in config.items() if name != "early_stop" or raced}
    args = record["args"]
    method = record.at("config.tuning.method") or _stock_method(args)
    task = task_of(record["downstream"], record.at("config.downstream_expert"))
    if task.trains and record["mode"] == "evaluate" and not record["step"] and not args.get("init_ckpt"):
        method = "frozen"  # nothing was trained, whatever the task file says about training
        config = {name: value for name, value in config.items() if name != "tuning"}
    together = merged_tasks(record["merged_tasks"])
    if together:
        method = together
    facts = dict(_flat(config)) | {
        "upstream": model_name(record["upstream"], record.at("merge.target.name")),
        "upstream_ckpt": last_part(args.get("upstream_ckpt")),
        "upstream_sha256": record["upstream_sha256"],
        "variant": args.get("downstream_variant"),
        "set": task.set_named(lambda key: record.at(f"config.{key}")),
        "features": f"{args.get('upstream_feature_selection')}/{args.get('upstream_layer_selection')}"
        + ("/normalised" if args.get("upstream_feature_normalize") else ""),
        "last_hidden_state": record["last_hidden_state"],
        "method": method,
        "race": raced,
        "changed_on_resume": _changed(record["changed_settings"], task),
        "data": record.at("data.sha256"),
        "splits": record["splits_sha256"],
        "processes": _processes(record),
        BEGINS_WITH: begun_with(record),
        CHECKPOINT: _checkpoint(record, task),
        **merge,
    }
    if not merge:  # otherwise it is what these facts say
        facts["upstream_model_config"] = last_part(args.get("upstream_model_config"))
    elif _draw(record["merge"]) is not None and merge["lambda"]:
        facts["upstream_sha256"] = None  # of this draw: what it has in common with others is said by its merge
    return {name: value for name, value in facts.items() if value is not None}


def _stock_method(args: Mapping[str, Any]) -> str:
    """Return the name that section ``tuning`` has for what a run without it does."""
    if args.get("upstream_trainable"):
        return "full"
    one = args.get("upstream_layer_selection") is not None
    return "frozen" if one or args.get("upstream_feature_selection") == "last_hidden_state" else "weighted_sum"


def has_effect(key: str) -> bool:
    """Return whether a setting can change what a model learns or how it is scored.

    Args:
        key: of a task file, dotted, or the last part of it.
    """
    return key.rpartition(".")[2] not in WITHOUT_EFFECT


def _changed(resumes: Sequence[Mapping[str, Any]] | None, task: Task) -> str | None:
    """Return what a run was resumed with: ``batch_size 32, then 2 from step 500 on``; None where nothing changed."""
    found = [
        f"{key.rpartition('.')[2]} {before}, then {now} from step {one['step']} on"
        for one in resumes or ()
        for key, (before, now) in one["settings"].items()
        if has_effect(key) and key not in task.corpus_paths
    ]
    return "; ".join(found) or None


def model_name(upstream: str, target: Any) -> str:
    """Return what to call a model in tables: the name for ``-u``, or of a merge without a name its target's.

    Args:
        upstream: name for ``-u``.
        target: what its record calls the target; None where nothing is merged.
    """
    return last_part(target) if isinstance(target, str) and upstream == UNNAMED_MERGE else upstream


def merged_tasks(record: Mapping[str, Any] | None) -> str:
    """Return how several tuned tasks were merged: ``ties (density 0.2) of ks λ 0.5, sid λ 0.25``; empty for others.

    Args:
        record: what ``merge --deltas`` wrote into the delta that was scored.
    """
    if not record:
        return ""
    tasks = ", ".join(f"{one.get('name')} λ {one['lambda']:g}" for one in record["merged"])
    return f"{described_method(record['method'])} of {tasks}"


def _draw(merge: Mapping[str, Any] | None) -> int | None:
    noises = [source["noise"] for source in (merge or {}).get("sources", []) if source.get("noise")]
    return noises[0].get("draw") if noises else None


def _flat(section: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if not has_effect(name):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, (list, tuple)):
            yield f"{before}{name}", [last_part(item) for item in value]
        else:
            yield f"{before}{name}", last_part(value)
