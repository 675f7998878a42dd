"""SIGKILL at a random time or at the n-th change of a file.

The command is started again, and must end as if nothing happened.

Half of the trials are killed once, the others two or three times. Compared bit by bit with an undisturbed command; what
is hidden afterwards, an unfinished file or a lock, counts too.
"""

from __future__ import annotations

import collections
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from reliability.commands import KINDS, whole
from reliability.shared import Figure, Place, finish, hidden
from tests.support.forked import Command

TRIALS = 150
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.copyfile", "shutil.rmtree", "os.link"}


class AtChange:
    """Die at the n-th change of a file below a folder: opened for writing, renamed, removed, copied.

    Args:
        folder: watched.
        number: of the change, from 1; 0 lets the process live.
        count: file for the number of changes so far.
    """

    def __init__(self, folder: Path, number: int = 0, count: Path | None = None) -> None:
        self.folder, self.number, self.count, self.seen = str(folder), number, count, 0

    def __call__(self) -> None:
        from s3prl_ext.training.selection import fisher_pass

        fisher_pass.SAVE_SECONDS = -1.0  # after every batch
        counter = os.open(self.count, os.O_WRONLY | os.O_CREAT) if self.count else None

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                flags = arguments[2] if isinstance(arguments[2], int) else 0
                if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                    return
            elif event not in EVENTS:
                return
            if self.folder not in str(arguments[0]):
                return
            self.seen += 1
            if counter is not None:
                os.pwrite(counter, b"%09d" % self.seen, 0)
            if self.seen == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)


def measure(place: Place) -> Figure:
    """Kill `trials` times; the goal is 0 that end differently."""
    kills, bad = 0, 0
    kinds: collections.Counter[str] = collections.Counter()
    known: dict[str, tuple[Path, float, int]] = {}
    for number in place.numbers():
        if kills >= place.trials:
            break
        name = place.draw.choice(list(KINDS))
        killed, problems = trial(place, name, place.folder / f"{number}" / name, known)
        kills, bad = kills + killed, bad + bool(problems)
        kinds[name] += killed
        if problems:
            print(f"trial {number}, {name}, {killed} kills:", *problems, sep="\n   ", flush=True)
        else:
            shutil.rmtree(place.folder / f"{number}")
    print("kills:", dict(kinds))
    return Figure(f"{kills} kills, {bad} ended differently, lost something or left something over", bad)


def trial(place: Place, name: str, folder: Path, known: dict[str, tuple[Path, float, int]]) -> tuple[int, list[str]]:
    """Disturb one command until it ends; return how often it was killed, and what is then wrong.

    Args:
        place: of the measurement.
        name: of the kind of command.
        folder: that it writes into.
        known: kind -> folder, seconds and changes of files of the undisturbed command, filled here.
    """
    kind = KINDS[name]
    for needed in ("child", name):  # export, apply and evaluate read what child has written
        if needed not in known:
            count = place.folder / f"{needed}.count"
            expected, seconds = whole(place, needed, AtChange(place.folder / "whole", count=count))
            known[needed] = expected, seconds, int(count.read_text())
    expected, seconds, changes = known[name]
    folder.parent.mkdir()
    killed = 0
    for _ in range(place.draw.choice([1, 1, 2, 3])):
        command, code = _killed(place, start_of(place, kind, folder, killed), seconds, changes)
        if code != -signal.SIGKILL:
            break  # it ended first
        killed += 1
    else:
        command = place.start(*start_of(place, kind, folder, killed))
        code = finish(command)
    complete = code == 2 and not kind.again and ("exists" in command.output or "not empty" in command.output)
    if code != 0 and not (killed and complete):  # complete: the kill came after the last rename
        return killed, [f"code {code}: {command.output[-1500:]}"]
    left = hidden(folder.parent)
    return killed, kind.differences(folder, expected) + ([f"left over: {left}"] if left else [])


def start_of(place: Place, kind: Any, folder: Path, killed: int) -> tuple[list[Any], Path]:
    """Return the flags and the log of the next attempt."""
    more = kind.again if killed else ()
    return [*kind.flags(place, folder), *more], place.folder / f"{folder.parent.name}.log"


def _killed(place: Place, attempt: tuple[list[Any], Path], seconds: float, changes: int) -> tuple[Command, int | None]:
    """Start an attempt and kill it at a random change of a file, or at a random time.

    Return it with its exit status.
    """
    flags, log = attempt
    at_change = place.draw.random() < 0.6
    number = place.draw.randint(1, changes) if at_change else 0
    command = place.start(flags, log, AtChange(place.folder / log.stem, number))
    if not at_change:
        time.sleep(place.draw.uniform(0.0, seconds))
        if command.process.is_alive():
            command.kill()
    return command, finish(command)
