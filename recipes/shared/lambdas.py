"""Keep what a finished sweep measured as a small file, and draw it; ``page.py`` makes tables of it.

    python recipes/shared/lambdas.py exp/noise/vctk/sweep.json --out vctk_noise.json --title "Whisper base"

writes ``vctk_noise.json`` and ``vctk_noise.png``: each arm's score on dev with its 95 % interval over utterances, and
on test those of the unmerged target and of the lambda that dev chose in each column. Of several sweeps, which are one
row each under the names of their folders, only the scores on dev are kept, and no picture is drawn.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.plots import light_frame, picture
from s3prl_ext.metrics import heading
from s3prl_ext.papers.figures import mam_figure
from s3prl_ext.papers.names import MAM_CORPORA
from s3prl_ext.sweeps.grid import BASELINE, Arm
from s3prl_ext.sweeps.report import LEGEND
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tables import NOTHING, Table, mean_and_deviation
from s3prl_ext.writing import write_json

SPLITS = ("dev", "test")
ALIGNMENTS = {"plain": "as they are", "match": "layers by similarity", "both": "heads and basis",
              "minilm": "MiniLM (384 wide) as source: heads and basis"}  # fmt: skip


def kept(sweep: StoredSweep) -> dict[str, Any]:
    """Return what tables and picture need of a sweep, without paths.

    Raises:
        DataError: it was chosen on another split than dev.
    """
    if _score(sweep, BASELINE, "dev") is None:
        raise DataError(f"{sweep.path} has no scores on dev: repeat the sweep without --dev.")
    settings = sweep.content["settings"]
    head = settings["task file"].get("head") or {}
    return {
        "task": settings["task"],
        "metric": sweep.metric_name,
        "head": {key: head.get(key) for key in ("window", "max_tokens")},
        "items": {split: sweep.items(split) for split in SPLITS if _score(sweep, BASELINE, split)},
        "unmerged": {split: _score(sweep, BASELINE, split) for split in SPLITS},
        "columns": [
            {
                "layers": group.name,
                "numbers": list(group.layers),
                "noise": group.noise,
                "dev": {
                    f"{value:g}": [_score(sweep, arm, "dev") for arm in group.arms(value)] for value in group.lambdas
                },
                "chosen": f"{_chosen(sweep, group.name, group.noise):g}",
                "test": [_score(sweep, arm, "test") for arm in group.arms(_chosen(sweep, group.name, group.noise))],
            }
            for group in sweep.groups
        ],
    } | ({"otherwise": sweep.otherwise} if sweep.otherwise else {})


def _chosen(sweep: StoredSweep, layers: str, noise: str) -> float:
    return next(row["lambda"] for row in sweep.content["summary"] if (row["group"], row["noise"]) == (layers, noise))


def _score(sweep: StoredSweep, arm: Arm, split: str) -> list[float] | None:
    """Return value, lower and upper bound in the metric's unit; the value of a model that diverged is NaN."""
    found = sweep.lookup(arm, split)
    return None if found is None else [found[0], *(found[1] or ())]


def name_of(column: Mapping[str, Any]) -> str:
    """Return how a column is called: the noise, or the layers that are merged."""
    kind = LEGEND[column["noise"]]
    if "top-" in column["layers"]:  # by similarity
        return f"{column['layers'].replace('_', ' ')}: {', '.join(map(str, column['numbers']))}"
    return kind if column["layers"] == "all" else f"{kind}, layers {column['layers']}"


def _shown(scores: Sequence[list[float] | None]) -> str:
    """Return mean ± deviation of several draws, or one score with its interval."""
    known = [score for score in scores if score]
    values = [math.nan if score[0] is None else score[0] for score in known]
    bounds = known[0][1:] if len(known) == 1 else []
    return mean_and_deviation(values) + (" [{:.2f}, {:.2f}]".format(*bounds) if bounds else "")


def grid_table(content: Mapping[str, Any]) -> Table:
    """Return the scores on dev: a row for each lambda, a column for what is merged, and the paper's."""
    columns = content["columns"]
    rows = [["0", _shown([content["unmerged"]["dev"]])] + [""] * (len(columns) - 1)]
    rows += [[value, *(_shown(column["dev"].get(value, ())) for column in columns)] for value in lambdas_of(content)]
    title = f"{heading(content['metric'], 'dev')}, {content['items']['dev']} utterances"
    head = ["λ", *map(name_of, columns)]
    add_paper(content, head, rows)
    otherwise = content.get("otherwise")
    return Table(title, head, rows, (f"The merges are not MAM's: {', '.join(otherwise)}.",) if otherwise else ())


def add_paper(content: Mapping[str, Any], head: list[str], rows: Sequence[list[str]]) -> None:
    """Add the paper's figures to a table whose rows begin with lambda, where merges and corpus are the paper's."""
    if content["task"] not in MAM_CORPORA or content.get("otherwise"):
        return
    for column in content["columns"]:
        figures = [mam_figure(content["task"], column["layers"], column["noise"], float(row[0])) for row in rows]
        if any(figures[1:]):  # in the unmerged model none of these layers is merged
            head.append(f"paper: {name_of(column)}")
            for row, figure in zip(rows, figures, strict=True):
                row.append(figure or NOTHING)


