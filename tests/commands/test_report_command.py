"""``s3prl-ext report`` on result files and sweeps: what is written, what is named, what is refused."""

from __future__ import annotations

import csv
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest

from s3prl_ext.commands import report_figures
from s3prl_ext.commands.report import main
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.result_records import ResultRecord, read_record
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.evaluation.transcripts import transcript, write_transcripts
from s3prl_ext.evaluation.utterance_comparison import with_intervals_over
from s3prl_ext.sweeps.grid import Group
from tests.support.result_files import content, merge, write, write_hypotheses
from tests.support.sweep_files import GROUPS, write_sweep


def report(out: Path, *flags: str | Path) -> tuple[str, list[dict[str, str]], str]:
    """Run the command; returns its Markdown, the rows of its CSV, and its page."""
    assert main([*map(str, flags), "--out", str(out)]) == 0
    with open(out / "report.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return (out / "report.md").read_text(), rows, (out / "report.html").read_text()


@pytest.fixture
def pair(tmp_path):
    """A baseline and a merged run of ljspeech with their transcripts."""
    truth = ["one two three four"] * 30
    said = {"base": ["one tow three for"] * 30, "mam": ["one two three for"] * 29 + ["one two three four"]}
    folders = []
    for name, value in (("base", 0.0), ("mam", 0.1)):
        (tmp_path / name).mkdir()
        wer = write_hypotheses(tmp_path / name, list(zip(truth, said[name])))
        record = content({"wer": wer}, merge=merge(value), tuning={"method": "frozen"})
        record["intervals"] = {"test": {"wer": [wer - 1, wer + 1]}}
        folders.append(write(tmp_path / name, record).parent)
    return folders


def test_a_pair_beside_the_paper(tmp_path, pair):
    text, rows, page = report(tmp_path / "out", *pair, "--paper", "mam.table1")
    assert [row["row"] for row in rows[:2]] == ["0.00, Source", "0.10, Source"]
    base, mam = rows[:2]
    assert float(base["mean"]) == 50.0 and float(mam["mean"]) == pytest.approx(100 * 29 / 120)
    assert (base["paper"], mam["paper"], mam["unit"], mam["better"]) == ("9.25", "9.06", "%", "lower")
    assert float(mam["change_percent"]) == pytest.approx(100 * (29 / 60 - 1))
    assert float(mam["paper_change_percent"]) == pytest.approx(100 * (9.06 / 9.25 - 1))
    assert float(mam["difference_low"]) < float(mam["difference_high"]) < 0
    assert "| 0.10, Source | 1 | 24.17 [23.17, 25.17] | -51.67 | [-27.50, -25.00] * | 9.06 | -2.05 |" in text
    assert "No result of ours: 0.05, Source; 0.05, N(Source)" in text
    assert "WER (%) ↓" in text and "MAM, Table 4" in text and "*tow*" in text
    assert "| substitution |" in text and "35.13" in text
    assert "<script" not in page and "http" not in page


@pytest.mark.parametrize("name", ["report.md", "report.csv", "report.tex", "report.html"])
def test_a_file_of_its_name_that_is_not_its_own_is_kept(tmp_path, pair, name):
    for _ in range(2):
        report(tmp_path / "out", *pair)
    (tmp_path / "out" / name).write_text("# Mine\n")
    with pytest.raises(UsageError, match=f"{name} is there already, and is not a file that this command writes"):
        report(tmp_path / "out", *pair)
    assert (tmp_path / "out" / name).read_text() == "# Mine\n"


def test_intervals_over_chapters(tmp_path):
    """Chapter 1 is all wrong, chapter 2 all right: over chapters anything from 0 to 100 % can be drawn."""
    folders = []
    for name, value in (("base", 0.0), ("mam", 0.1)):
        rows = [
            transcript(f"LJ00{1 + n // 20}-{n:04d}", "one two", "one two" if n >= 20 else "two one") for n in range(40)
        ]
        (tmp_path / name).mkdir()
        write_transcripts(rows, tmp_path / name / "transcripts-test.jsonl")
        record = content({"wer": 50.0}, merge=merge(value), intervals={"test": {"wer": [40.0, 60.0]}})
        folders.append(write(tmp_path / name, record).parent)
    alone = write(
        tmp_path / "alone", content({"wer": 50.0}, merge=merge(0.2), intervals={"test": {"wer": [40.0, 60.0]}})
    )
    text, rows, _ = report(tmp_path / "out", *folders, alone, "--intervals-over", "chapter")
    found = [(row["low"], row["high"]) for row in rows if row["metric"] == "wer"]
    assert sorted(found) == [("", ""), ("0.0", "100.0"), ("0.0", "100.0")]
    assert "95 % interval over 2 chapters (with fewer than 20 it comes out too narrow)" in text
    assert "paired bootstrap over chapters" in text
    assert "no transcripts or predictions of its test, so there is no interval over chapters" in text
    plain, _, _ = report(tmp_path / "plain", *folders)
    assert "50.00 [40.00, 60.00]" in plain and "interval over utterances" in plain


def test_an_accuracy_over_speakers_keeps_its_direction(tmp_path):
    speakers = [f"{n:08x}" for n in range(10)]
    clips = [f"{speaker}_nohash_{n}.wav" for speaker in speakers for n in range(2)]
    (tmp_path / "ks").mkdir()
    (tmp_path / "ks" / "test_truth.txt").write_text("".join(f"{clip} yes\n" for clip in clips))
    said = "".join(f"{clip} {'no' if clip.startswith(speakers[0]) else 'yes'}\n" for clip in clips)
    (tmp_path / "ks" / "test_predict.txt").write_text(said)
    write(tmp_path / "ks", content({"acc": 0.9}, downstream="speech_commands"))
    _, (row,), _ = report(tmp_path / "out", tmp_path / "ks", "--intervals-over", "speaker")
    assert float(row["low"]) == pytest.approx(70.0) and float(row["high"]) == 100.0  # 3 of 10 draws or more: 7 %


def test_latex_has_a_table_for_each(tmp_path, pair):
    report(tmp_path / "out", *pair, "--paper", "mam.table1")
    tex = (tmp_path / "out" / "report.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 4
    assert r"\toprule" in tex and r"WER (\%) $\downarrow$" in tex
    assert not re.search(r"[λ±↓↑]|(?<!\\)%", tex)


def test_a_sweep_becomes_tables_and_pictures(tmp_path):
    sweep = write_sweep(tmp_path / "sweep")
    text, rows, page = report(tmp_path / "out", sweep, "--paper", "mam.table1,mam.table2")
    by_row = {row["row"]: row for row in rows}
    noise = by_row["0.10, N(Target)"]
    assert noise["runs"] == "2" and noise["seeds"] == "1337, draw 0; 1337, draw 1" and float(noise["std"]) > 0
    assert noise["paper"] == "10.06" and float(noise["mean"]) == pytest.approx(11.9)
    assert "± is the standard deviation" in text
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == [f"sweep1-{s}-{kind}.png" for s in ("dev", "test") for kind in ("lambda", "layers")]
    for name in pictures:
        width, height = struct.unpack(">II", (tmp_path / "out" / name).read_bytes()[16:24])
        assert width > 400 and height > 200
    assert page.count("data:image/png;base64,") == 4


def test_sweeps_of_other_merges_are_told_apart_and_stand_next_to_no_figure_of_the_paper(tmp_path):
    """Each is compared with the unmerged target; MAM's Table 1 takes what it shows only."""
    linear = write_sweep(tmp_path / "linear", layer_map=[0, 1, 2, 3])
    slerp = write_sweep(tmp_path / "slerp", layer_map=[0, 1, 2, 3], method={"name": "slerp"})
    _, rows, _ = report(tmp_path / "out", linear, slerp, "--split", "test")
    changes = {row["row"]: (row["baseline"], row["change_percent"]) for row in rows}
    assert {"hubert, λ 0.05, frozen", "hubert, λ 0.05 slerp, frozen"} < set(changes)
    assert changes["hubert, λ 0.05, frozen"] == changes["hubert, λ 0.05 slerp, frozen"]
    assert changes["hubert, λ 0.05, frozen"][0] == "hubert, λ 0, frozen"
    text, rows, _ = report(tmp_path / "paper", linear, slerp, "--paper", "mam.table1")
    assert "mam.table1 has no place for" in text and "λ 0.05 slerp" in text
    assert "slerp" not in str([row["files"] for row in rows if row["row"].startswith("0.")])


def test_sweeps_of_several_targets_have_a_baseline_each(tmp_path):
    folders = [write_sweep(tmp_path / "a", GROUPS[:1])]
    folders.append(write_sweep(tmp_path / "b", GROUPS[:1], score=lambda arm, split: 20.0 - 10 * arm.lambda_, head="b"))
    text, rows, _ = report(tmp_path / "out", *folders, "--split", "test")
    assert len({row["baseline"] for row in rows}) == 3  # one for each, and none of their own
    other = next(row for row in rows if row["files"] == str(folders[1]) and "λ 0.1" in row["row"])
    assert float(other["mean"]) == 19.0 and float(other["change_percent"]) == pytest.approx(-5.0)
    assert "(of the same model)" in text


def test_ratios_are_per_cent_and_accuracy_points_up(tmp_path):
    runs = [write(tmp_path / f"{s}", content({"acc": v}, downstream="speech_commands", seed=s))
            for s, v in ((1, 0.95), (2, 0.97))]  # fmt: skip
    text, (row,), _ = report(tmp_path / "out", *runs)
    assert "accuracy (%) ↑" in text and "96.00 ± 1.41" in text
    assert row["runs"] == "2" and row["unit"] == "%" and float(row["mean"]) == pytest.approx(96.0)


def test_tasks_never_share_a_table(tmp_path):
    write(tmp_path / "runs" / "a", content({"wer": 5.0}))
    write(tmp_path / "runs" / "b", content({"wer": 6.0}, downstream="vctk"))
    _, rows, _ = report(tmp_path / "out", tmp_path / "runs")
    assert [row["table"] for row in rows] == ["ljspeech, test: WER (%) ↓", "vctk, test: WER (%) ↓"]
    with pytest.raises(DataError, match="ad_tuning.table2: none of 2 results belongs there"):
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "o"), "--paper", "ad_tuning.table2"])


