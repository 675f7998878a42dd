from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.run_flags import overrides_of
from s3prl_ext.studies.check import check_labels, check_runs
from s3prl_ext.studies.config import Study
from s3prl_ext.studies.plan import cells_of, combinations
from s3prl_ext.studies.study_file import read_study

GOOD = """
upstreams: [fbank, {label: merged, upstream: merged_attention, config: my.yaml}]
tasks: [ks, {task: sid, set: {runner.total_steps: 40}}]
methods: [weighted_sum, {label: child, method: child, density: 0.1}]
axes: {lr: [1e-2, 1.0e-3], lambda: [0.1]}
seeds: [3, 4]
choose: lr
preset: mini
set: {runner.total_steps: 20}
exclude: [{task: sid, method: child}]
"""


def study(tmp_path: Path, text: str, *given, **more) -> Study:
    path = tmp_path / "my_study.yaml"
    path.write_text(text)
    return read_study(path, *given, **more)


def test_every_combination_is_a_run_with_a_folder_of_its_own(tmp_path):
    cells = cells_of(study(tmp_path, GOOD), tmp_path)
    runs = [run for cell in cells for run in cell.search]
    assert len(cells) == 6 and len(runs) == 12 and len({run.folder for run in runs}) == 12
    assert not any(run.labels["task"] == "sid" and run.labels["method"] == "child" for run in runs)
    assert runs[0].folder == tmp_path / "ks/fbank/weighted_sum/lr=0.01,lambda=0.1/seed=3"
    assert {run.seed for run in runs} == {3}, "only the first seed searches"


def test_a_run_is_an_ordinary_command(tmp_path):
    merged = study(tmp_path, GOOD + "flags: {--device: cpu}\n")
    run = next(
        r for c in cells_of(merged, Path("exp")) for r in c.search if r.name.startswith("ks/merged/child/lr=0.001")
    )
    assert run.flags() == [
        "-m", "train", "-a", "-d", "speech_commands", "-c", "ks/mini", "-u", "merged_attention", "-g", "my.yaml,,lambda=0.1",
        "--device", "cpu", "--fisher_scores", "exp/fisher", "--seed", "3", "-p", "exp/ks/merged/child/lr=0.001,lambda=0.1/seed=3", "-o",
        "config.runner.total_steps=20,,config.tuning={'method':'child','density':0.1},,config.optimizer.lr=0.001",
    ]  # fmt: skip


