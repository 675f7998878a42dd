"""Errors of the plug-in: each message says what is wrong, which thing it is, and what to do next."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


class ExtError(Exception):
    """Base of all errors that the command line shows as one sentence.

    ``exit_code`` is the status with which a command ends: 2 for usage, 1 for data.
    """

    exit_code = 1


class UsageError(ExtError):
    """A wrong flag, name, key or value in a command or a YAML file."""

    exit_code = 2


class DataError(ExtError):
    """A missing, unreadable or unsuitable file: audio, corpus, checkpoint, model."""

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to `name`, or ``"."`` where none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else "."


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> UsageError:
    """Build the error for an unknown name: what kind, which name, the nearest and all known names.

    Args:
        kind: what it names, such as ``"task"``.
        name: the name that was given.
        known: all valid names; of more than 40 only the closest, or where none is close the first, are shown.
        where: place of the name, such as a file, shown before the sentence.
    """
    names = sorted(str(k) for k in known)
    if len(names) > 40:
        close = difflib.get_close_matches(str(name), names, n=8, cutoff=0.5)
        listed = f"{len(names)} names, among them {', '.join(close or names[:8])}"
    else:
        listed = ", ".join(names)
    place = f"{where}: " if where else ""
    return UsageError(f"{place}unknown {kind} '{name}'{nearest(name, names)} Known: {listed}.")


class StoppedByUser(ExtError):
    """Ctrl-C or SIGTERM ended the run in an orderly way."""

    exit_code = 130


_command = False


def show_errors_as_sentences(active: bool = True) -> None:
    """Choose how errors leave the Runner: as one sentence and an exit code (commands) or as exceptions (Python)."""
    global _command
    _command = active


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """In a command, turn any error into one sentence on stderr and an exit code; elsewhere do nothing.

    ``S3PRL_EXT_DEBUG=1`` keeps the traceback.
    """
    if not _command or os.environ.get("S3PRL_EXT_DEBUG") == "1":
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("\ns3prl-ext: interrupted.\n")
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:  # noqa: BLE001  a command shows every error as a sentence
        sys.stderr.write(f"\ns3prl-ext: {sentence(error)}\n")
        raise SystemExit(getattr(error, "exit_code", 1)) from None


@contextmanager
def as_command() -> Iterator[None]:
    """Run the body as a command: errors of it and of everything it calls become one sentence and an exit code."""
    before = _command
    show_errors_as_sentences()
    try:
        with one_sentence_errors(), _flags_in_one_sentence():
            yield
    finally:
        show_errors_as_sentences(before)


@contextmanager
def _flags_in_one_sentence() -> Iterator[None]:
    """Let all parsers of flags raise UsageError, where argparse shows a usage of up to 40 lines."""
    complain, parse = argparse.ArgumentParser.error, argparse.ArgumentParser.parse_known_args
    typed: list[str] = []

    def parse_noting(parser: Any, args: Any = None, namespace: Any = None) -> Any:
        typed[:] = sys.argv[1:] if args is None else args
        return parse(parser, args, namespace)

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        program = parser.prog if parser.prog.startswith("s3prl-ext") else "s3prl-ext run"
        raise UsageError(f"{_about_flags(message, parser, typed)} See {program} --help.")

    argparse.ArgumentParser.error = error  # type: ignore[method-assign,assignment]
    argparse.ArgumentParser.parse_known_args = parse_noting  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = complain  # type: ignore[method-assign]
        argparse.ArgumentParser.parse_known_args = parse  # type: ignore[method-assign]


def _about_flags(message: str, parser: argparse.ArgumentParser, typed: Sequence[str]) -> str:
    """Return a message of argparse as a sentence with the nearest flag or choice; a misspelt flag comes first."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    if message.startswith(("the following arguments are required", "unrecognized arguments")):
        for word in (word.partition("=")[0] for word in typed):
            known = any(flag.startswith(word) or word[:2] == flag for flag in flags)  # begun, or with its value
            if re.match(r"--?[A-Za-z]", word) and not known:
                return f"unknown flag {word}{nearest(word, flags)}"
    choice = re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", message)
    return message + (nearest(choice[1], re.findall(r"[^\s,']+", choice[2])) if choice else ".")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    words = (
        "out of memory",
        "can't allocate memory",
        "not enough memory",
        "Unable to allocate",
        "can't start new thread",
        "could not create a memory object",
    )
    said = str(error)
    no_primitive = "could not create a primitive" in said and "primitive descriptor" not in said  # oneDNN's
    return isinstance(error, MemoryError) or no_primitive or any(part in said for part in words)


def is_of_precision(error: BaseException) -> bool:
    """Return whether an error says that an operation does not know the number format of its input."""
    words = ("ScalarType", "scalar type", "dtype", "BFloat16", "Half", "primitive descriptor")  # the last is oneDNN's
    return any(part in str(error) for part in words)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error says that a disk or a quota is full; torch says it in words of its own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    words = ("unexpected pos", "PytorchStreamWriter failed writing", "No space left on device", "Disk quota exceeded")
    return any(part in str(error) for part in words)


def is_lost_worker(error: BaseException) -> bool:
    """Return whether an error says that a process which loads data has ended before its run."""
    text = str(error)
    return "DataLoader worker" in text and ("is killed by signal" in text or "exited unexpectedly" in text)


def _advice(error: OSError) -> str:
    """Return what to do about a file or folder that the operating system refuses."""
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
    if error.errno == errno.EISDIR:
        return "it is a folder, and a file is needed: choose another path"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        file = next((path for path in (Path(name), *Path(name).parents) if path.is_file()), None)
        return (
            f"{file} is a file, and a folder is needed" if file else "it is there already"
        ) + ": choose another path"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check its permissions, or choose another path"
    if any(len(word) > 1 and name.startswith(word) for word in sys.argv[1:]):
        return "check the path in the command"
    return "check the corpus folder (s3prl-ext doctor lists the corpus variables) or the path given with -o"


def sentence(error: BaseException) -> str:
    """Return one sentence for any exception: what, which, what to do next."""
    if isinstance(error, ExtError):
        # A DataLoader worker wraps the message in its traceback; the sentence is its last line.
        text = str(error).strip()
        if "Original Traceback" in text:
            text = text.splitlines()[-1].partition(": ")[2]
        return text
    if is_disk_full(error):
        file = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a copy: where it goes
        return (
            f"the disk is full while writing {file or 'a file'}; free some space and give the same command again "
            "(a training with -a)."
        )
    if isinstance(error, OSError) and error.filename:
        reason = os.strerror(error.errno) if error.errno else "cannot open"
        return f"{reason}: {error.filename}; {_advice(error)}."
    text = " ".join(str(error).split()) or "no message"
    if is_out_of_memory(error):
        reason = text if len(text) <= 160 else "... " + text[max(0, text.find("Unable to allocate")) :][:160]
        return f"out of memory ({reason}): lower the batch size of the task, or take a smaller model."
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read (S3PRL_EXT_DEBUG=1 shows which)."
    if is_lost_worker(error):
        return (
            f"{text[:100]}: a process that loads data was ended from outside, often for lack of memory; lower "
            "num_workers."
        )
    return f"{type(error).__name__}: {text[:400]} (S3PRL_EXT_DEBUG=1 shows where)."
