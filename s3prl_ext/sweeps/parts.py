"""A sweep divided over processes: each loads the models once and scores every N-th arm on dev.

Their results are merged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.progress import bar
from s3prl_ext.studies.driver import Engine, last_sentence
from s3prl_ext.sweeps.store import NAME, Store, count_results

FOLDER = "parts"  # in that of the sweep, until their results are merged


@dataclass(frozen=True)
class SweepPart:
    """One process of a divided sweep, as an engine runs it.

    Attributes:
        number: of `of`, from 0.
        of: number of parts.
        folder: its results so far, so that it goes on from them.
        argv: flags of the whole sweep.
    """

    number: int
    of: int
    folder: Path
    argv: Sequence[str]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"part {self.number + 1} of {self.of}"

    def module(self) -> str:
        """Return the module whose command it is."""
        return "s3prl_ext.cli"

    def flags(self) -> list[str]:
        """Return its command: that of the whole sweep, in a folder of its own."""
        kept = [word for word in self.argv if word != "--overwrite"]
        return ["sweep", *kept, "-p", str(self.folder), "--jobs", "1", "--part", f"{self.number}/{self.of}"]


def score(store: Store, engine: Engine, jobs: int, argv: Sequence[str], check: Callable[[], None], arms: int) -> None:
    """Let `jobs` processes score the arms on dev, with one progress bar, and take their results into the store.

    Args:
        store: of the sweep; what it holds is not scored again.
        engine: where the processes run.
        jobs: their number.
        argv: flags of the sweep.
        check: called once a second; what it raises ends the processes, which keep their results.
        arms: how many have no result yet.

    Raises:
        DataError: a process failed; the sentence is its own. What the others have scored is kept.
    """
    folder = store.path.parent / FOLDER
    parts = [SweepPart(number, jobs, folder / f"{number}-of-{jobs}", argv) for number in range(jobs)]
    failed = []
    progress = bar(total=arms, desc=f"{jobs} processes", unit="arm")
    try:
        for part in parts:
            part.folder.mkdir(parents=True)
            shutil.copyfile(store.path, part.folder / NAME)
            engine.start(part, part.folder.with_suffix(".log"))
        left = len(parts)
        while left:
            check()
            for end in engine.ended(1.0):
                left -= 1
                failed += [f"{end.job.name}: {last_sentence(end)}"] if end.code != 0 else []
            done = sum(count_results(part.folder / NAME) - len(store.content["results"]) for part in parts)
            progress.update(done - progress.n)
    except BaseException:
        engine.stop()
        raise
    finally:
        progress.close()
    if failed:
        without = " without --overwrite" if "--overwrite" in argv else ""
        raise DataError(f"{failed[0]} Give the same command again{without} to go on.")
    for part in parts:
        merge(store, part.folder)
    remove(store)


def settle(store: Store, overwrite: bool) -> None:
    """Take the results of the parts of an interrupted sweep into the store, or with `overwrite` drop them.

    Raises:
        DataError: they are of other models, settings or data.
    """
    for earlier in [] if overwrite else sorted((store.path.parent / FOLDER).glob(f"*/{NAME}")):
        merge(store, earlier.parent)
    remove(store)


def remove(store: Store) -> None:
    """Remove the folders of all parts."""
    shutil.rmtree(store.path.parent / FOLDER, ignore_errors=True)


def merge(store: Store, part: Path) -> None:
    """Take the results of a part into the store, and what its arms have written into the folder of the sweep.

    Raises:
        DataError: they are of other models, settings or data.
    """
    try:
        found = Store(part, store.content["settings"])
    except UsageError as error:
        raise DataError(f"{error} It is a part of a sweep with other settings: remove {part.parent}.") from error
    for split, sha256 in found.content["data"].items():
        store.check_data(split, sha256)
    for file in [path for path in (part / "arms").rglob("*") if not path.is_dir()]:
        place = store.path.parent / file.relative_to(part)  # its folder may be there already, from an interrupted arm
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    store.take(found)
