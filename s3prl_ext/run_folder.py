"""The folder of a run: the names of its files, which of them stand for the run, are replaced, adopted or removed."""

from __future__ import annotations

import itertools
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext import locks, tasks
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import EXPORT_FILE
from s3prl_ext.writing import written

logger = logging.getLogger(__name__)

CHECKPOINT_SUFFIX, DELTA_SUFFIX = ".ckpt", ".safetensors"
DELTA_FILE, MASK_FILE, FISHER_FILE = "delta.safetensors", "masks.safetensors", "fisher.partial"
RACE, RACE_PICTURE, LAMBDA_PICTURE = "race", "race.png", "lambda.png"
SPLIT_FILE, LOG_FILE = "splits.json", "log.log"  # written by tasks
RESULTS, EVENTS = "result*.json", "events.out.tfevents.*"
TRACKER_FILE = "tracker.json"  # the id of the run in a tracker, which a resumed training continues
MERGE_FILE, SWEEP_FILE = "merge.json", "sweep.json"  # of other folders
MERGED_TASKS_FILE = "merged_tasks.json"  # of merge --deltas

# What a run leaves, apart from the files of its task -> whether an experiment adopts it from the winner of its race.
RUN_FILES = {
    f"*{CHECKPOINT_SUFFIX}": False, RESULTS: False, MASK_FILE: False, FISHER_FILE: False, RACE: False,
    RACE_PICTURE: False,
    DELTA_FILE: True, "lambda.*": True, LOG_FILE: True, EVENTS: True, TRACKER_FILE: True,
    "at-*.json": False, "*.step-*": False,
}  # fmt: skip
# Of these, what the next attempt of a run that ended before its first checkpoint takes or replaces.
LEFT_BEFORE_FIRST = (MASK_FILE, FISHER_FILE, "lambda.*", LOG_FILE, EVENTS, TRACKER_FILE)
FAILED = "-failed.json"  # the end of the name of a record of what failed
# What s3prl writes before anything is trained: copies of the task file and of the file of -g, named by time.
SETTINGS_NAMES = re.compile(r".+_\d{4}(-\d\d){5}\.\w+|events\.out\.tfevents\..*")
# Folders that are not runs, by a file in them, and what to do with them.
OTHERS = {
    EXPORT_FILE: "is a folder of s3prl-ext export, a plain model with the head of its task: s3prl-ext predict takes "
    "it, and its README.md has the command that scores it",
    MERGE_FILE: "is a folder of s3prl-ext merge, a model without a task: train one on it as its README.md says",
    SWEEP_FILE: "is the folder of a sweep, which keeps scores and not weights: read sweep.md, or give it to s3prl-ext "
    "report",
}


def states_name(step: int) -> str:
    """Return the name of s3prl's checkpoint of an optimizer step."""
    return f"states-{step}{CHECKPOINT_SUFFIX}"


def step_of(path: Path) -> int | None:
    """Return N of a file named ``states-N.ckpt``, None for any other name."""
    found = re.fullmatch(r"states-(?:.*-)?(\d+)", path.stem) if path.suffix == CHECKPOINT_SUFFIX else None
    return int(found[1]) if found else None


