"""The flags of ``s3prl-ext layers``."""

from __future__ import annotations

import argparse

from s3prl_ext.merging.names import LEVELS, SHARE, SIMILARITY_NAMES, SWD_DIRECTIONS, TARGET_PREFIXES

EXAMPLE = """pairs.tsv is tab-separated with the columns path and text (for an image model path and image; for a speech
model path and source_path); the decoder of a Whisper reads the text. The result goes into a merge as
  layers: {by: swd, top_k: 6, from: layers/layers.json}

example:
  s3prl-ext layers --target facebook/hubert-large-ls960-ft --source bert-large-uncased \\
      --pairs LJSpeech-1.1 --metric euclidean,inner_product,swd --top-k 6 --out layers_ljspeech
  s3prl-ext layers -g my_merge.yaml --pairs pairs.tsv --out layers
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        "s3prl-ext layers",
        description="Compare the block outputs of a speech model with those of another encoder on paired inputs.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--target", help="speech model: transformers folder or hub id, or the name of an upstream")
    add(
        "-k",
        "--target-ckpt",
        help="checkpoint of --target, where it is an upstream that needs one; of -g it replaces the target's model",
    )
    add("--source", help="second encoder: transformers folder or hub id, or package:NAME for a pip package")
    add(
        "--target-prefix",
        choices=TARGET_PREFIXES,
        help="of a Whisper: decoder compares its decoder, on the transcripts",
    )
    add("--source-prefix", help="part of the source, where it has several: decoder for that of a Whisper")
    add("-g", "--config", help="merge configuration (YAML) to take target, source and layer_map from")
    add("--layer-map", help="for unequal depths: linear, or target:source pairs such as 0:0,1:2")
    add("--pairs", required=True, help="table of pairs, or folder of LJ Speech or VCTK (their training split)")
    add("--split", help="of a corpus folder: its own rule (default), hash, or a splits.json; the train list is used")
    add("--root", help="folder that the paths of the table are relative to (default: its own)")
    add(
        "--metric",
        default="euclidean,inner_product,swd",
        help=f"some of {','.join(SIMILARITY_NAMES)} (default: %(default)s)",
    )
    add("--top-k", type=int, default=6, help="number of layers to choose (default %(default)s)")
    add("--share", type=float, default=SHARE, help="part of the pairs to use (default %(default)s)")
    add("--seed", type=int, default=0, help="of the draw of pairs (default %(default)s)")
    add("--projections", type=int, default=SWD_DIRECTIONS, help="directions of swd (default %(default)s)")
    add("--normalize", action="store_true", help="scale every vector to length 1")
    add("--level", choices=LEVELS, default=LEVELS[0], help="frame: frames against tokens of each sample, swd only")
    add("--no-special-tokens", action="store_true", help="leave out [CLS], [SEP] or class tokens of the source")
    add(
        "--batch-size",
        type=int,
        default=1,
        help="clips in one pass of the target; more pads them (default %(default)s)",
    )
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--out", required=True, help="folder for layers.json, layers.md and layers.png")
    return parser
