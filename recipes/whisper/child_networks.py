"""Draw AD-TUNING's Figs. 2, 3 and 7 from the studies of ``ad_tuning.sh``.

    python recipes/whisper/child_networks.py masks exp/whisper/ad_tuning/methods/ks masks_ks.json
    python recipes/whisper/child_networks.py fig2 masks_ks.json masks_sid.json --out fig2.png
    python recipes/whisper/child_networks.py fig3 methods_ks.json methods_sid.json --out fig3.png
    python recipes/whisper/child_networks.py fig7 masks_ks.json masks_sid.json --out fig7.png

masks  of a study's child networks by Fisher information, write to a JSON file what Figs. 2 and 7 show: the
       distribution of the scores, and how many weights of each tensor train, of the first seed that is scored on test
fig2   distribution of Fisher information, the densities as lines
fig3   dev scores of child networks of three densities, each trained to the end with the rate that dev chose, and the
       step of AD-TUNING's comparison; every seed that is scored on test
fig7   share of the weights that train, by layer and by module
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPES / folder) for folder in ("ad_tuning", "shared", "whisper")]
from evidence import laid_out, read_packed
from figures import MASKS, eligible_sizes, shown_pass
from methods import model_of
from races import SHARE

from s3prl_ext.child_tuning import mask_files
from s3prl_ext.errors import DataError, UsageError, as_command
from s3prl_ext.evaluation.fisher_plot import ScoreHistogram, plot_fisher
from s3prl_ext.evaluation.layer_share_plot import LayerShares, plot_layer_shares
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.series_panels import Series, SeriesPanel, plot_series_panels
from s3prl_ext.metrics import heading
from s3prl_ext.studies.outcome import cells_in
from s3prl_ext.studies.plan import StudyCell
from s3prl_ext.writing import write_text

FORMAT = "s3prl_ext.masks_of_study"
ROW = "child-"  # how the methods are called, before the density


def child_cells(folder: Path) -> dict[float, StudyCell]:
    """Return the child networks by Fisher information of a study, by density, the largest first."""
    found = {}
    for cell in cells_in(folder):
        if cell.labels["method"].startswith(ROW):
            found[float(cell.labels["method"].removeprefix(ROW))] = cell
    return dict(sorted(found.items(), reverse=True))


def trained(cell: StudyCell) -> list[ResultRecord]:
    """Return the results of the trainings that are scored on test, the first seed first."""
    tested = [run for run in cell.final_runs() if run.tested() is not None]
    return [record for run in tested if (record := run.record()) is not None]


def masks_of(folder: Path) -> dict[str, Any]:
    """Return what Figs. 2 and 7 show of a study of one task.

    Returns:
        ``task``, ``upstream``, ``seed``; ``pass``: what Fisher information was estimated on, in words; ``edges``, the
        lower ones, and ``counts`` of the bins that hold a score, and of the first, which holds the zeros; ``sizes``:
        weights of each tensor; ``trained``: of these those that train, by density.

    Raises:
        DataError: no child network by Fisher information has been trained, or its masks are gone.
    """
    content: dict[str, Any] = {"format": FORMAT}
    for density, cell in child_cells(folder).items():
        for record in trained(cell)[:1]:
            masks, origin, histogram = mask_files.load(record.path.parent / MASKS)
            if histogram is None:
                raise DataError(f"{record.path.parent / MASKS} has no histogram, so it is not by Fisher information.")
            bins = [(edge, count) for edge, count in zip(*(part.tolist() for part in histogram)) if count or not edge]
            content |= {
                "task": cell.labels["task"],
                "upstream": cell.labels["upstream"],
                "seed": record["seed"],
                "pass": shown_pass(origin["fisher"]),
            }
            content |= {"edges": [edge for edge, _ in bins], "counts": [count for _, count in bins]}
            content |= {"sizes": dict(eligible_sizes(record))}
            of_density = {name: int(indices.numel()) for name, indices in masks.at(density).items()}
            content.setdefault("trained", {})[f"{density:g}"] = of_density
    if "trained" not in content:
        raise DataError(f"{folder} contains no trained child network by Fisher information: run its study first.")
    return content


def read_masks(files: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Return the contents of files that ``masks`` wrote."""
    contents = [read_json(file) for file in files]
    for file, content in zip(files, contents, strict=True):
        if content.get("format") != FORMAT:
            raise DataError(f"{file} is not a file of masks: write one with child_networks.py masks.")
    return contents


