"""``s3prl-ext report``: result files, runs and sweeps as tables next to the papers' numbers, and as one page."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from s3prl_ext import extensions
from s3prl_ext.commands import report_figures
from s3prl_ext.commands.flags import report as flags_of
from s3prl_ext.commands.report_evidence import Evidence, mixed_origins, read_evidence, sources_table
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation import clusters
from s3prl_ext.evaluation.comparability import decisive, differences
from s3prl_ext.evaluation.merge_facts import deviations
from s3prl_ext.evaluation.report_page import page
from s3prl_ext.evaluation.result_rows import (
    Row,
    check_facts,
    described,
    rows_of,
    without_duplicates,
    without_last_steps,
)
from s3prl_ext.evaluation.result_tables import Line, model_of, race_tables, table_of_lines
from s3prl_ext.evaluation.scored_runs import ScoredRun, main_metric_of
from s3prl_ext.evaluation.superb_row import superb_table
from s3prl_ext.evaluation.utterance_comparison import check_utterances, with_intervals_over
from s3prl_ext.evaluation.utterance_counts import OtherEvaluation
from s3prl_ext.metrics import heading, metric
from s3prl_ext.papers.tables import Cell, PaperTable, paper_table, pivot, with_ours
from s3prl_ext.papers.transcript_tables import transcript_tables
from s3prl_ext.studies.outcome import tables_of
from s3prl_ext.tables import Table, counted, csv_text, latex, markdown, plain
from s3prl_ext.tasks import reported_splits
from s3prl_ext.writing import check_out_file, write_text

logger = logging.getLogger(__name__)

NO_BASELINE = "No change is shown: none of the rows, or more than one, could be the baseline; name it with --baseline."


# What is written next to the pictures, and how an earlier report is told from other files of these names.
WRITTEN: dict[str, Callable[[str], bool]] = {
    "report.md": lambda text: text.startswith("# ") and "\n## Sources\n" in text,
    "report.csv": lambda text: text.startswith("table,"),
    "report.tex": lambda text: text.startswith(r"\begin{table}"),
    "report.html": lambda text: "<h2>Sources</h2>" in text,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write ``report.md``, ``.csv``, ``.tex``, ``.html`` and pictures; returns the exit status.

    Raises:
        UsageError: an unknown metric, table or split, or nothing to read at a path.
        DataError: no usable result, or two results that contradict each other.
    """
    flags = flags_of.parser().parse_args(argv)
    extensions.load()  # their tasks and metrics
    papers = [paper_table(name) for name in flags.paper]
    if flags.metric is not None:
        metric(flags.metric)
    evidence = read_evidence(flags.results)
    evidence.runs, repeated = without_duplicates(evidence.runs)
    evidence.runs, others = without_last_steps(evidence.runs)
    evidence.left_out += [*dict.fromkeys([*repeated, *others]), *mixed_origins(evidence)]
    if flags.intervals_over != clusters.UTTERANCE:
        evidence.runs = [_over(flags.intervals_over, run, evidence.left_out) for run in evidence.runs]
    if flags.group_by is not None:
        check_facts(flags.group_by, evidence.runs)
    tables = [table for place in flags.results if place.is_dir() for table in tables_of(place)]
    tables += race_tables(evidence.records) if not papers else []
    tables += _tables(evidence, papers, flags)
    out = flags.out
    out.mkdir(parents=True, exist_ok=True)
    for name, fits in WRITTEN.items():
        check_out_file(out / name, fits)
    pictures = report_figures.draw(evidence.sweeps, evidence.folders, out)
    for sentence in evidence.left_out:
        logger.warning("%s", sentence)
    title = flags.title or "Results"
    sources = sources_table(evidence)
    warnings = [f"> {plain(sentence)}" for sentence in evidence.left_out]
    parts = [f"# {plain(title)}\n", *(["\n>\n".join(warnings) + "\n"] if warnings else []), *map(markdown, tables)]
    parts += [f"![{p.caption}]({p.path.name})\n" for p in pictures] + [markdown(sources)]
    write_text(out / "report.md", "\n".join(parts))
    write_text(out / "report.csv", csv_text(tables))
    write_text(out / "report.tex", "\n".join(latex(table) for table in tables))
    write_text(out / "report.html", page(title, tables, pictures, evidence.left_out, sources))
    print("\n".join(markdown(table) for table in tables))
    shown = f"{counted(tables, 'table')} and {counted(pictures, 'picture')} of {counted(evidence.runs, 'result')}"
    print(f"{shown}: {out / 'report.html'}, .md, .csv, .tex")
    return 0


