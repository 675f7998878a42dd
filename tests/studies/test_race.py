"""A study whose runs race: they train to a rung, are compared there, and the best go on, whatever the engine."""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from pathlib import Path

import pytest

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import StoppedByUser, UsageError
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.studies.asha import Arrival, asha_standing
from s3prl_ext.studies.check import check_runs
from s3prl_ext.studies.config import AxisPoint, Study, content_of, kept_study
from s3prl_ext.studies.driver import Driver, Progress
from s3prl_ext.studies.estimate import dry_run
from s3prl_ext.studies.jobs import Job
from s3prl_ext.studies.outcome import write_outcome
from s3prl_ext.studies.plan import cells_of
from s3prl_ext.studies.study_file import read_study
from s3prl_ext.studies.view import lines
from s3prl_ext.tasks import named
from s3prl_ext.training.racing.candidates import candidates_of
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
from s3prl_ext.training.racing.race import Race
from tests.studies.test_driver import keep
from tests.support.instant_engine import Instant, Outcome

TOTAL = 10
RUNGS = EarlyStopConfig(rungs=(2, 4), eta=2)
RATES = (0.1, 0.01, 0.001, 0.0001)


def make_study(race: EarlyStopConfig = RUNGS, rates=RATES, **changes) -> Study:
    axes = {
        "task": (AxisPoint("ks", {"runner.total_steps": TOTAL}, {"-d": "speech_commands", "-c": "ks/mini"}),),
        "upstream": (AxisPoint("fbank", flags={"-u": "fbank"}),),
        "method": (AxisPoint("frozen", {"tuning": {"method": "frozen"}}),),
        "lr": tuple(AxisPoint(f"{lr:g}", {"optimizer.lr": lr}) for lr in rates),
    }
    return Study(**({"axes": axes, "seeds": (0, 1), "choose": ("lr",), "race": race} | changes))


def score(job: Job) -> float:
    """Return a score that changes who leads: 0.01 at step 2, 0.001 from step 4 on."""
    by_step = {2: (0.5, 0.7, 0.6, 0.4), 4: (0.5, 0.7, 0.8, 0.9)}.get(job.until or TOTAL, (0.5, 0.7, 0.8, 0.9))
    return dict(zip(("0.1", "0.01", "0.001", "0.0001"), by_step, strict=True))[job.run.labels["lr"]]


def drive(folder: Path, outcome=score, study: Study | None = None, show=lambda _: None, **options):
    engine = Instant(outcome)
    return engine, Driver(study or make_study(), folder, engine, show, **options).run()


def names(engine: Instant) -> list[str]:
    return [name.removeprefix("ks/fbank/frozen/lr=") for name in engine.started]


def test_the_best_of_each_rung_go_on_and_only_the_winner_is_trained_to_the_end(tmp_path):
    engine, progress = drive(tmp_path)
    assert names(engine) == [
        *(f"{lr:g}/seed=0/rung=2" for lr in RATES),
        "0.01/seed=0/rung=4", "0.001/seed=0/rung=4",
        "0.001/seed=0/train", "0.001/seed=1/train", "0.001/seed=0/test", "0.001/seed=1/test",
    ]  # fmt: skip
    assert len(progress.done) == progress.total == 10 and not progress.failed
    again, progress = drive(tmp_path)
    assert again.started == [] and len(progress.done) == 10, "the same command runs nothing twice"


def test_a_rung_is_an_ordinary_command_that_stops(tmp_path):
    run = cells_of(make_study(), tmp_path)[0].search[0]
    flags = Job(run, "rung", 2).flags()
    assert flags[:-1] == run.flags()[:-1] and flags[-1] == run.flags()[-1] + ",,args.until=2"
    assert run.stop(2) == RunFolder(run.folder).stop(2)


@pytest.mark.parametrize("after", range(10))
def test_a_driver_that_ends_anywhere_goes_on_where_it_was(tmp_path, after):
    def interrupt(progress: Progress) -> None:
        if len(progress.done) >= after:
            raise KeyboardInterrupt

    engine = Instant(score, jobs=1)
    with pytest.raises(StoppedByUser):
        Driver(make_study(), tmp_path, engine, interrupt).run()
    again, progress = drive(tmp_path)
    assert len(engine.started) + len(again.started) == 10 == len(progress.done)
    assert progress.cells[0].chosen().labels["lr"] == "0.001"


