"""The flags of ``s3prl-ext predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ext.prediction.formats import FORMATS

EPILOG = """Recordings of any sample rate and channel count: they are resampled to 16 kHz and their channels averaged.
A file that cannot be used is named, the others go on (but where it is the first of speaker verification, which the
others are compared with), and the exit status is 1. Long recordings are cut: at pauses for transcripts, into equal
windows whose probabilities are averaged for labels, into overlapping windows for speaker turns and audio.

examples:
  s3prl-ext predict exp/ks clip.wav recordings/ --format csv --out keywords.csv
  s3prl-ext predict exp/se noisy.wav --write-audio enhanced
  s3prl-ext predict exp/qbe_6_test recordings/ --queries hello.wav --out scores.csv"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext predict",
        description="Label, transcribe, diarize, enhance, separate, compare or search recordings with a trained task.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=Path,
        help="folder of a run, checkpoint, delta.safetensors, or folder of s3prl-ext export; where no training was "
        "needed (query by example, recognition with a model's own head) folder of an evaluation, or its "
        "result-SPLIT.json",
    )  # fmt: skip
    parser.add_argument("audio", nargs="+", type=Path, help="audio files, and folders whose audio files are taken")
    parser.add_argument("--format", choices=FORMATS, help="default: by the suffix of --out, else text")
    parser.add_argument("--out", type=Path, help="file that is written when all is done (default: standard output)")
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU where there is one)")
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N",
        help="windows that pass the model together (default: 1, so that no result depends on the other files)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=float, metavar="SECONDS",
        help="longest stretch that passes the model as a whole (default: 40, speaker identification and "
        "verification 150, diarization the chunk_size of the task file; never more than the 30 of a Whisper that "
        "transcribes)",
    )  # fmt: skip
    parser.add_argument(
        "--write-audio", type=Path, metavar="FOLDER",
        help="enhancement and separation: folder for the audio, NAME.wav or NAME_SOURCE.wav (16 kHz, 32-bit float)",
    )  # fmt: skip
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of --out and --write-audio that are there already"
    )
    parser.add_argument(
        "--queries", nargs="+", type=Path, metavar="AUDIO",
        help="query by example: what is searched for, audio files and folders; --queries comes after the recordings",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=int, metavar="N", help="labels: show the N most probable ones; CSV has a row for each"
    )
    parser.add_argument("--threshold", type=float, help="diarization: probability from which a speaker talks (0.5)")
    parser.add_argument("--median", type=int, metavar="FRAMES", help="diarization: median filter (11; 1 for none)")
    parser.add_argument("-u", "--upstream", help="upstream, where the stored name does not fit any more")
    parser.add_argument("-k", "--upstream_ckpt", help="its checkpoint or model, where it has moved")
    parser.add_argument("-g", "--upstream_model_config", help="its configuration")
    return parser
