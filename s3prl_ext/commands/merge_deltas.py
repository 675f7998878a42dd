"""``s3prl-ext merge --deltas``: merge what several tasks changed in one upstream into one set of weights."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from s3prl_ext import plugin
from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.deltas.merging import MergedTasks, merge_tasks
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.deltas.writing import check_new
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.locks import one_writer
from s3prl_ext.merging.methods import MethodConfig, parse_method
from s3prl_ext.merging.names import DELTA_MEANS, REGMEAN_CLIPS, REGMEAN_SHRINK
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.prediction import recordings
from s3prl_ext.run_folder import DELTA_FILE, MERGED_TASKS_FILE
from s3prl_ext.settings import as_number, count
from s3prl_ext.tables import columns
from s3prl_ext.training.racing.candidates import LONGEST_NAME
from s3prl_ext.training.selection.shared_scores import Scores, scores_of_tasks
from s3prl_ext.writing import write_json, written_folder

logger = logging.getLogger(__name__)

SCHEMA = 1


def main(args: argparse.Namespace) -> int:
    """Write one delta for each task, all with the merged upstream and each with its own head; returns the exit status.

    Args:
        args: flags of ``s3prl-ext merge`` with ``--deltas``.
    """
    if args.out is None and not args.dry_run:
        raise UsageError("--out is missing: name a new folder for the merged tasks, or look first with --dry-run.")
    if args.out is not None:
        check_new(args.out, "--out")
    method = _method(args)
    _check_scores(args, method)
    weights = _weights(args.lambdas, len(args.deltas))
    if method.name in DELTA_MEANS and min(weights) < 0:
        raise UsageError(
            f"--lambda of {method.name} is the weight of a task in a mean and must not be negative, got {args.lambdas}."
        )
    files = _recordings(args, method)
    plugin.install()
    tasks = [TrainedTask.read(path) for path in args.deltas]
    for task in tasks:
        task.check_head()
    moved = [task.tuned_from(args.upstream, args.upstream_ckpt, args.upstream_model_config) for task in tasks]
    names = _names(args.deltas, moved)
    clips = [_read(paths) for paths in files]
    merged = merge_tasks(moved, weights, method, _fishers(args.fisher_scores), clips)
    sys.stdout.write("\n".join(_table(names, merged)) + "\n")
    if args.dry_run:
        sys.stdout.write("nothing was written\n")
        return 0
    with one_writer(args.out), written_folder(args.out) as folder:
        _write(folder, names, merged, method, files)
    sys.stdout.write(f"{args.out}\n")
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that belongs to ``--deltas`` where there are none."""
    given = {
        "--lambda": args.lambdas,
        "--method": args.method,
        "--density": args.density,
        "--seed": args.seed,
        "--fisher_scores": args.fisher_scores,
        "--audio": args.audio,
        "--clips": args.clips,
    }
    surplus = [flag for flag, value in given.items() if value is not None]
    if surplus:
        raise UsageError(
            f"{', '.join(surplus)} belong to --deltas: of a merge of models -g says them, such as "
            '-g "my.yaml,,lambda=0.1".'
        )


def _method(args: argparse.Namespace) -> MethodConfig:
    if args.method == "regmean":  # the inputs are those of the tasks, not of pairs
        if args.density is not None:
            raise UsageError("--density belongs to ties and dare, but the method is regmean.")
        return MethodConfig("regmean", seed=args.seed or 0, shrink=REGMEAN_SHRINK)
    content: dict[str, Any] = {"name": args.method or "linear"}
    if args.density is not None:
        content["density"] = args.density
    if args.seed is not None:
        content["seed"] = args.seed
    return parse_method(content, "--method")


def _check_scores(args: argparse.Namespace, method: MethodConfig) -> None:
    """Ask for a folder of Fisher information where the method needs one, and refuse it where not."""
    if method.name == "fisher" and (args.fisher_scores is None or not args.fisher_scores.is_dir()):
        raise UsageError(
            "--method fisher weighs tasks by their Fisher information: give --fisher_scores FOLDER, as it was given "
            "when child networks with mask: fisher were trained on them."
        )
    if method.name != "fisher" and args.fisher_scores is not None:
        raise UsageError(f"--fisher_scores belongs to --method fisher, but the method is {method.name}.")


def _recordings(args: argparse.Namespace, method: MethodConfig) -> list[list[Path]]:
    """Return the recordings of each task that regmean reads, drawn by the seed; none for other methods."""
    if method.name != "regmean":
        surplus = [f"--{flag}" for flag in ("audio", "clips") if getattr(args, flag) is not None]
        if surplus:
            raise UsageError(f"{' and '.join(surplus)} belong to --method regmean, but the method is {method.name}.")
        return []
    if args.audio is None or len(args.audio) != len(args.deltas):
        raise UsageError(
            f"--method regmean weighs tasks by what their models read: give --audio a folder of recordings for each of "
            f"the {len(args.deltas)} deltas, such as those of their training splits."
        )
    return [
        _drawn(folder, count()(REGMEAN_CLIPS if args.clips is None else args.clips, "--clips"), method.seed)
        for folder in args.audio
    ]


