"""``sweep.md`` and ``sweep.png``: what a sweep measured, next to the figures of the MAM paper where it is its grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ext.evaluation.plots import STYLES, light_frame, picture
from s3prl_ext.metrics import Metric, factor, heading
from s3prl_ext.papers.figures import mam_figure
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group, printed_by
from s3prl_ext.sweeps.selection import Lookup, Point, point
from s3prl_ext.tables import grid
from s3prl_ext.writing import write_text

if TYPE_CHECKING:  # imported where it is used
    from matplotlib.axes import Axes

LEGEND = {"none": "source", "source": "N(source)", "target": "N(target)", "standard": "N(0,1)"}


def write_table(
    path: Path,
    groups: Sequence[Group],
    summary: Sequence[dict[str, Any]],
    dev: str,
    test: str | None,
    metric_name: str,
    metric: Metric,
    lookup: Lookup,
    title: str,
    paper: str | None = None,
) -> None:
    """Write the Markdown table of a sweep.

    Args:
        paper: corpus of the MAM paper whose figures are shown next to ours: ``ljspeech``, ``vctk``, ``esc50``; None for
            none.
    """
    lookup, summary = _in_shown_unit(lookup, summary, factor(metric_name))
    unit = f" ({'%' if metric.unit == 'ratio' else metric.unit})" if metric.unit in ("%", "ratio") else ""
    direction = "higher" if metric.higher_is_better else "lower"
    baseline = {split: point([BASELINE], split, lookup) for split in (dev, test) if split}
    lines = [f"# {title}", "", f"Metric: {metric_name}{unit}, {direction} is better. Several draws: mean ± standard "]
    lines[-1] += "deviation over draws. One: with its 95 % interval over utterances, where the task gives counts."
    lines += ["", f"Unmerged target: {', '.join(f'{split} {shown(item)}' for split, item in baseline.items())}.", ""]
    if paper:
        lines += [f"Paper: what MAM prints for {paper} with the paper's own models, on its test set.", ""]
    lines += [f"## λ chosen on {dev}", "", *_chosen(summary, dev, test, paper), ""]
    blocks = [(group, lambda_) for group, lambda_ in printed_by(paper, groups) if group.name != "all"]
    if paper and test and any(point(group.arms(lambda_), test, lookup) for group, lambda_ in blocks):
        lines += ["## The paper's λ", "", *_at_the_papers_lambda(blocks, dev, test, lookup, paper), ""]
    lines += ["## All arms", ""]
    lines += _all_arms(groups, dev, test, lookup, paper)
    write_text(path, "\n".join(lines) + "\n")


def _in_shown_unit(
    lookup: Lookup, summary: Sequence[dict[str, Any]], times: float
) -> tuple[Lookup, list[dict[str, Any]]]:
    """Return scores and summary as they are shown: ratios in per cent, as in ``s3prl-ext report``."""

    def shown_score(arm: Arm, split: str) -> tuple[float, tuple[float, float] | None] | None:
        found = lookup(arm, split)
        if found is None:
            return None
        value, interval = found
        return times * value, interval and (times * interval[0], times * interval[1])

    def shown_point(item: dict[str, Any] | None) -> dict[str, Any] | None:
        if item is None:
            return None
        interval = item["interval"] and tuple(times * end for end in item["interval"])
        return item | {"mean": times * item["mean"], "std": item["std"] and times * item["std"], "interval": interval}

    return shown_score, [row | {"dev": shown_point(row["dev"]), "test": shown_point(row["test"])} for row in summary]


def _chosen(summary: Sequence[dict[str, Any]], dev: str, test: str | None, paper: str | None) -> list[str]:
    head = ["layers", "merged in", "λ", dev, *([test] if test else []), *(["paper (test)"] if paper else [])]
    rows = []
    doubtful = False
    for row in summary:
        mark = "" if row["better_than_target_on_dev"] else " †"
        doubtful |= bool(mark)
        cells = [row["group"], LEGEND[row["noise"]], f"{row['lambda']:g}{mark}", shown(Point(**row["dev"]))]
        cells += [shown(Point(**row["test"]) if row["test"] else None)] if test else []
        cells += [mam_figure(paper, row["group"], row["noise"], row["lambda"]) or "-"] if paper else []
        rows.append(cells)
    note = ["", f"† no λ above 0 beats the unmerged target on {dev}: there λ = 0 would be chosen."] if doubtful else []
    return [grid(head, rows), *note]


def _at_the_papers_lambda(
    blocks: Sequence[tuple[Group, float]], dev: str, test: str, lookup: Lookup, paper: str
) -> list[str]:
    rows = []
    for group, lambda_ in blocks:
        ours = [shown(point(group.arms(lambda_), split, lookup)) for split in (dev, test)]
        rows.append([group.name, f"{lambda_:g}", *ours, mam_figure(paper, group.name, group.noise, lambda_) or "-"])
    return [grid(["layers", "λ", dev, test, "paper (test)"], rows)]


def _all_arms(groups: Sequence[Group], dev: str, test: str | None, lookup: Lookup, paper: str | None) -> list[str]:
    head = ["layers", "merged in", "λ", "draws", dev, *([test] if test else []), *(["paper (test)"] if paper else [])]
    rows = []
    for name, noise, lambda_, arms, draws in [
        ("-", None, 0.0, [BASELINE], 1),
        *((g.name, g.noise, value, g.arms(value), g.draws) for g in groups for value in g.lambdas),
    ]:
        cells = [name, LEGEND[noise] if noise else "-", f"{lambda_:g}", str(draws), shown(point(arms, dev, lookup))]
        cells += [shown(point(arms, test, lookup))] if test else []
        cells += [mam_figure(paper, name, noise, lambda_) or "-"] if paper else []
        rows.append(cells)
    return [grid(head, rows)]


def shown(item: Point | None) -> str:
    """Return a score as text; ``-`` where there is none."""
    if item is None:
        return "-"

    def digits(value: float) -> str:
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"

    if item.std is not None:
        return f"{digits(item.mean)} ± {digits(item.std)}"
    if item.interval is not None:
        return f"{digits(item.mean)} [{digits(item.interval[0])}, {digits(item.interval[1])}]"
    return digits(item.mean)


def plot(
    path: Path,
    groups: Sequence[Group],
    split: str,
    metric_name: str,
    lookup: Lookup,
    title: str,
    items: int | None = None,
) -> None:
    """Draw the metric on `split` over lambda, a panel per set of layers and a line per kind of source matrices.

    Bars are a standard deviation over draws, or the 95 % interval of a single arm; the band is that of the target.

    Args:
        items: how many utterances the split has; None where that is not known.
    """
    panels: dict[str, list[Group]] = {}
    for group in groups:
        panels.setdefault(group.name, []).append(group)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    width = 7.0 if columns == 1 else 4.2 * columns
    lookup = _in_per_cent(metric_name, lookup)
    baseline = point([BASELINE], split, lookup)
    styles = dict(zip(LEGEND, STYLES, strict=False))
    size = width, 4.2 if rows == 1 else 3.2 * rows
    with picture(path, size, columns, rows=rows, sharey=True) as (figure, axes):
        for axis, (name, members) in zip(axes, panels.items(), strict=False):
            for group in members:
                _curve(axis, group, split, baseline, lookup, styles[group.noise])
            if baseline is not None:
                axis.axhline(baseline.mean, color="black", linestyle=":", linewidth=1, label="unmerged target")
                below, above = _bars(baseline)
                axis.axhspan(baseline.mean - below, baseline.mean + above, color="black", alpha=0.07, linewidth=0)
            axis.set(title=f"layers {name}", xlabel="λ")
            light_frame(axis)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel(f"{heading(metric_name)} on {split}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 if columns == 1 else 5,
                      frameon=False)  # fmt: skip
        figure.suptitle(f"{title}, n = {items} utterances" if items else title, fontsize="medium", wrap=True)


def _in_per_cent(metric_name: str, lookup: Lookup) -> Lookup:
    """Return a lookup that gives values as they are shown: ratios in per cent."""
    times = factor(metric_name)

    def scaled(arm: Arm, split: str) -> tuple[float, tuple[float, float] | None] | None:
        found = lookup(arm, split)
        if found is None:
            return None
        value, interval = found
        return times * value, (times * interval[0], times * interval[1]) if interval else None

    return scaled


def _curve(
    axis: Axes, group: Group, split: str, baseline: Point | None, lookup: Lookup, style: tuple[str, Any, str]
) -> None:
    colour, line, marker = style
    points = [(0.0, baseline), *((value, point(group.arms(value), split, lookup)) for value in group.lambdas)]
    drawn = sorted((value, item) for value, item in points if item is not None)
    bars = [_bars(item) if value else (0.0, 0.0) for value, item in drawn]  # that of lambda 0 is a band
    lower, upper = zip(*bars, strict=True)
    axis.errorbar(
        [value for value, _ in drawn],
        [item.mean for _, item in drawn],
        yerr=[lower, upper],
        color=colour,
        linestyle=line,
        marker=marker,
        capsize=3,
        label=LEGEND[group.noise] + (f" (n = {group.draws} draws)" if group.draws > 1 else ""),
    )


def _bars(item: Point) -> tuple[float, float]:
    """Return how far the interval reaches below and above the value: a standard deviation, or the bootstrap's ends."""
    if item.std is not None:
        return item.std, item.std
    if item.interval is not None:
        return max(0.0, item.mean - item.interval[0]), max(0.0, item.interval[1] - item.mean)
    return 0.0, 0.0