def chosen_table(content: Mapping[str, Any]) -> Table:
    """Return what dev chose in each column, and its score on test.

    Raises:
        DataError: the sweep was not scored on test.
    """
    check_test(content)
    rows = [["unmerged", "0", *(_shown([content["unmerged"][split]]) for split in SPLITS)]]
    for column in content["columns"]:
        value = column["chosen"]
        dev = column["dev"][value] if float(value) else [content["unmerged"]["dev"]]
        rows.append([name_of(column), value, _shown(dev), _shown(column["test"])])
    head = ["merged", "λ chosen on dev", *(heading(content["metric"], split) for split in SPLITS)]
    return Table(f"chosen on dev; test has {content['items']['test']} utterances", head, rows)


def check_test(content: Mapping[str, Any]) -> None:
    """Raise DataError where a sweep was not scored on test."""
    if not content["unmerged"].get("test"):
        raise DataError("the sweep was not scored on test (--test none): only the table 'grid' can be shown.")


def aligned_table(content: Mapping[str, Any]) -> Table:
    """Return the scores on dev of several sweeps: a row for each, a column for what is merged at each lambda.

    Raises:
        DataError: the sweeps differ in corpus, metric, head, unmerged score or in what is merged.
    """
    first = next(iter(content.values()))
    _check_alike(content)
    values = [value for value in lambdas_of(first) if all(value in lambdas_of(sweep) for sweep in content.values())]
    columns = [(value, place) for value in values for place in range(len(first["columns"]))]
    rows = [
        [ALIGNMENTS.get(name, name), *(_shown(sweep["columns"][place]["dev"][value]) for value, place in columns)]
        for name, sweep in content.items()
    ]
    head = [f"{name_of(first['columns'][place])}, λ = {value}" for value, place in columns]
    unmerged = f"Unmerged: {_shown([first['unmerged']['dev']])}."
    title = f"{heading(first['metric'], 'dev')}, {first['items']['dev']} utterances"
    return Table(title, ["alignment", *head], rows, (unmerged,))


def _check_alike(content: Mapping[str, Any]) -> None:
    """Raise DataError where sweeps that make one table are not of one corpus, model, head and merged layers."""
    (name, first), *others = content.items()
    for other, sweep in others:
        for what in ("task", "metric", "head", "items", "unmerged", "columns"):
            before, now = (_columns(one) if what == "columns" else one[what] for one in (first, sweep))
            if what in ("items", "unmerged"):
                before, now = before["dev"], now["dev"]
            if before != now:
                raise DataError(
                    f"the sweeps '{name}' and '{other}' differ in '{what}' ({before} and {now}), so that one table of "
                    "both would compare other things than their alignments: leave one of them out."
                )


def _columns(content: Mapping[str, Any]) -> list[list[Any]]:
    return [[column["layers"], column["noise"]] for column in content["columns"]]


def lambdas_of(content: Mapping[str, Any]) -> list[str]:
    """Return the values of lambda above 0, in order."""
    return sorted({value for column in content["columns"] for value in column["dev"] if float(value)}, key=float)


def draw(content: Mapping[str, Any], path: Path, title: str = "") -> None:
    """Draw the scores on dev over lambda, one line for each column; draws as their mean with the whole range.

    Args:
        content: of the small file.
        path: picture to write.
        title: what is merged, behind the name of the task.
    """
    with picture(path, (6.4, 4.0), dpi=100) as (figure, (axes,)):
        light_frame(axes)
        for column in content["columns"]:
            points = {0.0: [content["unmerged"]["dev"][0]]} | {
                float(value): [score[0] for score in scores if score and score[0] is not None]
                for value, scores in column["dev"].items()
                if float(value)
            }
            places = sorted(points)
            means = [sum(points[place]) / len(points[place]) for place in places]
            (line,) = axes.plot(places, means, "o-", markersize=4, label=name_of(column))
            if any(len(values) > 1 for values in points.values()):
                low, high = ([edge(points[place]) for place in places] for edge in (min, max))
                axes.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        low, high = axes.dataLim.intervaly
        if low > 0 and high > 20 * low:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("λ")
        axes.set_ylabel(heading(content["metric"], "dev"))
        axes.legend(frameon=False)
        figure.suptitle(content["task"] + (f": {title}" if title else ""), wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the small file and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+", help="sweep.json of finished sweeps")
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as vctk_noise.json")
    parser.add_argument("--title", default="", help="what is merged, for the picture")
    flags = parser.parse_args(argv)
    found = {path.resolve().parent.name: kept(read_sweep(path)) for path in flags.sweeps}
    if len(found) == 1:
        (content,) = found.values()
        write_json(flags.out, content, indent=1)
        draw(content, flags.out.with_suffix(".png"), flags.title)
    else:
        write_json(flags.out, found, indent=1)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