def _drawn(folder: Path, most: int, seed: int | None) -> list[Path]:
    files, problems, _ = recordings.find([folder])
    if problems or not files:
        raise DataError(problems[0][1] if problems else f"--audio {folder}: no recordings.")
    chosen = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed or 0))[:most].sort().values
    return [files[number] for number in chosen.tolist()]


def _read(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(recordings.read(path).samples) for path in paths)


def _fishers(folder: Path | None) -> Callable[[Sequence[TrainedTask], str], Sequence[Scores]] | None:
    """Return what finds the Fisher information of each task."""
    if folder is None:
        return None
    return lambda tasks, origin: scores_of_tasks(folder, [task.info for task in tasks], origin)


def _weights(text: str | None, tasks: int) -> list[float]:
    """Return lambda of each task.

    Raises:
        UsageError: not given, not numbers, or not as many as tasks.
    """
    if text is None:
        raise UsageError("--lambda is missing: give one for all tasks such as 0.5, or one for each such as 0.5,0.3.")
    values = [as_number(part.strip(), "--lambda") for part in text.split(",")]
    if len(values) not in (1, tasks):
        raise UsageError(f"--lambda has {len(values)} values for {tasks} deltas: give one for all, or one for each.")
    return values if len(values) == tasks else values * tasks


def _names(paths: Sequence[str], tasks: Sequence[TrainedTask]) -> list[str]:
    """Return a folder name for each task: that of its run, or, of runs in folders of one name, what sets them apart.

    That of ``exp/ks/lora/seed=0`` and ``exp/sid/lora/seed=0`` is ``ks`` and ``sid``.

    Raises:
        UsageError: a run is given twice, or no name sets two runs apart.
    """
    folders = [Path(path) if Path(path).is_dir() else task.path.parent for path, task in zip(paths, tasks, strict=True)]
    folders = [folder.resolve() for folder in folders]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UsageError(f"--deltas names the run in {twice} twice: leave one out.")
    names = [folder.name for folder in folders]
    if len({*names}) < len(names):
        parts = [folder.parts for folder in folders]
        shared = len(Path(os.path.commonpath(folders)).parts)
        if len({*map(len, parts)}) == 1:
            parts = [tuple(own for own, *others in zip(*(one, *parts)) if {*others} != {own}) for one in parts]
        else:
            parts = [one[shared:] for one in parts]
        names = ["_".join(one) for one in parts]
    if len({*names}) < len(names) or any(not 0 < len(name.encode()) <= LONGEST_NAME for name in names):
        raise UsageError(
            f"--deltas has runs in folders that are called too much alike to tell their results apart, {folders[0]} "
            "and others: rename or copy one."
        )
    return names


def _table(names: Sequence[str], merged: MergedTasks) -> list[str]:
    """Return what each task changed, and how often two of them pull an entry in opposite directions."""
    rows = [("task", "lambda", "changed weights", "norm of the change", "against another task")]
    for name, weight, one in zip(names, merged.weights, merged.tasks, strict=True):
        changes = {key: tensor - merged.base[key] for key, tensor in one.changed.items()}
        count = sum(int(change.count_nonzero()) for change in changes.values())
        norm = (
            torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(c) for c in changes.values()]))
            if changes
            else 0.0
        )
        opposed = sum(int(_opposed(key, change, one, merged).sum()) for key, change in changes.items())
        rows.append((name, f"{weight:g}", f"{count:,}", f"{float(norm):.4g}", f"{opposed / max(1, count):.1%}"))
    return columns(rows, right=True)


def _opposed(key: str, change: torch.Tensor, own: Any, merged: MergedTasks) -> torch.Tensor:
    """Return where another task changes an entry in the opposite direction."""
    others = [one.changed[key] - merged.base[key] for one in merged.tasks if one is not own and key in one.changed]
    return torch.stack([change * other < 0 for other in others]).any(dim=0) if others else torch.zeros(1)


def _write(
    folder: Path, names: Sequence[str], merged: MergedTasks, method: MethodConfig, files: Sequence[Sequence[Path]]
) -> None:
    sources = [
        {"name": name, "path": str(one.task.path), "lambda": weight, "task": one.task.spec.downstream}
        for name, one, weight in zip(names, merged.tasks, merged.weights, strict=True)
    ]
    options = {key: getattr(method, key) for key in method.method.options or {}}
    if files:
        options = {"shrink": method.shrink, "seed": method.seed, "recordings": [len(paths) for paths in files]}
    facts = {"method": {"name": method.name, **options}, "merged": sources}
    for number, name in enumerate(names):
        (folder / name).mkdir()
        delta_files.save(merged.delta(number, {"merged_tasks": facts}), folder / name / DELTA_FILE)
    hashes = {
        "base_sha256": state_sha256(merged.base),
        "upstream_sha256": state_sha256(merged.state()),
    }
    write_json(folder / MERGED_TASKS_FILE, {"schema": SCHEMA, **facts, **hashes}, indent=2)
    logger.info("one upstream for %s written to %s", ", ".join(names), folder)
