"""The flags of ``s3prl-ext merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ext.merging.names import OWN_UPSTREAM


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext merge",
        description="Write a merged model as a plain checkpoint: a transformers folder, or a file for s3prl's\n"
        "own upstreams. It needs neither the source nor this package.",
        epilog='example:\n  s3prl-ext merge -u mam_hubert_base_bert_base -g "lambda=0.1,,layers=4-11" --out merged',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-u", "--upstream", default=OWN_UPSTREAM, help="a shipped configuration, such as mam_...")
    parser.add_argument("-g", "--upstream_model_config", help='"my.yaml,,lambda=0.1", with -u overrides only')
    parser.add_argument("-k", "--upstream_ckpt", help="replaces the target's checkpoint or model")
    parser.add_argument("--out", type=Path, help="new folder for the model")
    parser.add_argument("--dry-run", action="store_true", help="show the matched tensors and write nothing")
    return parser
