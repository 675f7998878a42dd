from __future__ import annotations

import json
from pathlib import Path

import pytest

from s3prl_ext.commands import study as command
from s3prl_ext.commands.report import main as report
from s3prl_ext.errors import DataError, UsageError
from tests.support.instant_engine import Instant

TEXT = """
upstreams: fbank
tasks: ks
axes: {lr: [1e-2, 1e-3]}
seeds: [0, 1]
choose: lr
preset: mini
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Give the command a study; its jobs end at once."""
    scores = {"0.01": 0.6, "0.001": 0.7}
    outcome = lambda job: scores[job.run.labels["lr"]] if job.kind != "fetch" else 0.0  # noqa: E731
    monkeypatch.setattr(command, "open_engine", lambda *given: Instant(outcome))
    monkeypatch.setenv("SPEECH_COMMANDS", str(tmp_path))
    monkeypatch.setenv("VOXCELEB1", str(tmp_path))

    def give(text: str = TEXT, *flags: str) -> int:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return command.main([str(path), "-p", str(tmp_path / "exp"), *flags])

    return give


def test_a_study_prints_what_dev_has_chosen(run, tmp_path, capsys):
    assert run() == 0
    out = capsys.readouterr().out
    assert "| fbank | weighted_sum | 0.001 | 70.00 | 2 | 70.00 ± 0.00 |" in out
    assert {path.name for path in (tmp_path / "exp").iterdir()} >= {
        "study.json",
        "study.md",
        "study.png",
        "runs.csv",
        "ks",
    }
    assert report([str(tmp_path / "exp"), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.md").read_text()
    assert "ks: chosen on dev, scored on test" in page and "scores on dev by what a study searched" in page


def test_dry_run_says_how_much_it_is_and_runs_nothing(run, tmp_path, capsys):
    assert run(TEXT, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "1 cells, 2 trainings that search, 1 with other seeds" in out and "5 jobs" in out
    assert out.count("s3prl-ext run -m train") == 2 and "hours are not known: run one cell first (--only)" in out
    assert not (tmp_path / "exp").exists()
    run()
    capsys.readouterr()
    run(TEXT, "--dry-run")
    assert "hours of one job after another, from runs that have ended" in capsys.readouterr().out


def test_a_folder_of_another_study_is_refused(run, tmp_path):
    run()
    both = r"exp holds runs with other settings: ks/fbank/weighted_sum/lr=0.01/seed=0 would have runner.total_steps 5 in place of \d+, and 1 more"
    with pytest.raises(UsageError, match=both):
        run(TEXT + "set: {runner.total_steps: 5}\n")
    with pytest.raises(UsageError, match=r"would have --device cpu in place of nothing, and 1 more have changed; put"):
        run(TEXT + "flags: {--device: cpu}\n")
    with pytest.raises(UsageError, match=both):
        run(TEXT.replace("tasks: ks", "tasks: [{task: ks, set: {runner.total_steps: 5}}]"))
    with pytest.raises(UsageError, match="the axes task, upstream, method, lr"):
        run(TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], rank: [4]").replace("fbank", "fbank\nmethods: lora"))
    assert run(TEXT.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")) == 0, "more seeds are the same study"


def test_parts_of_a_study_share_its_folder_and_its_tables(run, tmp_path, capsys):
    both = TEXT.replace("tasks: ks", "tasks: [ks, sid]")
    assert run(both, "--only", "task=ks") == 0
    assert "ks: chosen on dev" in (out := capsys.readouterr().out) and "sid" not in out
    assert run(both, "--only", "task=sid") == 0 and run(both, "-o", "upstreams=[mfcc]", "--only", "task=ks") == 0
    out = capsys.readouterr().out
    assert "| mfcc | weighted_sum | 0.001 |" in out and out.count("| fbank | weighted_sum | 0.001 |") == 4
    with pytest.raises(UsageError, match="ks/mfcc/weighted_sum/lr=0.01/seed=0 would have runner.total_steps 5 in"):
        run(both + "adjust: [{task: ks, upstream: mfcc, set: {runner.total_steps: 5}}]\n", "-o", "upstreams=[mfcc]")


def test_a_study_grows_by_a_task_with_settings_of_its_own_and_keeps_them_where_it_shrinks(run, tmp_path, capsys):
    both = TEXT.replace("tasks: ks", "tasks: [ks, sid]")
    adjust = "adjust: [{task: sid, set: {runner.total_steps: 40}}]\n"
    assert run() == 0 and run(both + adjust) == 0
    shown = capsys.readouterr().out.split("ks: chosen on dev")[-1]
    kept = []
    for _ in range(2):  # without sid and its entry, which would name an unknown task; ks has 200 steps as before
        assert run(TEXT + "adjust: [{method: weighted_sum, set: {runner.total_steps: 200}}]\n") == 0
        assert capsys.readouterr().out.endswith(shown), "nothing is said of other settings"
        kept.append((tmp_path / "exp" / "study.json").read_text())
    assert kept[0] == kept[1]
    assert run(both + adjust) == 0
    with pytest.raises(UsageError, match="sid/fbank/weighted_sum/lr=0.01/seed=0 would have runner.total_steps 41 in"):
        run(both + adjust.replace("40", "41"))


def test_what_is_excluded_later_stays_in_the_tables_but_for_values_that_are_chosen_among(run, tmp_path, capsys):
    both = TEXT.replace("tasks: ks", "tasks: [ks, sid]")
    assert run(both) == 0
    shown = capsys.readouterr().out
    for _ in range(2):
        assert run(both + "exclude: [{task: ks}]\n") == 0
        assert capsys.readouterr().out == shown
    assert run(both + "exclude: [{task: ks, lr: 0.001}, {task: sid}]\n") == 0
    out = capsys.readouterr().out
    assert "| fbank | weighted_sum | 0.01 | 60.00 |" in out.split("sid: ")[0], "another one is chosen"
    assert "| fbank | weighted_sum | 0.001 | 70.00 |" in out.split("sid: ")[1]
    assert run(both) == 0 and capsys.readouterr().out == shown


def test_a_variable_that_is_not_set_is_named_before_anything_runs(run, tmp_path, monkeypatch):
    monkeypatch.delenv("SPEECH_COMMANDS")
    with pytest.raises(
        UsageError, match=r"ks/fbank/.*needs the environment variable SPEECH_COMMANDS, which is not set"
    ):
        run()
    assert not (tmp_path / "exp").exists() and run(TEXT, "--dry-run") == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            TEXT + "methods: [{method: child, density: 0.1, eligible: ['x=y']}]\n",
            "seed=0: tuning {'method':'child','density':0.1,'eligible':['x=y']} cannot be passed on",
        ),
        (TEXT + "methods: [{method: lora, targets: ['a,,b']}]\n", "cannot be passed on"),
        (TEXT + "set: {runner.name: 2024-01-31}\n", "runner.name datetime.date(2024, 1, 31) cannot be passed on"),
        (TEXT + "methods: [child]\n", "ks/fbank/child/lr=0.01/seed=0: tuning.density is missing"),
        (TEXT + "set: {runner.eval_dataloaders: [test]}\n", "runner.eval_dataloaders lacks dev"),
        (TEXT + "set: {runner.total_stepps: 5}\n", "did you mean 'total_steps'"),
        (TEXT + "set: {downstream_expert.datarc.batchsize: 5}\n", "did you mean 'batch_size'"),
        (TEXT + "set: {total_steps: 20}\n", "'total_steps'; did you mean config.runner.total_steps?"),
        (
            TEXT + "adjust: [{task: ks, set: {batch_size: 2}}]\n",
            "did you mean config.downstream_expert.datarc.batch_size?",
        ),
        (
            TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], total_steps: [1, 2]"),
            "axis total_steps: config.total_steps: unk",
        ),
        (TEXT + "flags: {--devcie: cpu}\n", "unknown flag '--devcie'; did you mean '--device'"),
        (TEXT.replace("fbank", "fbankk"), "unknown upstream (-u) 'fbankk'; did you mean 'fbank'"),
        (TEXT.replace("fbank", "hubert_local"), "ks/hubert_local/weighted_sum/lr=0.01/seed=0: -u hubert_local"),
        (TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], lambda: [0.1]"), "-u fbank does not read -g lambda=0.1"),
        (
            TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], foo: [1, 2]"),
            "axis foo: config.foo: unknown section of a task file 'foo'",
        ),
        (
            TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], downstream_expert.datarc.zzz: [1, 2]"),
            "axis downstream_expert.datarc.zzz",
        ),
        (TEXT.replace("lr: [1e-2, 1e-3]", "lr: [1e-2], rank: [4]"), "tuning.rank belongs to method lora"),
        (TEXT + "exclude: [{task: ks}]\n", "every combination is excluded"),
    ],
)
def test_what_no_run_could_do_is_refused_before_any_starts(text, sentence, run, tmp_path):
    with pytest.raises(UsageError) as caught:
        run(text)
    assert sentence in str(caught.value) and not (tmp_path / "exp").exists()