def test_a_result_without_a_place_in_the_papers_table_is_named(tmp_path, pair):
    other = write(tmp_path / "ks", content({"acc": 0.9}, downstream="speech_commands"))
    text, _, page = report(tmp_path / "out", *pair, other, "--paper", "mam.table1")
    assert "no place for 1 results (it shows ljspeech, vctk, esc50, and takes merges of all layers" in text
    assert f"{other} (ks, test; hubert)" in text and "no place for 1 results" in page


def test_a_paper_says_what_it_takes_where_nothing_belongs(tmp_path):
    tuned = write(tmp_path / "a", content({"acc": 0.9}, downstream="speech_commands", merge=merge(0.05)))
    with pytest.raises(DataError) as error:
        main([str(tuned), "--out", str(tmp_path / "o"), "--paper", "ad_tuning.table2"])
    sentence = str(error.value)
    assert "runs tuned by one of FT, " in sentence and "upstreams that are not merged" in sentence
    assert sentence.endswith(f"Given: {tuned} (ks, test; hubert, λ 0.05).")


@pytest.mark.parametrize("name", ["race", "on_dev"])
def test_an_experiment_may_have_the_name_of_a_part_of_a_run(name, tmp_path):
    """Left out are only results in the folder of another run: of its candidates, or of its threshold."""
    exp = tmp_path / "exp"
    write(exp / name, content({"wer": 5.0}, mode="train", tuning={"method": "full"}))
    write(exp / "wsum", content({"wer": 6.0}, mode="train"))
    write(exp / "wsum" / name, content({"wer": 7.0}, mode="train", seed=2))
    write(exp / name / name / "density=0.1", content({"wer": 8.0}, mode="train", seed=3))
    _, rows, _ = report(tmp_path / "out", exp)
    assert sorted(float(row["mean"]) for row in rows) == [5.0, 6.0]


