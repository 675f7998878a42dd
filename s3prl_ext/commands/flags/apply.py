"""The flags of ``s3prl-ext apply``."""

from __future__ import annotations

import argparse
from pathlib import Path

# command -> description, --model and --out of the example
COMMANDS = {
    "apply": (
        "Write a copy of a base model with the weights that a delta changes. Another base is refused.",
        "--model hubert.pt --out hubert_ks.pt",
    ),
    "revert": (
        "Write a copy of a tuned model with the weights of its base; the result is the base, or nothing is written.",
        "--model hubert_ks.pt --out hubert.pt",
    ),
}


def parser(command: str = "apply") -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    description, example = COMMANDS[command]
    parser = argparse.ArgumentParser(
        prog=f"s3prl-ext {command}",
        description=description,
        epilog=f"example:\n  s3prl-ext {command} --delta exp/ks/delta.safetensors {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checkpoint = ", or its checkpoint" if command == "apply" else " that holds one"  # which has tuned weights only
    parser.add_argument("--delta", required=True, help=f"delta.safetensors, or a run's folder{checkpoint}")
    parser.add_argument("--model", required=True, type=Path, help="transformers folder, or checkpoint file")
    parser.add_argument("--out", required=True, type=Path, help="new folder or file of the same kind")
    parser.add_argument("-u", "--upstream", help="upstream that loads --model, where the delta's own name does not fit")
    parser.add_argument("-g", "--upstream_model_config", help="its configuration")
    return parser