MERGED = "target: {model: org/target}\nsource: {model: org/source}\nlambda: 0.1\n"


@pytest.mark.parametrize(
    ("upstreams", "merge", "sentence"),
    [
        ("{label: m, upstream: hf_hubert_custom, ckpt: /nowhere}", None, "ks/m/weighted_sum/lr=0.01/seed=0: -k /nowhere: no such"),
        ("{label: m, upstream: hubert_local, ckpt: hubert.pt}", None, "-k hubert.pt: no such file or folder here"),
        ("{label: m, upstream: merged_attention, config: nofile.yaml}", None, "-g nofile.yaml: no such file or folder here"),
        ("{label: m, upstream: mam_hubert_tiny_minilm, config: lamda=3}", None, "did you mean 'lambda'"),
        ("{label: m, upstream: merged_attention, config: my.yaml}", MERGED.replace("0.1", "2"), "lambda"),
        ("{label: m, upstream: merged_attention, config: my.yaml}", MERGED.replace("org/source", "/nowhere"),
         "my.yaml: source.model /nowhere: no such file or folder here"),
        ("{label: m, upstream: merged_attention, config: my.yaml}", MERGED.replace("org/source", "'${NOT_SET}'"),
         "environment variable NOT_SET"),
    ],
)  # fmt: skip
def test_models_and_merges_are_checked_before_anything_runs(
    upstreams, merge, sentence, run, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    if merge is not None:
        (tmp_path / "my.yaml").write_text(merge)
    text = TEXT.replace("fbank", f"[{upstreams}]")
    with pytest.raises(UsageError) as caught:
        run(text)
    assert sentence in str(caught.value)
    if "no such" in sentence:  # an earlier stage of a recipe may make it
        assert run(text, "--dry-run") == 0 and f"{sentence.rpartition(': no')[0][-9:]}: no such file" in caplog.text
    elif "variable" in sentence:  # as those of the corpora
        assert run(text, "--dry-run") == 0
    else:
        with pytest.raises(UsageError):
            run(text, "--dry-run")
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    "upstreams",
    [
        "{label: m, upstream: hf_hubert_custom, ckpt: /nowhere}",
        "{label: m, upstream: merged_attention, config: /nowhere/my.yaml}",
    ],
)
def test_a_model_may_be_on_the_machines_that_run_it_alone(upstreams, run, caplog):
    assert run(TEXT.replace("fbank", f"[{upstreams}]"), "--engine", "slurm") == 0
    assert caplog.text.count("no such file or folder here: it must be there where and when the jobs run") == 1


def test_models_of_the_hub_are_not_looked_for(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(MERGED)
    text = "[{label: m, upstream: merged_attention, config: my.yaml}, {label: h, upstream: hf_hubert_custom, ckpt: org/hubert@v1}]"
    assert run(TEXT.replace("fbank", text)) == 0


def test_a_file_is_no_folder_for_a_study(run, tmp_path):
    (tmp_path / "exp").write_text("")
    with pytest.raises(UsageError, match="exp is not a folder"):
        run()


def test_a_failed_job_makes_the_exit_status_one(run, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "open_engine", lambda *given: Instant(lambda job: "the disk is full" if job.kind != "fetch" else 0.0)
    )
    assert run() == 1
    assert "--retry-failed" in capsys.readouterr().err


def test_a_damaged_study_file_is_named(run, tmp_path):
    run()
    (tmp_path / "exp" / "study.json").write_text(json.dumps({"axes": 1}))
    with pytest.raises(DataError, match=r"study\.json is corrupt .*: delete it, and run the study again"):
        run()
    assert Path(tmp_path / "exp" / "ks").is_dir()
    (tmp_path / "exp" / "study.json").unlink()
    assert run() == 0 and (tmp_path / "exp" / "study.json").is_file()