def test_an_unknown_fact_is_refused_with_the_nearest(tmp_path):
    runs = [write(tmp_path / "a", content({"wer": 5.0}, tuning={"method": "child", "density": 0.1}))]
    for typo, near in (("upstrem", "upstream"), ("tuning.densty", "tuning.density"), ("tunin", "tuning")):
        with pytest.raises(UsageError, match=rf"'{typo}'.*did you mean '{near}'"):
            main([*map(str, runs), "--out", str(tmp_path / "o"), "--group-by", f"method,{typo}"])
    report(tmp_path / "out", *runs, "--group-by", "upstream,tuning")


def test_rows_that_average_carry_the_name_of_none(tmp_path):
    """A frozen and a child run in one row: it is called neither."""
    runs = [
        write(tmp_path / f"{n}", content({"acc": 0.7 + n}, downstream="speech_commands", merge=merge(0.05), tuning=t))
        for n, t in enumerate(({"method": "frozen"}, {"method": "child", "density": 0.01}))
    ]
    _, (row,), _ = report(tmp_path / "out", *runs, "--group-by", "upstream")
    assert row["row"] == "hubert, λ 0.05, 2 methods" and row["runs"] == "2"
    runs += [write(tmp_path / "b", content({"acc": 0.5}, downstream="speech_commands", upstream="wavlm"))]
    _, (row,), _ = report(tmp_path / "out2", *runs, "--group-by", "data")
    assert row["row"] == "2 upstreams, 2 merges, 3 methods"
    densities = [
        write(
            tmp_path / f"c{d}",
            content({"acc": d}, downstream="speech_commands", tuning={"method": "child", "density": d}),
        )
        for d in (0.1, 0.01)
    ]
    _, (row,), _ = report(tmp_path / "out3", *densities, "--group-by", "upstream")
    assert row["row"] == "hubert, child (2 settings)"


def test_a_model_has_one_name_in_runs_and_sweeps(tmp_path):
    """The name for -u; of a merge that -g names, its target's."""
    preset, own = (write_sweep(tmp_path / name) for name in ("preset", "own"))
    for path, upstream in ((preset, "mam_hubert_bert"), (own, "merged_attention")):
        whole = json.loads(path.read_text()) | {"upstream": upstream}
        path.write_text(json.dumps(whole | {"settings": whole["settings"] | {"head": upstream}}))
    runs = [
        write(
            tmp_path / u, content({"wer": 5.0}, upstream=u, merge=merge(0.2) | {"target": {"name": "/models/hubert"}})
        )
        for u in ("mam_hubert_bert", "merged_attention")
    ]
    for sweep, run, name in ((preset, runs[0], "mam_hubert_bert"), (own, runs[1], "hubert")):
        _, rows, _ = report(tmp_path / f"out-{name}", sweep, run, "--split", "test")
        assert {row["row"].split(",")[0] for row in rows} == {name}


