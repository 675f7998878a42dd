"""The papers' tables as grids of cells, the cell that a run of ours belongs to, and both printed next to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.evaluation import tuning_facts
from s3prl_ext.evaluation.merge_facts import deviations
from s3prl_ext.evaluation.result_rows import Row
from s3prl_ext.evaluation.result_tables import number
from s3prl_ext.evaluation.scored_runs import CHECKPOINT
from s3prl_ext.metrics import heading
from s3prl_ext.papers.figures import ad_tuning_tables, mam_tables
from s3prl_ext.papers.names import MAM_CORPORA, OWN_HEAD, TABLE_NAMES
from s3prl_ext.tables import NOTHING, Table
from s3prl_ext.tasks import named

SOURCES = {"none": "Source", "source": "N(Source)", "target": "N(Target)", "standard": "N(0,1)"}
MAM = "MAM"
_MERGES = "linear, of the matrices of query, key and value in equal layers"
_OWN_HEAD = ", in speech recognition with their own head"
AD_TUNING = "AD-TUNING"


class Cell(NamedTuple):
    """A place in a table.

    Attributes:
        task: short name of the task.
        row: as printed.
        column: as printed; empty in tables whose columns are tasks.
    """

    task: str
    row: str
    column: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        name: as for ``--paper``, such as ``mam.table1``.
        title: paper, table, what it shows.
        figures: per cent as printed, by cell in the printed order; None where the paper prints none.
        baselines: cell that a task's other cells are compared with.
        match: returns the cell of a run with these facts on a task, or None where it has no place. In the tables on
            merging without training a lambda or a set of layers that the paper has not gets a cell of its own.
        takes: the runs that have a place there.
        lambdas: the one lambda of the merges of a task, where the table has one.
    """

    name: str
    title: str
    figures: Mapping[Cell, str | None]
    baselines: Mapping[str, Cell]
    match: Callable[[str, Mapping[str, Any]], Cell | None]
    takes: str
    lambdas: Mapping[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Short names of its tasks."""
        return list(dict.fromkeys(cell.task for cell in self.figures))

    @property
    def metrics(self) -> dict[str, str]:
        """The metric of each task, which the papers print as well."""
        return {task: named(task).metrics[0] for task in self.tasks}


METHOD_ROWS = {
    "full": "FT", "frozen": "Baseline", "houlsby": "Houlsby", "adapter_bias": "AdapterBias", "lora": "LoRA",
    "prefix": "Prefix", "cnn_adapter": "CNN adapter", "chapter": "CHAPTER", "weighted_sum": "Weighted-sum",
}  # fmt: skip


def paper_table(name: str) -> PaperTable:
    """Return a table by name; an unknown one is a UsageError that lists the known ones."""
    if name in ("mam.table4", "mam.table6"):
        raise UsageError(
            f"--paper {name} compares transcripts: it is part of the report of ljspeech and vctk wherever two rows "
            "have their transcripts, so leave it out here."
        )
    if name not in TABLE_NAMES:
        raise unknown_name("table of a paper (--paper)", name, TABLE_NAMES)
    return _TABLES[name]()


def _is_merged(facts: Mapping[str, Any]) -> bool:
    return bool(facts.get("lambda")) or bool(facts.get("learnable"))


def as_printed(facts: Mapping[str, Any]) -> bool:
    """Return whether a merge is of the paper's kind, or nothing is merged.

    It interpolates query, key and value of equal layers with one lambda, or with one that each layer learns from
    whatever first value and at a rate above 0.
    """
    otherwise = set(deviations(facts)) - ({"lambda"} if facts.get("learnable") else set())
    learns = not tuning_facts.lambda_is_held(facts) and facts.get("learnable") in (None, True, False)
    return learns and not otherwise


def _is_tuned(task: str, facts: Mapping[str, Any]) -> bool:
    """Return whether the upstream was trained, or the head where MAM's models transcribe with their own."""
    return facts.get("method") not in (None, "frozen", "weighted_sum") or (task in OWN_HEAD and CHECKPOINT in facts)


def _lambda(facts: Mapping[str, Any]) -> float | None:
    value = facts.get("lambda", 0.0)
    return float(value) if isinstance(value, (int, float)) else None


def _mam1() -> PaperTable:
    table = mam_tables()["table1"]
    figures = {
        Cell(corpus, f"{lambda_:.2f}", SOURCES[column]): figure
        for corpus in MAM_CORPORA
        for lambda_, printed in table[corpus].items()
        for column, figure in zip(table["columns"], printed, strict=True)
    }

    def match(task: str, facts: Mapping[str, Any]) -> Cell | None:
        value, layers = _lambda(facts), facts.get("layers", "none")
        if value is None or _is_tuned(task, facts) or facts.get("learnable") or layers not in ("all", "none"):
            return None
        if not as_printed(facts) or "merge.layers" in facts:
            return None
        row = f"{value:.2f}" if abs(round(value, 2) - value) < 1e-9 else f"{value:g}"
        return Cell(task, row, SOURCES[facts.get("noise", "none") if value else "none"])

    baselines = {corpus: Cell(corpus, "0.00", SOURCES["none"]) for corpus in MAM_CORPORA}
    return PaperTable(
        "mam.table1",
        "MAM, Table 1: interpolation of all layers, by λ",
        figures,
        baselines,
        match,
        f"merges of all layers at one λ ({_MERGES}), with or without noise, and the unmerged model; "
        f"upstreams that were not tuned{_OWN_HEAD}",
    )


def _mam2() -> PaperTable:
    blocks = {corpus: dict(row) for corpus, row in mam_tables()["table2"].items()}
    printed = {corpus: row.pop("lambda") for corpus, row in blocks.items()}
    figures = {Cell(corpus, layers): figure for corpus, row in blocks.items() for layers, figure in row.items()}
    figures |= {Cell(corpus, "None"): _unmerged(corpus) for corpus in blocks}

    def match(task: str, facts: Mapping[str, Any]) -> Cell | None:
        if (
            _is_tuned(task, facts)
            or facts.get("learnable")
            or facts.get("noise", "none") != "none"
            or not as_printed(facts)
        ):
            return None
        layers = str(facts.get("layers")) if _is_merged(facts) else "None"
        counts = _chosen(facts) or _lambda(facts) == printed.get(task)
        if "merge.layers" in facts and Cell(task, layers) in figures:
            return None  # an arm with the name of other layers
        return Cell(task, layers) if layers != "all" and " top-" not in layers and counts else None

    at = ", ".join(f"{corpus} {value:g}" for corpus, value in printed.items())
    title = f"MAM, Table 2: merging a block of layers (the paper's λ: {at})"
    return PaperTable(
        "mam.table2", title, figures, {c: Cell(c, "None") for c in blocks}, match,
        f"merges of a block of layers ({_MERGES}), and the unmerged model; upstreams that were not tuned{_OWN_HEAD}, "
        "no noise",
        printed
    )  # fmt: skip


def _mam3() -> PaperTable:
    table = {corpus: dict(row) for corpus, row in mam_tables()["table3"].items()}
    printed = {corpus: row.pop("lambda") for corpus, row in table.items()}
    figures: dict[Cell, str | None] = {
        Cell(corpus, f"k = {k}", by): row[by][k] for corpus, row in table.items() for k in row["swd"] for by in row
    }
    figures |= {Cell(corpus, "unmerged", "swd"): _unmerged(corpus) for corpus in table}

    def match(task: str, facts: Mapping[str, Any]) -> Cell | None:
        by, _, k = str(facts.get("layers")).partition(" top-")
        if (
            _is_tuned(task, facts)
            or facts.get("learnable")
            or facts.get("noise", "none") != "none"
            or not as_printed(facts)
        ):
            return None
        if not _is_merged(facts):
            return Cell(task, "unmerged", "swd")
        return Cell(task, f"k = {k}", by) if k and (_chosen(facts) or _lambda(facts) == printed.get(task)) else None

    at = ", ".join(f"{corpus} {value:g}" for corpus, value in printed.items())
    title = f"MAM, Table 3: merging the k most similar layers (the paper's λ: {at})"
    baselines = {corpus: Cell(corpus, "unmerged", "swd") for corpus in table}
    return PaperTable(
        "mam.table3",
        title,
        figures,
        baselines,
        match,
        f"merges of layers chosen by similarity (by, top_k; {_MERGES}), and the unmerged model; "
        f"upstreams that were not tuned{_OWN_HEAD}, no noise",
        printed,
    )


def _mam5() -> PaperTable:
    table = dict(mam_tables()["table5"])
    corpora = table.pop("columns")
    figures = {Cell(c, row): figure for row, printed in table.items() for c, figure in zip(corpora, printed)}

    def match(task: str, facts: Mapping[str, Any]) -> Cell | None:
        if facts.get("noise", "none") != "none" or not (facts.get("method") == "full" or not _is_tuned(task, facts)):
            return None
        if not as_printed(facts) or tuning_facts.deviations(facts):
            return None
        if facts.get("method") == "full" and tuning_facts.reads_otherwise(facts):
            return None
        merge = "L-MAM" if facts.get("learnable") else MAM if _is_merged(facts) else ""
        parts = [part for part in (merge, "FT" if facts.get("method") == "full" else "") if part]
        cell = Cell(task, " + ".join(parts) or "baseline")
        return cell if cell in figures and _chosen(facts) else None

    title = "MAM, Table 5: fine-tuning (FT) and attention merging"
    return PaperTable(
        "mam.table5",
        title,
        figures,
        {c: Cell(c, "baseline") for c in corpora},
        match,
        f"upstreams that were fully tuned (all layers, at one rate, read at the last hidden state) or not at all"
        f"{_OWN_HEAD}, merged ({_MERGES}) or not, no noise; a learnable λ that trains",
    )


def _ad_tuning(name: str) -> PaperTable:
    table = dict(ad_tuning_tables()[name])
    tasks = table.pop("columns")
    figures = {
        Cell(task, row): figure
        for row, printed in table.items()
        for task, figure in zip(tasks, printed, strict=True)
        if task != "params"
    }

    def match(task: str, facts: Mapping[str, Any]) -> Cell | None:
        row = _ad_tuning_row(name, task, facts)
        taken = not _is_merged(facts) and "set" not in facts  # such as decoded with a language model
        return Cell(task, row) if row and Cell(task, row) in figures and taken else None

    printed = ", ".join(dict.fromkeys(cell.row for cell in figures))
    title, baseline, tuned = {
        "table1": ("AD-TUNING, Table 1: 10 % of the weights, drawn at random (F) or by Fisher information (D)",
                   "CHILD-TUNING_F", "child networks of density 0.1 outside a race, with the options of the paper"),
        "table2": ("AD-TUNING, Table 2: efficient methods on SUPERB", "FT",
                   f"runs tuned by one of {printed}, with the options of the paper ({AD_TUNING}: a race of Fisher "
                   "child networks over density alone, in which one comparison on dev leaves one)"),
    }[name]  # fmt: skip
    used = list(dict.fromkeys(cell.task for cell in figures))
    baselines = {task: Cell(task, baseline) for task in used}
    return PaperTable(
        f"ad_tuning.{name}",
        title,
        figures,
        baselines,
        match,
        f"{tuned}, which read the last hidden state (Baseline, FT) or the weighted sum of all (the others); upstreams "
        "that are not merged, no language model",
    )


def _ad_tuning_row(name: str, task: str, facts: Mapping[str, Any]) -> str | None:
    method, density = facts.get("method"), facts.get("tuning.density")
    mask = facts.get("tuning.mask", "fisher")
    if tuning_facts.deviations(facts) or tuning_facts.reads_otherwise(facts):
        return None
    if name == "table1":
        row = {"random": "CHILD-TUNING_F", "fisher": "CHILD-TUNING_D"}.get(mask)
        return row if method == "child" and density == 0.1 and not facts.get("race") else None
    if facts.get("race"):
        raced = [name for name, value in facts.items() if name.startswith("tuning.") and isinstance(value, list)]
        if tuning_facts.races_otherwise(facts, named(task).dev, named(task).metrics[0]):
            return None
        return AD_TUNING if (method, mask, raced) == ("child", "fisher", ["tuning.density"]) else None
    if method == "child":
        return f"CHILD-TUNING (P={density})" if mask == "fisher" else None
    return METHOD_ROWS.get(str(method))


def _unmerged(corpus: str) -> str | None:
    return mam_tables()["table1"][corpus][0][0]


def _chosen(facts: Mapping[str, Any]) -> bool:
    """Return whether a run counts where the paper has one lambda: of a sweep the one that dev chose."""
    return facts.get("chosen", True)


_TABLES: dict[str, Callable[[], PaperTable]] = {
    "mam.table1": _mam1,
    "mam.table2": _mam2,
    "mam.table3": _mam3,
    "mam.table5": _mam5,
    "ad_tuning.table1": lambda: _ad_tuning("table1"),
    "ad_tuning.table2": lambda: _ad_tuning("table2"),
}


def pivot(table: PaperTable, task: str | None, cells: Mapping[Cell, Sequence[Row]]) -> Table:
    """Return a paper's table as it is printed, ours before the paper's figure: ``8.71 (8.63)``.

    Args:
        table: the paper's.
        task: of a table with one grid per task; None where the columns are the tasks.
        cells: our rows by cell; of several in one cell the number is shown, they are listed one by one elsewhere.
    """
    kept = [cell for cell in with_ours(table, cells) if task in (None, cell.task)]
    of: Callable[[Cell], str] = (lambda cell: cell.task) if task is None else (lambda cell: cell.column)
    columns = list(dict.fromkeys(of(cell) for cell in kept))
    body = []
    for name in dict.fromkeys(cell.row for cell in kept):
        body.append([name])
        for column in columns:
            cell = next((c for c in kept if c.row == name and of(c) == column), None)
            known = cell is not None and (cells.get(cell) or table.figures.get(cell))
            body[-1].append(
                f"{_brief(cells.get(cell, ()))} ({table.figures.get(cell) or NOTHING})" if cell and known else ""
            )
    head = ["", *(f"{c} {heading(table.metrics[c])}" if task is None else c for c in columns)]
    title = f"{table.title}: ours (the paper's)"
    return Table(f"{title}, {task} {heading(table.metrics[task])}" if task else title, head, body)


def with_ours(table: PaperTable, cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells of a paper's table in its order, and behind them those of ours that it has not."""
    return [*table.figures, *sorted(cell for cell in cells if cell not in table.figures)]


def _brief(rows: Sequence[Row]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} rows"
    return number(rows[0].mean, rows[0].metric) if rows else NOTHING
