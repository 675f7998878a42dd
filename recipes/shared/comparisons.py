"""Keep what a comparison of transcripts says as a small file without paths; ``page.py`` makes tables of it.

    python recipes/shared/comparisons.py exp/mam/zero_shot/vctk/compare.json --task vctk --out vctk_transcripts.json

The comparison is what ``s3prl-ext compare --out`` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.papers.figures import mam_tables
from s3prl_ext.tables import Table
from s3prl_ext.writing import write_json

KEPT = ("wer", "difference", "interval", "utterances", "improvements")
SHOWN = 8  # utterances of a table


def kept(content: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what the tables need.

    Args:
        content: of the comparison.
        task: short name of its task.

    Raises:
        DataError: it is no comparison.
    """
    if lacking := [key for key in KEPT if key not in content]:
        raise DataError(f"this is not what s3prl-ext compare --out writes: {lacking[0]} is missing.")
    return {"task": task, **{key: content[key] for key in KEPT}}


def changes_table(content: Mapping[str, Any]) -> Table:
    """Return the transcripts that differ, largest drop of word errors first (MAM, Table 4)."""
    rows = [
        [f"{row['id']} ({-row['drop']:+d})", row["reference"], row["baseline"], row["merged"]]
        for row in content["utterances"][:SHOWN]
    ]
    (before, after), (low, high) = content["wer"], content["interval"]
    change = f"WER {before:.2f} % -> {after:.2f} %: {content['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
    notes = [f"{change}, 95 % bootstrap over utterances; {len(content['utterances'])} transcripts differ."]
    return Table(f"transcripts, {content['task']}", ["word errors", "reference", "baseline", "merged"], rows, notes)


def kinds_table(content: Mapping[str, Any]) -> Table:
    """Return the kinds of character edits that put words right, beside the paper's (MAM, Table 6)."""
    paper, found = mam_tables()["table6"], content["improvements"]
    printed = dict(zip(paper["columns"], paper[content["task"]], strict=True))
    rows = [
        [name, f"{share:.2f}", str(found["confirmed"][name]), printed[name]] for name, share in found["shares"].items()
    ]
    total = sum(found["confirmed"].values())
    notes = [f"{total} character edits that the reference confirms, in {found['utterances']} utterances."]
    return Table(f"kinds of improvement, {content['task']}", ["", "ours (%)", "edits", "paper (%)"], rows, notes)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the small file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="compare.json")
    parser.add_argument("--task", required=True, choices=("ljspeech", "vctk"))
    parser.add_argument("--out", type=Path, required=True, help="file to write, such as vctk_transcripts.json")
    flags = parser.parse_args(argv)
    write_json(flags.out, kept(read_json(flags.comparison), flags.task), indent=1, ensure_ascii=False)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