def superb_line(text: str) -> dict[str, str]:
    """Return the scores of SUPERB's line by column; a task that was not scored has none."""
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("| upstream | PR PER"))
    line = next(line for line in lines[lines.index(head) :] if line.startswith("| hubert |"))
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, line)]
    return {column: value for column, value in zip(*cells, strict=True) if value not in ("-", "hubert")}


def test_superb_line(tmp_path):
    for task, values in (("speech_commands", {"acc": 0.96}), ("asr", {"wer": 6.43, "uer": 2.0})):
        split = "test-clean" if task == "asr" else "test"
        write(tmp_path / "runs" / task, content(values, split=split, downstream=task))
    for lr, dev, test in ((0.1, 0.8, 0.81), (0.01, 0.9, 0.88)):
        for split, value in (("dev", dev), ("test", test)):
            record = content({"acc": value}, split=split, downstream="fluent_commands")
            record["config"]["optimizer"]["lr"] = lr
            write(tmp_path / "runs" / f"ic{lr}", record)
    text, _, _ = report(tmp_path / "out", tmp_path / "runs")
    assert superb_line(text) == {"ASR WER (%) ↓": "6.43", "KS accuracy (%) ↑": "96.00", "IC accuracy (%) ↑": "88.00"}
    assert "ic is hubert, lr 0.01, the best on dev of 2 configurations" in text


def test_a_split_that_is_shown_was_chosen_on_dev_all_the_same(tmp_path, pair):
    """SUPERB's line, and Tables 4 and 6, of which dev chooses the run."""
    write(tmp_path / "runs/ks", content({"acc": 0.96}, downstream="speech_commands"))
    for lr, dev, test in ((0.1, 0.8, 0.81), (0.01, 0.9, 0.7)):
        for split, value in (("dev", dev), ("test", test)):
            record = content({"acc": value}, split=split, downstream="fluent_commands")
            record["config"]["optimizer"]["lr"] = lr
            write(tmp_path / "runs" / f"ic{lr}", record)
    for flags in ((), ("--split", "test")):
        text, _, _ = report(tmp_path / f"out{len(flags)}", tmp_path / "runs", *flags)
        assert superb_line(text)["IC accuracy (%) ↑"] == "70.00"
    text, _, _ = report(tmp_path / "dev", tmp_path / "runs", "--split", "dev")
    assert "SUPERB" not in text

    other = tmp_path / "other"  # another merge, better on test
    other.mkdir()
    wer = write_hypotheses(other, [("one two three four", "one two three four")] * 30)
    write(other, content({"wer": wer}, merge=merge(0.2), tuning={"method": "frozen"}))
    text, _, _ = report(tmp_path / "undecided", *pair, other)
    assert "MAM, Table 4" not in text
    assert "MAM's Tables 4 and 6 of ljspeech are left out: there are 2 merged runs, and no score on dev" in text
    for folder, value, wer in ((pair[1], 0.1, 20.0), (other, 0.2, 30.0)):
        write(folder, content({"wer": wer}, split="dev", merge=merge(value), tuning={"method": "frozen"}))
    for flags in ((), ("--split", "test")):
        text, _, _ = report(tmp_path / f"chosen{len(flags)}", *pair, other, *flags)
        shown = text.partition("MAM, Table 4")[2]
        assert "*two* three for |" in shown


def training(folder: Path, lr: float, seed: int, dev: dict[int, float], last: float, best: float | None) -> None:
    """Write a KS training, scored on dev by step and on test at its end, and the test of its best checkpoint."""
    record = content({"acc": last}, downstream="speech_commands", mode="train", seed=seed)
    record["config"]["optimizer"]["lr"] = lr
    record["step"] = max(dev)
    record["metrics"]["dev"] = {"acc": {**record["metrics"]["test"]["acc"], "value": dev[max(dev)]}}
    record["history"] = [
        {"step": step, "split": "dev", "items": 5, "intervals": {}, "acc": one} for step, one in dev.items()
    ]
    write(folder, record)
    if best is not None:
        tested = content({"acc": best}, downstream="speech_commands", seed=seed, step=max(dev, key=lambda n: dev[n]))
        tested["config"]["optimizer"]["lr"] = lr
        write(folder, tested)


def test_a_last_step_is_not_averaged_with_checkpoints_that_dev_chose(tmp_path):
    for seed in (0, 1):
        training(tmp_path / f"runs/{seed}", 0.001, seed, {2: 0.95, 4: 0.8}, last=0.7, best=0.94)
    training(tmp_path / "runs/2", 0.001, 2, {2: 0.9, 4: 0.8}, last=0.6, best=None)
    text, _, _ = report(tmp_path / "out", tmp_path / "runs")
    assert "| hubert | 2 | 94.00 ± 0.00 |" in text
    assert "runs/2/result.json: its test is of the last step and is left out" in text
    training(tmp_path / "alone/2", 0.001, 2, {2: 0.9, 4: 0.8}, last=0.6, best=None)
    text, _, _ = report(tmp_path / "out2", tmp_path / "alone")
    assert "60.00" in text, "a last step alone is a result"


