"""``s3prl-ext study``: run all combinations of a file, here or on a cluster; the best of each cell is chosen on dev."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext import tracking
from s3prl_ext.errors import UsageError
from s3prl_ext.locks import one_run
from s3prl_ext.studies.check import check_runs
from s3prl_ext.studies.continuation import keep
from s3prl_ext.studies.driver import Driver
from s3prl_ext.studies.engines import open_engine
from s3prl_ext.studies.estimate import dry_run
from s3prl_ext.studies.names import ENGINES, count_of_jobs
from s3prl_ext.studies.outcome import write_outcome
from s3prl_ext.studies.plan import cells_of, resources_of
from s3prl_ext.studies.study_file import read_study
from s3prl_ext.studies.view import View
from s3prl_ext.tables import markdown

EPILOG = """Each run is an ordinary `s3prl-ext run` with a folder of its own; --dry-run prints the commands.
Ctrl-C saves and ends all jobs, and the same command resumes. --engine ray joins the cluster at RAY_ADDRESS, or starts
one here; slurm submits job arrays.

example:
  s3prl-ext study recipes/studies/mini.yaml -p exp/study --jobs 2
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; returns 1 where a job failed.

    Raises:
        UsageError: something is wrong with the file, the engine or the folder.
    """
    flags = _parser().parse_args(argv)
    study = read_study(flags.study, flags.override, flags.only)
    if flags.track:
        tracking.check(flags.track)
        name = re.sub(r"[^\w.-]", "-", flags.expdir.absolute().name)
        project = flags.track if ":" in flags.track else f"{flags.track}:{name}"
        study = dataclasses.replace(study, track=project)
    cells = cells_of(study, flags.expdir)
    if not cells:
        raise UsageError(f"{flags.study}: every combination is excluded.")
    if flags.expdir.exists() and not flags.expdir.is_dir():
        raise UsageError(f"-p {flags.expdir} is not a folder: name one for the study.")
    check_runs(cells, variables=not flags.dry_run, models=flags.engine == "local" and not flags.dry_run)
    if flags.dry_run:
        sys.stdout.write("\n".join(dry_run(study, cells)) + "\n")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the jobs first, as Ctrl-C does
    engine = open_engine(flags.engine, flags.jobs, resources_of(cells), study.retries, flags.expdir)
    with one_run(flags.expdir):
        keep(study, flags.expdir)
        progress = Driver(study, flags.expdir, engine, View(), flags.retry_failed).run()
        tables = write_outcome(flags.expdir)
    sys.stdout.write("\n".join(map(markdown, tables)))
    for name, sentence in progress.failed.items():
        sys.stderr.write(f"failed: {name}: {sentence}\n")
    if progress.failed:
        jobs = progress.failed.keys() - {cell.name for cell in progress.cells}  # without cells in which all diverged
        again = "; the same command with --retry-failed runs them again" if jobs else ""
        sys.stderr.write(f"{len(progress.failed)} failed{again}.\n")
    return 1 if progress.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s3prl-ext study",
        description="Run all combinations of upstreams, tasks, methods and settings; choose on dev, report on test.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("study", type=Path, help="YAML file of the study")
    add("-p", "--expdir", type=Path, required=True, help="folder of the study")
    add("-o", "--override", help='changes to the file: "tasks=[ks],,axes.lr=[1e-2,1e-3],,set.runner.total_steps=100"')
    add("--only", action="append", default=[], metavar="AXIS=LABEL,...",
        help="run a part, such as --only task=ks,sid --only method=lora; the tables show all that has run")  # fmt: skip
    add("--engine", choices=ENGINES, default="local", help="where jobs run (default: local)")
    add(
        "--jobs",
        type=count_of_jobs,
        help="jobs at a time (default: as many as the GPUs allow, else one; of ray and slurm no limit)",
    )
    add("--track", metavar="KIND", help="tracker of the trainings: wandb or mlflow, in a project of the folder's name")
    add("--retry-failed", action="store_true", help="run jobs again that failed")
    add(
        "--dry-run",
        action="store_true",
        help="print commands, number of runs and steps, and hours where runs have ended",
    )
    return parser