def other_preset(path):
    config = load_yaml(path)
    return config | {"optimizer": {**config["optimizer"], "name": "SGD"}}


@pytest.mark.parametrize("other", ["corpus", "upstream", "task file"])
def test_a_race_does_not_compare_runs_that_have_nothing_in_common(other, tmp_path, monkeypatch):
    """It is gone on with after some have reached the first rung; those that drop out are never trained to the end."""

    def interrupt(progress: Progress) -> None:
        if len(progress.done) >= 2:
            raise KeyboardInterrupt

    engine = Instant(score, jobs=1, corpus="a" * 64, upstream=lambda job: "a" * 64)
    with pytest.raises(StoppedByUser):
        Driver(make_study(), tmp_path, engine, interrupt).run()
    if other == "task file":
        monkeypatch.setattr("s3prl_ext.studies.study_run.load_yaml", other_preset)
    corpus, upstream = ("b" if other == one else "a" for one in ("corpus", "upstream"))
    engine = Instant(score, jobs=1, corpus=corpus * 64, upstream=lambda job: upstream * 64)
    failed = Driver(make_study(), tmp_path, engine, lambda _: None).run().failed
    said = {
        "corpus": "on another corpus than",
        "upstream": "on another upstream than",
        "task file": "other settings than",
    }
    assert said[other] in failed["ks/fbank/frozen"]
    keep(make_study(), tmp_path)
    assert any(said[other] in note for table in write_outcome(tmp_path) for note in table.notes)
    for path in tmp_path.rglob("at-2.json"):  # an older version did not say
        record = json.loads(path.read_text())
        path.write_text(json.dumps({key: record[key] for key in ("step", "seconds", "metrics")}))
    assert not any(said[other] in note for table in write_outcome(tmp_path) for note in table.notes)


def diverging(*rates: str, kind: str = "rung"):
    def outcome(job: Job) -> Outcome:
        bad = job.kind == kind and job.run.labels["lr"] in rates
        return "the gradient was not finite for 100 steps in a row" if bad else score(job)

    return outcome


def test_a_run_that_diverges_ranks_last_and_is_a_result(tmp_path):
    engine, progress = drive(tmp_path, diverging("0.01", "0.001", "0.1"))
    assert names(engine)[4:6] == ["0.0001/seed=0/train", "0.0001/seed=1/train"], "alone it need not race on"
    assert not progress.failed and len(progress.done) == progress.total == 8
    keep(make_study(), tmp_path)
    race = write_outcome(tmp_path)[1]
    assert race.rows == [["fbank", "frozen", "2", "diverged", "diverged", "diverged", "40.00"]]
    _, progress = drive(tmp_path / "all", diverging(*(f"{lr:g}" for lr in RATES)))
    assert "every candidate's acc is NaN" in progress.failed["ks/fbank/frozen"]
    keep(make_study(), tmp_path / "all")
    assert [table.rows[0][2:] for table in write_outcome(tmp_path / "all")] == [
        ["-", "-", "0", "-", "0:00:00"],
        ["2", *["diverged"] * 4],
    ]


def test_a_winner_that_diverges_later_is_a_failure(tmp_path):
    _, progress = drive(tmp_path, diverging("0.001", kind="train"))
    assert list(progress.failed) == [f"ks/fbank/frozen/lr=0.001/seed={seed}/train" for seed in (0, 1)]


def test_a_further_seed_that_diverges_is_a_failure_of_its_own_in_a_race_without_waiting(tmp_path):
    def outcome(job: Job) -> Outcome:
        return "the gradient was not finite for 100 steps in a row" if job.run.seed == 1 else score(job)

    study = make_study(scheduler="asha")
    _, progress = drive(tmp_path, outcome, study)
    failed = list(progress.failed)
    assert len(failed) == 1 and failed[0].endswith("seed=1/train")
    again, progress = drive(tmp_path, outcome, study)
    assert again.started == [] and list(progress.failed) == failed


