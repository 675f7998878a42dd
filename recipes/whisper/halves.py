"""Divide a corpus that nothing is trained on into dev and test: ``halves.py ljspeech FOLDER splits.json``.

Speakers (VCTK) or chapters (LJ Speech) are whole in one of them where there are six or more, else utterances are
divided, those of LibriSpeech always: speakers are in both halves. The same folder gives the same halves. ``train`` is
empty.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.corpora.splits import SPLITS, group_split
from s3prl_ext.errors import as_command
from s3prl_ext.writing import write_json

TASKS = ("ljspeech", "vctk", "librispeech_zeroshot")
FEWEST_GROUPS = 6


def halves(task: str, folder: Path) -> dict[str, list[str]]:
    """Return the ids of train (none), dev and test."""
    expert = importlib.import_module(f"s3prl_ext.downstreams.{task}.expert").DownstreamExpert
    utterances = expert.corpus.read(folder, "error")
    whole = len({u.group for u in utterances}) >= FEWEST_GROUPS
    group = {u.id: u.group if whole else u.id for u in utterances}
    of = group_split(Counter(group.values()), train=False)
    return {split: sorted(name for name in group if of[group[name]] == split) for split in SPLITS}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the split lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    flags = parser.parse_args(argv)
    write_json(flags.out, halves(flags.task, flags.folder), indent=1)
    return 0


if __name__ == "__main__":
    with as_command():
        sys.exit(main())
