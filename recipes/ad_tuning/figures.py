"""Draw AD-TUNING's figures from the runs of the recipes: ``figures.py fig3 --runs DIR --tasks asr,pr``.

fig2  distribution of Fisher information, the densities as lines
fig3  the candidates' curves on dev, with the step of AD-TUNING's comparison
fig5  phone error rate over hours of training speech, child networks
fig6  the same, all methods
fig7  share of the weights that trained, by layer and by module
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runs import TASKS, TaskRun, heading, runs_of

from s3prl_ext.child_tuning import mask_files
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.fisher_plot import ScoreHistogram, plot_fisher
from s3prl_ext.evaluation.layer_share_plot import LayerShares, plot_layer_shares
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.series_panels import Series, SeriesPanel, plot_series_panels

MASKS = "masks.safetensors"
DENSITIES = (0.1, 0.01, 0.001)
NAMES = {f"child-{p:g}": f"P = {p:g}" for p in DENSITIES} | {
    "full": "FT", "frozen": "Baseline", "houlsby": "Houlsby", "adapter_bias": "AdapterBias", "lora": "LoRA",
    "prefix": "Prefix", "cnn_adapter": "CNN adapter", "chapter": "CHAPTER", "weighted_sum": "Weighted-sum",
    "ad_tuning": "AD-TUNING",
}  # fmt: skip


def finished(folder: Path, task: str, row: str) -> list[TaskRun]:
    """Return the finished runs of a row; none is a DataError."""
    runs = runs_of(folder, task, row)
    if not runs:
        raise DataError(f"{folder}/{task} contains no finished run {row}: do the stages before this one.")
    return runs


def scored_runs(folder: Path, task: str, row: str) -> list[TaskRun]:
    """Return the runs of a row that have chosen masks, the first seed first; none is a DataError."""
    places = (folder, folder / "fisher_pass")
    runs = [run for place in places for run in runs_of(place, task, row) if (run.folder / MASKS).is_file()]
    if not runs:
        raise DataError(f"{folder}/{task} contains no run {row} with {MASKS}: do the stages before this one.")
    return runs


def shown_pass(fisher: Mapping[str, Any]) -> str:
    """Return in words what a Fisher pass read, from the settings that its masks were stored with."""
    if fisher.get("loader") == "task":
        return "the task's loader, as released"
    if not fisher.get("max_batches"):
        return "whole training split"
    unit = "utterances" if fisher.get("granularity") == "sample" else "batches"
    return f"{'drawn' if 'order' in fisher else 'first'} {fisher['max_batches']} {unit}"


def fig2(flags: argparse.Namespace) -> None:
    """Draw the scores' distribution of one run per task."""
    panels, runs = [], [scored_runs(flags.runs, task, "child-0.1")[0] for task in flags.tasks]
    for task, run in zip(flags.tasks, runs):
        _, origin, histogram = mask_files.load(run.folder / MASKS)
        if histogram is None:
            raise DataError(f"{run.folder / MASKS} has no histogram: its masks were not chosen by Fisher information.")
        batches = shown_pass(origin["fisher"])
        edges, counts = (part.tolist() for part in histogram)
        panels.append(ScoreHistogram(f"{task}, seed {run.seed}, {batches}", edges, counts))
    plot_fisher(panels, DENSITIES, flags.out, f"Fisher information of the eligible weights, {upstreams_of(runs)}")


def fig3(flags: argparse.Namespace) -> None:
    """Draw the curves of three densities, each trained alone to the end, with the cut of the race."""
    panels = []
    for task in flags.tasks:
        series = [
            Series(f"P = {p:g}", [run.curve for run in finished(flags.runs, task, f"child-{p:g}")]) for p in DENSITIES
        ]
        races = [run for run in runs_of(flags.runs, task, "ad_tuning") if run.race]
        cut = ("comparison", float(races[0].race["cut"])) if races else None
        chosen = "; ".join(f"seed {run.seed}: {run.race['chosen'].replace('density=', 'P = ')}" for run in races)
        title = f"{task}, {TASKS[task][1]}" + (f"\nAD-TUNING chose {chosen}" if chosen else "")
        panels.append(SeriesPanel(title, series, "optimizer step", heading(task, "dev"), cut))
    names = upstreams_of([finished(flags.runs, task, "child-0.1")[0] for task in flags.tasks])
    plot_series_panels(panels, flags.out, f"Three child networks, {names}; bars: one standard deviation")


