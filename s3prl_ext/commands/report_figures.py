"""Pictures of a report: those that runs left in their folders, and those that are drawn from a sweep's scores."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, ExtError
from s3prl_ext.evaluation.diarization_scoring import (
    ErrorRate,
    Setting,
    SuperbScore,
    predictions_sha256,
    score_runs,
)
from s3prl_ext.evaluation.heat_map import plot_heat_map
from s3prl_ext.evaluation.report_page import Picture
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.scored_runs import ScoredRun, facts_of
from s3prl_ext.metrics import factor, heading
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import LAMBDA_PICTURE, RACE_PICTURE
from s3prl_ext.sweeps.grid import BASELINE, Arm
from s3prl_ext.sweeps.report import plot
from s3prl_ext.sweeps.selection import point
from s3prl_ext.sweeps.stored import StoredSweep
from s3prl_ext.writing import write_json

logger = logging.getLogger(__name__)

# Pictures that runs and commands write into their folder, and what they show.
OF_A_RUN = {
    "study.png": "scores on dev by what a study searched",
    RACE_PICTURE: "candidates' curves with the step of the comparison (AD-TUNING, Fig. 3)",
    LAMBDA_PICTURE: "λ of each layer over training",
    "layers.png": "similarity of the layers of two models (MAM, Table 3)",
    "fig2.png": "Fisher information and the densities of child networks (AD-TUNING, Fig. 2)",
    "fig3.png": "training curves of candidates (AD-TUNING, Fig. 3)",
    "fig5.png": "low resource: PER over hours, child networks (AD-TUNING, Fig. 5)",
    "fig6.png": "low resource: PER over hours, other methods (AD-TUNING, Fig. 6)",
    "fig7.png": "share of updated weights per layer (AD-TUNING, Fig. 7)",
}
# Beginnings of the names of facts that two evaluations of one model share.
OF_THE_MODEL = ("upstream", "method", "features", "optimizer.", "tuning.", "lambda", "layers", "noise", "merge.")
SCORES = "superb.json"  # SUPERB's diarization score, kept next to the predictions


def draw(sweeps: Sequence[StoredSweep], folders: Sequence[Path], out: Path) -> list[Picture]:
    """Draw or copy all pictures into a folder and return them.

    Args:
        sweeps: finished sweeps: a curve over lambda and a map of layer sets for each.
        folders: of runs, recipes and comparisons of layers; the pictures in them are copied.
        out: existing folder of the report.
    """
    pictures = []
    for number, sweep in enumerate(sweeps, 1):
        for split in (sweep.content["dev"], sweep.content["test"]):
            if split and sweep.complete_on(split):
                pictures += _of_sweep(sweep, split, out, f"sweep{number}-{split}")
    for number, folder in enumerate(dict.fromkeys(folders), 1):
        for name, shows in OF_A_RUN.items():
            if (folder / name).is_file():
                copy = out / f"run{number}-{name}"
                shutil.copyfile(folder / name, copy)
                pictures.append(Picture(copy, f"{folder}: {shows}"))
    return pictures


def _of_sweep(sweep: StoredSweep, split: str, out: Path, name: str) -> list[Picture]:
    """Draw the metric over lambda, and a map of layer sets over lambda where there are several sets."""
    curve = out / f"{name}-lambda.png"
    plot(curve, sweep.groups, split, sweep.metric_name, sweep.lookup, sweep.title, sweep.items(split))
    draws = max(group.draws for group in sweep.groups)
    bars = f"; noise: mean and standard deviation of {draws} draws" if draws > 1 else ""
    pictures = [Picture(curve, f"{sweep.path}: {sweep.metric_name} on {split} over λ (MAM, Table 1){bars}")]
    groups = [group for group in sweep.groups if group.noise == "none"]
    if len(groups) > 1:
        path = out / f"{name}-layers.png"
        lambdas = sorted({0.0}.union(*(group.lambdas for group in groups)))
        times = factor(sweep.metric_name)
        grid = [[_mean(sweep, group.arms(v) if v else [BASELINE], split, times)
                 if v == 0.0 or v in group.lambdas else None for v in lambdas] for group in groups]  # fmt: skip
        quantity = f"{heading(sweep.metric_name)} on {split}"
        plot_heat_map(
            [group.name for group in groups], [f"{value:g}" for value in lambdas], grid, path,
            f"{sweep.title}, n = {sweep.items(split)} utterances" if sweep.items(split) else sweep.title, quantity,
            sweep.metric.higher_is_better,
        )  # fmt: skip
        pictures.append(Picture(path, f"{sweep.path}: {quantity} by merged layers and λ (MAM, Tables 2 and 3)"))
    return pictures


def _mean(sweep: StoredSweep, arms: Sequence[Arm], split: str, times: float) -> float | None:
    found = point(arms, split, sweep.lookup)
    return None if found is None else times * found.mean


# -- diarization -------------------------------------------------------------------------------------------------------


def diarization_scores(
    runs: Sequence[ScoredRun], records: Sequence[ResultRecord], left_out: list[str]
) -> dict[str, SuperbScore]:
    """Return SUPERB's score of each diarization run on test that has its predictions, by the run's result file.

    The predictions of dev, for the threshold chosen there, are looked for in the folder ``on_dev`` of the run, and must
    be of the same model. Scores are kept next to the predictions and read again while these are the same.

    Args:
        left_out: gets a sentence for each run that cannot be scored.
    """
    tests = {str(run.source) for run in runs if run.task == "sd" and run.split == "test" and run.mode == "evaluate"}
    found = {}
    for record in records:
        folder = record.path.parent
        if str(record.path) not in tests or not (folder / "scoring" / "predictions").is_dir():
            continue
        section = record.at("config.downstream_expert.loaderrc") or {}
        try:
            dev = _of_dev(record, left_out)
            for scored in (record, *dev):
                _check_predictions(scored)
            found[str(record.path)] = _scored(folder, section, with_dev=bool(dev))
        except ExtError as error:
            left_out.append(f"{record.path}: not scored as SUPERB does: {error}")
    return found


def _of_dev(record: ResultRecord, left_out: list[str]) -> list[ResultRecord]:
    """Return the result next to the predictions of dev, where there are any and they are of the same model.

    Args:
        record: the result on test.
        left_out: gets a sentence where they are of another one, or do not say of which.
    """
    folder = record.path.parent / "on_dev"
    if not (folder / "scoring" / "predictions").is_dir():
        return []
    path = folder / record.path.name
    dev = read_record(path) if path.is_file() else None
    other = ["model (it has no result file)"] if dev is None else _unlike(record, dev)
    if dev is not None and not other:
        return [dev]
    left_out.append(
        f"{folder}: no threshold is chosen there, its predictions are of another {', '.join(other)} than those of "
        f"{record.path}: evaluate dev again with the checkpoint that was tested."
    )
    return []


def _unlike(test: ResultRecord, dev: ResultRecord) -> list[str]:
    """Return in what the models of two evaluations differ, in words; what one does not say counts as alike."""
    given = [Path(str(one["args"].get("init_ckpt") or "")) for one in (test, dev)]
    facts = [facts_of(one) for one in (test, dev)]
    pairs = {
        "step": (test["step"], dev["step"]),
        "seed": (test["seed"], dev["seed"]),
        "checkpoint": [path.name or None for path in given],
        "folder of the checkpoint": [path.parent.name or None for path in given],
    }
    names = sorted({name for one in facts for name in one if name.startswith(OF_THE_MODEL)})
    pairs |= {name: [one.get(name) for one in facts] for name in names}
    return [name for name, (one, other) in pairs.items() if None not in (one, other) and one != other]


def _check_predictions(record: ResultRecord) -> None:
    """Refuse predictions of another evaluation than the one that a result reports; older results do not say.

    Raises:
        DataError: they are.
    """
    stated, folder = record["predictions_sha256"], record.path.parent
    if stated is not None and predictions_sha256(folder) != stated:
        raise DataError(
            f"the predictions or the frame shift in {folder} are not of the evaluation that it reports: evaluate test "
            "again into this folder."
        )


def _scored(folder: Path, section: dict[str, Any], with_dev: bool) -> SuperbScore:
    test_rttm = Path(section["test_dir"]) / "rttm"
    dev, dev_rttm = folder / "on_dev", Path(section["dev_dir"]) / "rttm"
    state = _state([folder, *([dev] if with_dev else [])], [test_rttm, *([dev_rttm] if with_dev else [])])
    kept = folder / "scoring" / SCORES
    restored = _restored(kept, state)
    if restored is not None:
        return restored
    logger.info("scoring the diarization of %s as SUPERB does", folder)
    score = score_runs(folder, test_rttm, dev if with_dev else None, dev_rttm if with_dev else None)
    try:
        write_json(kept, {"of": state, **asdict(score)})
    except OSError as error:  # the run may lie where nothing can be written
        logger.info("the score of %s is not kept: %s", folder, error)
    return score


def _state(folders: Sequence[Path], references: Sequence[Path]) -> list[list[Any]]:
    """Return names, sizes and times of what is scored, as JSON gives them back."""
    files = [file for folder in folders for file in sorted((folder / "scoring" / "predictions").glob("*.h5"))]
    present = [file for file in (*files, *references) if file.is_file()]
    return [[file.name, file.stat().st_size, file.stat().st_mtime] for file in present]


def _restored(kept: Path, state: list[list[Any]]) -> SuperbScore | None:
    """Return the score that was kept, or None where there is none of these files."""
    try:
        content = parse_json(kept.read_text(encoding="utf-8"))
        if content["of"] != state:
            return None
        dev = content["dev_chosen"] is not None
        return SuperbScore(
            Setting(*content["setting"]), ErrorRate(**content["rate"]), content["recordings"],
            Setting(*content["dev_setting"]) if dev else None, ErrorRate(**content["dev_chosen"]) if dev else None,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
