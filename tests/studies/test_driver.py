from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import StoppedByUser
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.studies import view
from s3prl_ext.studies.config import FILE, AxisPoint, Study, content_of
from s3prl_ext.studies.continuation import united
from s3prl_ext.studies.driver import Driver, Progress
from s3prl_ext.studies.estimate import dry_run
from s3prl_ext.studies.jobs import Job
from s3prl_ext.studies.outcome import write_outcome
from s3prl_ext.studies.plan import cells_of
from s3prl_ext.studies.view import lines, summary
from tests.support import result_files
from tests.support.instant_engine import Instant, Outcome


def make_study(seeds=(0, 1), **changes) -> Study:
    axes = {
        "task": (AxisPoint("ks", flags={"-d": "speech_commands", "-c": "ks/mini"}), AxisPoint("sid", flags={"-d": "voxceleb1", "-c": "sid/mini"})),
        "upstream": (AxisPoint("fbank", flags={"-u": "fbank"}),),
        "method": (AxisPoint("frozen", {"tuning": {"method": "frozen"}}),),
        "lr": tuple(AxisPoint(f"{lr:g}", {"optimizer.lr": lr}) for lr in (0.1, 0.01, 0.001)),
    }  # fmt: skip
    return Study(**({"axes": axes, "seeds": seeds, "choose": ("lr",)} | changes))


def score(job: Job) -> float:
    """Return what a run scores; a fetch has no use for it."""
    return {"0.1": 0.5, "0.01": 0.7, "0.001": 0.6}[job.run.labels["lr"]] + 0.01 * job.run.seed


def keep(study: Study, folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(content_of(study)))


def drive(folder: Path, outcome=score, study: Study | None = None, **options) -> tuple[Instant, Progress]:
    engine = Instant(outcome)
    return engine, Driver(study or make_study(), folder, engine, lambda _: None, **options).run()


def test_dev_chooses_the_other_seeds_follow_and_only_the_chosen_one_is_tested(tmp_path):
    engine, progress = drive(tmp_path)
    of_ks = sorted(name.removeprefix("ks/fbank/frozen/") for name in engine.started if name.startswith("ks"))
    assert of_ks == [
        "lr=0.001/seed=0/train", "lr=0.01/seed=0/test", "lr=0.01/seed=0/train", "lr=0.01/seed=1/test",
        "lr=0.01/seed=1/train", "lr=0.1/seed=0/train",
    ]  # fmt: skip
    assert len(progress.done) == progress.total == 12 and not progress.failed
    again, progress = drive(tmp_path)
    assert again.started == [] and len(progress.done) == 12, "the same command runs nothing twice"


def test_each_upstream_is_built_once_before_the_runs(tmp_path):
    axes = make_study().axes | {
        "upstream": (AxisPoint("a", flags={"-u": "a"}), AxisPoint("b", flags={"-u": "b", "-k": "b.pt"}))
    }
    engine, _ = drive(tmp_path, study=make_study(axes=axes))
    assert engine.fetched == ["fetch/a", "fetch/b"]
    again, _ = drive(tmp_path, study=make_study(axes=axes))
    assert again.fetched == []

    def outcome(job: Job) -> Outcome:
        return "no such file: b.pt" if job.name == "fetch/b" else score(job)

    engine, progress = drive(tmp_path / "other", outcome, make_study(axes=axes))
    assert list(progress.failed) == ["fetch/b"] and not any("/b/" in name for name in engine.started)
    assert len(progress.done) == 12


def test_where_nothing_is_chosen_no_seed_waits_for_another(tmp_path):
    axes = {name: points[:1] for name, points in make_study().axes.items()}
    study = make_study(seeds=(0, 1, 2), axes=axes, choose=())
    keep(study, tmp_path)
    first = "ks/fbank/frozen/lr=0.1/seed=0/train"
    for sentence in ("the gradient was not finite for 100 consecutive steps", "the disk is full."):
        folder = tmp_path / sentence[:8]
        folder.mkdir()
        keep(study, folder)
        engine, progress = drive(folder, lambda job, said=sentence: said if job.name == first else score(job), study)
        assert len(engine.started) == 5 and list(progress.failed) == [first]
        (row,), notes = write_outcome(folder)[0].rows, write_outcome(folder)[0].notes
        assert row[-3:-1] == ["2 of 3", "51.50 ± 0.71"] and any(sentence in note for note in notes)
        again, progress = drive(folder, score, study, retry_failed=True)
        assert again.started == [first, "ks/fbank/frozen/lr=0.1/seed=0/test"] and not progress.failed
    assert dry_run(study, cells_of(study, tmp_path))[-2].startswith("# 1 cells, 3 trainings, 3 tests: 6 jobs")


def test_a_cell_in_which_every_run_diverged_says_so(tmp_path):
    keep(make_study(), tmp_path)
    said = "the gradient was not finite for 100 consecutive steps"
    _, progress = drive(tmp_path, lambda job: said if job.name.startswith("ks") and job.kind != "fetch" else score(job))
    (sentence,) = progress.failed.values()
    assert sentence == "ks/fbank/frozen: every run diverged; search other values of lr."
    assert sentence in write_outcome(tmp_path)[0].notes


def test_of_equal_ones_the_smaller_value_is_chosen(tmp_path):
    engine, _ = drive(tmp_path, lambda job: 0.5)
    assert {name.split("/")[3] for name in engine.started if name.endswith("test")} == {"lr=0.001"}


def of_both_seeds(job: Job) -> Outcome:
    """0.1 is the best of search seed 8, 0.01 the best of 9 and of both on average."""
    scores = {"0.1": {8: 0.8, 9: 0.2}, "0.01": {8: 0.6, 9: 0.7}, "0.001": {8: 0.5, 9: 0.5}}
    return scores[job.run.labels["lr"]].get(job.run.seed, 0.9)


