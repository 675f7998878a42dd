"""An engine whose jobs end at once: they leave the result files of a run with a score that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from s3prl_ext.studies.driver import Ended
from s3prl_ext.studies.jobs import DRAWN, Job

Outcome = float | str | None  # score on dev and test; the sentence of a failure; a process that was lost


def result_of(
    job: Job, score: float, corpus: str | None = None, upstream: str | None = None, drawn: bool | None = None
) -> tuple[Path, str]:
    """Return the file that a training or a test leaves, and its content.

    `corpus` and `upstream` stand for the hashes of its data and of its untouched upstream, `drawn` for whether each
    seed draws weights of it.
    """
    if job.kind == "fetch":
        return job.marker, "" if drawn is None else json.dumps({DRAWN: drawn})
    task, run = job.run.task, job.run
    name = task.metrics[0]
    if job.until:
        return run.stop(job.until), json.dumps({
            "mode": "train", "step": job.until, "seconds": 1.0, "metrics": {task.dev: {name: score}}, "config": run.config(),
            "data": corpus and {"sha256": corpus}, "splits_sha256": None, "upstream_sha256": upstream,
        })  # fmt: skip
    split = task.dev if job.kind == "train" else task.test
    tested = run.folder / ("states-10.ckpt" if run.study.checkpoint == "last" else task.best)
    args = {"expdir": str(run.folder), "init_ckpt": str(tested) if job.kind == "test" else None}
    record = {
        "schema": 3, "mode": job.kind, "upstream": "u", "downstream": task.downstream, "seed": run.seed, "step": 10,
        "seconds": 20.0, "seconds_per_step": 2.0, "trainable": {"Upstream": 7}, "args": args, "upstream_sha256": upstream, "config": run.config(), "versions": {},
        "date": "2026-01-02", "data": corpus and {"sha256": corpus}, "machine": {}, "peak_memory": {}, "commit": None, "error": None, "merge": None,
        "intervals": {}, "items": {}, "splits_sha256": None,
        "metrics": {split: {name: {"value": score, "unit": "ratio", "higher_is_better": True}}},
        "history": [{"step": 10, "split": split, name: score}],
    }  # fmt: skip
    path = run.folder / ("result.json" if job.kind == "train" else f"result-{task.test}.json")
    return path, json.dumps(record)


class Instant:
    """Ends each job as `outcome` says; keeps the names of all that were started."""

    queues = False

    def __init__(
        self,
        outcome: Callable[[Job], Outcome],
        jobs: int = 4,
        corpus: str | None = None,
        upstream: Callable[[Job], str | None] = lambda _: None,
        drawn: bool | None = False,
    ) -> None:
        self.drawn = drawn
        self.outcome, self.jobs, self.corpus, self.upstream = outcome, jobs, corpus, upstream
        self.started: list[str] = []
        self.fetched: list[str] = []
        self.running: list[Ended] = []
        self.stopped = False
        self.stops: list[Ended] = []  # how jobs end that are asked to

    def free(self) -> int:
        return self.jobs - len(self.running)

    def start(self, job: Job, log: Path) -> None:
        (self.fetched if job.kind == "fetch" else self.started).append(job.name)
        found = self.outcome(job)
        if isinstance(found, float):
            path, text = result_of(job, found, self.corpus, self.upstream(job), self.drawn)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif isinstance(found, str):
            job.run.folder.mkdir(parents=True, exist_ok=True)
            name = f"result-{job.run.task.test}-failed.json" if job.kind == "test" else "result-failed.json"
            (job.run.folder / name).write_text(json.dumps({"error": found, "diverged": "not finite" in found}))
        self.running.append(Ended(job, 0 if isinstance(found, float) else 1 if isinstance(found, str) else -9, log))

    def ended(self, seconds: float) -> list[Ended]:
        ended, self.running = self.running, []
        return ended

    def stop(self) -> list[Ended]:
        self.stopped = True
        return self.stops
