"""MAM's Tables 4 and 6 from runs with transcripts: what changed, and which kinds of errors were put right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan

from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.comparability import without_merge
from s3prl_ext.evaluation.result_rows import name_rows
from s3prl_ext.evaluation.scored_runs import ScoredRun, on_dev
from s3prl_ext.evaluation.transcripts import (
    Improvements,
    ScoredTranscript,
    TranscriptPair,
    compare,
    improvements,
    read_transcripts,
)
from s3prl_ext.evaluation.utterance_comparison import check_utterances, utterance_file
from s3prl_ext.papers.figures import mam_tables
from s3prl_ext.papers.tables import as_printed
from s3prl_ext.tables import Table

SHOWN_UTTERANCES = 8  # utterances of a comparison


def transcript_tables(runs: Sequence[ScoredRun], left_out: list[str]) -> list[Table]:
    """Return the two tables for test of ljspeech and vctk, where an unmerged and a merged run have their transcripts.

    Of several merged runs the one with the lowest word error rate on dev counts; without dev there must be only one. It
    is compared with an unmerged run that differs from it in nothing but the merge.

    Args:
        runs: of any task.
        left_out: gets a sentence where the transcripts of a pair cannot be compared.
    """
    tables = []
    for task in ("ljspeech", "vctk"):
        those = [run for run in runs if run.task == task and run.split == "test" and _has_transcripts(run)]
        plain = [run for run in those if not run.facts.get("lambda") and not run.facts.get("learnable")]
        merged = [run for run in those if run not in plain and _is_mams(run)]
        with_baseline = [run for run in merged if _baselines(run, plain)]
        if plain and merged and not with_baseline:
            left_out.append(
                f"MAM's Tables 4 and 6 of {task} are left out: no merged run has an unmerged one of the same target, "
                "data and settings: score the merge with lambda=0 too."
            )
        best = _best_on_dev(with_baseline, runs)
        if best is None:
            if with_baseline:
                left_out.append(
                    f"MAM's Tables 4 and 6 of {task} are left out: there are {len(with_baseline)} merged runs, and no "
                    "score on dev of each to choose by: evaluate dev too, or give one of them."
                )
            continue
        alike = _baselines(best, plain)
        named = f"{task}, test: {' and '.join(name_rows([[alike[0]], [best]]))}"
        try:
            before, after = _transcripts(alike[0]), _transcripts(best)
            both = (
                changes_table(named, compare(before, after), len(before)),
                categories_table(named, task, improvements(before, after)),
            )
            tables += [replace(table, notes=(*table.notes, *_other_seed(alike[0], best))) for table in both]
        except DataError as error:
            left_out.append(f"MAM's Tables 4 and 6 of {task} are left out: {error}")
    return tables


def _is_mams(run: ScoredRun) -> bool:
    return as_printed(run.facts) and run.facts.get("noise", "none") == "none"


def _baselines(merged: ScoredRun, plain: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return the unmerged runs that a merged one may be compared with, that of its seed first.

    They agree in everything but the merge: target, data, splits, task file, training.
    """
    wanted = without_merge(merged)
    found = [run for run in plain if without_merge(run) == wanted]
    return sorted(found, key=lambda run: run.seed != merged.seed)


def _other_seed(plain: ScoredRun, merged: ScoredRun) -> list[str]:
    """Return the sentence for a pair of two seeds, whose difference is not that of the merge alone."""
    if plain.seed == merged.seed:
        return []
    return [
        f"The unmerged run is of seed {plain.seed}, the merged one of seed {merged.seed}: no unmerged run has the same."
    ]


def _transcripts(run: ScoredRun) -> list[ScoredTranscript]:
    """Return the transcripts of a run.

    Corrupt ones, or those of another evaluation than its result's, are a DataError.
    """
    check_utterances(run)
    return read_transcripts(utterance_file(run))  # type: ignore[arg-type]


def _best_on_dev(merged: Sequence[ScoredRun], runs: Sequence[ScoredRun]) -> ScoredRun | None:
    """Return the only run, or the one with the lowest word error rate on dev; None where some have no score there."""
    if len(merged) < 2:
        return merged[0] if merged else None
    scores = [on_dev(run, "wer", runs) for run in merged]
    known = [(score, place) for place, score in enumerate(scores) if score is not None]
    if len(known) < len(scores):
        return None
    sound = [both for both in known if not isnan(both[0])]  # of a run that diverged there is none
    return merged[min(sound)[1]] if sound else None


def _has_transcripts(run: ScoredRun) -> bool:
    path = utterance_file(run)
    return path is not None and path.name.startswith("transcripts") and "wer" in run.values


def changes_table(named: str, changed: Sequence[TranscriptPair], utterances: int) -> Table:
    """Return the transcripts that differ, largest drop of word errors first (MAM, Table 4).

    Args:
        named: what is compared, for the title.
        changed: as :func:`s3prl_ext.evaluation.transcripts.compare` returns them.
        utterances: number of all transcripts.
    """
    rows = [
        [f"{row.id} ({-row.drop:+d})", row.reference, row.baseline, row.merged] for row in changed[:SHOWN_UTTERANCES]
    ]
    notes = [
        f"{len(changed)} of {utterances} transcripts differ; largest drop first. Words that differ: between stars."
    ]
    head = ["word errors", "reference", "baseline", "merged"]
    return Table(f"MAM, Table 4: transcripts, {named}", head, rows, notes, of_texts=True)


def categories_table(named: str, task: str, found: Improvements) -> Table:
    """Return the categories of the character edits that put words right, with the paper's (MAM, Table 6).

    Args:
        named: what is compared, for the title.
        task: short name of its task.
        found: what was put right.
    """
    paper = mam_tables()["table6"]
    printed = dict(zip(paper["columns"], paper[task], strict=True))
    total = sum(found.confirmed.values())
    rows = [[name, f"{share:.2f}", str(found.confirmed[name]), printed[name]] for name, share in found.shares.items()]
    notes = [
        f"{total} character edits that the reference confirms, in {found.utterances} utterances with fewer word errors."
    ]
    values = [
        {"row": name, "task": task, "split": "test", "metric": "share of improvements", "unit": "%", "mean": share,
         "paper": printed[name]}
        for name, share in found.shares.items()
    ]  # fmt: skip
    return Table(
        f"MAM, Table 6: categories of improvement, {named}", ["", "ours (%)", "edits", "paper (%)"], rows, notes, values
    )  # fmt: skip
