"""``s3prl-ext predict``: what a trained task says of your own recordings."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.commands.flags import predict as flags_of
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction import load
from s3prl_ext.prediction.decoder import Options
from s3prl_ext.prediction.formats import format_of
from s3prl_ext.prediction.model import Model
from s3prl_ext.prediction.recordings import find
from s3prl_ext.prediction.results import AudioResult, Failure
from s3prl_ext.prediction.separation import SourceDecoder
from s3prl_ext.prediction.verification import VoiceDecoder, no_reference
from s3prl_ext.prediction.writing import AudioFolder, Formatter, whole_file
from s3prl_ext.writing import check_out_file


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext predict``; return the exit status: 1 where a recording gave no result.

    Raises:
        UsageError: a flag cannot work.
        DataError: the model cannot be loaded, or there is no recording at all.
    """
    flags = flags_of.parser().parse_args(argv)
    queries, missing, _ = find(flags.queries or ())
    if missing:
        raise DataError(" ".join(sentence for _, sentence in missing))
    options = Options(flags.window, flags.top, flags.threshold, flags.median, queries or None)
    if flags.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {flags.batch_size}.")
    files, problems, others = find(flags.audio)
    if not files:
        raise DataError(" ".join(sentence for _, sentence in problems))
    if flags.out is not None:
        given = [Path(path) for path in (flags.upstream_ckpt, flags.upstream_model_config) if path]
        check_out_file(flags.out, lambda _: True, [*files, *queries, *others, flags.model, *given])
        if flags.out.exists() and flags.out.stat().st_size and not flags.overwrite:
            raise UsageError(f"--out {flags.out} is there already: name another file, or replace it with --overwrite.")
    with _writer(flags.out) as write:
        model = load(
            flags.model, device=flags.device, upstream=flags.upstream, upstream_ckpt=flags.upstream_ckpt,
            upstream_model_config=flags.upstream_model_config, options=options,
        )  # fmt: skip
        if isinstance(model.decoder, VoiceDecoder) and problems and problems[0][0] == Path(flags.audio[0]):
            raise no_reference(problems[0][1])
        audio = _audio_folder(flags.write_audio, model, files, flags.overwrite)
        formatter = Formatter(flags.format or format_of(flags.out), model.decoder, files)
        write(formatter.header())
        failures = [Failure(str(path), sentence) for path, sentence in problems]
        for failure in failures:
            write(formatter(failure))
        failures += _predict(model, files, flags, formatter, write, audio)
    if others:
        names = ", ".join(str(path) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        _say(f"{len(others)} files in the folders have no audio suffix and were skipped: {names}")
    for failure in failures:
        _say(failure.error)
    if failures:
        count = len(files) + len(problems) + len(queries)
        _say(f"{count - len(failures)} of {count} inputs gave a result.")
    return 1 if failures else 0


def _predict(
    model: Model,
    files: Sequence[Path],
    flags: argparse.Namespace,
    formatter: Formatter,
    write: Callable[[str], object],
    audio: AudioFolder | None,
) -> list[Failure]:
    """Write the result of each file as it comes; return those that failed."""
    failures = []
    for result in tqdm(
        model.predict_files(files, flags.batch_size), total=len(files), desc=model.task, dynamic_ncols=True,
        disable=None if len(files) > 1 or flags.out else True,
    ):  # fmt: skip
        if audio is not None and isinstance(result, AudioResult):
            result = audio(result)
        write(formatter(result))
        if isinstance(result, Failure):
            failures.append(result)
        elif result.notes and formatter.kind != "jsonl":
            _say(f"{result.file}: {'; '.join(result.notes)}")
    return failures


def _audio_folder(folder: Path | None, model: Model, files: Sequence[Path], overwrite: bool) -> AudioFolder | None:
    """Return where the audio of a task goes that gives audio; None for another task.

    Raises:
        UsageError: the task gives audio and there is no folder, or the reverse.
    """
    decoder = model.decoder
    if not isinstance(decoder, SourceDecoder):
        if folder is not None:
            raise UsageError(f"--write-audio is not supported for -d {model.task}: drop it.")
        return None
    if folder is None:
        raise UsageError(f"-d {model.task} gives audio: name a folder for it with --write-audio.")
    return AudioFolder(folder, files, decoder.sources, overwrite)


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