def test_a_failed_run_keeps_its_rung_waiting_and_can_be_repeated(tmp_path):
    def outcome(job: Job) -> Outcome:
        return "the disk is full" if job.name.endswith("lr=0.1/seed=0/rung=2") else score(job)

    engine, progress = drive(tmp_path, outcome)
    assert list(progress.failed.values()) == ["the disk is full"] and len(engine.started) == 4
    assert drive(tmp_path)[0].started == []
    folder = cells_of(make_study(), tmp_path)[0].search[0].folder
    again, progress = drive(tmp_path, retry_failed=True)
    assert again.started[0].endswith("lr=0.1/seed=0/rung=2") and len(progress.done) == 10 and not progress.failed
    assert (folder / "at-2.json").is_file()


def test_tables_csv_and_the_view_show_the_rungs(tmp_path):
    shown: list[str] = []
    drive(tmp_path, show=lambda now: shown.append(lines(now)[1]))
    keep(make_study(), tmp_path)
    chosen, race = write_outcome(tmp_path)
    assert chosen.rows[0][2] == "0.001"
    assert race.head == ["upstream", "method", "step", "0.1", "0.01", "0.001", "0.0001"]
    assert race.rows == [
        ["fbank", "frozen", "2", "50.00", "70.00", "60.00", "40.00"],
        ["fbank", "frozen", "4", "-", "70.00", "80.00", "-"],
    ]
    said = list(dict.fromkeys(line.split("  ")[-1] for line in shown))
    assert said == ["rung 1 of 2, 4 to step 2", "rung 2 of 2, 2 to step 4", "0.001 won"]
    rows = {row["lr"]: row for row in csv.DictReader((tmp_path / "runs.csv").open()) if row["seed"] == "0"}
    assert {lr: row["steps"] for lr, row in rows.items()} == {"0.1": "2", "0.01": "4", "0.001": "10", "0.0001": "2"}
    assert not (tmp_path / "study.png").exists(), "scores of different steps are not one curve"


RULES = [
    RUNGS, EarlyStopConfig(rungs=(1, 3, 8), eta=1.5), EarlyStopConfig(ratio=0.3), EarlyStopConfig(ratio=0.2, keep=2),
    EarlyStopConfig(ratio=0.4, evaluations=2), EarlyStopConfig(ratio=0.2, patience=2),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=range(len(RULES)))
def test_every_rule_decides_as_in_one_process(tmp_path, rule):
    """The same scores at the same steps: the study and the race in one process agree on the winner and on who trains."""
    for seed in range(4):
        rng = random.Random(seed)
        study = make_study(rule, rates=[1, 2, 3, 4, 5], seeds=(0,))
        table = {f"{lr}": [rng.choice([0.1, 0.2, 0.3, 0.4]) for _ in range(TOTAL)] for lr in range(1, 6)}

        def outcome(job: Job) -> float:
            return table[job.run.labels["lr"]][(job.until or TOTAL) - 1]  # noqa: B023

        _, progress = drive(tmp_path / f"study-{seed}", outcome, study)
        at = dict.fromkeys(table, 0)

        def advance(candidate, _, step, label):
            at[candidate.name.removeprefix("lr=")] = step  # noqa: B023
            return {"acc": table[candidate.name.removeprefix("lr=")][step - 1]}  # noqa: B023

        candidates = candidates_of({"method": "full", "lr": [1, 2, 3, 4, 5]})
        folder = RunFolder(tmp_path / f"alone-{seed}")
        winner = Race(rule, candidates, TOTAL, folder, named("ks"), advance).choose()
        assert f"lr={progress.cells[0].chosen().labels['lr']}" == winner.name
        trained = {run.labels["lr"]: max(run.stops(), default=0) for run in progress.cells[0].search}
        finished = {run.labels["lr"] for run in progress.cells[0].search if run.record()}
        record = json.loads(folder.race_record.read_text())
        for lr, step in at.items():
            assert step == (TOTAL if lr in finished and step == TOTAL else trained[lr])
        assert len(finished) == (1 if record["cut"] < TOTAL else sum(step == TOTAL for step in at.values()))


