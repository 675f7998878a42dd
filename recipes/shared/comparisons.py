"""Keep what a comparison of transcripts says as a small file without paths; ``page.py`` makes tables of it.

    python recipes/shared/comparisons.py exp/mam/zero_shot/vctk/compare.json --task vctk --out vctk_transcripts.json

The comparison is what ``s3prl-ext compare --out`` writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, as_command
from s3prl_ext.evaluation.clusters import UTTERANCE
from s3prl_ext.evaluation.predictions import read_json
from s3prl_ext.evaluation.transcripts import Improvements, TranscriptPair
from s3prl_ext.papers.transcript_tables import categories_table, changes_table
from s3prl_ext.tables import Table
from s3prl_ext.writing import write_json

KEPT = ("wer", "difference", "interval", "intervals_over", "utterances", "improvements")


def kept(content: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what the tables need.

    Args:
        content: of the comparison.
        task: short name of its task.

    Raises:
        DataError: it is not a comparison, or one whose interval is over other units than utterances.
    """
    if lacking := [key for key in KEPT if key not in content]:
        raise DataError(f"this is not what s3prl-ext compare --out writes: {lacking[0]} is missing.")
    if (kind := content["intervals_over"]["kind"]) != UTTERANCE:
        raise DataError(f"the interval of this comparison is over a {kind}: compare without --intervals-over.")
    return {"task": task, **{key: content[key] for key in KEPT}}


def changes(content: Mapping[str, Any]) -> Table:
    """Return the transcripts that differ, and the change of the word error rate (MAM, Table 4)."""
    changed = [TranscriptPair(**row) for row in content["utterances"]]
    table = changes_table(content["task"], changed, content["intervals_over"]["count"])
    (before, after), (low, high) = content["wer"], content["interval"]
    change = f"WER {before:.2f} % -> {after:.2f} %: {content['difference']:+z.2f} [{low:+z.2f}, {high:+z.2f}]"
    return replace(table, notes=[*table.notes, f"{change}, 95 % bootstrap over utterances."])


def categories(content: Mapping[str, Any]) -> Table:
    """Return the categories of the edits that put words right (MAM, Table 6)."""
    found = {name: content["improvements"][name] for name in ("utterances", "confirmed", "change")}
    return categories_table(content["task"], content["task"], Improvements(**found))


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
