"""What ``s3prl-ext report`` reads: result files, runs, sweeps; what cannot be used is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ext.commands.report_settings import with_settings
from s3prl_ext.configs import value_at
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.beginnings import with_kinds
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.scored_runs import ScoredRun, runs_of
from s3prl_ext.reading import parse_json
from s3prl_ext.run_folder import RACE, RESULTS, SWEEP_FILE
from s3prl_ext.studies.config import FILE as STUDY_FILE
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tables import NOTHING, Table
from s3prl_ext.tasks import named

LAYERS_FILE = "layers.json"  # of s3prl-ext layers; its picture is next to it
DECIDING = ("s3prl_ext", "torch", "s3prl", "transformers")  # packages whose versions may change a score
PARTS_OF_A_RUN = {RACE, "on_dev"}  # folders in that of a run whose results are not its own


@dataclass
class Evidence:
    """What was found in the files that were given.

    Attributes:
        runs: one for each model and split.
        records: result files.
        sweeps: finished sweeps.
        folders: where pictures may be.
        left_out: one sentence for each file or run that does not count.
    """

    runs: list[ScoredRun] = field(default_factory=list)
    records: list[ResultRecord] = field(default_factory=list)
    sweeps: list[StoredSweep] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_evidence(paths: Sequence[Path]) -> Evidence:
    """Read result files and sweeps; what is corrupt, failed or of another kind is named and left out.

    Raises:
        UsageError: a path is missing or contains no result.
        DataError: nothing usable is left.
    """
    evidence, of_studies = Evidence(folders=[path for path in paths if path.is_dir()]), Counter[Path]()
    for path in dict.fromkeys(file for given in paths for file in _files(given)):
        evidence.folders.append(path.parent)
        if path.name == LAYERS_FILE:
            continue
        try:
            if path.name == SWEEP_FILE or _is_sweep(path):
                evidence.sweeps.append(read_sweep(path))
                evidence.runs += evidence.sweeps[-1].runs()
                continue
            record = read_record(path)
        except DataError as error:
            evidence.left_out.append(str(error))
            continue
        if record["error"] is not None:
            evidence.left_out.append(f"{path}: this run failed and has no result ({record['error']})")
            continue
        evidence.records.append(record)
        runs = runs_of(record)
        if not runs:
            evidence.left_out.append(f"{path}: nothing was scored (runner.eval_dataloaders is empty).")
        study = _study_of(path) if record["mode"] == "train" else None
        if study is not None:  # it evaluates what dev has chosen; its other runs were only there to choose by
            last = [run for run in runs if run.split == named(run.task).test]
            of_studies[study] += len(last)
            runs = [run for run in runs if run not in last]
        evidence.runs += runs
    evidence.runs = with_settings(with_kinds(evidence.runs, evidence.records), evidence.records)
    evidence.left_out += [
        f"{study}: the test scores of the last step of {count} trainings are left out; a study scores what dev has "
        "chosen by evaluations of their own."
        for study, count in of_studies.items()
        if count
    ]
    if not evidence.runs:
        reasons = f": {evidence.left_out[0]}" if evidence.left_out else "."
        raise DataError(f"none of {len(evidence.left_out)} files holds a usable result{reasons}")
    return evidence


def _study_of(path: Path) -> Path | None:
    """Return the folder of the study that a file belongs to, or None."""
    return next((folder for folder in path.absolute().parents if (folder / STUDY_FILE).is_file()), None)


def _files(path: Path) -> list[Path]:
    """Return the result files of a path: itself, or those in the folder, or those below it."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"no such file or folder: {path}.")
    for names in ((RESULTS, SWEEP_FILE), (LAYERS_FILE,)):  # a comparison of layers has no score, only a picture
        for below in ("", "**/"):
            if any(file for name in names for file in path.glob(f"{below}{name}")):
                files = (file for name in (RESULTS, SWEEP_FILE, LAYERS_FILE) for file in path.glob(f"{below}{name}"))
                return sorted(file for file in files if not _is_part_of_a_run(file, path))
    raise UsageError(f"{path} contains no result.json, result-SPLIT.json or sweep.json: give folders of finished runs.")


def _is_part_of_a_run(file: Path, root: Path) -> bool:
    """Return whether a file below `root` is of a candidate or a threshold of a run.

    An experiment may have such a name.
    """
    folders = file.parents[: len(file.relative_to(root).parts) - 1]
    return any(folder.name in PARTS_OF_A_RUN and any(folder.parent.glob(RESULTS)) for folder in folders)


def _is_sweep(path: Path) -> bool:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "results" in content and "settings" in content


def sources_table(evidence: Evidence) -> Table:
    """Return the table of files and their provenance."""
    rows = []
    for record in evidence.records:
        data, versions = record.at("data.sha256"), record["versions"]
        rows.append([
            str(record.path), str(record["date"] or NOTHING)[:10], str(record["seed"]),
            str(record["step"]), _short_commit(record["commit"]), str(data or NOTHING)[:12],
            f"s3prl_ext {versions.get('s3prl_ext')}, torch {versions.get('torch')}",
            str(record.at("machine.gpu") or record.at("machine.cpu") or NOTHING),
        ])  # fmt: skip
    for sweep in evidence.sweeps:
        seed, origins = sweep.content["settings"]["seed"], sweep.origins
        data = next(iter(sweep.content["data"].values()), NOTHING)
        packages = [f"{name} {_each(origins, f'versions.{name}')}" for name in ("s3prl_ext", "torch")]
        gpu = _each(origins, "machine.gpu")
        rows.append([
            str(sweep.path), str(sweep.content.get("date") or NOTHING)[:10], str(seed), NOTHING,
            _each(origins, "commit"), data[:12], ", ".join(packages),
            gpu if gpu != NOTHING else _each(origins, "machine.cpu"),
        ])  # fmt: skip
    head = ["file", "date", "seed", "step", "commit", "data", "versions", "machine"]
    return Table("Sources", head, rows, of_texts=True)


def mixed_origins(evidence: Evidence) -> list[str]:
    """Return a sentence where the results were made by several commits, versions of packages, or machines."""
    made = [record.content for record in evidence.records if record["schema"] > 1]
    made += [origin for sweep in evidence.sweeps for origin in sweep.origins]
    found: list[str] = []
    packages = [(f"versions of {name}", f"versions.{name}") for name in DECIDING]
    for what, key in (("commits", "commit"), *packages, ("GPUs", "machine.gpu")):
        known = [value_at(one, key) for one in made]
        if key.startswith("versions."):  # of a package that the file does not name nothing is known
            known = [value for value in known if value is not None]
        values = sorted({str(value or "none") for value in known})
        if len(values) > 1:
            shown = ", ".join(_short_commit(value) if key == "commit" else value for value in values)
            found.append(f"the results come from {len(values)} {what} ({shown}); see Sources for which is which.")
    return found


def _each(origins: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return what a sweep's results come from, each once."""
    values = dict.fromkeys(value_at(origin, key) for origin in origins)
    return ", ".join(_short_commit(v) if key == "commit" else str(v) for v in values if v is not None) or NOTHING


def _short_commit(commit: str | None) -> str:
    return NOTHING if commit is None else commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