def test_trainings_of_a_study_that_only_search_have_no_score_on_test(tmp_path):
    training(tmp_path / "exp/lr=0.001/seed=0", 0.001, 0, {2: 0.95, 4: 0.8}, last=0.7, best=0.94)
    for lr in (0.01, 0.0001):
        training(tmp_path / f"exp/lr={lr}/seed=0", lr, 0, {2: 0.7, 4: 0.9}, last=0.99, best=None)
    (tmp_path / "study.json").write_text("{}")
    text, _, _ = report(tmp_path / "out", tmp_path / "exp")
    assert f"{tmp_path}: the test scores of the last step of 3 trainings are left out; a study scores" in text
    assert "94.00" in text and "99.00" not in text


def test_superbs_line_chooses_by_dev_of_the_checkpoint_that_was_tested(tmp_path):
    training(tmp_path / "runs/a", 0.001, 0, {2: 0.8, 4: 0.95, 6: 0.88}, last=0.9, best=0.94)
    training(tmp_path / "runs/b", 0.0001, 0, {2: 0.8, 4: 0.85, 6: 0.9}, last=0.89, best=0.89)
    write(tmp_path / "runs/asr", content({"wer": 6.43}, split="test-clean", downstream="asr"))
    text, _, _ = report(tmp_path / "out", tmp_path / "runs")
    assert superb_line(text)["KS accuracy (%) ↑"] == "94.00"
    assert "ks is hubert, lr 0.001, the best on dev of 2 configurations" in text


def test_diarization_is_scored_as_superb_does_and_kept(tmp_path):
    pytest.importorskip("pyannote.metrics", reason="the extra sd is not installed")
    corpus, run = tmp_path / "corpus", tmp_path / "runs" / "sd"
    for split, folder, frames, end in (
        ("test", run, [0.45, 0.45, 0.9], 0.3),
        ("dev", run / "on_dev", [0.65, 0.45, 0.45], 0.1),
    ):
        (corpus / split).mkdir(parents=True)
        (corpus / split / "rttm").write_text(f"SPEAKER r 1 0.00 {end:.2f} <NA> <NA> a <NA>\n")
        (folder / "scoring" / "predictions").mkdir(parents=True)
        with h5py.File(folder / "scoring" / "predictions" / "r.h5", "w") as file:
            file["T_hat"] = np.array(frames)[:, None]
        (folder / "frame_shift").write_text("1600")
    record = content({"der": 0.5}, downstream="diarization")
    record["config"]["downstream_expert"] = {
        "loaderrc": {"test_dir": str(corpus / "test"), "dev_dir": str(corpus / "dev")}
    }
    write(run, record)
    write(run / "on_dev", record)  # belongs to the run
    write(tmp_path / "runs" / "ks", content({"acc": 0.96}, downstream="speech_commands"))
    diarization = {"SD DER (%) ↓": "0.00", "SD DER (%) ↓, threshold of dev": "66.67"}
    for _ in range(2):  # the second time from what was kept
        text, _, _ = report(tmp_path / "out", tmp_path / "runs")
        assert superb_line(text) == {"KS accuracy (%) ↑": "96.00", **diarization}
        assert "dev chooses threshold and median 0.5 and 1" in text
    text, _, _ = report(tmp_path / "out", run)
    assert superb_line(text) == diarization, "alone too"
    kept = json.loads((run / "scoring" / "superb.json").read_text())
    assert kept["setting"] == [0.3, 1] and kept["dev_chosen"]["miss"] == pytest.approx(2 / 3)
    (run / "frame_shift").unlink()
    (run / "scoring" / "superb.json").write_text("damaged")
    text, _, _ = report(tmp_path / "out", tmp_path / "runs")
    assert "not scored as SUPERB does" in text and "| 50.00 | - |" in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step": 2}, "step"),
        ({"upstream_sha256": "5" * 64}, "upstream_sha256"),
        ({"seed": 9}, "seed"),
        ({"args": {"init_ckpt": "/e/states-2.ckpt"}}, "checkpoint"),
        (None, "model (it has no result file)"),
    ],
)
def test_a_threshold_is_not_taken_from_the_dev_of_another_model(tmp_path, change, named):
    run = tmp_path / "runs" / "sd"
    record = content({"der": 0.5}, downstream="diarization", args={"init_ckpt": "/e/best-states-dev.ckpt"})
    test, dev = (ResultRecord(folder / "result-test.json", record) for folder in (run, run / "on_dev"))
    (run / "on_dev" / "scoring" / "predictions").mkdir(parents=True)
    write(run / "on_dev", record)
    said: list[str] = []
    assert [one.path for one in report_figures._of_dev(test, said)] == [dev.path] and not said
    if change is None:
        dev.path.unlink()
    else:
        write(run / "on_dev", record | change)
    assert report_figures._of_dev(test, said) == []
    assert said[0].startswith(
        f"{run}/on_dev: no threshold is chosen there, its predictions are of another {named} than"
    )