def test_seeds_of_their_own_choose_by_their_mean_and_all_others_score(tmp_path):
    study = make_study(own_search_seeds=(8, 9))
    keep(study, tmp_path)
    engine, progress = drive(tmp_path, of_both_seeds, study)
    trained = {
        tuple(name.split("/")[3:5]) for name in engine.started if name.startswith("ks") and name.endswith("train")
    }
    searched = {(f"lr={lr}", f"seed={seed}") for lr in ("0.1", "0.01", "0.001") for seed in (8, 9)}
    assert trained == searched | {("lr=0.01", "seed=0"), ("lr=0.01", "seed=1")}
    tested = {name for name in engine.started if name.startswith("ks") and name.endswith("test")}
    assert tested == {f"ks/fbank/frozen/lr=0.01/seed={seed}/test" for seed in (0, 1)}
    assert len(progress.done) == progress.total == 2 * (6 + 2 + 2)
    tables = write_outcome(tmp_path)
    assert tables[0].rows == [["fbank", "frozen", "0.01", "65.00 ± 7.07", "2", "90.00 ± 0.00", "0:02:40"]]
    assert tables[1].title == "ks: dev accuracy (%) ↑ by lr, mean over the seeds 8, 9"
    assert tables[1].rows == [["fbank", "frozen", "50.00 ± 42.43", "65.00 ± 7.07", "50.00 ± 0.00"]]


def test_a_seed_that_now_chooses_is_no_longer_scored():
    before, now = make_study(seeds=(0, 1, 2)), make_study(seeds=(1, 2), own_search_seeds=(0,))
    assert united(before, now).seeds == (1, 2)
    assert united(before, make_study(seeds=(0,))).seeds == (0, 1, 2)


def test_a_value_that_diverged_with_one_of_the_seeds_is_not_chosen(tmp_path):
    study = make_study(own_search_seeds=(8, 9))

    def outcome(job: Job) -> Outcome:
        diverges = job.kind == "train" and (job.run.labels["lr"], job.run.seed) == ("0.01", 8)
        return "the gradient was not finite for 100 consecutive steps" if diverges else of_both_seeds(job)

    engine, _ = drive(tmp_path, outcome, study)
    assert {name.split("/")[3] for name in engine.started if name.endswith("test")} == {"lr=0.001"}
    keep(study, tmp_path)
    assert write_outcome(tmp_path)[1].rows[0][3] == "diverged"


def test_an_error_rate_is_chosen_from_below(tmp_path):
    axes = make_study().axes | {"task": (AxisPoint("asr", flags={"-d": "asr", "-c": "asr/mini"}),)}
    engine, _ = drive(tmp_path, study=make_study(axes=axes))
    assert next(name for name in engine.started if name.endswith("test")) == "asr/fbank/frozen/lr=0.1/seed=0/test"


def test_the_time_left_is_that_of_the_jobs_that_have_ended_however_many_wait_in_a_queue(monkeypatch):
    progress = Progress([], total=70, running=dict.fromkeys("abcdefgh", 0.0), began=100.0, ended=10, queues=True)
    progress.done |= dict.fromkeys(map(str, range(10)))
    monkeypatch.setattr(view.time, "monotonic", lambda: 160.0)
    left = "10 of 70 jobs done, 8 running or queued, 0 failed, 52 waiting; about 0:06:00 left"
    assert summary(progress) == left
    assert "8 running, 0" in summary(replace(progress, queues=False))


def test_the_table_counts_the_jobs_of_each_cell_whatever_its_axes(tmp_path):
    density = tuple(AxisPoint(f"{one:g}", {"tuning.density": one}) for one in (0.1, 0.01))
    axes = make_study().axes | {"density": density}
    _, progress = drive(tmp_path, study=make_study(axes=axes))
    rows = [line.split() for line in lines(progress)[1:-1]]
    assert [row[1:5] for row in rows] == [["0", "0", str(3 + 1 + 2), "0"]] * 4


def test_one_failed_run_does_not_end_the_study_and_can_be_repeated(tmp_path):
    def outcome(job: Job) -> Outcome:
        return "the disk is full" if job.name == "ks/fbank/frozen/lr=0.1/seed=0/train" else score(job)

    engine, progress = drive(tmp_path, outcome)
    assert progress.failed == {"ks/fbank/frozen/lr=0.1/seed=0/train": "the disk is full"}
    assert not any(name.startswith("ks") and name.endswith("test") for name in engine.started), (
        "nothing is chosen among two of three"
    )
    assert sum(name.startswith("sid") for name in engine.started) == 6
    assert "the disk is full" in "\n".join(lines(progress))
    assert summary(progress) == "8 of 12 jobs done, 0 running, 1 failed, 3 blocked by the failed ones"
    again, progress = drive(tmp_path)
    assert again.started == [] and len(progress.failed) == 1
    again, progress = drive(tmp_path, retry_failed=True)
    assert (
        again.started[0] == "ks/fbank/frozen/lr=0.1/seed=0/train" and len(progress.done) == 12 and not progress.failed
    )


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_repeated_job_that_dies_without_a_sentence_does_not_show_that_of_its_earlier_attempt(kind, tmp_path):
    name = f"ks/fbank/frozen/lr=0.01/seed=0/{kind}"
    _, progress = drive(tmp_path, lambda job: "the disk is full" if job.name == name else score(job))
    assert progress.failed == {name: "the disk is full"}
    log = tmp_path / "logs" / f"{name.replace('/', '__')}.log"
    log.write_text("s3prl-ext: the disk is full\n")
    study = make_study(retries=1)
    _, progress = drive(tmp_path, lambda job: None if job.name == name else score(job), study, retry_failed=True)
    assert progress.failed == {name: f"ended with code -9 without a result; see {log}."}
    assert drive(tmp_path)[1].done.keys() > {name}, "it has no sentence of its own, so it is due"