# -- asynchronous ----------------------------------------------------------------------------------------------------


def asha(*arrivals: tuple[int, int, float], runs: int = 4, diverged=(), rungs=(2, 4), eta: float = 2):
    pytest.importorskip("ray.tune.schedulers")
    config = EarlyStopConfig(rungs=rungs, eta=eta)
    return asha_standing(config, TOTAL, "acc", runs, [Arrival(*one) for one in arrivals], diverged)


def test_asha_decides_by_who_has_arrived_and_waits_for_nobody():
    assert asha().due == [(0, 2), (1, 2), (2, 2), (3, 2)]
    first = asha((0, 2, 0.1))
    assert first.due == [(0, 4), (1, 2), (2, 2), (3, 2)], "the first to arrive goes on, whatever its score"
    found = asha((0, 2, 0.1), (1, 2, 0.3), (2, 2, 0.0), (3, 2, 0.2))
    assert found.due == [(0, 4), (1, 4), (3, 4)] and found.said == "3 train on, 1 stopped, 0 at the end"
    later = asha((2, 2, 0.0), (3, 2, 0.2), (1, 2, 0.3), (0, 2, 0.1))
    assert later.due == [(1, 4), (2, 4), (3, 4)], "in another order others go on"
    assert [(one.step, one.who, leaders) for one, leaders in later.compared] == [(2, (0, 1, 2, 3), [2, 3, 1])]
    ended = [*((n, 2, 0.1 * n) for n in (2, 3, 1)), (3, 4, 0.5), (2, 4, 0.6), (2, 10, 0.6), (3, 10, 0.7)]
    assert asha(*ended, diverged=(0,)).winner == 3 and asha(*ended).due == [(0, 2)]


def test_asha_counts_no_stop_by_hand_between_its_rungs():
    known = [(0, 2, 0.5), (1, 2, 0.4), (0, 4, 0.6)]
    found, expected = asha((2, 1, 0.9), *known, (0, 3, 0.1)), asha(*known)
    assert (found.compared, found.due, found.said) == (expected.compared, expected.due, expected.said)


@pytest.mark.parametrize("rungs", [(1,), (1, 2), (3, 4, 7, 9)])
@pytest.mark.parametrize("eta", [1.3, 2, 3, 10])
def test_every_rung_is_a_milestone_of_its_own_at_which_the_worst_stops(rungs, eta):
    for place in range(len(rungs)):
        before = [(n, step, 0.5) for step in rungs[:place] for n in range(2)]
        found = asha(*before, (0, rungs[place], 0.9), (1, rungs[place], 0.1), runs=2, rungs=rungs, eta=eta)
        following = (*rungs, TOTAL)[place + 1]
        assert found.due == [(0, following)]


def test_asha_without_a_run_that_is_sound_has_no_winner():
    assert "every candidate's acc is NaN" in str(asha(diverged=(0, 1, 2, 3)).failure)
    assert asha((0, 2, math.nan), runs=1).failure is not None


def test_a_study_with_asha_goes_on_as_it_had_decided(tmp_path):
    pytest.importorskip("ray.tune.schedulers")
    study = make_study(scheduler="asha", seeds=(0,))

    def interrupt(progress: Progress) -> None:
        if len(progress.done) >= 5:
            raise KeyboardInterrupt

    engine = Instant(score, jobs=1)
    with pytest.raises(StoppedByUser):
        Driver(study, tmp_path / "a", engine, interrupt).run()
    again, progress = drive(tmp_path / "a", study=study)
    assert not progress.failed and len(progress.done) == progress.total == len(engine.started) + len(again.started)
    assert len(set(engine.started) & set(again.started)) == 0, "nothing runs twice"
    chosen = progress.cells[0].chosen()
    finished = [run for run in progress.cells[0].search if run.record()]
    assert chosen.labels["lr"] == max(finished, key=lambda run: run.at_end(run.record())).labels["lr"]
    keep(study, tmp_path / "a")
    assert [row[2] for row in write_outcome(tmp_path / "a")[1].rows] == ["2", "4", "10"]
    assert kept_study(tmp_path / "a").scheduler == "asha"


