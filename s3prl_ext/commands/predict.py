"""``s3prl-ext predict``: label, transcribe or diarize your own recordings."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction import load
from s3prl_ext.prediction.decoder import Options
from s3prl_ext.prediction.model import Model
from s3prl_ext.prediction.recordings import find
from s3prl_ext.prediction.results import Failure
from s3prl_ext.prediction.writing import FORMATS, Formatter, format_of, whole_file

EPILOG = """Recordings of any sample rate and channel count: they are resampled to 16 kHz and their channels averaged. A file that
cannot be used is named, the others go on, and the exit status is 1. Long recordings are cut: at pauses for transcripts,
into equal windows whose probabilities are averaged for labels, into overlapping windows for speaker turns.

example:
  s3prl-ext predict exp/ks clip.wav recordings/ --format csv --out keywords.csv"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext predict``; return the exit status: 1 where a recording gave no result.

    Raises:
        UsageError: a flag cannot work.
        DataError: the model cannot be loaded, or there is no recording at all.
    """
    flags = _parser().parse_args(argv)
    options = Options(flags.window, flags.top, flags.threshold, flags.median)
    if flags.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {flags.batch_size}.")
    files, problems, others = find(flags.audio)
    if not files:
        raise DataError(" ".join(sentence for _, sentence in problems))
    with _writer(flags.out) as write:
        model = load(
            flags.model, device=flags.device, upstream=flags.upstream, upstream_ckpt=flags.upstream_ckpt,
            upstream_model_config=flags.upstream_model_config, options=options,
        )  # fmt: skip
        formatter = Formatter(flags.format or format_of(flags.out), model.decoder, files)
        write(formatter.header())
        failures = [Failure(str(path), sentence) for path, sentence in problems]
        for failure in failures:
            write(formatter(failure))
        failures += _predict(model, files, flags, formatter, write)
    if others:
        names = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        _say(f"{len(others)} files in the folders have no audio suffix and were skipped: {names}")
    for failure in failures:
        _say(failure.error)
    if failures:
        count = len(files) + len(problems)
        _say(f"{count - len(failures)} of {count} inputs gave a result.")
    return 1 if failures else 0


def _predict(
    model: Model,
    files: Sequence[Path],
    flags: argparse.Namespace,
    formatter: Formatter,
    write: Callable[[str], object],
) -> list[Failure]:
    """Write the result of each file as it comes; return those that failed."""
    failures = []
    for result in tqdm(
        model.predict_files(files, flags.batch_size), total=len(files), desc=model.task, dynamic_ncols=True,
        disable=None if len(files) > 1 or flags.out else True,
    ):  # fmt: skip
        write(formatter(result))
        if isinstance(result, Failure):
            failures.append(result)
        elif result.notes and formatter.kind != "jsonl":
            _say(f"{result.file}: {'; '.join(result.notes)}")
    return failures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s3prl-ext predict",
        description="Label, transcribe or diarize recordings with a trained task.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", type=Path, help="folder of a run, checkpoint, delta.safetensors, or folder of s3prl-ext export"
    )
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
        help="longest stretch that passes the model as a whole (default: 40, speaker identification 150, diarization "
        "the chunk_size of the task file)",
    )  # fmt: skip
    parser.add_argument("--top", type=int, metavar="N", help="labels: show the N most probable ones")
    parser.add_argument("--threshold", type=float, help="diarization: probability from which a speaker talks (0.5)")
    parser.add_argument("--median", type=int, metavar="FRAMES", help="diarization: median filter (11; 1 for none)")
    parser.add_argument("-u", "--upstream", help="upstream, where the stored name does not fit any more")
    parser.add_argument("-k", "--upstream_ckpt", help="its checkpoint or model, where it has moved")
    parser.add_argument("-g", "--upstream_model_config", help="its configuration")
    return parser


@contextlib.contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[str], object]]:
    """Give a function that writes to the file, or line by line to standard output."""
    if out is not None:
        with whole_file(out) as write:
            yield write
        return

    def write_line(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    yield write_line


def _say(sentence: str) -> None:
    tqdm.write(f"s3prl-ext: {sentence}", file=sys.stderr)
