"""A second run in the folder of the first, on a slow disk.

It must be refused, and the first must end as if it were alone.
"""

from __future__ import annotations

import os
import time

from reliability.commands import TRAININGS, run_differences, whole
from reliability.shared import Figure, Place, finish, sentence_problem

TRIALS = 8


class SlowDisk:
    """Let a flush take 0.3 s, as with large checkpoints."""

    def __call__(self) -> None:
        flush = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(0.3)
            flush(descriptor)

        os.fsync = slow


def measure(place: Place) -> Figure:
    """Start `trials` pairs; the goal is 0 let in, 0 broken."""
    expected, bad, pairs = whole(place, "child")[0], 0, 0
    for number in place.numbers():
        folder = place.folder / f"{number}"
        first = place.start(place.train(folder, TRAININGS["child"]), place.folder / f"{number}-first.log", SlowDisk())
        until = time.monotonic() + 60
        while not list(folder.glob("states-*.ckpt")) and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(place.draw.uniform(0.0, 0.5))
        flags = place.train(folder, TRAININGS["child"])
        if number % 2:
            flags.append("-a")
        else:
            flags[-1] += ",,args.overwrite=True"
        alive = first.process.is_alive()
        second = place.start(flags, place.folder / f"{number}-second.log")
        code, codes = finish(second), finish(first)
        problems = [sentence_problem(second, code)] if code == 2 and "in use" in second.output else []
        if not problems and alive:
            problems = [f"the second was let in: code {code}, {second.output[-300:]}"]
        problems += run_differences(folder, expected) if codes == 0 else [f"the first broke: {first.output[-1000:]}"]
        problems = [problem for problem in problems if problem]
        pairs, bad = pairs + 1, bad + bool(problems)
        if problems:
            print(f"pair {number}:", *problems, sep="\n   ", flush=True)
    return Figure(f"{pairs} pairs, in {bad} the second was let in or the first was broken", bad)
