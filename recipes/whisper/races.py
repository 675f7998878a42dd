"""Say how often an early comparison of child networks agrees with the end: ``races.py methods_ks.json``.

The files are packed studies of ``ad_tuning.sh``. Runs that differ in nothing but the density P were each trained to the
end, and make one race: AD-TUNING keeps the P that is best on dev after a fifth of the steps, successive halving drops
the worst one after a fifth and after two fifths. Equal scores are told apart as in the races of s3prl_ext. Next to each
is how often densities drawn at random, one a race, would be among the best at the end as often. All scores are of dev.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

RECIPES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(RECIPES / "shared")]
from evidence import check_one_basis, laid_out, read_packed

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.studies.outcome import cells_in
from s3prl_ext.studies.plan import StudyCell, run_of
from s3prl_ext.studies.study_run import StudyRun
from s3prl_ext.tables import Table, markdown
from s3prl_ext.training.racing.early_stop import best_of

SHARE = 0.2  # of the steps, before the first comparison
MASKS = {"child": "Fisher", "random": "random"}


@dataclass(frozen=True)
class Race:
    """Child networks of several densities, each trained to the end.

    Attributes:
        task: its short name.
        mask: how the weights were chosen.
        metric: that the task is judged by.
        curves: score on dev by step, by density in the order of the study, as tables show it; none that is not finite.
    """

    task: str
    mask: str
    metric: str
    curves: Mapping[str, Mapping[int, float]]

    @property
    def end(self) -> int:
        """The last step."""
        return max(step for curve in self.curves.values() for step in curve)

    def best(self, step: int, keep: int = 1, among: Sequence[str] = (), by_density: bool = False) -> list[str]:
        """Return the densities with the best scores at a step; how equal ones are told apart is as in a race.

        Raises:
            DataError: none of them was scored at this step.
        """
        names = list(among or self.curves)
        if not any(step in self.curves[name] for name in names):
            raise DataError(
                f"{self.task}, {self.mask} masks: no run was scored on dev at step {step}, where a race compares; make "
                "them with a runner.eval_step that divides it."
            )
        scores = [self.curves[name].get(step, math.nan) for name in names]
        densities = [float(name) for name in names] if by_density else None
        return [names[place] for place in best_of(scores, self.metric, keep, densities)]

    def early(self) -> str:
        """Return the density that AD-TUNING's comparison keeps; of equal ones the smaller."""
        return self.best(round(SHARE * self.end), by_density=True)[0]

    def halving(self) -> str:
        """Return the density that is left when the worst one is dropped at each comparison; of equal ones the later."""
        left = list(self.curves)
        for place in range(1, len(left)):
            kept = self.best(round(place * SHARE * self.end), len(left) - 1, left)
            left = [name for name in left if name in kept]
        return left[0]

    def lost(self, density: str) -> float:
        """Return by how much a density ends behind the best one; NaN where it diverged."""
        (best,) = self.best(self.end)
        return abs(self.curves[best][self.end] - self.curves[density].get(self.end, math.nan))

    def chance(self) -> float:
        """Return the share of the densities that are best at the end: one, or several that end equal."""
        return fmean(self.lost(density) == 0 for density in self.curves)


def races_of(content: Mapping[str, Any]) -> list[Race]:
    """Return the races of a packed study: those of each task, mask, learning rate and seed with every density."""
    found: dict[tuple[str, ...], dict[str, Mapping[int, float]]] = {}
    names: dict[str, str] = {}
    with laid_out(content) as folder:
        for cell in cells_in(folder):
            kind, _, density = cell.labels["method"].partition("-")
            if kind not in MASKS:
                continue
            names[cell.labels["task"]] = cell.metric
            for run in _runs(cell):
                if (record := run.record()) is not None and (curve := record.curve(run.task.dev, cell.metric)):
                    key = (cell.labels["task"], MASKS[kind], run.point(cell.study.choose), str(run.seed))
                    found.setdefault(key, {})[density] = curve
    whole = max((len(curves) for curves in found.values()), default=0)
    return [
        Race(task, mask, names[task], curves)
        for (task, mask, *_), curves in found.items()
        if len(curves) == whole and whole > 1
    ]


def _runs(cell: StudyCell) -> list[StudyRun]:
    """Return every run that a cell may have: each point with each seed, also where dev has since chosen another one."""
    seeds = dict.fromkeys((*cell.study.search_seeds, *cell.study.seeds))
    points = {run.point(cell.study.choose): run for run in cell.search}.values()
    return [run_of(cell.study, run.labels, seed, run.study_folder) for run in points for seed in seeds]


def table(contents: Sequence[Mapping[str, Any]]) -> Table:
    """Return how often comparisons agree with the end, and what they cost on dev."""
    check_one_basis(contents)
    races = [race for content in contents for race in races_of(content)]
    if not races:
        raise DataError("the studies have no child networks of several densities with the same rate and seed.")
    groups = {
        (race.task, race.mask): [r for r in races if (r.task, r.mask) == (race.task, race.mask)] for race in races
    }
    body = [[task, mask, *_row(group)] for (task, mask), group in groups.items()]
    if len(groups) > 1 and len({tuple(race.curves) for race in races}) == 1:
        body.append(["all", "both" if len({mask for _, mask in groups}) > 1 else next(iter(groups))[1], *_row(races)])
    draws = "probability of as many by random draws"
    head = ["task", "mask", "P", "races", "the early comparison keeps the best", draws, "points lost on dev",
            "successive halving keeps it", draws, "points lost on dev", "best fixed P",
            "points lost on dev"]  # fmt: skip
    return Table("Races of densities", head, body)


def _row(races: Sequence[Race]) -> list[str]:
    kept = [(race.early(), race.halving()) for race in races]
    mean = {density: fmean(race.lost(density) for race in races) for density in races[0].curves}
    fixed = min(mean, key=lambda density: (math.isnan(mean[density]), mean[density]))  # in hindsight
    cells = [", ".join(races[0].curves), str(len(races))]
    for place in (0, 1):
        agree = sum(race.lost(pair[place]) == 0 for race, pair in zip(races, kept, strict=True))
        cells += [
            f"{agree} of {len(races)}",
            f"{drawn(races, agree):.2g}",
            f"{fmean(r.lost(k[place]) for r, k in zip(races, kept, strict=True)):.2f}",
        ]
    return [*cells, fixed, f"{mean[fixed]:.2f}"]


def drawn(races: Sequence[Race], agree: int) -> float:
    """Return the probability that densities drawn at random are the best ones in `agree` races or more."""
    chances = np.ones(1)  # of each number of races, if the races are independent
    for race in races:
        chances = np.convolve(chances, [1 - race.chance(), race.chance()])
    return float(chances[agree:].sum())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="packed study")
    sys.stdout.write(markdown(table([read_packed(file) for file in parser.parse_args(argv).files])) + "\n")
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