def _over(kind: str, run: ScoredRun, left_out: list[str]) -> ScoredRun:
    """Return a run with its interval over clusters; where they are not known, a sentence says so and it has none."""
    try:
        return with_intervals_over(kind, run)
    except DataError as error:
        left_out.append(str(error))
        return replace(run, intervals={}, intervals_over=kind)


def _with_sound_utterances(run: ScoredRun, left_out: list[str]) -> ScoredRun:
    """Return a run without its file of utterances where that is corrupt, and say so; other tables need none."""
    try:
        check_utterances(run)
    except OtherEvaluation:
        pass  # named where it is compared: a later evaluation has replaced it
    except DataError as error:
        left_out.append(f"{error} Until then the run is not compared utterance by utterance.")
        return replace(run, utterances=None)
    return run


def _tables(evidence: Evidence, papers: Sequence[PaperTable], flags: argparse.Namespace) -> list[Table]:
    """Return the papers' tables, SUPERB's line, and otherwise one table for each task, set and split.

    Tasks never mix.
    """
    runs = [run for run in evidence.runs if flags.split in (None, run.split)]
    if not runs:
        splits = ", ".join(sorted({run.split for run in evidence.runs}))
        raise UsageError(f"--split {flags.split}: no result of that split; there are {splits}.")
    sound = {id(run): _with_sound_utterances(run, evidence.left_out) for run in runs}
    every = [sound.get(id(run), run) for run in evidence.runs]  # what is shown may have been chosen on another split
    runs = list(sound.values())
    tables: list[Table] = []
    for paper in papers:
        tables += _paper_tables(paper, runs, flags, evidence.left_out)
    if not papers:
        diarization = report_figures.diarization_scores(runs, evidence.records, evidence.left_out)
        superb = superb_table(every, diarization, flags.split)
        tables += [superb] if superb else []
        tables += _plain_tables(runs, flags, evidence.left_out)
    tables += transcript_tables(every, evidence.left_out) if flags.split in (None, "test") else []
    if not tables:
        raise DataError("no table could be made: " + " ".join(evidence.left_out))
    return tables


def _plain_tables(runs: Sequence[ScoredRun], flags: argparse.Namespace, left_out: list[str]) -> list[Table]:
    tables = []
    for task, part, split in sorted(
        {(run.task, run.part, run.split) for run in runs}, key=lambda key: (*key[:2], "test" not in key[2], key[2])
    ):
        those = [run for run in runs if (run.task, run.part, run.split) == (task, part, split)]
        reported = dict.fromkeys(name for run in those for name in run.values)
        name = flags.metric or main_metric_of(those)
        what = f"{task} {part}".rstrip()
        if name not in reported:
            left_out.append(f"{what}, {split}: has no {name or 'metric of a known task'}, only {', '.join(reported)}.")
            continue
        rows = rows_of(those, name, flags.group_by)
        bases = _baselines(rows, flags.baseline)
        lines = [Line(row.label, row, baseline=any(row is base for base in bases)) for row in rows]
        alone = [] if bases or len(rows) < 2 else [NO_BASELINE]
        tables.append(
            table_of_lines(
                f"{what}, {split}: {heading(name)}", name, lines, with_paper=False, notes=alone,
                across_models=flags.baseline is not None,
            )
        )  # fmt: skip
    return tables


def _baselines(rows: Sequence[Row], wanted: str | None) -> list[Row]:
    """Return the named row, or else the unmerged one among merged ones, or the fully tuned one, if there is one.

    Where several models are merged, as in several sweeps, each has its own.
    """
    if wanted is not None:
        named = [row for row in rows if wanted in row.label]
        exact = [row for row in named if row.label == wanted] or named
        if len(exact) != 1:
            listed = "; ".join(row.label for row in rows)
            raise UsageError(f"--baseline '{wanted}' names {len(exact)} rows of {rows[0].task}: {listed}.")
        return exact
    plain = [row for row in rows if not row.facts.get("lambda") and not row.facts.get("learnable")]
    if len(plain) < len(rows):
        unmerged = [row for row in plain if row.facts.get("lambda") == 0.0]
        one_of_each = len(set(map(model_of, unmerged))) == len(unmerged)
        return plain if len(plain) == 1 else unmerged if one_of_each else []
    tuned = [row for row in rows if row.facts.get("method") == "full"]
    return tuned if len(tuned) == 1 else []


