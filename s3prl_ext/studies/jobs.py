"""The processes of a study: what each runs, and what it has left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.studies.study_run import StudyRun

DRAWN = "drawn"  # in the file of a fetch: whether weights of the upstream depend on the seed of the run


@dataclass(frozen=True)
class JobFailure:
    """How a job failed: its sentence, and whether its gradients were not finite."""

    sentence: str
    diverged: bool = False


@dataclass(frozen=True)
class Job:
    """A process of a study.

    Attributes:
        run: what it works on.
        kind: ``train``, ``rung``: train to a step of a race, ``test``, or ``fetch``: build the run's upstream once, so
            that runs do not download it side by side.
        until: step of a ``rung``.
    """

    run: StudyRun
    kind: str
    until: int | None = None

    @property
    def name(self) -> str:
        """Its name in logs."""
        if self.kind == "fetch":
            return f"fetch/{self.run.labels['upstream']}"
        return f"{self.run.name}/{self.kind}" + (f"={self.until}" if self.until else "")

    @property
    def marker(self) -> Path:
        """The file that a fetch leaves."""
        return self.run.study_folder / self.name

    def draws_weights(self) -> bool | None:
        """Return whether a fetch has found that each seed draws weights of its upstream; None where it does not say."""
        try:
            return bool(json.loads(self.marker.read_text(encoding="utf-8"))[DRAWN])
        except (OSError, ValueError, LookupError, TypeError):
            return None  # of an earlier version

    def module(self) -> str:
        """Return the module whose command it is."""
        return "s3prl_ext.studies.fetch" if self.kind == "fetch" else "s3prl_ext.run_downstream"

    def flags(self) -> list[str]:
        """Return the flags of its command; of a test they are known once its training has ended."""
        if self.kind == "fetch":
            return [str(self.marker), *self.run.upstream_flags()]
        return self.run.test_flags() if self.kind == "test" else self.run.flags(self.until)

    def is_done(self) -> bool:
        """Return whether it has left what it is for."""
        if self.kind == "fetch":
            return self.marker.is_file()
        if self.until:
            return self.run.stop(self.until).is_file()
        return self.result() is not None

    def result(self) -> ResultRecord | None:
        """Return the result file that it has left, or None; a rung leaves none."""
        if self.until:
            return None
        return self.run.record() if self.kind == "train" else self.run.tested()

    def failure(self) -> JobFailure | None:
        """Return how it failed, as its run has recorded it; None where it has not."""
        if self.kind == "fetch":
            return None
        try:
            record = json.loads(self._failed.read_text(encoding="utf-8"))
            return JobFailure(str(record["error"]), bool(record.get("diverged")))
        except (OSError, ValueError, KeyError, AttributeError):
            return None

    def forget_failure(self) -> None:
        """Remove what an earlier attempt has recorded: one that dies without a record would show it as its own."""
        if self.kind != "fetch":
            self._failed.unlink(missing_ok=True)

    @property
    def _failed(self) -> Path:
        name = f"result-{self.run.task.test}-failed.json" if self.kind == "test" else "result-failed.json"
        return self.run.folder / name