def test_what_is_damaged_failed_or_double_is_named_and_left_out(tmp_path, pair):
    runs = tmp_path / "runs"
    write(runs / "good", content({"wer": 5.0}, seed=7))
    write(runs / "double", content({"wer": 5.0}, seed=7))
    write(runs / "failed", content({}, error="the disk is full.", metrics={}, step=None), "result-failed.json")
    (runs / "bad").mkdir()
    (runs / "bad" / "result.json").write_text('{"schema": 2, "metr')
    write_sweep(runs / "unfinished", finished=False)
    text, rows, page = report(tmp_path / "out", runs)
    assert len(rows) == 1 and rows[0]["runs"] == "1"
    for said in ("bad/result.json is corrupt", "this run failed and has no result (the disk is full.)",
                 "it repeats", "sweep.json is unfinished (18 scores)"):  # fmt: skip
        assert said in text and said.replace("'", "&#x27;") in page


def keyword_run(folder: Path, right: int, seed: int = 1, **changes) -> Path:
    """Write a run of KS with the labels that s3prl leaves behind: the first `right` of 60 clips right."""
    record = content({"acc": right / 60}, downstream="speech_commands", seed=seed, **changes)
    write(folder, record)
    said = ["yes"] * right + ["no"] * (60 - right)
    for name, labels in (("predict", said), ("truth", ["yes"] * 60)):
        (folder / f"test_{name}.txt").write_text("".join(f"clip{n} {one}\n" for n, one in enumerate(labels)))
    return folder


