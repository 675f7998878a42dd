"""Each command on a disk that is too small (a tmpfs, which takes root).

It ends with one sentence and leaves nothing hidden; on a larger disk it then ends as if nothing had happened.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from reliability.commands import KINDS, whole
from reliability.shared import Figure, Place, finish, hidden, sentence_problem

TRIALS = 24


def measure(place: Place) -> Figure:
    """Fill `trials` disks; the goal is 0 bad ends."""
    disk = place.folder / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or not mount(disk, 64):
        return Figure("skipped: mounting a small tmpfs takes root, outside a container without that right", 0)
    subprocess.run(["umount", str(disk)], check=True)
    bad = disks = 0
    for number in place.numbers():
        name = place.draw.choice(list(KINDS))
        problems = trial(place, name, disk, number)
        disks, bad = disks + 1, bad + bool(problems)
        if problems:
            print(f"disk {number}, {name}:", *problems, sep="\n   ", flush=True)
    return Figure(f"{disks} full disks, {bad} with an unclear end, a leftover or another result", bad)


def mount(disk: Path, kib: int) -> bool:
    """Mount an empty disk of a size; return whether that is possible here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def trial(place: Place, name: str, disk: Path, number: int) -> list[str]:
    """Run a command on a disk that may be too small, then on the same disk made larger; return what is wrong."""
    kind, (expected, _) = KINDS[name], whole(place, name)
    size = sum(path.stat().st_size for path in expected.rglob("*") if path.is_file()) // 1024
    mount(disk, max(8, int(size * place.draw.uniform(0.05, 1.2))))
    try:
        flags, log = kind.flags(place, disk / name), place.folder / f"{number}.log"
        command = place.start(flags, log)
        code = finish(command)
        problem = sentence_problem(command, code)
        problems = [problem] if problem else []
        if left := hidden(disk):
            problems.append(f"left over: {left}")
        if code:
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            command = place.start([*flags, *kind.again], log)
            code = finish(command)
        return problems + (kind.differences(disk / name, expected) if code == 0 else [command.output[-1000:]])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