def _model(contents: Sequence[Mapping[str, Any]]) -> str:
    """Return what titles call the model of files of masks; the first ones did not say."""
    return model_of(dict.fromkeys(content.get("upstream", "whisper_local") for content in contents))


def histogram_of(content: Mapping[str, Any]) -> ScoreHistogram:
    """Return the distribution of one task's scores."""
    return ScoreHistogram(
        f"{content['task']}, seed {content['seed']}, {content['pass']}", content["edges"], content["counts"]
    )


def shares_of(content: Mapping[str, Any], density: float) -> LayerShares:
    """Return where one task's child network of a density lies.

    Raises:
        DataError: there is none of this density.
    """
    known = content["trained"]
    if f"{density:g}" not in known:
        raise DataError(f"{content['task']} has the densities {', '.join(known)}, not {density:g}.")
    return LayerShares(f"{content['task']}, seed {content['seed']}", known[f"{density:g}"], content["sizes"])


def panel_of(content: Mapping[str, Any]) -> SeriesPanel:
    """Return the curves of a packed study of one task, in per cent over optimizer steps."""
    with laid_out(content) as folder:
        cells = child_cells(folder)
        if not cells:
            raise DataError("the study has no child networks by Fisher information.")
        series = []
        for density, cell in cells.items():
            (axis,) = cell.study.choose
            records = trained(cell)
            if records:
                rate = cell.final_runs()[0].labels[axis]
                curves = [record.curve(cell.final_runs()[0].task.dev, cell.metric) for record in records]
                series.append(Series(f"P = {density:g}, rate {rate}", curves))
    task, end = cell.labels["task"], max(step for one in series for curve in one.runs for step in curve)
    cut = ("comparison", SHARE * end)
    return SeriesPanel(f"{task}, dev", series, "optimizer step", heading(cell.metric, "dev"), cut)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the masks of a study, or draw one figure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("masks", "fig2", "fig3", "fig7"))
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one panel each; of masks: STUDY OUT.json")
    parser.add_argument("--density", type=float, default=0.1, help="fig7: of the child network (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the PNG file (default: FIGURE.png next to the last file)")
    flags = parser.parse_args(argv)
    files, out = flags.files, flags.out or flags.files[-1].with_name(f"{flags.what}.png")
    if flags.what == "masks":
        if len(files) != 2 or flags.out:
            raise UsageError("masks takes the folder of a study and the JSON file to write.")
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in masks_of(files[0]).items()]
        write_text(out := files[1], "{" + ",\n".join(lines) + "}\n")
    elif flags.what == "fig2":
        contents = read_masks(files)
        densities = [float(density) for density in contents[0]["trained"]]
        title = "Fisher information of the eligible weights"
        plot_fisher(list(map(histogram_of, contents)), densities, out, f"{title}, {_model(contents)}")
    elif flags.what == "fig3":
        contents = [read_packed(file) for file in files]
        model = model_of(dict.fromkeys(name for one in contents for name in one["study"]["axes"]["upstream"]))
        title = f"Child networks by Fisher information, {model}; bars: one standard deviation"
        plot_series_panels(list(map(panel_of, contents)), out, title)
    else:
        contents = read_masks(files)
        shares = [shares_of(content, flags.density) for content in contents]
        plot_layer_shares(shares, out, f"Child network of P = {flags.density:g}, {_model(contents)}")
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
