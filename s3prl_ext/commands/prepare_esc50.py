"""``s3prl-ext prepare esc50``: unpack, download or build ESC-50."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from s3prl_ext.corpora.archives import download, unpack
from s3prl_ext.corpora.esc50 import CARD, CLASSES, validate
from s3prl_ext.corpora.recordings import Recordings
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb.esc50 import write_corpus
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.writing import written_folder

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare esc50``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare esc50",
        description=str(CARD),
        epilog="example:\n  s3prl-ext prepare esc50 --out corpora --download\n  export ESC50=corpora/ESC-50-master",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the archive and of ESC-50-master/")
    parser.add_argument("--download", action="store_true", help="fetch the archive (about 600 MB) where it is missing")
    parser.add_argument("--recordings", type=Path, help="build it from this folder of recordings (esc50/esc50.tsv)")
    parser.add_argument("--classes", type=int, default=len(CLASSES), help="with --recordings: number of classes")
    parser.add_argument("--clips", type=int, default=8, help="with --recordings: clips of a class in each fold")
    args = parser.parse_args(argv)
    if args.recordings:
        folder = _build(args)
    else:
        folder = (download if args.download else unpack)(CARD, args.out)
    for remark in validate(folder):
        logger.warning("%s: %s", folder, remark)
    print(f"export ESC50={folder.absolute()}")
    return 0


def _build(args: argparse.Namespace) -> Path:
    """Write the layout from recordings; it takes its name when it is complete."""
    final = args.out / CARD.folder
    if final.exists():
        raise UsageError(f"{final} already exists: remove it or give another --out.")
    if not 1 <= args.classes <= len(CLASSES) or args.clips < 1:
        raise UsageError(f"--classes must be 1 to {len(CLASSES)} and --clips be at least 1.")
    recordings = Recordings(args.recordings)
    if not recordings.has("esc50"):
        raise UsageError(
            f"{args.recordings} does not contain esc50/esc50.tsv: name a folder with recordings of ESC-50."
        )
    with written_folder(final) as folder:
        write_corpus(folder, MiniBuild(final, recordings), args.classes, args.clips)
    return final