def low_resource(flags: argparse.Namespace) -> None:
    """Draw test scores over hours of training speech."""
    folders = {
        float(path.name.removesuffix("h")): path
        for path in (flags.runs / "low_resource").glob("*h")
        if re.fullmatch(r"[\d.]+h", path.name)
    }
    record = read_json(flags.runs / "corpora" / "low_resource" / "subsets.json")
    series = []
    for row in flags.rows:
        by_seed: dict[int, dict[float, float]] = {}
        for hours, folder in sorted(folders.items()):
            for run in runs_of(folder, "pr", row):
                if run.scores is not None:
                    by_seed.setdefault(run.seed, {})[hours] = run.scores["test"]
        if by_seed:
            series.append(Series(NAMES.get(row, row), list(by_seed.values())))
    if not series:
        raise DataError(f"{flags.runs}/low_resource contains no finished run: do the stages before this one.")
    steps = sorted(
        {read_record(path)["step"] for folder in folders.values() for path in folder.glob("pr/*/*/*/result.json")}
    )
    title = f"{record['source']}, {', '.join(map(str, steps))} steps"
    panel = SeriesPanel(title, series, "hours of training speech", heading("pr", "test"), log_x=True)
    plot_series_panels([panel], flags.out, "Low-resource phoneme recognition; bars: one standard deviation over seeds")


def fig7(flags: argparse.Namespace) -> None:
    """Draw where the child network of one density lies, for each task."""
    shares, runs = [], [scored_runs(flags.runs, task, f"child-{flags.density:g}")[0] for task in flags.tasks]
    for task, run in zip(flags.tasks, runs):
        masks, _, _ = mask_files.load(run.folder / MASKS)
        if flags.density not in masks.densities:
            raise DataError(f"{run.folder / MASKS} has the densities {masks.densities}, not {flags.density:g}.")
        changed = {name: int(indices.numel()) for name, indices in masks.at(flags.density).items()}
        shares.append(LayerShares(f"{task}, seed {run.seed}", changed, eligible_sizes(run.record)))
    plot_layer_shares(shares, flags.out, f"Child network of P = {flags.density:g}, {upstreams_of(runs)}")


def eligible_sizes(record: ResultRecord) -> Mapping[str, int]:
    """Return the number of weights of each tensor that a child network of a run may be chosen from."""
    import s3prl_ext

    s3prl_ext.install()
    from s3prl import hub

    args = record["args"]
    given = {"ckpt": args.get("upstream_ckpt"), "model_config": args.get("upstream_model_config")}
    model = getattr(hub, args["upstream"])(**{key: value for key, value in given.items() if value})
    patterns = record.at("config.tuning.eligible")
    return {name: parameter.numel() for name, parameter in eligible_parameters(model, patterns).items()}


def upstreams_of(runs: Sequence[TaskRun]) -> str:
    """Return the names of the runs' upstreams, each once."""
    every = [run.record["args"] for run in runs]
    names = [Path(args["upstream_ckpt"]).name if args.get("upstream_ckpt") else args["upstream"] for args in every]
    return ", ".join(dict.fromkeys(names))


FIGURES = {"fig2": fig2, "fig3": fig3, "fig5": low_resource, "fig6": low_resource, "fig7": fig7}
ROWS = {
    "fig5": "child-0.1 child-0.01 child-0.001",
    "fig6": "full frozen houlsby adapter_bias prefix weighted_sum ad_tuning",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Draw one figure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the recipe (its --out)")
    parser.add_argument("--tasks", default="ks", help="one panel each (default: ks)")
    parser.add_argument("--rows", default="", help="fig5, fig6: which rows, at most eight")
    parser.add_argument("--density", type=float, default=0.1, help="fig7: of the child network (default: 0.1)")
    parser.add_argument("--out", type=Path, help="the PNG file (default: FIGURE.png in --runs)")
    flags = parser.parse_args(argv)
    flags.out = flags.out or flags.runs / f"{flags.figure}.png"
    flags.tasks = flags.tasks.replace(",", " ").split()
    flags.rows = (flags.rows or ROWS.get(flags.figure, "")).replace(",", " ").split()
    FIGURES[flags.figure](flags)
    sys.stdout.write(f"{flags.out}\n")
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