def test_a_run_that_diverged_counts_as_the_worst(tmp_path):
    def outcome(job: Job) -> Outcome:
        diverges = job.kind != "fetch" and job.run.labels["lr"] == "0.01"
        return "the gradient was not finite for 100 consecutive steps" if diverges else score(job)

    engine, progress = drive(tmp_path, outcome)
    assert sum(name.startswith("ks/fbank/frozen/lr=0.001") for name in engine.started) == 4
    assert len(progress.done) == progress.total and not progress.failed, "it is a result, not a failure"
    assert drive(tmp_path, outcome, retry_failed=True)[0].started == []
    keep(make_study(), tmp_path)
    tables = write_outcome(tmp_path)
    assert tables[1].rows == [["fbank", "frozen", "50.00", "diverged", "60.00"]]


def test_a_lost_process_is_started_again_so_often_and_then_named(tmp_path):
    engine, progress = drive(
        tmp_path, lambda job: None if job.run.labels["lr"] == "0.1" and job.kind != "fetch" else score(job)
    )
    assert engine.started.count("ks/fbank/frozen/lr=0.1/seed=0/train") == 3
    assert "without a result" in progress.failed["ks/fbank/frozen/lr=0.1/seed=0/train"]


def test_more_seeds_and_points_go_on_from_what_is_there(tmp_path):
    drive(tmp_path)
    engine, progress = drive(tmp_path, study=make_study(seeds=(0, 1, 2)))
    assert sorted(set(engine.started)) == [
        f"{task}/fbank/frozen/lr=0.01/seed=2/{kind}" for task in ("ks", "sid") for kind in ("test", "train")
    ]
    assert len(progress.done) == 16


def test_ctrl_c_ends_the_jobs_and_says_how_to_go_on(tmp_path):
    engine = Instant(score)

    def interrupt(progress: Progress) -> None:
        if len(progress.done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(StoppedByUser, match="8 jobs are left; rerun the same command to resume"):
        Driver(make_study(), tmp_path, engine, interrupt).run()
    assert engine.stopped
    again, progress = drive(tmp_path)
    assert len(again.started) == 12 - len(engine.started) and len(progress.done) == 12


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([130, 130], "interrupted: trainings have saved their step, 12 jobs are left; rerun the same command"),
        ([130, 1], "interrupted: 1 of 2 trainings have saved their step, {1} has not (the disk is full), 12 jobs are"),
        ([1, 0], "interrupted: {0} has not (the disk is full), 12 jobs are left"),
        ([-15, -15], "interrupted: 12 jobs are left"),  # had not begun to train
        ([], "interrupted: 2 jobs are asked to end, where trainings save their step first, 12 jobs are left"),
        ([130], "interrupted: trainings have saved their step, 1 jobs are asked to end, where trainings save"),
    ],
)
def test_of_jobs_that_were_stopped_it_says_what_is_known(tmp_path, codes, said):
    """Only status 130 is that of a training which has saved its step."""
    engine = Instant(lambda job: 0.5 if job.kind == "fetch" else None, jobs=2)
    log = tmp_path / "log"
    log.write_text("s3prl-ext: the disk is full.\n")

    def interrupt(progress: Progress) -> None:
        if engine.started:
            engine.stops = [replace(end, code=code, log=log) for end, code in zip(engine.running, codes)]
            raise KeyboardInterrupt

    with pytest.raises(StoppedByUser) as stopped:
        Driver(make_study(), tmp_path, engine, interrupt).run()
    assert str(stopped.value).startswith(said.format(*engine.started))


def test_a_folder_that_another_process_still_writes_into_waits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("s3prl_ext.studies.driver.is_in_use", lambda folder: asked.append(folder) or len(asked) < 3)
    (tmp_path / "ks/fbank/frozen/lr=0.1/seed=0").mkdir(parents=True)
    _, progress = drive(tmp_path)
    assert len(asked) >= 3 and len(progress.done) == 12


@pytest.mark.parametrize("seeds, tested", [((0, 1), True), ((0,), False)])
def test_a_study_does_not_mix_what_was_trained_on_different_data(seeds, tested, tmp_path):
    """Gone on with where the variable of a corpus names another folder, it chose among scores of both and averaged them."""
    Driver(make_study((0,)), tmp_path, Instant(score, corpus="a" * 64), lambda _: None).run()
    if not tested:  # the rest of the search, and the tests, are of the other corpus
        for path in [*tmp_path.glob("*/*/*/lr=0.001/seed=0/result.json"), *tmp_path.rglob("result-test.json")]:
            path.unlink()
    engine = Instant(score, corpus="b" * 64)
    progress = Driver(make_study(seeds), tmp_path, engine, lambda _: None).run()
    assert len(progress.failed) == 2, progress.failed
    said = progress.failed["ks/fbank/frozen"]
    assert "was run on another corpus than ks/fbank/frozen/lr=0.1/seed=0" in said and "run the study again" in said
    keep(make_study(seeds), tmp_path)
    first = write_outcome(tmp_path)[0]
    assert first.rows[0][4:6] == ["0", "-"] and any("was run on another corpus" in note for note in first.notes)


