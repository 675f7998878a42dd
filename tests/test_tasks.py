"""One table says how a task is judged: races, reports and sweeps give the same answer, also for tasks of others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import s3prl_ext
from s3prl_ext import tasks
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.scored_runs import ScoredRun
from s3prl_ext.evaluation.superb_row import superb_table
from s3prl_ext.metrics import METRICS, Metric
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.tasks import Task, named, task_of
from s3prl_ext.training.early_stop import judged_by

CORPORA = {"pr": "libriphone", "sf": "snips"}
RECIPES = Path(__file__).parents[1] / "recipes"
# task -> what it reports on a split
REPORTED = {
    "ks": ["loss", "acc"], "asr": ["loss", "uer", "wer"], "pr": ["loss", "per", "slot_value_cer"], "sd": ["acc", "der"],
    "sf": ["loss", "wer", "slot_type_f1", "cer"], "esc50": ["acc", "error", "loss"], "somebodys": ["acc", "wer", "loss"],
    "nobodys": ["uer", "wer"],
}  # fmt: skip


@pytest.mark.parametrize("name", REPORTED)
def test_race_report_and_sweep_judge_by_one_metric(name):
    reported, downstream = REPORTED[name], LAYOUTS[name].task.downstream if name in LAYOUTS else name
    row = task_of(downstream, {"corpus": {"name": CORPORA.get(name)}})
    run = ScoredRun(row.name, "dev", dict.fromkeys(reported, 0.5), {}, "1", {}, "train", 1, Path("result.json"), None)
    in_sweep = row.main_metric(reported)
    assert in_sweep is not None and run.main_metric == in_sweep == judged_by(None, downstream, reported)


def test_a_task_with_no_known_metric_is_judged_by_none():
    assert named("somebodys").main_metric(["loss", "beauty"]) is None
    with pytest.raises(UsageError, match="set early_stop.metric to one of: loss"):
        judged_by(None, "somebodys", ["loss", "beauty"])


def test_names_of_tasks():
    assert {
        name: task_of(row.task.downstream, {"corpus": {"name": CORPORA.get(name)}}).name
        for name, row in LAYOUTS.items()
    } == {name: name for name in LAYOUTS}
    assert task_of("ctc", {"corpus": {"name": "librispeech"}}).name == task_of("ctc").name == "ctc"
    assert task_of("emotion").name == named("emotion").name == "emotion"


def test_an_extension_brings_its_record():
    pitch = {"pitch": Metric(higher_is_better=False, unit="ratio")}
    row = Task("wh", "whistling", ("pitch",), dev="valid", test="eval", new_metrics=pitch)
    s3prl_ext.register_task(row)
    try:
        assert task_of("whistling") is named("wh") is row and "eval" in tasks.reported_splits()
        assert judged_by(None, "whistling", ["acc", "pitch"]) == "pitch"
        with pytest.raises(UsageError, match="'wh' is taken"):
            s3prl_ext.register_task(row)
    finally:
        s3prl_ext.uninstall()
        s3prl_ext.install()
    assert tasks.added == [] and "pitch" not in METRICS


def test_a_task_of_an_extension_stands_in_superbs_row_where_it_was_scored():
    def run(task, metric, value):
        return ScoredRun(task, "test", {metric: value}, {}, "1", {"upstream": "x"}, "evaluate", 1, Path(task), None)

    runs = [run("ks", "acc", 0.9), run("sd", "der", 0.1), run("wh", "acc", 0.5)]
    head = superb_table(runs[:2], {}).head
    s3prl_ext.register_task(Task("wh", "whistling", ("acc",), superb=("acc",)))
    try:
        assert superb_table(runs[:2], {}).head == head
        table = superb_table(runs, {})
    finally:
        s3prl_ext.uninstall()
        s3prl_ext.install()
    assert table.head == [*head, "WH accuracy (%) ↑"]
    assert dict(zip(table.head, table.rows[0]))["WH accuracy (%) ↑"] == "50.00"
    assert head[-2:] == ["SD DER (%) ↓", "SD DER (%) ↓, threshold of dev"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (Task("ks", "whistling", ("acc",)), "'ks' is taken by s3prl_ext"),
        (Task("wh", "whistling", ("bla",)), "unknown metric 'bla'"),
        (Task("wh", "whistling", ("acc",), superb=("bla",)), "unknown metric 'bla'"),
        (Task("wh", "whistling", ()), "names no metric"),
        (Task("wh", "whistling", new_metrics={"acc": Metric(False, "%")}), "metric name 'acc' is taken by s3prl_ext"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(row, sentence):
    with pytest.raises(UsageError, match=sentence):
        s3prl_ext.register_task(row)
    assert tasks.added == [] and METRICS["acc"].higher_is_better


@pytest.mark.parametrize("name", ["asr", "pr", "sd", "sid", "sf", "ic", "ks"])
def test_the_recipes_in_shell_agree(name):
    script = f"mini= steps=; . {RECIPES}/shared/tasks.sh; task {name} superb; "
    script += 'echo "$metric $dev_split $test_split $checkpoint ${task_flags[1]}"'
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    row = named(name)
    assert shown == [row.metrics[0], row.dev, row.test, row.best, row.downstream]