def test_an_interval_is_of_the_metric_that_was_counted(tmp_path):
    """Clips are right or wrong: the interval of that says nothing of a loss, whichever metric the task is judged by."""
    for name, right, loss in (("a", 30, 3.0), ("b", 45, 1.0)):
        tuning = {"tuning": {"method": "full"}} if name == "a" else {}
        keyword_run(tmp_path / name, right, **tuning)
        record = content({"acc": right / 60, "loss": loss}, downstream="speech_commands", **tuning)
        write(tmp_path / name, record)
    text, rows, _ = report(tmp_path / "out", tmp_path / "a", tmp_path / "b", "--metric", "loss")
    assert {(row["difference_low"], row["p"]) for row in rows} == {("", "")} and "difference in" not in text
    assert "No interval of the difference: single utterances are counted in accuracy alone." in text
    text, rows, _ = report(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert "difference in accuracy (%), 95 % interval" in text and float(rows[1]["difference_low"]) > 0


def test_an_interval_over_speakers_is_of_the_metric_that_was_counted(tmp_path):
    (tmp_path / "a").mkdir()
    wer = write_hypotheses(tmp_path / "a", [("a b", "a b"), ("c d", "c x"), ("e f", "e y")])
    write(tmp_path / "a", content({"wer": wer, "per": 0.05}, downstream="their_own"))
    (run,) = runs_of(read_record(tmp_path / "a" / "result-test.json"))
    assert with_intervals_over("utterance", run).intervals.keys() == {"wer"}


def test_a_change_of_a_level_is_a_difference(tmp_path):
    """Per cent of decibels mean nothing, and of a negative baseline they have the wrong sign."""
    for name, value, method in (("a", -2.0, "full"), ("b", -1.0, "lora")):
        record = content({"si_sdr": value}, downstream="separation_stft", tuning={"method": method})
        write(tmp_path / name, record)
    text, rows, _ = report(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    better = rows[1]
    assert better["baseline"] and float(better["change_db"]) == 1.0 and better["change_percent"] == ""
    assert "change (dB)" in text and "change (%)" not in text and "Changes are differences from: hubert, full." in text


def test_there_is_no_change_in_per_cent_of_a_baseline_below_0(tmp_path):
    for name, value, method in (("a", -0.2, "full"), ("b", 0.1, "lora")):
        record = content({"mtwv": value}, downstream="quesst14_dtw", tuning={"method": method})
        write(tmp_path / name, record)
    text, rows, _ = report(tmp_path / "out", tmp_path / "a", tmp_path / "b", "--metric", "mtwv")
    assert rows[1]["change_percent"] == "" and "no change in per cent of a baseline that is not above 0" in text


def test_tasks_of_s3prl_are_compared_clip_by_clip(tmp_path):
    runs = [keyword_run(tmp_path / "a", 30, tuning={"method": "full"}), keyword_run(tmp_path / "b", 45)]
    text, rows, _ = report(tmp_path / "out", *runs)
    by_row = {row["row"]: row for row in rows}
    better = by_row["hubert"]
    assert better["baseline"] == "hubert, full" and float(better["change_percent"]) == pytest.approx(50.0)
    assert 0 < float(better["difference_low"]) < 25 < float(better["difference_high"]), "an accuracy: more is above 0"
    assert "difference in accuracy (%), 95 % interval" in text and "Difference: accuracy minus the baseline's" in text
    assert float(better["p"]) == pytest.approx(2 * 0.5**15)
    (runs[1] / "test_predict.txt").write_text("clip0 yes\n")
    text, rows, _ = report(tmp_path / "out", *runs)
    assert "name different clips" in text and {row["p"] for row in rows} == {""}


def test_rows_without_a_baseline_say_so_and_mixed_commits_are_named(tmp_path):
    runs = [keyword_run(tmp_path / str(n), 30 + n, commit=n * "c" + 40 * "d", tuning={"method": "lora", "rank": n})
            for n in (1, 2)]  # fmt: skip
    text, _, _ = report(tmp_path / "out", *runs)
    assert "name it with --baseline" in text and "the results come from 2 commits (ccdddddddddd, cddddddddddd)" in text
    text, _, _ = report(tmp_path / "out", *runs, "--baseline", "rank 1")
    assert "name it with --baseline" not in text and "Changes are relative to: hubert, lora" in text


def test_results_of_a_sweep_made_by_several_versions_are_named(tmp_path):
    """Those of another sweep, and those that a resumed one has added."""
    origin = {"commit": "c" * 40, "machine": {"gpu": "H200"}, "versions": {"s3prl_ext": "0.2.0", "torch": "2.13.0"}}
    sweeps = [write_sweep(tmp_path / name, biases=name == "b") for name in "ab"]
    contents = [json.loads(sweep.read_text()) | origin for sweep in sweeps]
    other = origin | {"versions": {"s3prl_ext": "0.2.0", "torch": "9.9.9"}, "machine": {"gpu": "B200"}}
    for sweep, content_, made in zip(sweeps, contents, (origin, other), strict=True):
        sweep.write_text(json.dumps(content_ | made))
    text, _, _ = report(tmp_path / "several", *sweeps)
    assert "the results come from 2 versions of torch (2.13.0, 9.9.9)" in text
    assert "the results come from 2 GPUs (B200, H200)" in text and " commits" not in text

    result = list(contents[0]["results"].values())[-1]
    contents[0]["origins"] = {"b": other}
    result["origin"] = "b"
    sweeps[0].write_text(json.dumps(contents[0]))
    text, _, _ = report(tmp_path / "resumed", sweeps[0])
    assert "the results come from 2 versions of torch (2.13.0, 9.9.9)" in text
    assert "s3prl_ext 0.2.0, torch 2.13.0, 9.9.9 | H200, B200 |" in text


def test_a_comparison_of_layers_at_the_top_hides_no_run(tmp_path):
    write(tmp_path / "exp" / "run", content({"wer": 5.0}))
    (tmp_path / "exp" / "layers.json").write_text("{}")
    _, (row,), _ = report(tmp_path / "out", tmp_path / "exp")
    assert float(row["mean"]) == 5.0
    (tmp_path / "layers").mkdir()
    (tmp_path / "layers" / "layers.json").write_text("{}")
    report(tmp_path / "with_picture", tmp_path / "exp", tmp_path / "layers")


def test_tables_of_transcripts_compare_runs_of_one_target(tmp_path, pair):
    """The unmerged run of another target, first by name, would be compared otherwise."""
    other = merge(0.0) | {"target": {"name": "other", "attention_sha256": "9" * 64}}
    (tmp_path / "0").mkdir()
    wer = write_hypotheses(tmp_path / "0", [("one two three four", "x x x x")] * 30)
    write(tmp_path / "0", content({"wer": wer}, merge=other, tuning={"method": "frozen"}))
    text, _, _ = report(tmp_path / "out", tmp_path / "0", *pair)
    assert "MAM, Table 4" in text and "*tow*" in text and "*x*" not in text
    text, _, _ = report(tmp_path / "strangers", tmp_path / "0", pair[1])
    assert "MAM, Table 4" not in text and "no merged run has an unmerged one of the same target" in text
    slerp = json.loads((pair[1] / "result-test.json").read_text())
    slerp["merge"]["method"] = {"name": "slerp"}
    (pair[1] / "result-test.json").write_text(json.dumps(slerp))
    text, _, _ = report(tmp_path / "slerp", *pair)
    assert "MAM, Table 4" not in text


def test_contradicting_results_are_refused_and_nothing_is_written(tmp_path):
    for name, wer in (("a", 5.0), ("b", 6.0)):
        write(tmp_path / "runs" / name, content({"wer": wer}))
    with pytest.raises(DataError, match="the same configuration, seed 1 and split 'test'"):
        main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_nothing_usable(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        main([str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    with pytest.raises(UsageError, match=r"contains no result.json"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match="none of 1 files holds a usable result"):
        main([str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--metric", "werr"], "unknown metric 'werr'; did you mean 'wer'"),
        (["--paper", "mam.table9"], "unknown table of a paper"),
        (["--split", "dev"], "no result of that split; there are test"),
        (["--baseline", "nobody"], "names 0 rows of ljspeech: hubert, λ 0, frozen; hubert, λ 0.1, frozen"),
        (["--metric", "per"], None),
    ],
)
def test_wrong_flags(tmp_path, pair, flags, said):
    command = [*map(str, pair), "--out", str(tmp_path / "out"), *flags]
    if said:
        with pytest.raises(UsageError, match=said):
            main(command)
    else:
        assert main(command) == 0
        assert "ljspeech, test: has no per, only wer" in (tmp_path / "out" / "report.md").read_text()


def test_transcripts_of_another_evaluation_are_not_compared(tmp_path, pair):
    record = json.loads((pair[1] / "result-test.json").read_text())
    record["metrics"]["test"]["wer"]["value"] = 20.0
    write(pair[1], record)
    text, rows, _ = report(tmp_path / "out", *pair)
    assert "it is of another evaluation" in text and rows[1]["difference_low"] == ""


def test_pictures_of_a_run_are_taken_over(tmp_path, pair):
    from s3prl_ext.evaluation.plots import Curve, plot_curves

    plot_curves([Curve("a", [0, 1], [1.0, 2.0])], pair[0] / "race.png", "title", "wer (%)")
    _, _, page = report(tmp_path / "out", *pair)
    assert (tmp_path / "out" / "run1-race.png").is_file() and "AD-TUNING, Fig. 3" in page


def test_the_page_is_well_formed(tmp_path, pair):
    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    _, _, page = report(tmp_path / "out", *pair, "--title", "a < b & c")
    parser = Balance()
    parser.feed(page)
    assert parser.stack == [] and "<h1>a &lt; b &amp; c</h1>" in page


HALF = "the first half of the file"


@pytest.mark.parametrize("damage", [HALF, b"[1,2]", b"5\n", b"", b"\xff\xfe", b'{"id": 5}'], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_damaged_transcripts_are_named_and_cost_only_what_needs_them(tmp_path, pair, damage, which):
    path = pair[which] / "transcripts-test.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is HALF else damage)
    write(tmp_path / "ks", content({"acc": 0.9}, downstream="speech_commands"))
    text, rows, page = report(tmp_path / "out", *pair, tmp_path / "ks")
    (sentence,) = (line for line in text.splitlines() if line.startswith("> ") and path.parent.name in line)
    assert path.name in sentence and "not compared" in sentence and path.name in page
    assert [row["task"] for row in rows] == ["ks", "ljspeech", "ljspeech"] and rows[2]["difference_low"] == ""
    assert float(rows[2]["change_percent"]) < 0 and "MAM, Table 4" not in text
    alone, (row,), _ = report(tmp_path / "alone", pair[which])
    assert path.name in alone and row["low"] and row["high"]


@pytest.mark.parametrize("field", ["id", "reference", "hypothesis", "errors", "words"])
def test_transcripts_with_a_field_of_another_type_are_damaged(tmp_path, pair, field):
    path = pair[0] / "transcripts-test.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3][field] = [1]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _, _ = report(tmp_path / "out", *pair)
    assert f"line 4 of {path} is not a transcript" in text.replace("\\_", "_") and "MAM, Table 4" not in text


def test_damaged_predictions_and_labels_are_named(tmp_path):
    clips = tmp_path / "esc" / "predictions-test.jsonl"
    write(tmp_path / "esc", content({"error": 50.0}, downstream="esc50"))
    clips.write_text('{"clip": ["a"], "label": "dog", "prediction": "dog"}\n')
    keyword_run(tmp_path / "ks", 30)
    (tmp_path / "ks" / "test_truth.txt").write_bytes(b"\xff")
    text, rows, _ = report(tmp_path / "out", tmp_path / "esc", tmp_path / "ks")
    assert (
        len(rows) == 2 and "predictions-test.jsonl is not a prediction" in text and "truth.txt cannot be read" in text
    )


def test_transcripts_of_another_evaluation_make_no_tables_4_and_6(tmp_path, pair):
    record = json.loads((pair[1] / "result-test.json").read_text())
    record["metrics"]["test"]["wer"]["value"] = 20.0
    write(pair[1], record)
    text, _, _ = report(tmp_path / "out", *pair)
    assert "## MAM, Table 4" not in text and "Tables 4 and 6 of ljspeech are left out: " in text


@pytest.mark.parametrize("tested", [False, True], ids=["dev's", "the paper's"])
def test_a_block_of_a_sweep_is_shown_at_the_papers_lambda_where_it_was_scored(tmp_path, tested):
    """On dev 0.05 is best; MAM's Table 2 has 0.25, which is scored on test with --test-paper only."""
    groups = (Group("12-19", tuple(range(12, 20)), "none", (0.05, 0.25), 1),)
    path = write_sweep(tmp_path / "sweep", groups)
    if not tested:
        whole = json.loads(path.read_text())
        whole["results"] = {
            key: row for key, row in whole["results"].items()
            if row["arm"]["lambda"] != 0.25 or not key.endswith(":test")
        }  # fmt: skip
        path.write_text(json.dumps(whole))
    text, rows, _ = report(tmp_path / "out", path, "--paper", "mam.table2", "--group-by", "upstream")
    row = next(row for row in rows if row["row"].startswith("12-19"))
    lambda_ = 0.25 if tested else 0.05
    assert row["row"] == f"12-19 (our λ: {lambda_})" and row["paper"] == "8.63" and row["runs"] == "1"
    assert float(row["mean"]) == pytest.approx(9.0 + abs(lambda_ - 0.05) * 10 + 0.8 + 0.5)
    assert f"| 12-19 | {float(row['mean']):.2f} (8.63) |" in text