def _paper_tables(
    paper: PaperTable, runs: Sequence[ScoredRun], flags: argparse.Namespace, left_out: list[str]
) -> list[Table]:
    """Return the table as the paper prints it, and one table per task with the details.

    Raises:
        DataError: no run belongs into the table.
    """
    cells = _cells(paper, runs, flags, left_out)
    if not cells:
        raise DataError(
            f"--paper {paper.name}: none of {len(runs)} results belongs there; it shows {', '.join(paper.tasks)} on "
            f"test (--split dev takes dev), and takes {paper.takes}. Given: {_listed(runs)}."
        )
    tasks = [task for task in paper.tasks if any(cell.task == task for cell in cells)]
    has_columns = any(cell.column for cell in paper.figures)
    shown = [[task] for task in tasks] if has_columns else [tasks]
    tables = [
        _with_notes(pivot(paper, some[0] if has_columns else None, cells), _unlike(paper, some, cells))
        for some in shown
    ]
    return tables + [_details(paper, task, cells) for task in tasks]


def _with_notes(table: Table, notes: Sequence[str]) -> Table:
    return replace(table, notes=(*table.notes, *notes))


def _unlike(paper: PaperTable, tasks: Sequence[str], cells: dict[Cell, list[Row]]) -> list[str]:
    """Return a sentence for each task some of whose cells are of another corpus or model than its first one."""
    notes = []
    for task in tasks:
        rows = [(cell, row) for cell, found in cells.items() if cell.task == task for row in found]
        first = next((pair for pair in rows if pair[0] == paper.baselines[task]), rows[0])
        unlike: dict[str, list[str]] = {}
        for cell, row in rows:
            if others := decisive(differences(first[1], row)):
                unlike.setdefault(" and ".join(others), []).append(_named(cell))
        notes += [
            f"{task}: {'; '.join(dict.fromkeys(names))} cannot be compared with {_named(first[0])}, which has another "
            f"{others}."
            for others, names in unlike.items()
        ]
    return notes


def _named(cell: Cell) -> str:
    return ", ".join(part for part in (cell.row, cell.column) if part)


def _details(paper: PaperTable, task: str, cells: dict[Cell, list[Row]]) -> Table:
    """Return the table of one task, a line for each cell of the paper and each row of ours."""
    lines: list[Line] = []
    missing = []
    for cell in (cell for cell in with_ours(paper, cells) if cell.task == task):
        name = _named(cell)
        rows, figure, is_base = cells.get(cell, []), paper.figures.get(cell), paper.baselines[task] == cell
        if not rows and figure is not None:
            missing.append(name)
            lines.append(Line(name, None, figure, is_base))
        for row in rows:
            value = row.facts.get("lambda")
            ours = f" (our λ: {value})" if value and paper.name != "mam.table1" else ""
            lines.append(Line(f"{name}{ours}" if len(rows) == 1 else f"{name}: {row.label}", row, figure, is_base))
    notes = [f"No result of ours: {'; '.join(missing)}."] if missing else []
    split = next(rows[0].split for cell, rows in cells.items() if cell.task == task)
    if not split.startswith("test"):
        notes.append(f"Ours is {split}, the paper's is test.")
    name = paper.metrics[task]
    return table_of_lines(f"{paper.title}: {task}, {split}, {heading(name)}", name, lines, with_paper=True, notes=notes)


def _listed(runs: Sequence[ScoredRun]) -> str:
    """Return the first of some results with their tasks and what they are, to be set against what a table takes."""
    shown = [f"{run.source} ({run.task}, {run.split}; {described([run])})" for run in runs]
    return "; ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _cells(
    paper: PaperTable, runs: Sequence[ScoredRun], flags: argparse.Namespace, left_out: list[str]
) -> dict[Cell, list[Row]]:
    """Return our rows by cell of a paper's table; a sentence for each run that has no place there."""
    found: dict[Cell, list[ScoredRun]] = {}
    strangers: list[ScoredRun] = []
    for run in runs:
        wanted = run.split == flags.split if flags.split else run.split in reported_splits()
        cell = paper.match(run.task, run.facts) if wanted and run.task in paper.tasks else None
        if cell is not None and paper.metrics[run.task] in run.values:
            found.setdefault(cell, []).append(run)
        elif wanted and (run.mode != "sweep" or deviations(run.facts)):  # arms that are not shown are no news
            strangers.append(run)
    if strangers:
        left_out.append(
            f"{paper.name} has no place for {len(strangers)} results (it shows {', '.join(paper.tasks)}, and takes "
            f"{paper.takes}): {_listed(strangers)}."
        )
    return {
        cell: rows_of(_counting(those, paper.lambdas.get(cell.task)), paper.metrics[cell.task], flags.group_by)
        for cell, those in found.items()
    }


def _counting(runs: Sequence[ScoredRun], lambda_: float | None) -> list[ScoredRun]:
    """Return the runs of a cell; of a sweep the arms at the paper's lambda if they were scored, else dev's choice."""
    printed = {run.facts["sweep"] for run in runs if run.mode == "sweep" and run.facts["lambda"] == lambda_}
    return [run for run in runs if run.facts.get("sweep") not in printed or run.facts["lambda"] == lambda_]