def test_asha_needs_rungs_and_ray_tune(tmp_path, monkeypatch):
    study = read(tmp_path, FILE.replace("eta: 2", "scheduler: asha"))
    assert study.scheduler == "asha" and study.race == EarlyStopConfig(rungs=(2, 4))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"race.scheduler asha needs Ray Tune: pip install 's3prl_ext\[ray\]'"):
        check_runs(cells_of(study, tmp_path), variables=False)
    for text, said in (
        ("{ratio: 0.5, scheduler: asha}", "race.scheduler asha compares at rungs: add my_study.yaml.race.rungs"),
        ("{rungs: [2], scheduler: ash}", "race: unknown scheduler 'ash'; did you mean 'asha'"),
    ):
        with pytest.raises(UsageError, match=said):
            read(tmp_path, FILE.replace("{rungs: [2, 4], eta: 2}", text))


FILE = """
upstreams: fbank
tasks: {task: ks, set: {runner.total_steps: 10}}
methods: frozen
axes: {lr: [1e-1, 1e-2, 1e-3]}
choose: lr
preset: mini
race: {rungs: [2, 4], eta: 2}
"""


def read(tmp_path: Path, text: str) -> Study:
    (tmp_path / "my_study.yaml").write_text(text)
    return read_study(tmp_path / "my_study.yaml")


def test_the_study_file_holds_the_race_and_the_folder_keeps_it(tmp_path):
    study = read(tmp_path, FILE)
    assert study.race == RUNGS
    keep(study, tmp_path)
    kept = kept_study(tmp_path)
    assert kept is not None and content_of(kept) == content_of(study) and kept.race == RUNGS
    check_runs(cells_of(study, tmp_path), variables=False)
    *commands, _, sums, _ = dry_run(study, cells_of(study, tmp_path))
    assert len(commands) == 3 and all(",,args.until=2" in command for command in commands)
    assert sums == (
        "# 1 cells, in each 3 runs race: 3 to step 2, 2 to step 4, 1 to step 10; 16 optimizer steps in all (6 jobs), 0 with other "
        "seeds of what dev chooses, 1 tests: 7 jobs, about 16 optimizer steps."
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("eta: 2", "eta: 1"), "my_study.yaml.race.eta must be above 1, got 1"),
        (("eta: 2", "keep: 2"), "my_study.yaml.race has keep, of one comparison, next to rungs"),
        (("eta: 2", "split: dev"), "my_study.yaml.race.split: a study compares its runs on dev"),
        (("eta: 2", "metric: acc"), "my_study.yaml.race.metric: a study compares"),
        (("choose: lr\n", ""), "my_study.yaml.race: say what races, such as choose: lr"),
        (("rungs: [2, 4]", "rungs: [2, 10]"), "race.rungs ends with 10, but a run has 10 steps"),
        (("rungs: [2, 4], eta: 2", "keep: 4"), "race.keep is 4, but ks/fbank/frozen has only 3 runs"),
        (("runner.total_steps: 10", "runner.total_steps: null, runner.epochs: 1"), "it has epochs"),
        (("methods: frozen", "methods: {label: a, method: lora, rank: [2, 4]}\nset: {early_stop: {ratio: 0.5}}"),
         "races candidates of its own"),
    ],
)  # fmt: skip
def test_what_cannot_race_is_refused(tmp_path, change, said):
    text = FILE.replace(*change)
    assert text != FILE
    with pytest.raises(UsageError, match=said):
        check_runs(cells_of(read(tmp_path, text), tmp_path), variables=False)


def test_cells_of_different_length_may_race_but_runs_of_one_cell_not(tmp_path):
    text = FILE.replace("axes: {", "axes: {runner.total_steps: [10, 20], ")
    check_runs(cells_of(read(tmp_path, text), tmp_path), variables=False)
    with pytest.raises(UsageError, match=r"need the same runner.total_steps; it has 20, .* has 10"):
        check_runs(
            cells_of(read(tmp_path, text.replace("choose: lr", "choose: [lr, runner.total_steps]")), tmp_path),
            variables=False,
        )
