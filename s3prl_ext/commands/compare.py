"""``s3prl-ext compare``: what changed between the transcripts of two models (MAM, Tables 4 and 6)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation import clusters
from s3prl_ext.evaluation.significance import bootstrap_difference
from s3prl_ext.evaluation.transcripts import (
    Improvements,
    ScoredTranscript,
    TranscriptPair,
    compare,
    improvements,
    pair,
    read_transcripts,
)
from s3prl_ext.reading import parse_json
from s3prl_ext.tasks import writers_of
from s3prl_ext.writing import check_out_file, write_json

SCHEMA = 1
EPILOG = f"""An evaluation of {writers_of("transcripts")} writes these files. Words that differ are between stars. The
categories count character edits from the first to the second transcript that bring it closer to the reference, over the
utterances with fewer word errors.

example:
  s3prl-ext compare exp/baseline/transcripts-test.jsonl exp/mam/transcripts-test.jsonl --top 8 --out table4.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext compare``; return the exit status.

    Raises:
        UsageError: --top below 0, or no folder for --out.
        DataError: a file is missing or malformed, or the two hold other utterances or references.
    """
    parser = argparse.ArgumentParser(
        prog="s3prl-ext compare",
        description="Compare the transcripts of two models utterance by utterance.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("baseline", type=Path, help="transcripts-SPLIT.jsonl of the first model")
    parser.add_argument("merged", type=Path, help="transcripts-SPLIT.jsonl of the second model")
    parser.add_argument("--top", type=int, default=10, help="utterances to show, largest drop first (default: 10)")
    parser.add_argument("--intervals-over", choices=clusters.CLUSTERS, default=clusters.UTTERANCE, metavar="KIND",
                        help=f"what the bootstrap draws: {', '.join(clusters.CLUSTERS[:-1])} (default: "
                        "utterance)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="write everything to this JSON file as well")
    flags = parser.parse_args(argv)
    if flags.top < 0:
        raise UsageError(f"--top must be at least 0, got {flags.top}.")
    if flags.out is not None:
        check_out_file(flags.out, _is_comparison, [flags.baseline, flags.merged])
    baseline, merged = read_transcripts(flags.baseline), read_transcripts(flags.merged)
    changed, improved, totals = (
        compare(baseline, merged),
        improvements(baseline, merged),
        _totals(baseline, merged, flags.intervals_over),
    )
    print(_shown(changed[: flags.top], improved, totals, len(baseline)))
    if flags.out is not None:
        content = {"schema": SCHEMA, "files": [str(flags.baseline), str(flags.merged)], **totals}
        content |= {"utterances": [asdict(row) for row in changed]}
        content |= {"improvements": asdict(improved) | {"shares": improved.shares}}
        write_json(flags.out, content, indent=1, ensure_ascii=False)
    return 0


def _is_comparison(text: str) -> bool:
    try:
        content = parse_json(text)
    except ValueError:
        return False
    return isinstance(content, dict) and {"files", "wer", "utterances", "improvements"} <= set(content)


def _totals(baseline: Sequence[ScoredTranscript], merged: Sequence[ScoredTranscript], kind: str) -> dict[str, Any]:
    """Return WER of both in per cent, their difference, and its paired 95 % bootstrap interval."""
    pairs = pair(baseline, merged)
    first, second = [a.errors for a, _ in pairs], [b.errors for _, b in pairs]
    words = [a.words for a, _ in pairs]
    if not sum(words):
        raise DataError("the references contain no words: nothing can be compared.")
    one, other, of = clusters.sums([a.id for a, _ in pairs], (first, second, words), kind)
    low, high = bootstrap_difference(one, other, of)
    wer = [100 * sum(errors) / sum(words) for errors in (first, second)]
    return {"wer": wer, "difference": wer[1] - wer[0], "interval": [100 * low, 100 * high],
            "intervals_over": {"kind": kind, "count": len(of)}}  # fmt: skip


def _shown(rows: Sequence[TranscriptPair], improved: Improvements, totals: dict[str, Any], count: int) -> str:
    (first, second), (low, high) = totals["wer"], totals["interval"]
    lines = [
        f"WER {first:.2f} % -> {second:.2f} %: {totals['difference']:+z.2f} [{low:+z.2f}, {high:+z.2f}], "
        f"{count} utterances"
    ]
    if totals["intervals_over"]["kind"] != clusters.UTTERANCE:
        lines[0] += f"; the interval is {clusters.described(**totals['intervals_over'])}"
    for row in rows:
        lines += [
            "",
            f"{row.id}: {row.drop} word errors fewer" if row.drop >= 0 else f"{row.id}: {-row.drop} word errors more",
        ]
        lines += [f"  reference  {row.reference}", f"  baseline   {row.baseline}", f"  merged     {row.merged}"]
    shares = ", ".join(f"{name} {share:.2f} %" for name, share in improved.shares.items())
    change = ", ".join(f"{name} {value:+d}" for name, value in improved.change.items())
    lines += ["", f"{improved.utterances} utterances improved; confirmed character edits: {shares}"]
    return "\n".join([*lines, f"change of their character errors: {change}"])
