"""The flags of ``s3prl-ext methods``."""

from __future__ import annotations

import argparse

from s3prl_ext.models.sizes import SIZES


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext methods",
        description="Show how many weights of an upstream each tuning method trains, with its default options.",
        epilog="example:\n  s3prl-ext methods --dims base\n  s3prl-ext methods -u hubert_local -k hubert.pt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-u", "--upstream", help="measure this upstream, as in s3prl-ext run")
    parser.add_argument("-k", "--upstream_ckpt", help="its checkpoint or model")
    parser.add_argument("-g", "--upstream_model_config", help="its configuration")
    parser.add_argument("--dims", choices=SIZES, help="a published size (default: base)")
    return parser