def test_settings_of_a_task_win_over_those_of_all_and_an_axis_over_both(tmp_path):
    text = "upstreams: fbank\ntasks: [{task: ks, set: {optimizer.lr: 1, runner.total_steps: 7}}]\naxes: {lr: [0.5], density: [0.1]}\n"
    text += "methods: [{method: child, density: 0.5, lr: 1e-4}]\npreset: mini\nset: {runner.total_steps: 20}\n"
    [cell] = cells_of(study(tmp_path, text), tmp_path)
    given = cell.search[0].flags()[-1].split(",,")
    assert set(given) == {
        "config.runner.total_steps=7", "config.optimizer.lr=0.5",
        "config.tuning={'method':'child','density':0.1,'lr':'1e-4'}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("tasks: [ks", "tasks: [kss"), "my_study.yaml.tasks[0]: unknown task 'kss'"),
        (("tasks: [ks", "tasks: [qbe, ks"), "my_study.yaml.tasks[0]: qbe trains nothing: remove it"),
        (("preset: mini", "preset: minni"), "ks/minni"),
        (("choose: lr", "choose: rate"), "my_study.yaml.choose: unknown axis 'rate'"),
        (("choose: lr", "choose: task"), "a cell is a task"),
        (("seeds: [3, 4]", "seeds: [3, 3]"), "my_study.yaml.seeds has '3' twice"),
        (("seeds: [3, 4]", "seeds: [-1]"), "must be a whole number of at least 0"),
        (("seeds: [3, 4]", "seeds: []"), "my_study.yaml.seeds is empty"),
        (("lr: [1e-2, 1.0e-3]", "lr: [1e-3, 0.001]"), "has '0.001' twice"),
        (("method: child}]", "method: chilt}]"), "unknown method 'chilt'"),
        (("axes: {lr", "axes: {seed: [1], lr"), "seed has a key of its own"),
        (("preset: mini", "presets: mini"), "unknown key 'presets'; did you mean 'preset'?"),
        (("{label: child, method: child", "{label: a/b, method: child"), "'a/b' cannot name a folder"),
        (("density: 0.1}", "density: 0.1, label: weighted_sum}"), "is not readable as YAML|twice"),
        (("{runner.total_steps: 20}", "{runner.total_steps: 'a=b'}"), "cannot be passed on"),
        (("[fbank, ", "[fbank, {label: x}, "), "upstream is missing"),
        (("choose: lr", "choose: lr\nresources: {gpus: -1}"), "resources.gpus must be at least 0"),
        (("choose: lr", "choose: lr\nresources: 1"), "resources must be a mapping"),
        (("choose: lr", "choose: lr\nflags: {--seed: 3}"), "--seed is set by the study itself"),
        (
            ("choose: lr", "choose: lr\nadjust: [{taks: ks, set: {a: 1}}]"),
            "my_study.yaml.adjust[0]: unknown key 'taks'",
        ),
        (("choose: lr", "choose: lr\nadjust: [{task: [ks, ki], set: {a: 1}}]"), "unknown task 'ki'"),
        (("choose: lr", "choose: lr\nadjust: [{flags: {-p: x}}]"), "adjust[0].flags: -p is set by the study itself"),
        (("density: 0.1}", "density: 0.1, set: 3}"), "my_study.yaml.methods[1].set must be a mapping"),
        (("seeds: [3, 4]", "seeds: [3, 4]\nsearch_seeds: [9, 4]"), "search_seeds: seed 4 is one of seeds too"),
        (("seeds: [3, 4]", "seeds: [3, 4]\nsearch_seeds: [x]"), "search_seeds[0] must be a whole number"),
        (("choose: lr", "search_seeds: 9"), "search_seeds: nothing is chosen"),
        (("choose: lr", "choose: lr\nsearch_seeds: [8, 9]\nrace: {ratio: 0.1}"), "the runs that race have one seed"),
    ],
)
def test_what_is_wrong_is_named(change, sentence, tmp_path):
    text = GOOD.replace(*change)
    assert text != GOOD
    with pytest.raises(UsageError) as caught:
        study(tmp_path, text)
    assert any(part in str(caught.value) for part in sentence.split("|")), str(caught.value)


def test_some_combinations_have_settings_of_their_own(tmp_path):
    text = GOOD.replace("density: 0.1}", "density: 0.1, set: {early_stop: {ratio: 0.5}}}")
    text += "adjust:\n  - {task: [ks], method: child, set: {tuning.lr: 1e-4, runner.total_steps: 5, optimizer.lr: 9}, flags: {-s: x}}\n"
    runs = {run.name: run for cell in cells_of(study(tmp_path, text), tmp_path) for run in cell.search}
    child = runs["ks/fbank/child/lr=0.01,lambda=0.1/seed=3"]
    assert child.settings() == {
        "runner.total_steps": 5, "early_stop": {"ratio": 0.5}, "optimizer.lr": 0.01,
        "tuning": {"method": "child", "density": 0.1, "lr": 1e-4},
    }  # fmt: skip  # the axis counts, whose value is in the run's name
    assert child.flags()[child.flags().index("-s") + 1] == "x"
    assert runs["ks/fbank/weighted_sum/lr=0.01,lambda=0.1/seed=3"].settings()["runner.total_steps"] == 20
    over = study(tmp_path, text, "set.runner.total_steps=7,,adjust+=[{task: sid, set: {runner.log_step: 2}}],,seeds+=9")
    steps = {run.name: run.settings() for cell in cells_of(over, tmp_path) for run in cell.search}
    assert {row["runner.total_steps"] for row in steps.values()} == {7}, "the command line counts"
    assert steps["sid/fbank/weighted_sum/lr=0.01,lambda=0.1/seed=3"]["runner.log_step"] == 2 and over.seeds == (3, 4, 9)


@pytest.mark.parametrize(
    ("change", "first", "others"),
    [
        (("seeds: [3, 4]", "seeds: [3, 4]"), True, False),  # the searched rates share; of other seeds there is one run
        (("density: 0.1}", "density: 0.1}, {label: c2, method: child, density: 0.2}"), True, True),
        (("density: 0.1}", "density: 0.1, mask: random}"), False, False),
        (("choose: lr", "choose: lr\nshare_fisher: false"), False, False),
    ],
)
def test_runs_of_a_pair_share_their_fisher_scores(change, first, others, tmp_path):
    run = next(
        r for c in cells_of(study(tmp_path, GOOD.replace(*change)), tmp_path) for r in c.search if "/child/" in r.name
    )
    assert ("--fisher_scores" in run.flags()) == first
    assert ("--fisher_scores" in dataclasses.replace(run, seed=4).flags()) == others
    elsewhere = dataclasses.replace(run, folder=tmp_path / "a=b" / run.name)
    assert "--fisher_scores" not in elsewhere.flags(), "-o cannot hold the name of this folder"


def test_a_part_of_a_study(tmp_path):
    cells = cells_of(study(tmp_path, GOOD, only=["task=ks", "method=child,weighted_sum", "upstream=fbank"]), tmp_path)
    assert [cell.name for cell in cells] == ["ks/fbank/weighted_sum/0.1", "ks/fbank/child/0.1"]
    for only, sentence in (
        ("task=kss", "--only: unknown task 'kss'"), ("tasks=ks", "--only: unknown key 'tasks'"),
        ("ks", "--only must be AXIS=LABEL"), ("lr=0.01", "--only: among lr one is chosen"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            study(tmp_path, GOOD, only=[only])
        assert sentence in str(caught.value)


def test_all_problems_are_named_at_once(tmp_path):
    with pytest.raises(UsageError) as caught:
        study(tmp_path, GOOD.replace("tasks: [ks", "tasks: [kss").replace("choose: lr", "choose: rate"))
    assert "kss" in str(caught.value) and "rate" in str(caught.value)


def test_the_command_line_changes_keys_of_the_file(tmp_path):
    path = tmp_path / "my_study.yaml"
    path.write_text(GOOD)
    found = read_study(path, "tasks=[ks],,axes.lr=[1e-4],,set.runner.total_steps=7,,seeds=5,,exclude=[]")
    assert [point.label for point in found.axes["task"]] == ["ks"] and found.seeds == (5,)
    assert [point.label for point in found.axes["lr"]] == ["0.0001"] and found.settings == {"runner.total_steps": 7}
    for option, sentence in (
        ("tasks", "must be KEY=VALUE"),
        ("tasks=[ks", "-o tasks: '[ks' is not readable"),
        ("tasks.x=1", "'tasks' of the study is not a mapping"),
        ("taks=[ks]", "unknown key 'taks'; did you mean 'tasks'"),
    ):
        with pytest.raises(UsageError) as caught:
            read_study(path, option)
        assert sentence in str(caught.value)


def test_a_value_keeps_every_digit_and_a_name_stays_a_name(tmp_path):
    text = "upstreams: fbank\ntasks: ks\npreset: mini\naxes: {lambda: [0.123456789, 0.12345678], lr: [1e-3]}\nset: {a.b: inf, a.c: '007'}\n"
    found = study(tmp_path, text)
    assert [point.flags["-g"] for point in found.axes["lambda"]] == ["lambda=0.123456789", "lambda=0.12345678"]
    assert found.axes["lr"][0].settings == {"optimizer.lr": 0.001} and found.settings == {"a.b": "inf", "a.c": "007"}


def test_variables_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_HUBERT", "/models/hubert")
    found = study(tmp_path, "upstreams: [{upstream: hubert_local, ckpt: '${MY_HUBERT}'}]\ntasks: ks\npreset: mini\n")
    assert found.axes["upstream"][0].flags["-k"] == "/models/hubert"


def test_the_shipped_studies_can_be_read(monkeypatch):
    monkeypatch.setenv("HUBERT", "hubert")
    monkeypatch.setenv("WHISPER", "whisper")
    monkeypatch.setenv("PAIR", "pair.yaml")
    from s3prl_ext.configs import shipped_dir

    files = sorted((shipped_dir("recipes") / "studies").glob("*.yaml"))
    assert files
    for path in files:
        found = read_study(path)
        assert list(combinations(found))
        check_labels([run for cell in cells_of(found, Path("exp")) for run in cell.search])


def test_texts_keep_their_blanks_and_structures_lose_theirs(tmp_path):
    text = GOOD.replace(
        "{runner.total_steps: 20}", "{downstream_expert.datarc.root: '/data/my corpus', tuning.lr: [1e-3, 2]}"
    )
    flags = cells_of(study(tmp_path, text), tmp_path)[0].search[0].flags()
    options = flags[flags.index("-o") + 1].split(",,")
    assert "config.downstream_expert.datarc.root='/data/my corpus'" in options
    assert "config.tuning.lr=[0.001,2]" in options or any("'lr':[" in option for option in options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("flags: {--device: cpu, -f: true}", "a flag before 'True' takes no value"),
        ("flags: {--track: wandbb}", "unknown tracker 'wandbb'"),
        ("adjust: [{lr: 1e-3, flags: {--nonsense: 1}}]", "unknown flag '--nonsense'"),
        ("adjust: [{upstream: mfcc, lr: 1e-3, set: {runner.total_steps: 40}}]", "need the same runner.total_steps"),
    ],
)
def test_every_run_is_checked_not_only_the_first(tmp_path, change, message):
    text = (
        "upstreams: [fbank, mfcc]\ntasks: [ks]\nmethods: [frozen]\naxes: {lr: [1e-2, 1e-3]}\nseeds: [0]\nchoose: lr\n"
        f"preset: mini\nset: {{runner.total_steps: 20}}\nrace: {{ratio: 0.5}}\n{change}\n"
    )
    with pytest.raises(UsageError, match=message):
        check_runs(cells_of(study(tmp_path, text), tmp_path), variables=False)


ONE = "upstreams: fbank\ntasks: ks\npreset: mini\n"
CHILD = "method: child, mask: random, density"


def settings_of(study: Study, folder: Path) -> dict[str, dict]:
    """Return what each search run finds in its task file, by its name without what all share."""
    runs = [run for cell in cells_of(study, folder) for run in cell.search]
    return {run.name.removeprefix("ks/fbank/").removesuffix("/seed=0"): run.config() for run in runs}


@pytest.mark.parametrize(
    "text",
    [
        "methods: [{method: weighted_sum, set: {optimizer: {name: AdamW, lr: 1e-3}}}]\nset: {optimizer.lr: 5e-4}\n",
        "methods: [{method: weighted_sum, set: {optimizer: {name: AdamW}}}]\n",
        "adjust: [{task: ks, set: {optimizer.lr: 1e-1}}, {task: ks, set: {optimizer: {name: AdamW, lr: 1e-3}}}]\n",
        "adjust: [{set: {optimizer: {name: AdamW}}}, {task: ks, set: {optimizer.lr: 1e-1}}]\n",
    ],
)
def test_a_section_set_as_a_whole_leaves_an_axis_its_value(text, tmp_path):
    """A key that was set before kept its place among the settings: the section that came later wiped out the axis."""
    found = study(tmp_path, f"{ONE}axes: {{lr: [1e-2, 1e-3]}}\nchoose: lr\n{text}")
    cells = cells_of(found, tmp_path)
    check_runs(cells, variables=False)
    for _ in range(2):  # what one run is does not depend on which was asked for before
        rates = {name: config["optimizer"] for name, config in settings_of(found, tmp_path).items()}
        assert rates == {
            "weighted_sum/lr=0.01": {"name": "AdamW", "lr": 0.01},
            "weighted_sum/lr=0.001": {"name": "AdamW", "lr": 0.001},
        }
    for run in cells[0].search:
        options = overrides_of(run.flags()[-1])
        assert list(options)[-1] == "config.optimizer.lr" and options["config.optimizer.lr"] == float(run.labels["lr"])


def test_of_a_section_of_tuning_the_later_keys_count(tmp_path):
    text = (
        f"{ONE}methods: [{{label: a, method: child, density: 0.1, fisher: {{max_batches: 3}}}}]\n"
        "axes: {tuning.fisher.max_batches: [2, 4]}\nset: {tuning.fisher.max_batches: 1, tuning.lr: 1e-4}\n"
        "adjust: [{method: a, set: {tuning.fisher: {granularity: sample}}}]\n"
    )
    found = study(tmp_path, text)
    check_runs(cells_of(found, tmp_path), variables=False)
    for batches in (2, 4):
        assert settings_of(found, tmp_path)[f"a/tuning.fisher.max_batches={batches}"]["tuning"] == {
            "method": "child", "density": 0.1, "lr": 1e-4, "fisher": {"granularity": "sample", "max_batches": batches},
        }  # fmt: skip


def test_what_a_method_says_itself_wins_over_what_is_set_for_all(tmp_path):
    text = (
        f"{ONE}methods: [{{label: c10, {CHILD}: 0.1}}, {{label: c01, {CHILD}: 0.01, lr: 1e-2}}, {{label: r, method: child, mask: random}}]\n"
        "set: {tuning.density: 0.5, tuning.lr: 1e-4}\n"
    )
    found = study(tmp_path, text)
    check_runs(cells_of(found, tmp_path), variables=False)
    tuned = {name: config["tuning"] for name, config in settings_of(found, tmp_path).items()}
    assert {name: (one["density"], float(one["lr"])) for name, one in tuned.items()} == {
        "c10": (0.1, 1e-4), "c01": (0.01, 1e-2), "r": (0.5, 1e-4),
    }  # fmt: skip
    text = text.replace("set: {", "adjust: [{method: c10, set: {").removesuffix("\n") + "}]\n"
    assert settings_of(study(tmp_path, text), tmp_path)["c10"]["tuning"]["density"] == 0.5, "an entry of adjust does"


@pytest.mark.parametrize(
    ("text", "override", "sentence"),
    [
        (f"methods: [{{label: one, {CHILD}: 0.01}}, {{label: none, method: child, mask: random}}]\naxes: {{density: [0.5]}}\n", None,
         "ks/fbank/one/density=0.5/seed=0 and ks/fbank/none/density=0.5/seed=0 are the same run"),
        (f"methods: [{{label: few, {CHILD}: 0.01, lr: 1e-3}}, {{label: many, {CHILD}: 0.1}}]\naxes: {{density: [0.5]}}\n", None,
         "methods few and many differ in tuning.density, which axis density sets as well"),
        ("axes: {optimizer.lr: [1e-2, 1e-3], lr: [1e-4]}\nchoose: optimizer.lr\n", None,
         "ks/fbank/weighted_sum/optimizer.lr=0.01,lr=0.0001/seed=0: optimizer.lr is 0.0001 in its task file"),
        ("methods: [weighted_sum, {label: again, method: weighted_sum}]\n", None, "are the same run"),
        ("upstreams: [{label: a, upstream: merged_attention, config: \"my.yaml,,lambda=0.1\"}, {label: b, upstream: merged_attention, config: \"my.yaml,,lambda=0.2\"}]\n"
         "axes: {lambda: [0.3]}\n", None, "ks/a/weighted_sum/lambda=0.3/seed=0 and ks/b/weighted_sum/lambda=0.3/seed=0 are the same run"),
        (f"methods: [{{label: slow, {CHILD}: 0.1, lr: 1e-5}}, {{label: fast, {CHILD}: 0.1, lr: 1e-3}}]\n", "set.tuning.lr=1e-4",
         "are the same run"),
    ],
)  # fmt: skip
def test_labels_of_the_same_run_or_of_what_it_is_not_are_refused(text, override, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr("s3prl_ext.run_checks.check_names", lambda flags: None)  # there is no my.yaml
    monkeypatch.setattr("s3prl_ext.training.upstream_checks.check_models", lambda flags, variables: [])
    head = ONE.replace("upstreams: fbank\n", "") if text.startswith("upstreams") else ONE
    with pytest.raises(UsageError) as caught:
        check_runs(cells_of(study(tmp_path, head + text, override), tmp_path), variables=False)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("axes", "override", "sentence"),
    [
        ("lr: [1e-2, 1e-3]", "set.optimizer.lr=1e-5", "-o set.optimizer.lr: axis lr sets optimizer.lr in every run"),
        ("lr: [1e-2, 1e-3]", "set.optimizer={name: AdamW, lr: 1e-5}", "-o set.optimizer: axis lr sets optimizer.lr"),
        ("optimizer.lr: [1e-2]", "set.optimizer.lr=1e-5", "change axes.optimizer.lr"),
    ],
)
def test_what_the_command_line_sets_holds_or_is_refused(axes, override, sentence, tmp_path):
    with pytest.raises(UsageError) as caught:
        study(tmp_path, f"{ONE}axes: {{{axes}}}\n", override)
    assert sentence in str(caught.value)
    other = study(tmp_path, f"{ONE}axes: {{{axes}}}\n", "set.optimizer={name: AdamW}")
    assert all(config["optimizer"]["name"] == "AdamW" for config in settings_of(other, tmp_path).values())


@pytest.mark.parametrize("label", ["a[0]", "a*", "a?", "it's", 'a"b'])
def test_a_label_that_a_pattern_of_files_would_be_is_refused(label, tmp_path):
    """s3prl looks for the checkpoints of a folder by a pattern, and would not find them."""
    with pytest.raises(UsageError, match="cannot name a folder"):
        study(tmp_path, f"{ONE}methods: [{{method: weighted_sum, label: {label!r}}}]\n")


def test_a_list_on_an_axis_is_a_label_of_its_items(tmp_path):
    found = study(
        tmp_path, f"{ONE}methods: houlsby\naxes: {{tuning.layers: [[0], [0, 4], []]}}\nchoose: tuning.layers\n"
    )
    points = {point.label: point.settings["tuning.layers"] for point in found.axes["tuning.layers"]}
    assert points == {"0": [0], "0-4": [0, 4], "none": []}
    with pytest.raises(UsageError, match="has '0' twice"):
        study(tmp_path, f"{ONE}methods: houlsby\naxes: {{tuning.layers: [[0], 0]}}\n")
    with pytest.raises(UsageError, match="an axis lambda has one number at a time"):
        study(tmp_path, f"{ONE}axes: {{lambda: [[0.1, 0.2]]}}\n")