@dataclass(frozen=True)
class RunFolder:
    """The files of one run: an experiment (``-p``), or a candidate of a race below one.

    Attributes:
        path: the folder, which may be missing.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def numbered(self) -> list[Path]:
        """Return the ``states-N.ckpt`` files, lowest N first."""
        found = [(step, path) for path in self._all() if (step := step_of(path)) is not None]
        return [path for _, path in sorted(found)]

    def latest(self) -> Path | None:
        """Return the ``states-N.ckpt`` of the last step, or None."""
        return next(reversed(self.numbered()), None)

    def best(self) -> list[Path]:
        """Return the checkpoints that the task has named, such as ``dev-best.ckpt``."""
        return [path for path in self._all() if not path.name.startswith("states-")]

    def _all(self) -> list[Path]:
        return sorted(self.path.glob(f"*{CHECKPOINT_SUFFIX}"))

    @property
    def is_started(self) -> bool:
        """Whether there is a checkpoint under any name."""
        return bool(self._all())

    @property
    def delta(self) -> Path:
        """The delta of the best checkpoint."""
        return self.path / DELTA_FILE

    def by_preference(self) -> list[Path]:
        """Return the checkpoints, the best ones first, then the latest."""
        best = [self.path / name for name in tasks.best_checkpoints() if (self.path / name).is_file()]
        return list(dict.fromkeys([*best, *sorted(self.path.glob("*best*.ckpt")), *reversed(self.numbered())]))

    def representative(self, prefer_delta: bool = False) -> Path:
        """Return the file that stands for the run: its best checkpoint, else the latest, else its delta.

        Args:
            prefer_delta: return the delta, which has the weights of the best checkpoint, where there is one.

        Raises:
            DataError: the folder contains none.
        """
        delta = [self.delta] if self.delta.is_file() else []
        found = [*delta, *self.by_preference()] if prefer_delta else [*self.by_preference(), *delta]
        kind = self.other_kind()
        if found and kind is None:
            return found[0]
        raise DataError(
            f"{self.path} {kind}."
            if kind
            else f"{self.path} contains no checkpoint and no {DELTA_FILE}: name the folder of a run (its -p), a "
            "checkpoint or a delta."
        )

    def other_kind(self) -> str | None:
        """Return what a folder that is not a run's is, and what to do with it; None where it is unknown."""
        return next((text for name, text in OTHERS.items() if (self.path / name).is_file()), None)

    # -- other files -----------------------------------------------------------------------------------------------

    @property
    def masks(self) -> Path:
        """The masks of child networks."""
        return self.path / MASK_FILE

    @property
    def fisher(self) -> Path:
        """An unfinished Fisher pass."""
        return self.path / FISHER_FILE

    @property
    def splits(self) -> Path:
        """The split lists of a task of this package."""
        return self.path / SPLIT_FILE

    @property
    def lambda_curve(self) -> Path:
        """The course of a learnable lambda; its picture is ``lambda.png``."""
        return self.path / "lambda.json"

    @property
    def lambda_picture(self) -> Path:
        """The course of a learnable lambda as a picture."""
        return self.path / LAMBDA_PICTURE

    def result(self, split: str | None = None) -> Path:
        """Return the file with the metrics of the training, or of the evaluation of a split."""
        return self.path / ("result.json" if split is None else f"result-{split}.json")

    def results(self) -> list[Path]:
        """Return the files with the metrics of the training and of evaluations."""
        return sorted(self.path.glob(RESULTS))

    def evaluations(self) -> list[Path]:
        """Return the files with the metrics of evaluations."""
        return sorted(self.path.glob("result-*.json"))

    def stop(self, step: int) -> Path:
        """Return the file with the scores of a run that was asked to stop at a step (``args.until``)."""
        return self.path / f"at-{step}.json"

    def stops(self) -> list[Path]:
        """Return the files of :meth:`stop` that are there."""
        return sorted(self.path.glob("at-*.json"))

    # -- the race --------------------------------------------------------------------------------------------------

    @property
    def race_record(self) -> Path:
        """Scores and outcome of the race."""
        return self.path / RACE / "race.json"

    @property
    def race_picture(self) -> Path:
        """The candidates' curves."""
        return self.path / RACE_PICTURE

    def candidate(self, name: str) -> RunFolder:
        """Return the folder of a candidate."""
        return RunFolder(self.path / RACE / name)

    def candidates(self) -> list[RunFolder]:
        """Return the folders of the candidates that there are."""
        return [RunFolder(path) for path in sorted((self.path / RACE).glob("*/"))]

    def adopt(self, winner: RunFolder, keep: int, masks: Path | None = None) -> None:
        """Copy the files of the winner of a race, its latest checkpoint last.

        Args:
            winner: its folder.
            keep: how many ``states-N.ckpt`` stay.
            masks: of the choice that its child network comes from.
        """
        patterns = [*(pattern for pattern, adopted in RUN_FILES.items() if adopted), *tasks.result_files()]
        extra = [path for pattern in patterns for path in winner.path.glob(pattern)]
        extra += [masks] if masks is not None and masks.is_file() and masks != self.masks else []
        latest = winner.numbered()[-1]
        for path in dict.fromkeys([*extra, *winner.best(), latest]):
            with written(self.path / path.name) as temporary:
                shutil.copyfile(path, temporary)
        self.remove_older(self.path / latest.name, keep)

    # -- what is removed -------------------------------------------------------------------------------------------

    def refuse_overwriting(self) -> None:
        """Raise UsageError where the folder holds an experiment already: a checkpoint, a delta, scores or a race."""
        found = self._all() or self._outcome()
        if not found:
            return
        resumed = "resume it with -a, " if self.is_started else "it has no checkpoint to resume, so "
        raise UsageError(
            f"{self.path} already holds an experiment ({found[0].name}): {resumed}choose another folder with -p, or "
            "replace it with -o args.overwrite=True."
        )

    def _outcome(self) -> list[Path]:
        """Return what a run has come to: a new one would replace it, or leave it next to its own."""
        patterns = (pattern for pattern in RUN_FILES if pattern not in LEFT_BEFORE_FIRST)
        found = (path for pattern in patterns for path in sorted(self.path.glob(pattern)))
        return [path for path in found if not path.name.endswith(FAILED) and (path.is_file() or any(path.iterdir()))]

    def replaced(self) -> list[Path]:
        """Return the files and folders of an experiment that another one replaces: checkpoints, results, its race."""
        patterns = (*RUN_FILES, *tasks.result_files())
        return list(dict.fromkeys(old for pattern in patterns for old in self.path.glob(pattern)))

    def refuse_to_lose(self, source: str | Path) -> None:
        """Raise UsageError where :meth:`clear` would remove the checkpoint that a new experiment begins with (-i)."""
        source = Path(source).resolve()
        if any(source.is_relative_to(old.resolve()) for old in self.replaced()):
            raise UsageError(
                f"-i {source} is in the experiment that args.overwrite=True deletes: choose another folder with -p, or "
                "copy the file out of this one first."
            )

    def clear(self) -> None:
        """Remove what an experiment that is replaced has left."""
        for old in self.replaced():
            shutil.rmtree(old) if old.is_dir() else old.unlink()

    def remove_older(self, newest: Path, keep: int, spared: Path | None = None) -> None:
        """Delete all but `keep` of the ``states-N.ckpt`` files; `newest` and `spared` stay in any case.

        Files of a later step than `newest` go first.
        """
        last = step_of(newest) or 0
        steps = {path: step_of(path) or 0 for path in self.numbered() if path not in (newest, spared)}
        others = sorted(steps, key=lambda path: (steps[path] <= last, steps[path]))
        for path in others[: max(0, len(others) - (keep - 1))]:
            if steps[path] > last:
                logger.warning(
                    "removing %s: the run was resumed from an earlier checkpoint, now at %s", path, newest.name
                )
            path.unlink(missing_ok=True)

    def set_aside(self, path: Path, step: int) -> Path:
        """Rename a file of a step that the run has left, so that nothing takes it for one of the run; return it."""
        name = f"{path.name}.step-{step}"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        kept = next(kept for kept in map(path.with_name, names) if not kept.exists())
        return path.replace(kept)

    def was_left(self) -> bool:
        """Tell whether best checkpoints of a step that the run has left were set aside."""
        set_aside = self.path.glob(f"*{CHECKPOINT_SUFFIX}.step-*")
        return any(step_of(path.with_name(path.name.partition(".step-")[0])) is None for path in set_aside)

    def remove_parts(self) -> None:
        """Remove temporary files that a killed run left; they hold parts of what has no name yet."""
        locks.remove_unfinished(self.path, below=(RACE, f"{RACE}/*"))

    @contextmanager
    def removed_if_nothing_trained(self, active: bool = True) -> Iterator[None]:
        """Where the body fails, remove the folder if nothing was trained in it; `active` on rank 0 alone."""
        try:
            yield
        except Exception:
            if active:
                self.remove_if_nothing_trained()
            raise

    def remove_if_nothing_trained(self) -> None:
        """Remove a folder that holds only s3prl's copies of the settings, and folders without files."""
        present = list(self.path.iterdir())
        folders = [path for path in present if path.is_dir() and not any(part.is_file() for part in path.rglob("*"))]
        kept = {*locks.FILES, *tasks.built_files()}
        files = [path for path in present if SETTINGS_NAMES.fullmatch(path.name) or path.name in kept]
        if files and len(files) + len(folders) == len(present):
            for path in files:
                path.unlink()
            for path in folders:
                shutil.rmtree(path)
            self.path.rmdir()


def missing(path: Path) -> str:
    """Return the sentence for a file that does not exist; of a run without a delta it names the checkpoint to use."""
    others = RunFolder(path.parent).by_preference() if path.name == DELTA_FILE and path.parent.is_dir() else []
    if not others:
        return f"no such checkpoint, delta or folder of a run: {path}."
    return (
        f"no such delta: {path}. A run that tunes the whole upstream or learns lambda writes none, nor does one "
        f"without a best checkpoint: name {others[0]}."
    )
