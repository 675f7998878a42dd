"""Miniature corpora in the exact layouts of the SUPERB tasks, LJ Speech, VCTK and ESC-50.

They are made of a few real or synthesised recordings. They serve tests, demonstrations and first runs on a CPU; scores
on them cannot be compared with published ones.
"""

from __future__ import annotations

import argparse
import glob
import logging
import os
import shlex
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.corpora.recordings import Recordings
from s3prl_ext.errors import UsageError, unknown_name
from s3prl_ext.locks import one_writer
from s3prl_ext.mini_superb.layouts import LAYOUTS, TRAINED
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.writing import unfinished_folder

__all__ = ["ALL", "LAYOUTS", "TRAINED", "build", "commands", "main", "variables"]

logger = logging.getLogger(__name__)


ALL: tuple[str, ...] = tuple(LAYOUTS)


def build(
    out: Path,
    recordings: Path | None = None,
    seed: int = 0,
    tasks: Iterable[str] = ALL,
    overwrite: bool = False,
    digit_strings: int = 0,
    everything: bool = False,
    takes: int = 0,
) -> list[str]:
    """Write the miniature corpora of `tasks` into the folder `out`; return one command per task that trains on it.

    The same arguments give the same bytes. Nothing appears at `out` before everything is written.

    Args:
        out: new folder; next to the corpora it gets ``README.md`` and ``env.sh``.
        recordings: folder of real recordings (see :mod:`s3prl_ext.corpora.recordings`); without it, or where it lacks
            what a task needs, speech is synthesised.
        seed: decides selection, splits, sentences and noise.
        tasks: short names out of :data:`ALL`.
        overwrite: replace an earlier build at `out`; its ``exp`` folder is kept.
        digit_strings: make LibriSpeech, LJ Speech and VCTK of that many strings of spoken digits each; 0 = of
            sentences.
        everything: make these three of all recordings with a text, of any length, by speaker where there are enough.
        takes: make KS and SID of recorded digits harder: that many takes of each digit in train, KS with speakers of
            their own in dev and test, SID of single digits; 0 = the easy forms.

    Raises:
        UsageError: unknown task, two of these choices, a corpus that is not among the recordings, `out` is not
            empty, `recordings` contains no known corpus, a package is missing.
        DataError: a table or clip of the recordings is unreadable.
    """
    tasks = _checked(tasks)
    if everything and digit_strings:
        raise UsageError("--all takes the recordings as they are, --digits makes strings of digits: give one of them.")
    if takes < 0:
        raise UsageError(f"--takes {takes} is negative: give the number of training takes of each digit.")
    out = Path(out).absolute()
    with one_writer(out):
        _move_back(out)
    _check_place(out, overwrite)
    source = MiniBuild(out, Recordings(recordings) if recordings else None, seed, digit_strings, everything, takes)
    with ExitStack() as stack:
        try:
            partial = stack.enter_context(unfinished_folder(out))
        except OSError as error:
            raise UsageError(f"cannot write into {out.parent} ({error.strerror}): give another --out.") from error
        for task in (progress := tqdm(tasks, desc="mini_superb", unit="task")):
            progress.set_postfix_str(task)
            LAYOUTS[task].write(partial / LAYOUTS[task].folder, source)
        (partial / "env.sh").write_text(_environment(tasks, out), encoding="utf-8")
        (partial / "README.md").write_text(_readme(tasks, source), encoding="utf-8")
        _move_into_place(partial, out)
    return commands(tasks, out)


def commands(tasks: Iterable[str], out: Path) -> list[str]:
    """Return one shell line per task that trains on log-mel features of the corpora at `out`."""
    place = shlex.quote(str(out))
    return [
        f". {place}/env.sh; s3prl-ext run -m {'train' if LAYOUTS[task].task.trains else 'evaluate'} -u "
        f"{LAYOUTS[task].upstream} -d {LAYOUTS[task].task.downstream} -c {task}/mini "
        f"-p {place}/exp/{task} --device cpu"
        for task in tasks
    ]


def _checked(tasks: Iterable[str]) -> list[str]:
    """Return `tasks` in the order of the table, each once."""
    wanted = list(tasks)
    for task in wanted:
        if task not in LAYOUTS:
            raise unknown_name("task", task, LAYOUTS)
    if not wanted:
        raise UsageError(f"no task given: choose from {', '.join(LAYOUTS)}.")
    return [task for task in LAYOUTS if task in wanted]


