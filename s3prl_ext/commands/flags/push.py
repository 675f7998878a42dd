"""The flags of ``s3prl-ext push``."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext push",
        description="Upload a folder of export or merge, with its card, to a model repository of the Hugging Face hub\n"
        "(HF_ENDPOINT names another one). A new repository is private, unless --public is given.",
        epilog="example:\n  s3prl-ext push ks_hubert me/ks_hubert --dry-run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="written by s3prl-ext export or merge")
    parser.add_argument("repo", help="OWNER/NAME, or OWNER/NAME@BRANCH of a branch that is there")
    parser.add_argument("--public", action="store_true", help="let everyone see a repository that is made")
    parser.add_argument("-m", "--message", help="message of the commit")
    parser.add_argument("--dry-run", action="store_true", help="show files and the card's header, and send nothing")
    return parser