@pytest.mark.parametrize(
    ("upstream", "drawn", "mixed"),
    [
        (lambda job: "ab"[job.run.seed > 0] * 64, False, True),  # the file of -k was replaced before the other seeds
        (lambda job: "abc"[job.run.seed] * 64, False, True),  # before each of them
        (lambda job: "ab"[job.kind == "test"] * 64, False, True),
        (lambda job: "ab"[job.run.labels["method"] == "other"] * 64, False, True),
        (lambda job: "abc"[job.run.seed] * 64, True, False),  # weights that the file lacks are drawn by seed
        (lambda job: "abcde"[job.run.seed + 2 * (job.run.labels["method"] == "other")] * 64, True, True),
        (lambda job: "abc"[job.run.seed] * 64, None, True),  # an older study does not say whether any are
        (lambda job: "ab"[job.run.labels["upstream"] == "fbank"] * 64, False, False),
        (lambda job: "ab"[job.run.labels["lambda"] == "0.1"] * 64, False, False),
        (lambda job: "a" * 64 if job.run.seed else None, False, False),  # an older record does not say
    ],
)  # fmt: skip
def test_a_study_does_not_mix_two_models_of_one_name(upstream, drawn, mixed, tmp_path):
    """The weights behind -k may be others when it is gone on with: seeds of both made one mean."""
    axes = make_study().axes | {
        "upstream": (AxisPoint("fbank", flags={"-u": "fbank"}), AxisPoint("mfcc", flags={"-u": "mfcc"})),
        "method": (*make_study().axes["method"], AxisPoint("other", {"tuning": {"method": "weighted_sum"}})),
        "lambda": (AxisPoint("0.1", flags={"-g": "lambda=0.1"}), AxisPoint("0.2", flags={"-g": "lambda=0.2"})),
    }
    study = make_study((0, 1, 2), axes=axes)
    progress = Driver(study, tmp_path, Instant(score, upstream=upstream, drawn=drawn), lambda _: None).run()
    keep(study, tmp_path)
    tables = write_outcome(tmp_path)
    said = [*progress.failed.values(), *(note for table in tables for note in table.notes)]
    assert bool(said) == mixed, said
    assert all("was run on another upstream than" in one and "remove the runs of one of them" in one for one in said)
    assert all((f"each seed draws, remove {tmp_path / 'fetch'}" in one) == (drawn is None) for one in said)
    assert any(row[5:7] == ["0", "-"] for row in tables[0].rows) == mixed


def test_two_seeds_with_an_upstream_that_was_replaced_between_them_are_not_averaged(tmp_path):
    """Two hashes for two seeds were taken for drawn weights."""
    for seeds, sha in (((0,), "a"), ((0, 1), "b")):
        engine = Instant(score, upstream=lambda job, sha=sha: sha * 64)
        progress = Driver(make_study(seeds), tmp_path, engine, lambda _: None).run()
    assert "seed=1 was run on another upstream than" in progress.failed["ks/fbank/frozen"]


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"transformers": "5.0", "HubertConfig.num_attention_heads": 1}, "HubertConfig.num_attention_heads 1 instead of 2"),
        ({"transformers": "5.1", "HubertConfig.num_attention_heads": 1}, ""),  # may mean the same
        ({"transformers": "5.0", "HubertConfig.num_attention_heads": 2}, ""),
        (None, ""),
    ],
)  # fmt: skip
def test_a_study_does_not_mix_two_settings_of_one_model(later, said, tmp_path):
    """The same weights with another ``config.json``."""
    engine = Instant(score, upstream=lambda _: "a" * 64)
    Driver(make_study(), tmp_path, engine, lambda _: None).run()
    for path in tmp_path.rglob("result*.json"):
        settings = {"transformers": "5.0", "HubertConfig.num_attention_heads": 2} if "seed=0" in path.parts else later
        path.write_text(json.dumps(json.loads(path.read_text()) | {"upstream_settings": settings}))
    _, progress = drive(tmp_path)
    assert bool(progress.failed) == bool(said) and all(said in one for one in progress.failed.values())


def test_a_result_that_is_not_what_its_label_says_is_named(tmp_path):
    """Of an axis that another setting replaced, an older version ran one value under all labels."""
    drive(tmp_path)
    keep(make_study(), tmp_path)
    run = tmp_path / "ks/fbank/frozen/lr=0.1/seed=0"
    change(run / "result.json", lambda record: record["config"]["optimizer"].update(lr=0.001))
    [table, *_] = write_outcome(tmp_path)
    assert table.rows[0][2:4] == ["-", "-"]
    assert (
        "ks/fbank/frozen/lr=0.1/seed=0 was run with optimizer.lr 0.001 in place of 0.1, by hand or by a version"
        in table.notes[0]
    )
    assert "ks/fbank/frozen" in drive(tmp_path)[1].failed


@pytest.fixture
def newer(monkeypatch):
    """Change what task files say, as an update of the package does."""

    def give(changes: dict) -> None:
        def load(path):
            config = load_yaml(path)
            for section, values in changes.items():
                config[section] = {**config[section], **values}
            return config

        monkeypatch.setattr("s3prl_ext.studies.study_run.load_yaml", load)

    return give


@pytest.mark.parametrize("more", ["learning rates", "seeds", "upstreams"])
def test_a_study_does_not_mix_runs_of_two_versions_of_a_task_file(more, tmp_path, newer):
    """The preset is kept by name: finished runs of an older one were chosen among and averaged with new ones."""
    axes = dict(make_study().axes)
    drive(tmp_path, study=make_study((0,), axes=axes | {"lr": axes["lr"][1:]}))
    newer({"runner": {"total_steps": 99999}, "optimizer": {"name": "SGD"}})
    seeds = (0, 1) if more == "seeds" else (0,)
    axes["lr"] = axes["lr"] if more == "learning rates" else axes["lr"][1:]
    axes["upstream"] += (AxisPoint("mfcc", flags={"-u": "mfcc"}),) if more == "upstreams" else ()
    study = make_study(seeds, axes=axes)
    progress = drive(tmp_path, study=study)[1]
    mixed = [said for said in progress.failed.values() if "their task file has changed in between" in said]
    assert len(mixed) == 2, progress.failed
    assert all("runner.total_steps" in said and "optimizer.name" in said for said in mixed)
    keep(study, tmp_path)
    assert any("remove the folders of one kind" in note for table in write_outcome(tmp_path) for note in table.notes)


