"""The flags of ``s3prl-ext export``."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext export",
        description="Write a tuned task as a plain model of s3prl or transformers with the task's head and a\n"
        "model card. It loads without this package, and its weights are the tuned ones bit by bit.",
        epilog="example:\n  s3prl-ext export --delta exp/ks/delta.safetensors --out ks_hubert",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--delta", required=True, help="delta.safetensors, a run's folder (also of a full run), or a checkpoint"
    )
    parser.add_argument("-u", "--upstream", help="upstream that was tuned, where the delta's own name does not fit")
    parser.add_argument("-k", "--upstream_ckpt", help="its checkpoint or model, where it has moved")
    parser.add_argument("-g", "--upstream_model_config", help="its configuration")
    parser.add_argument("--out", type=Path, help="new folder for the model")
    parser.add_argument(
        "--format",
        choices=("model", "peft", "task_vector"),
        default="model",
        help="model: the whole tuned model (default); peft: the LoRA as peft reads it; task_vector: the changes of a "
        "child network",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, show it, and write nothing")
    return parser
