"""The flags of ``s3prl-ext report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ext.evaluation import clusters
from s3prl_ext.papers.names import TABLE_NAMES

EPILOG = """A row holds the runs that differ in nothing but the seed. Ratios are shown in per cent. --paper is one or
more of {tables}; tables 4 and 6 of MAM come by themselves where two rows of ljspeech or vctk have their transcripts.

example:
  s3prl-ext report exp/base exp/mam exp/sweep/sweep.json --out report --paper mam.table1
  s3prl-ext report exp --out report --split test --group-by upstream,method
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext report",
        description="Write tables (Markdown, CSV, LaTeX), pictures and one HTML page from results.",
        epilog=EPILOG.replace("{tables}", ", ".join(TABLE_NAMES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULT", help="result files, sweep.json, or folders that hold them")
    add("--out", type=Path, required=True, help="folder for the report")
    add("--metric", help="metric to report (default: the one that each task is judged by)")
    add("--split", help="split to report (default: all that were scored)")
    add("--group-by", type=_names, help="what makes a row, such as upstream,tuning.density (default: all but the seed)")
    add("--paper", type=_names, default=[], help="tables of the papers to print next to yours, such as mam.table1")
    add("--intervals-over", choices=clusters.CLUSTERS, default=clusters.UTTERANCE, metavar="KIND",
        help=f"what intervals are over: {', '.join(clusters.CLUSTERS)} (default: utterance)")  # fmt: skip
    add("--baseline", help="the row that others are compared with: a part of its name")
    add("--title", help="heading of the page")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