def _check_place(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: give the name of a new folder.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{out} is not empty: give a new folder, or --overwrite to replace an earlier build there.")
    if not (out / "env.sh").is_file() or not (out / "README.md").is_file():
        raise UsageError(
            f"{out} holds something else than miniature corpora and is not overwritten: give a new folder."
        )


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; results below ``exp`` of an earlier build stay, and all of it where that fails."""
    if not out.is_dir():
        os.replace(partial, out)
        return
    old = partial.with_name(f"{partial.name}-old")
    os.replace(out, old)
    try:
        os.replace(partial, out)
    except BaseException:
        os.replace(old, out)
        raise
    if (old / "exp").is_dir():
        os.replace(old / "exp", out / "exp")
    shutil.rmtree(old)


def _move_back(out: Path) -> None:
    """Put right what a process left that was killed while it moved its build into place."""
    for old in out.parent.glob(f"{glob.escape(f'.{out.name}.partial-')}*-old"):
        if not out.exists():
            os.replace(old, out)
            continue
        if (old / "exp").is_dir() and not (out / "exp").exists():
            os.replace(old / "exp", out / "exp")
        if not (old / "exp").exists():
            shutil.rmtree(old)


def variables(tasks: Iterable[str], out: Path) -> dict[str, str]:
    """Return the environment variables with which the shipped task files find the corpora of `tasks` at `out`."""
    return {LAYOUTS[task].task.variable: str(out / LAYOUTS[task].folder) for task in tasks}


def _environment(tasks: Iterable[str], out: Path) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables(tasks, out).items()]
    return "# Points the shipped task files at these miniature corpora: `. env.sh`\n" + "\n".join(lines) + "\n"


def _readme(tasks: Iterable[str], source: MiniBuild) -> str:
    purpose = (
        f"Made by `s3prl-ext prepare mini_superb` with seed {source.seed}. For tests and first runs only: scores on "
        "them say nothing about a model. Paths in `env.sh` and `wav.scp` are absolute: after moving this folder make "
        "it anew."
    )
    lines = ["# Miniature SUPERB corpora", "", purpose, ""]
    for task in tasks:
        layout = LAYOUTS[task]
        lines += [
            f"## {task} (`-d {layout.task.downstream} -c {task}/mini`, folder `{layout.folder}`)",
            "",
            layout.mapping,
            "",
        ]
    lines += ["## Where the speech comes from", "", *(f"- {note}" for note in source.notes), ""]
    lines += ["## Train and evaluate", "", "```sh", *commands(tasks, source.final), "```", ""]
    lines += [
        f"Evaluate with `s3prl-ext run -m evaluate -e {source.final}/exp/TASK/CHECKPOINT` (asr: `-t test-clean`).",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare mini_superb``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare mini_superb",
        description="Write miniature corpora in the layouts of the SUPERB tasks, LJ Speech, VCTK and ESC-50,\n"
        "for first runs on a CPU.",
        epilog="example:\n  s3prl-ext prepare mini_superb --out mini --tasks ks,sd\n  . mini/env.sh",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the corpora")
    parser.add_argument("--recordings", type=Path, help="folder of real recordings; without it speech is synthesised")
    parser.add_argument("--seed", type=int, default=0, help="selection, splits, sentences, noise (default: 0)")
    parser.add_argument(
        "--digits",
        type=int,
        default=0,
        metavar="N",
        help="make asr, pr, ljspeech and vctk of N strings of spoken digits each (fsdd)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="make asr, pr, ljspeech and vctk of every recording with a text, split by speaker where there are enough",
    )
    parser.add_argument(
        "--takes",
        type=int,
        default=0,
        metavar="N",
        help="harder ks and sid of recorded digits (fsdd): N takes of each digit in train, unseen speakers in ks's dev "
        "and test, single digits in sid",
    )
    parser.add_argument("--tasks", default=",".join(ALL), help=f"comma-separated (default: {','.join(ALL)})")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build at --out; its exp/ stays")
    args = parser.parse_args(argv)
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()]
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # what is said about each corpus
    for line in build(args.out, args.recordings, args.seed, tasks, args.overwrite, args.digits, args.all, args.takes):
        print(line)
    return 0