def test_finished_runs_of_another_task_file_are_named_before_new_ones_have_trained(tmp_path, newer):
    drive(tmp_path, study=make_study((0,)))
    newer({"runner": {"total_steps": 99999}})
    said = []
    Driver(
        make_study((0, 1)),
        tmp_path,
        Instant(score),
        lambda progress: said.append((len(progress.done), dict(progress.failed))),
    ).run()
    assert any("total_steps" in text for _, failed in said[:1] for text in failed.values()), said[0]


def test_a_study_that_is_whole_is_shown_as_it_was_run_whatever_its_task_file_says_now(tmp_path, newer):
    drive(tmp_path)
    keep(make_study(), tmp_path)
    before = write_outcome(tmp_path)
    newer({"runner": {"total_steps": 99999}})
    engine, progress = drive(tmp_path)
    assert engine.started == [] and not progress.failed
    after = write_outcome(tmp_path)
    assert [table.rows for table in after] == [table.rows for table in before] and before[0].notes == []
    assert after[0].notes == [
        "ks/fbank/frozen/lr=0.1/seed=0 and 3 more: run with runner.total_steps 200 in place of 99999, which the task file has now."
    ]


def of_config(section: str, **values):
    return lambda record: record["config"].setdefault(section, {}).update(values)


BY_HAND = {
    "to other steps": (of_config("runner", total_steps=400), "runner.total_steps 400 in place of 200"),
    "with mixed precision": (of_config("runner", amp="bf16"), "runner.amp bf16 in place of nothing"),
    "with another rate on the way": (
        lambda record: record.update(changed_settings=[{"step": 5, "settings": {"optimizer.lr": [0.01, 0.5]}}]),
        "was gone on with at step 5 with optimizer.lr 0.5 in place of 0.01",
    ),
    "with a key that the task file lacks": (
        lambda record: record.update(
            changed_settings=[{"step": 5, "settings": {"downstream_expert.datarc.noise": [None, 2]}}]
        ),
        "was gone on with at step 5 with downstream_expert.datarc.noise 2 in place of nothing",
    ),
    "with a key of its own": (
        lambda record: record.update(changed_settings=[{"step": 5, "settings": {"runner.amp": [None, "bf16"]}}]),
        "was gone on with at step 5 with runner.amp bf16 in place of nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BY_HAND)
def test_a_run_that_was_gone_on_with_by_hand_is_named(how, tmp_path):
    what, said = BY_HAND[how]
    drive(tmp_path)
    keep(make_study(), tmp_path)
    change(tmp_path / "ks/fbank/frozen/lr=0.01/seed=0/result.json", what)
    table = write_outcome(tmp_path)[0]
    assert table.rows[0][2:4] == ["-", "-"] and any(said in note for note in table.notes), table.notes
    assert said in drive(tmp_path)[1].failed["ks/fbank/frozen"]


@pytest.mark.parametrize(
    ("key", "values", "other"),
    [
        ("optimizer.name", ("Adam", "SGD"), "AdamW"),
        ("tuning.layers", ([0, 1], [2, 3]), [0, 3]),
        ("tuning.density", (0.1, 0.01), None),
    ],
)
def test_labels_that_are_texts_or_lists_are_compared_with_what_was_run(key, values, other, tmp_path):
    axes = make_study().axes | {"place": tuple(AxisPoint(str(n), {key: one}) for n, one in enumerate(values))}
    study = make_study((0,), axes=axes)
    drive(tmp_path, study=study)
    keep(study, tmp_path)
    section, name = key.split(".")
    assert not any(table.notes for table in write_outcome(tmp_path))
    change(tmp_path / "ks/fbank/frozen/lr=0.1,place=1/seed=0/result.json", of_config(section, **{name: other}))
    notes = [note for table in write_outcome(tmp_path) for note in table.notes]
    shown = "nothing" if other is None else str([float(one) for one in other]) if isinstance(other, list) else other
    assert any(f"lr=0.1,place=1/seed=0 was run with {key} {shown} in place of" in note for note in notes), notes


def harmless(record: dict) -> None:
    """What versions and machines write down in their own way, and what decides nothing."""
    config = record["config"]
    config["runner"].update(max_keep=7, log_step=3, evaluate_ratio=1.0, amp=None, fp16=False, cache_folder="/x")
    config["runner"]["checkpoint_upstream"] = True  # in less memory
    config["optimizer"]["lr"] = str(config["optimizer"]["lr"])
    config["downstream_expert"].update(labels=["yes", "no"], two_stages=True)
    data = config["downstream_expert"]["datarc"]
    data.update({key: value.replace("${", "/new/") for key, value in data.items() if "${" in str(value)}, num_workers=9)
    paths = [key for key, value in data.items() if str(value).startswith("/new/")]
    moved = {f"downstream_expert.datarc.{key}": ["/old", "/new"] for key in paths}
    memory = {
        "runner.cache_folder": ["/a", "/b"],
        "runner.checkpoint_upstream": [None, True],
        "runner.log_step": [1, 2],
    }
    record["changed_settings"] = [{"step": 5, "settings": moved | memory}]


@pytest.mark.parametrize("what", [harmless, lambda record: record.update(config={})])
def test_runs_of_other_versions_and_machines_with_the_same_settings_count(what, tmp_path):
    drive(tmp_path)
    keep(make_study(), tmp_path)
    before = write_outcome(tmp_path)
    for path in tmp_path.rglob("*/lr=0.01/seed=0/result.json"):
        change(path, what)
        change(path.with_name("result-test.json"), what)
    engine, progress = drive(tmp_path, study=make_study((0, 1, 2)))
    assert not progress.failed and {name.split("/")[4] for name in engine.started} == {"seed=2"}
    after = write_outcome(tmp_path)
    assert [table.rows[0] for table in after] == [table.rows[0] for table in before]
    assert not any(table.notes for table in after)


def test_runs_on_a_corpus_that_has_moved_count(tmp_path, monkeypatch):
    """Its task file names the folder without a variable; hashes of the corpus tell others apart."""

    def corpus_in(place: str) -> None:
        def preset(path: Path) -> dict:
            config = load_yaml(path)
            data = config["downstream_expert"]["datarc"]
            paths = {key: value for key, value in data.items() if "${SPEECH_COMMANDS}" in str(value)}
            data.update({key: value.replace("${SPEECH_COMMANDS}", place) for key, value in paths.items()})
            return config

        monkeypatch.setattr("s3prl_ext.studies.study_run.load_yaml", preset)

    corpus_in("/old")
    drive(tmp_path)
    corpus_in("/new")
    resumed = {"downstream_expert.datarc.speech_commands_root": ["/older/corpus", "/old/corpus"]}
    for path in tmp_path.rglob("ks/*/*/lr=0.01/seed=0/result.json"):
        change(path, lambda record: record.update(changed_settings=[{"step": 5, "settings": resumed}]))
    engine, progress = drive(tmp_path, study=make_study((0, 1, 2)))
    assert not progress.failed and {name.split("/")[4] for name in engine.started} == {"seed=2"}
    keep(make_study((0, 1, 2)), tmp_path)
    assert not any(table.notes for table in write_outcome(tmp_path))


def languages() -> dict[str, tuple[AxisPoint, ...]]:
    """Return the axes of out-of-domain ASR in two languages, which are judged by CER and WER."""
    metrics = {"zh-CN": "cer", "es": "wer"}
    return {
        "task": (AxisPoint("ood", flags={"-d": "ctc", "-c": "ood/mini"}),),
        "upstream": (AxisPoint("fbank", flags={"-u": "fbank"}), AxisPoint("mfcc", flags={"-u": "mfcc"})),
        "method": (AxisPoint("frozen", {"tuning": {"method": "frozen"}}),),
        "language": tuple(AxisPoint(name, {"downstream_expert.metric": [one]}) for name, one in metrics.items()),
        "lr": (AxisPoint("0.1", {"optimizer.lr": 0.1}), AxisPoint("0.01", {"optimizer.lr": 0.01})),
    }


def test_each_cell_has_its_own_metric(tmp_path):
    study = Study(axes=languages(), choose=("lr",))
    keep(study, tmp_path)

    def outcome(job: Job) -> Outcome:
        failed = job.run.labels["upstream"] == "fbank" and job.kind != "fetch"
        return "no memory" if failed else 31.4

    drive(tmp_path, outcome, study)
    tables = write_outcome(tmp_path)
    heads = [[column for column in table.head if "ER (%)" in column] for table in tables]
    assert heads == [["dev CER (%) ↓", "test CER (%) ↓"], [], ["dev WER (%) ↓", "test WER (%) ↓"], []]
    assert [[row[0], row[2], row[6]] for table in (tables[0], tables[2]) for row in table.rows] == [
        ["fbank", "zh-CN", "-"], ["mfcc", "zh-CN", "31.40"], ["fbank", "es", "-"], ["mfcc", "es", "31.40"],
    ]  # fmt: skip
    assert [table.title for table in tables[1::2]] == [
        "ood: dev CER (%) ↓ by lr, seed 0", "ood: dev WER (%) ↓ by lr, seed 0",
    ]  # fmt: skip
    with open(tmp_path / "runs.csv", newline="") as file:
        assert {row["metric"] for row in csv.DictReader(file) if row["test"]} == {"cer", "wer"}


def test_runs_of_one_cell_that_are_judged_by_different_metrics_are_not_compared(tmp_path):
    study = Study(axes=languages(), choose=("lr", "language"))
    failed = drive(tmp_path, score, study)[1].failed
    assert "seed=0 was judged by wer, others of its cell by cer" in failed["ood/fbank/frozen"]


@pytest.mark.parametrize("kind", ["train", "test"])
def test_seeds_that_failed_are_counted_and_named(kind, tmp_path):
    """Of three seeds the one without a score was left out of mean and table without a word."""
    study = make_study((0, 1, 2))
    sentence = "the gradient was not finite for 100 consecutive steps" if kind == "train" else "the disk is full"

    def outcome(job: Job) -> Outcome:
        return sentence if job.run.seed == 2 and job.kind == kind else score(job)

    drive(tmp_path, outcome, study)
    keep(study, tmp_path)
    tables = write_outcome(tmp_path)
    assert tables[0].rows[0][4:6] == ["2 of 3", "70.50 ± 0.71"]
    assert f"ks/fbank/frozen/lr=0.01/seed=2: {sentence}" in tables[0].notes
    failed = {
        row["seed"]: row["failed"] for row in csv.DictReader((tmp_path / "runs.csv").open()) if row["lr"] == "0.01"
    }
    assert failed == {"0": "", "1": "", "2": sentence}


def test_a_score_on_test_that_is_not_a_number_is_counted_and_named(tmp_path):
    study = make_study((0, 1, 2))
    drive(tmp_path, study=study)
    change(
        tmp_path / "ks/fbank/frozen/lr=0.01/seed=1/result-test.json",
        lambda record: record["metrics"]["test"]["acc"].update(value=None),
    )
    keep(study, tmp_path)
    [table, *_] = write_outcome(tmp_path)
    assert table.rows[0][4] == "2 of 3"
    assert table.notes == ["ks/fbank/frozen/lr=0.01/seed=1: its acc on test is not a number."]


def test_a_search_run_that_diverged_is_named_in_the_csv(tmp_path):
    drive(tmp_path, lambda job: "not finite" if job.run.labels["lr"] == "0.1" and job.kind == "train" else score(job))
    keep(make_study(), tmp_path)
    write_outcome(tmp_path)
    rows = csv.DictReader((tmp_path / "runs.csv").open())
    assert {row["failed"] for row in rows if row["lr"] == "0.1"} == {"not finite"}


def change(path: Path, what) -> None:
    """Change a result file."""
    record = json.loads(path.read_text())
    what(record)
    path.write_text(json.dumps(record))


OTHERS = {
    "the last checkpoint": lambda record: record["args"].update(init_ckpt=f"{record['args']['expdir']}/states-10.ckpt"),
    "an earlier best": lambda record: record.update(step=5),
    "another run": lambda record: record["args"].update(init_ckpt="/other/ks/fbank/frozen/lr=0.1/seed=0/dev-best.ckpt"),
    "a part of the split": lambda record: record["config"]["runner"].update(evaluate_ratio=0.1),
    "a language model": lambda record: record["config"]["downstream_expert"]["datarc"].update(
        decoder_args={"lm_weight": 2}
    ),
    "another layer": lambda record: record["args"].update(upstream_layer_selection=3),
    "nothing trained": lambda record: (record.update(step=0), record["args"].update(init_ckpt=None)),
}


SAID = {
    "a part of the split": "was scored with other settings than in training (runner.evaluate_ratio 0.1 in place of nothing)",
    "a language model": "was scored with other settings than in training (downstream_expert.datarc.decoder_args.lm_weight 2 in "
    "place of nothing)",
    "another layer": "was scored with other settings than in training (args.upstream_layer_selection 3 in place of -1)",
}


@pytest.mark.parametrize("other", OTHERS)
def test_only_the_checkpoint_that_dev_chose_counts_as_tested(other, tmp_path, caplog):
    """A run evaluated by hand leaves a file of the same name; its score was shown as that of the chosen one."""
    keep(make_study(), tmp_path)
    drive(tmp_path)
    run = tmp_path / "ks/fbank/frozen/lr=0.01/seed=0"

    def kept(record):
        record.update(kept=["dev-best.ckpt"])
        record["args"].update(upstream_layer_selection=-1)

    change(run / "result.json", kept)
    change(run / "result-test.json", OTHERS[other])
    [table, *_] = write_outcome(tmp_path)
    said = f"{run / 'result-test.json'} {SAID.get(other, 'is not of the checkpoint that dev chose')} and is not counted"
    assert table.rows[0][4] == "1 of 2" and said in table.notes[0]
    assert list(csv.DictReader((tmp_path / "runs.csv").open()))[1]["test"] == ""
    engine, progress = drive(tmp_path)
    assert engine.started == ["ks/fbank/frozen/lr=0.01/seed=0/test"] and not progress.failed
    assert f"{said}: it is scored again" in caplog.text
    assert write_outcome(tmp_path)[0].rows[0][4] == "2"


def test_a_test_that_leaves_a_result_of_other_settings_fails_with_the_reason(tmp_path):
    drive(tmp_path)
    run = tmp_path / "ks/fbank/frozen/lr=0.01/seed=0"
    (run / "result-test.json").unlink()
    change(run / "result.json", lambda record: record["args"].update(upstream_layer_selection=-1))
    study = make_study()

    class Other(Instant):
        def start(self, job, log):
            super().start(job, log)
            change(job.run.test_file, OTHERS["another layer"])

    failed = Driver(study, tmp_path, Other(score), lambda _: None).run().failed
    assert list(failed) == ["ks/fbank/frozen/lr=0.01/seed=0/test"]
    assert SAID["another layer"] in failed["ks/fbank/frozen/lr=0.01/seed=0/test"]


def test_settings_without_an_effect_and_paths_of_variables_may_differ(tmp_path):
    """Trained before the corpus was moved and tested after that, or read with more workers."""
    drive(tmp_path)
    for path in tmp_path.rglob("result-test.json"):
        change(path, lambda record: record["config"]["downstream_expert"]["datarc"].update(num_workers=9))
        change(path, lambda record: record["config"]["downstream_expert"].update(labels=["yes", "no"]))
        change(path, lambda record: record["config"]["runner"].update(total_steps=99, max_keep=2, evaluate_ratio=1))
        for root, key in (("ks", "speech_commands_root"), ("sid", "file_path")):
            if path.is_relative_to(tmp_path / root):
                change(
                    path, lambda record, key=key: record["config"]["downstream_expert"]["datarc"].update({key: "/new"})
                )
    assert drive(tmp_path)[0].started == []


@pytest.mark.parametrize("checkpoint", ["best", "last"])
@pytest.mark.parametrize("kept", [None, ["dev-best.ckpt"], []])
def test_results_of_a_moved_study_count_without_their_checkpoints(kept, checkpoint, tmp_path):
    study = make_study(checkpoint=checkpoint)
    drive(tmp_path / "first", study=study)
    for path in (tmp_path / "first").rglob("result*.json"):
        if path.name == "result.json":
            change(path, lambda record: record.update(kept=kept))
        elif kept == []:
            name = path.with_name("states-10.ckpt")
            change(path, lambda record, name=name: record["args"].update(init_ckpt=str(name)))
    (tmp_path / "first").rename(tmp_path / "second")
    engine, progress = drive(tmp_path / "second", study=study)
    assert engine.started == [] and len(progress.done) == 12
    for path in (tmp_path / "second").rglob("result*.json"):  # as a packed study lays them out
        change(path, lambda record: record["args"].update(init_ckpt=None, expdir=None))
    assert drive(tmp_path / "second", study=study)[0].started == []


def test_tables_csv_and_picture_show_what_was_found(tmp_path):
    drive(tmp_path)
    keep(make_study(), tmp_path)
    tables = write_outcome(tmp_path)
    assert [table.title for table in tables][:2] == [
        "ks: chosen on dev, scored on test",
        "ks: dev accuracy (%) ↑ by lr, seed 0",
    ]
    assert tables[0].rows == [["fbank", "frozen", "0.01", "70.00", "2", "70.50 ± 0.71", "0:01:20"]]
    assert tables[1].rows == [["fbank", "frozen", "50.00", "70.00", "60.00"]]
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert len(rows) == 8 and {row["lr"] for row in rows if row["seed"] == "1"} == {"0.01"}
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_the_last_checkpoint_is_chosen_by_its_own_score(tmp_path):
    def outcome(job: Job) -> float:
        return score(job)

    engine = Instant(outcome)
    study = make_study(checkpoint="last")
    Driver(study, tmp_path, engine, lambda _: None).run()
    run = next(iter(Driver(study, tmp_path, engine, lambda _: None).progress.cells)).search[0]
    path = run.folder / "result.json"
    record = json.loads(path.read_text())
    record["history"] = [{"step": 5, "split": "dev", "acc": 0.9}, {"step": 10, "split": "dev", "acc": 0.2}]
    path.write_text(json.dumps(record))
    assert run.on_dev(run.record()) == ("acc", 0.2)


def test_where_no_checkpoint_was_kept_the_score_on_dev_is_that_of_the_last(tmp_path):
    """s3prl's ASR keeps none whose word error rate is above 100 %, and the last one is tested."""
    Driver(make_study(), tmp_path, Instant(score), lambda _: None).run()
    first = next(iter(Driver(make_study(), tmp_path, Instant(score), lambda _: None).progress.cells)).search[0]
    run = replace(first, labels={**first.labels, "task": "asr"})
    history = [{"step": 1, "split": "dev-clean", "wer": 101.0}, {"step": 2, "split": "dev-clean", "wer": 180.0}]
    assert run.on_dev(ResultRecord(tmp_path, {"history": history, "kept": []})) == ("wer", 180.0)
    assert run.on_dev(ResultRecord(tmp_path, {"history": history, "kept": [run.task.best]})) == ("wer", 101.0)
    assert run.on_dev(ResultRecord(tmp_path, {"history": history})) == ("wer", 101.0)
    history.insert(0, {"step": 1, "split": "dev-clean", "wer": 5.0, "density": 0.3})  # on the way of tuning.gradual
    assert run.on_dev(ResultRecord(tmp_path, {"history": history})) == ("wer", 101.0)


def test_the_score_on_dev_is_that_of_the_checkpoint_which_the_task_keeps(tmp_path):
    """s3prl's diarization keeps the checkpoint with the best accuracy over frames, and is judged by its error rate."""
    Driver(make_study(), tmp_path, Instant(score), lambda _: None).run()
    first = next(iter(Driver(make_study(), tmp_path, Instant(score), lambda _: None).progress.cells)).search[0]
    run = replace(first, labels={**first.labels, "task": "sd"})
    history = [{"step": 5, "der": 0.3, "acc": 0.9}, {"step": 10, "der": 0.28, "acc": 0.88}, {"step": 15, "der": None}]
    record = ResultRecord(tmp_path, {"history": [{"split": "dev", **row} for row in history]})
    assert run.on_dev(record) == ("der", 0.3)
    by_accuracy = ResultRecord(tmp_path, {"history": [{"split": "dev", "acc": row["acc"]} for row in history[:2]]})
    assert first.on_dev(by_accuracy) == ("acc", 0.9)


@pytest.mark.parametrize(
    ("settings", "history", "found"),
    [
        (
            {"metric": ["slot_value_cer", "slot_type_f1"], "metric_higher_better": False},
            [{"slot_type_f1": 0.80, "slot_value_cer": 0.50}, {"slot_type_f1": 0.78, "slot_value_cer": 0.20}],
            ("slot_value_cer", 0.20),
        ),
        ({"metric": ["wer", "cer"], "metric_higher_better": False}, [{"wer": 40.0, "cer": 9.0}, {"wer": 30.0, "cer": 10.0}], ("wer", 30.0)),
    ],
)  # fmt: skip
def test_the_task_file_says_by_what_ctc_is_judged_and_keeps_its_checkpoint(settings, history, found, tmp_path):
    point = AxisPoint(
        "sf", {f"downstream_expert.{key}": value for key, value in settings.items()}, {"-d": "ctc", "-c": "sf/mini"}
    )
    study = make_study(axes=make_study().axes | {"task": (point,)})
    run = Driver(study, tmp_path, Instant(score), lambda _: None).progress.cells[0].search[0]
    rows = [{"split": "dev", "step": step, **row} for step, row in enumerate(history, start=1)]
    content = {"history": rows, "kept": ["dev-best.ckpt"], "step": 3, "args": {"expdir": str(run.folder)}}
    assert run.on_dev(ResultRecord(tmp_path, content)) == found
    run.folder.mkdir(parents=True)
    for step, accepted in ((1, False), (2, True)):
        tested = result_files.content({found[0]: found[1]}, "test", "ctc", step=step)
        tested["args"] |= {"init_ckpt": str(run.folder / "dev-best.ckpt"), "expdir": str(run.folder)}
        run.test_file.write_text(json.dumps(tested))
        trained = result_files.content({}, "dev", "ctc", mode="train", **content)
        (run.folder / "result.json").write_text(json.dumps(trained))
        assert (run.tested() is not None) == accepted
