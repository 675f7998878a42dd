"""One table says how a task is judged: races, reports and sweeps give the same answer, also for tasks of others."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import s3prl_ext
from s3prl_ext import plugin, run_flags, tasks
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.scored_runs import ScoredRun, runs_of
from s3prl_ext.evaluation.superb_row import superb_table
from s3prl_ext.metrics import METRICS, Metric
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.tasks import Task, named, task_of
from s3prl_ext.training.racing.race import judged_by
from tests.support import python_process, result_files

CORPORA = {"pr": "libriphone", "sf": "snips", "ood": "common_voice"}
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
    assert in_sweep is not None and run.main_metric == in_sweep == judged_by(None, row, reported)


@pytest.mark.parametrize(
    ("corpus", "listed", "judged"),
    [
        ({"name": "common_voice", "path": "/cv/zh-CN/clips"}, ["cer", "wer"], "cer"),
        ({"name": "snips"}, ["slot_value_cer", "slot_type_f1"], "slot_value_cer"),
        ({"name": "snips"}, ["wer", "cer"], "wer"),
        ({"name": "librispeech"}, ["cer", "wer"], "cer"),
        ({"name": "snips"}, ["beauty", "wer"], "wer"),
        ({"name": "snips"}, None, "slot_type_f1"),
        ({"name": "snips"}, "wer", "slot_type_f1"),
    ],
)
def test_ctc_is_judged_by_the_first_metric_that_its_task_file_lists(corpus, listed, judged):
    expert = {"corpus": corpus, "metric": listed}
    row, values = task_of("ctc", expert), {"loss": 0.1, "slot_type_f1": 0.8, "slot_value_cer": 0.3, "wer": 30, "cer": 9}
    reported = {
        name: values[name] for name in ("loss", *(listed if isinstance(listed, list) else values)) if name in values
    }
    assert row.main_metric(reported) == judged_by(None, row, list(reported)) == judged
    assert row.kept_by == (listed[0] if isinstance(listed, list) else None)
    record = result_files.content(reported, "dev", "ctc", config={"downstream_expert": expert})
    (run,) = runs_of(ResultRecord(Path("result.json"), record))
    assert (run.task, run.main_metric) == (row.name, judged)
    assert tasks.is_best(row, "dev-best.ckpt", ["dev"]) and not tasks.is_best(row, "test-best.ckpt", ["dev-2", "dev"])


@pytest.mark.parametrize("name", ["pr", "sf", "ood"])
def test_shipped_task_files_keep_by_what_the_task_is_judged_by(name):
    row = named(name)
    for path in shipped_dir("downstream_configs").glob(f"{name}/*.yaml"):
        expert = load_yaml(path)["downstream_expert"]
        known = (
            row.sets.metrics[row.sets.named_in([expert["corpus"]["name"], expert["corpus"]["path"]])]
            if row.sets
            else row.metrics[0]
        )
        assert row.of_file(expert).main_metric(METRICS) == row.of_file(expert).kept_by == known, path


def test_a_task_with_no_known_metric_is_judged_by_none():
    assert named("somebodys").main_metric(["loss", "beauty"]) is None
    with pytest.raises(UsageError, match="set early_stop.metric to one of: loss"):
        judged_by(None, named("somebodys"), ["loss", "beauty"])


def test_names_of_tasks():
    assert {
        name: task_of(row.task.downstream, {"corpus": {"name": CORPORA.get(name)}}).name
        for name, row in LAYOUTS.items()
    } == {name: name for name in LAYOUTS}
    assert task_of("ctc", {"corpus": {"name": "librispeech"}}).name == task_of("ctc", None).name == "ctc"
    for written, task in {"LibriPhone": "pr", "Snips": "sf", "Common_Voice": "ood", "SBCSAE": "ood"}.items():
        assert task_of("ctc", {"corpus": {"name": written}}).name == task, "s3prl reads the name in any case"
    assert task_of("mosei", None).name == named("mosei").name == "mosei"


def test_an_extension_brings_its_record():
    pitch = {"pitch": Metric(higher_is_better=False, unit="ratio")}
    row = Task("wh", "whistling", ("pitch",), dev="valid", test="eval", new_metrics=pitch)
    s3prl_ext.register_task(row)
    try:
        assert task_of("whistling", {}) is named("wh") is row and "eval" in tasks.reported_splits()
        assert judged_by(None, row, ["acc", "pitch"]) == "pitch"
        with pytest.raises(UsageError, match="'wh' is taken"):
            s3prl_ext.register_task(row)
    finally:
        s3prl_ext.uninstall()
        s3prl_ext.install()
    assert tasks.added == [] and "pitch" not in METRICS


def test_packages_of_a_task_are_installed_by_the_extra_or_by_name(monkeypatch):
    monkeypatch.setattr(Task, "lacks", lambda task: sorted(task.needs.values()))
    assert tasks.remedy(named("qbe")) == "pip install 's3prl_ext[superb]'"
    assert tasks.remedy(Task("wh", "whistling", needs={"lips": "py-lips", "air": "air"})) == "pip install air py-lips"


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
    assert head[-5:-3] == ["SD DER (%) ↓", "SD DER (%) ↓, threshold of dev"]
    assert head[-3:] == ["SS SI-SDRi (dB) ↑", "SE PESQ (MOS) ↑", "SE STOI (%) ↑"]


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
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # recipes call python
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=env).stdout.split()
    row = named(name)
    assert shown == [row.metrics[0], row.dev, row.test, row.best, row.downstream]


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_what_a_record_names_is_there(task):
    presets = [load_yaml(path) for path in shipped_dir("downstream_configs").glob(f"{task.name}/*.yaml")]
    keys = {key for preset in presets for key in (read.key for read in task.reads) if at(preset, key)}
    assert task.name == "ctc" or {read.key for read in task.reads} - keys <= {"corpus.lexicon", "text.slots_file"}
    assert all(f"${{{name}" in yaml.safe_dump(presets) for name in task.variables if name != "LIBRISPEECH_LEXICON")
    assert task.preset is None or run_flags.preset_path(task.preset).is_file()
    assert {*task.metrics, *task.counts, *task.ratios, *task.superb} <= set(METRICS)
    module, _, function = task.decoder.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert all(importlib.util.find_spec(module) for module in task.modules)


def at(preset: dict, key: str):
    """Return the value at a dotted key of the section ``downstream_expert``."""
    return functools.reduce(
        lambda section, part: (section or {}).get(part), key.split("."), preset["downstream_expert"]
    )


def test_records_need_neither_torch_nor_s3prl(tmp_path):
    code = "import sys, s3prl_ext.tasks; assert not {'torch', 's3prl', 'numpy'} & set(sys.modules)"
    python_process.run(tmp_path, "-c", code)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("TASKS = 1", "task.py defines no TASK"),
        (
            "from s3prl_ext.tasks import Task; TASK = Task('wh', 'singing')",
            "'singing', but -d is the folder's name, 'wh'",
        ),
        (
            "from s3prl_ext.tasks import Task; TASK = Task('ks', 'wh')",
            "the task record name 'ks' is taken by s3prl_ext",
        ),
    ],
)
def test_a_task_file_that_does_not_fit_registers_nothing(tmp_path, text, sentence):
    (tmp_path / "wh").mkdir()
    (tmp_path / "wh" / "expert.py").touch()
    (tmp_path / "wh" / "task.py").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        s3prl_ext.register_tasks(tmp_path)
    assert tasks.added == [] and tmp_path not in plugin.added_task_folders


def test_two_tasks_of_an_extension_share_a_new_metric(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "expert.py").touch()
        (tmp_path / name / "task.py").write_text(
            "from s3prl_ext.metrics import Metric\nfrom s3prl_ext.tasks import Task\n"
            f"TASK = Task({name!r}, {name!r}, ('eer',), new_metrics={{'eer': Metric(False, '%')}})\n"
        )
    s3prl_ext.register_tasks(tmp_path)
    try:
        assert named("one").main_metric(["eer"]) == named("two").main_metric(["eer"]) == "eer" in METRICS
    finally:
        s3prl_ext.uninstall()
        s3prl_ext.install()
    assert tasks.added == [] and "eer" not in METRICS
