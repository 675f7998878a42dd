"""What can be done with what: each cell of the table runs, or is refused with one sentence and nothing written."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3prl_ext import cli
from s3prl_ext.errors import show_errors_as_sentences
from s3prl_ext.mini_superb import ALL, variables
from tests.support import artefact_table, factories
from tests.support.artefact_table import Refusal

CHILD = {"method": "child", "mask": "magnitude", "density": 0.05}
SECTIONS: dict[str, dict] = {
    "frozen": {"method": "weighted_sum"},
    "plain": CHILD,
    "full": {"method": "full"},
    "merged": CHILD,
    "learnable": {"method": "full"},
    "lora": {"method": "lora", "rank": 2},
    "adapter": {"method": "houlsby"},
}
QUICK = ("merged", "learnable", "adapter")  # columns of which every cell runs among the quick tests
MERGE = "target: {upstream: hubert_local, ckpt: hubert.pt}\nsource: {model: bert}\nlambda: 0.2\n"


class Lab:
    """A folder in which artefacts are made once, when they are first used, and commands run in this process."""

    def __init__(self, folder: Path, corpora: Path) -> None:
        self.folder = folder
        self.clip = next((corpora / "speech_commands").rglob("*_nohash_*.wav"))
        self.made: dict[str, object] = {}
        factories.hubert_local_ckpt(folder / "hubert.pt")
        factories.bert_folder(folder / "bert")
        (folder / "merged.yaml").write_text(MERGE)
        (folder / "learnable.yaml").write_text(MERGE + "learnable: true\n")

    def run(self, *flags: object) -> tuple[int, str]:
        """Run ``s3prl-ext``; return exit status and error sentence."""
        err = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            try:
                code = cli.main([str(flag) for flag in flags])
            except SystemExit as stop:
                code = stop.code
            finally:
                show_errors_as_sentences(False)
        assert "Traceback" not in err.getvalue(), err.getvalue()[-3000:]
        found = [line for line in err.getvalue().splitlines() if line.startswith("s3prl-ext: ")]
        assert len(found) == (1 if code else 0), err.getvalue()[-3000:]
        return int(code or 0), found[0].removeprefix("s3prl-ext: ") if found else ""

    def succeed(self, *flags: object) -> None:
        code, sentence = self.run(*flags)
        assert code == 0, sentence

    def upstream(self, column: str) -> list[str]:
        if column in ("merged", "learnable"):
            return ["-u", "merged_attention", "-g", f"{column}.yaml"]
        return ["-u", "hubert_local", "-k", "hubert.pt"]

    def train(self, name: str, upstream: list[str], tuning: dict | None, *more: object, extra: str = "") -> Path:
        """Train keyword spotting for two steps into ``exp/NAME``, once."""
        folder = Path("exp") / name
        if not folder.exists():
            options = "config.runner.total_steps=2,,config.runner.eval_step=2"
            options += f",,config.tuning={tuning}" if tuning else ""
            task = ["-d", "speech_commands", "-c", "ks/mini"]
            self.succeed("run", "-m", "train", *upstream, *task, "-p", folder, "-o", options + extra, *more)
            assert (folder / "dev-best.ckpt").is_file()
        return folder

    def run_of(self, column: str) -> Path:
        return self.train(column, self.upstream(column), SECTIONS[column])

    def race_of(self, column: str) -> Path:
        if column == "frozen":  # nothing to race
            return self.run_of(column)
        key, values = ("density", [0.05, 0.1]) if SECTIONS[column] is CHILD else ("lr", [1e-3, 1e-4])
        stop = ",,config.early_stop={'ratio':0.5}"
        return self.train(f"race_{column}", self.upstream(column), SECTIONS[column] | {key: values}, extra=stop)

    def artefact(self, kind: str, column: str) -> Path:
        """Return the path of an artefact, which is made where it is not there."""
        if kind == "checkpoint":
            return self.run_of(column) / "dev-best.ckpt"
        if kind == "delta":
            return self.run_of(column) / "delta.safetensors"
        if kind == "folder":
            return self.race_of(column)
        out = Path(f"{kind}_{column}")
        if not out.exists():
            if kind == "export":
                self.succeed("export", "--delta", self.artefact("checkpoint", column), "--out", out)
            elif kind == "merge":
                self.succeed("merge", "-g", f"{column}.yaml", "--out", out)
            else:
                head = self.train("unmerged", self.upstream("plain"), None) / "dev-best.ckpt"
                self.succeed("sweep", "-g", "merged.yaml", "-e", head, "--lambda", "0.1", "-p", out)
        return out

    def base(self, column: str) -> Path:
        """Return the model that ``apply`` takes."""
        return self.artefact("merge", column) / "hubert.pt" if column == "merged" else Path("hubert.pt")

    def tuned(self, column: str, delta: Path) -> Path:
        """Return the model that ``revert`` takes."""
        out = Path(f"tuned_{delta.parent.name}_{delta.stem}.pt")
        if not out.exists():
            self.succeed("apply", "--delta", delta, "--model", self.base(column), "--out", out)
        return out


@pytest.fixture(scope="module")
def laboratory(mini_superb: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("artefacts"), mini_superb)


@pytest.fixture
def lab(laboratory: Lab, mini_superb: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    for name, value in variables(ALL, mini_superb).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.chdir(laboratory.folder)
    return laboratory


def contents(folder: Path) -> dict[str, int]:
    """Return files and folders with their sizes, without the logs of Python."""
    return {str(path): path.stat().st_size if path.is_file() else -1 for path in folder.rglob("*")}


def command(lab: Lab, use: str, artefact: Path, kind: str, column: str, out: Path) -> list[object]:
    """Return the flags of a use; what it writes goes to `out`, or beside a checkpoint."""
    if use == "evaluate":
        return ["run", "-m", "evaluate", "-e", artefact, "-t", "dev"]
    if use == "predict":
        return ["predict", artefact, lab.clip, "--out", out / "answer.jsonl"]
    if use == "begin":
        upstream, weights, tuning = lab.upstream(column), artefact, SECTIONS.get(column)
        if kind == "export":
            upstream, weights, tuning = (
                ["-u", "hubert_local", "-k", artefact / "hubert.pt"],
                artefact / "head.ckpt",
                None,
            )
        options = "config.runner.total_steps=3" + (f",,config.tuning={tuning}" if tuning else "")
        task = ["-d", "speech_commands", "-c", "ks/mini"]
        return ["run", "-m", "train", *upstream, *task, "-i", weights, "-p", out / "begun", "-o", options]
    if use == "resume":
        return ["run", "-m", "train", "-e", artefact, "-o", "config.runner.total_steps=3"]
    if use == "apply":
        return ["apply", "--delta", artefact, "--model", lab.base(column), "--out", out / "tuned.pt"]
    if use == "export":
        return ["export", "--delta", artefact, "--out", out / "exported"]
    if use == "head":
        merge, head = ["-g", "merged.yaml"], ["-e", artefact]
        if kind == "export":
            merge = ["-g", f"merged.yaml,,target.ckpt={artefact}/hubert.pt"]
            info = json.loads((artefact / "export.json").read_text())["info"]
            head = ["-i", artefact / "head.ckpt", "-d", "speech_commands", "-c", "ks/mini"]
            head += ["-s", info["upstream_feature_selection"]]
        return ["sweep", *merge, *head, "--lambda", "0.1", "-p", out / "sweep"]
    return ["report", artefact, "--out", out / "report"]


def flags_of(lab: Lab, use: str, artefact: Path, kind: str, column: str, refusal: Refusal | None, out: Path) -> list:
    if use != "revert":
        return command(lab, use, artefact, kind, column, out)
    model = (
        Path("hubert.pt")
        if refusal
        else lab.tuned(column, artefact / "delta.safetensors" if artefact.is_dir() else artefact)
    )
    return ["revert", "--delta", artefact, "--model", model, "--out", out / "base.pt"]


def parameters() -> list:
    rows = []
    for artefact, use, column, refusal in artefact_table.cells():
        quick = column in QUICK or artefact in ("merge", "sweep")
        marks = [] if quick else [pytest.mark.slow]
        rows.append(pytest.param(artefact, use, column, refusal, id=f"{artefact}-{use}-{column}", marks=marks))
    return rows


@pytest.mark.parametrize(("kind", "use", "column", "refusal"), parameters())
def test_cell(lab: Lab, tmp_path: Path, kind: str, use: str, column: str, refusal: Refusal | None):
    if refusal in (artefact_table.NOT_MADE, artefact_table.NOT_EXPORTED):
        flags = ["merge", "-g", f"{column}.yaml", "--out", tmp_path / "out"]
        if refusal is artefact_table.NOT_EXPORTED:
            flags = ["export", "--delta", lab.run_of(column), "--out", tmp_path / "out"]
        check_refused(lab, flags, refusal, tmp_path)
        return
    artefact = lab.artefact(kind, column)
    if use == "resume" and refusal is None:  # it writes into the experiment
        experiment = artefact if artefact.is_dir() else artefact.parent
        copied = Path(shutil.copytree(experiment, tmp_path / "copy"))
        artefact = copied if artefact.is_dir() else copied / artefact.name
    flags = flags_of(lab, use, artefact, kind, column, refusal, tmp_path)
    if refusal is not None:
        check_refused(lab, flags, refusal, tmp_path)
        return
    lab.succeed(*flags)
    CHECKS[use](lab, artefact, column, kind, tmp_path)


def check_refused(lab: Lab, flags: list, refusal: Refusal, out: Path) -> None:
    before = contents(lab.folder), contents(out)
    code, sentence = lab.run(*flags)
    assert (code, bool(re.search(refusal.sentence, sentence))) == (refusal.code, True), (code, sentence)
    assert (contents(lab.folder), contents(out)) == before


def evaluated(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    """The score is the one of the training, to the last digit."""
    folder = artefact if artefact.is_dir() else artefact.parent
    trained, now = (json.loads((folder / name).read_text()) for name in ("result.json", "result-dev.json"))
    assert now["metrics"]["dev"] == trained["metrics"]["dev"] and now["step"] == 2
    (folder / "result-dev.json").unlink()


def predicted(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    """All artefacts of a run say the same of a clip; a race has a winner of its own."""
    answer = json.loads((out / "answer.jsonl").read_text())
    key = ("race" if artefact.name.startswith("race") else "run") + column
    assert lab.made.setdefault(key, answer) == answer


def begun(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    assert (out / "begun" / "states-3.ckpt").is_file()


def resumed(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    assert (out / "copy" / "states-3.ckpt").is_file()


def same_file(first: Path, second: Path) -> None:
    from s3prl_ext.attention.files import open_weights

    a, b = open_weights(first), open_weights(second)
    assert set(a.keys()) == set(b.keys()) and all(a[name].equal(b[name]) for name in a)


def applied(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    """What ``apply`` writes is what ``export`` writes."""
    lab.succeed("export", "--delta", artefact, "--out", out / "again")
    same_file(out / "tuned.pt", out / "again" / "hubert.pt")


def reverted(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    same_file(out / "base.pt", lab.base(column))


def exported(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    assert (out / "exported" / "hubert.pt").is_file() and (out / "exported" / "head.ckpt").is_file()


def reported(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    assert "## ks, " in (out / "report" / "report.md").read_text()


def swept(lab: Lab, artefact: Path, column: str, kind: str, out: Path) -> None:
    """The unmerged target scores as the training did."""
    trained = json.loads((lab.run_of(column) / "result.json").read_text())["metrics"]["dev"]
    rows = json.loads((out / "sweep" / "sweep.json").read_text())["results"].values()
    (target,) = [row["metrics"] for row in rows if row["split"] == "dev" and not row["arm"]["layers"]]
    assert target == {name: row["value"] for name, row in trained.items()}


CHECKS = {
    "head": swept,
    "evaluate": evaluated,
    "predict": predicted,
    "begin": begun,
    "resume": resumed,
    "apply": applied,
    "revert": reverted,
    "export": exported,
    "report": reported,
}


def test_the_page_is_what_the_table_says():
    assert artefact_table.PAGE.read_text(encoding="utf-8") == artefact_table.page(), (
        "run python -m tests.support.artefact_table"
    )


def test_the_table_has_every_cell():
    for artefact, rows in artefact_table.CELLS.items():
        assert set(rows) == set(artefact_table.USES), artefact
        assert len({frozenset(row) for row in rows.values()}) == 1, artefact
    assert set(artefact_table.CELLS) == set(artefact_table.ARTEFACTS)
