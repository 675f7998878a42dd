"""SUPERB's line and the tables of a task whose sets are reported one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.commands.report import main
from s3prl_ext.evaluation.result_records import ResultRecord
from s3prl_ext.evaluation.result_rows import part_of_a_split, rows_of
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.evaluation.superb_row import superb_table
from s3prl_ext.evaluation.utterance_comparison import compare_rows
from s3prl_ext.tasks import named
from tests.support import result_files

PATHS = {"es": "${COMMON_VOICE}/es/clips", "ar": "/data/es/voice/ar/clips/", "zh-CN": "${COMMON_VOICE}/zh-CN/clips",
         "sbcsae": "/data/ar/wav"}  # fmt: skip


def recognition(language: str, split: str = "test", **changes) -> dict:
    values = {"cer" if language == "zh-CN" else "wer": changes.pop("value")}
    found = result_files.content(values, split, downstream="ctc", **changes)
    corpus = {
        "name": "sbcsae" if language == "sbcsae" else "common_voice",
        "path": PATHS[language],
        "test": [f"{language}/test.tsv"],
    }
    found["config"]["downstream_expert"] = {"corpus": corpus}
    return found


def runs(*contents: dict) -> list:
    return [run for number, one in enumerate(contents) for run in runs_of(ResultRecord(Path(f"{number}.json"), one))]


LANGUAGES = [
    recognition(language, value=value)
    for language, value in (("es", 30.0), ("ar", 50.0), ("zh-CN", 20.0), ("sbcsae", 60.0))
]


def test_each_language_has_a_column_of_its_metric():
    table = superb_table(runs(*LANGUAGES, result_files.content({"pesq": 2.5}, downstream="enhancement_stft")), {})
    shown = dict(zip(table.head, table.rows[0], strict=True))
    columns = ["OOD es WER (%) ↓", "OOD ar WER (%) ↓", "OOD zh-CN CER (%) ↓", "OOD sbcsae WER (%) ↓"]
    assert [shown[name] for name in columns] == ["30.00", "50.00", "20.00", "60.00"]
    rows = {(row["task"], row["set"]): (row["metric"], row["unit"], row["better"]) for row in table.values}
    assert rows["ood", "zh-CN"] == ("cer", "%", "lower") and rows["ood", "es"] == ("wer", "%", "lower")
    assert rows["se", ""] == ("pesq", "MOS", "higher")


def test_the_metric_of_the_task_files_chooses_where_they_agree():
    def filled(metrics: list[str], lr: float, split: str, f1: float, cer: float) -> dict:
        one = result_files.content({"slot_type_f1": f1, "slot_value_cer": cer}, split, downstream="ctc")
        one["config"] |= {"optimizer": {"lr": lr}}
        one["config"]["downstream_expert"] = {"corpus": {"name": "snips"}, "metric": metrics}
        return one

    def shown(*orders: list[str]) -> str:
        """Return the F1 on test of the run that dev chooses: the first has the better F1, the second the better CER."""
        first = [filled(orders[0], 0.1, split, 0.9, 0.5) for split in ("dev", "test")]
        second = [filled(orders[-1], 0.2, split, 0.8, 0.2) for split in ("dev", "test")]
        table = superb_table(runs(*first, *second, LANGUAGES[0]), {})
        return dict(zip(table.head, table.rows[0], strict=True))["SF slot type F1 (%) ↑"]

    by_f1, by_cer = ["slot_type_f1", "slot_value_cer"], ["slot_value_cer", "slot_type_f1"]
    assert (shown(by_f1), shown(by_cer), shown(by_f1, by_cer)) == ("90.00", "80.00", "90.00")


def test_two_languages_make_a_line_and_one_does_not():
    assert superb_table(runs(*LANGUAGES[:2]), {}) and superb_table(runs(LANGUAGES[0]), {}) is None


def test_the_best_on_dev_is_chosen_within_a_language():
    slow, fast = {"lr": 1e-4}, {"lr": 1e-3}
    contents = [LANGUAGES[1]]
    for lr, test, dev in ((slow, 40.0, 10.0), (fast, 35.0, 12.0)):
        for split, value in (("test", test), ("dev", dev)):
            one = recognition("es", split, value=value)
            one["config"]["optimizer"] = lr
            contents.append(one)
    table = superb_table(runs(*contents), {})
    shown = dict(zip(table.head, table.rows[0], strict=True))
    assert shown["OOD es WER (%) ↓"] == "40.00" and shown["OOD ar WER (%) ↓"] == "50.00"


def test_tables_do_not_mix_languages(tmp_path, capsys):
    merged = recognition("ar", value=45.0, merge=result_files.merge(0.1))
    base = recognition("es", value=30.0, merge=result_files.merge(0.0))
    for number, one in enumerate((base, merged, LANGUAGES[2])):
        result_files.write(tmp_path / str(number), one)
    assert main([*(str(tmp_path / str(n)) for n in range(3)), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("### ") or line.startswith("## ")]
    shown = [title.lstrip("# ") for title in titles if "ood" in title]
    assert shown == ["ood ar, test: WER (%) ↓", "ood es, test: WER (%) ↓", "ood zh-CN, test: CER (%) ↓"], titles
    assert "+50.00" not in text, "the Arabic merge is not compared with the Spanish baseline"


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("${COMMON_VOICE}/es/clips", "es"),
        ("/ar/es/cv/zh-CN/clips", "zh-CN"),
        ("/x/fr/clips", None),
        (None, None),
        ("/users/es/cv/fr/clips", None),
        ("/cv/ar/clips/", "ar"),
    ],
)
def test_the_set_of_a_path(path, language):
    assert named("ood").sets.named_in(["common_voice", path]) == language


def test_a_set_named_in_another_case_has_its_column():
    """s3prl reads ``corpus.name`` in any case."""
    shouted = recognition("sbcsae", value=60.0)
    shouted["config"]["downstream_expert"]["corpus"] |= {"name": "SBCSAE", "path": "/data/SB/wav"}
    table = superb_table(runs(LANGUAGES[0], shouted), {})
    assert dict(zip(table.head, table.rows[0], strict=True))["OOD sbcsae WER (%) ↓"] == "60.00"


def child(downstream: str, metric: str, **fisher) -> dict:
    tuning = {
        "method": "child",
        "mask": "fisher",
        "density": 0.1,
        "lr": 1e-4,
        "fisher": {"preset": "official"} | fisher,
    }
    found = result_files.content({metric: 0.5}, downstream=downstream, tuning=tuning)
    found["config"]["downstream_expert"] = {"corpus": {"name": "LibriPhone"}} if downstream == "ctc" else {}
    return found


def test_tasks_of_a_line_may_limit_their_fisher_pass_differently():
    both = child("speech_commands", "acc"), child("ctc", "per", max_batches=2000, warm_lr=1e-3)
    table = superb_table(runs(*both), {})
    assert table is not None and len(table.rows) == 1 and {row["task"] for row in table.values} == {"ks", "pr"}


def test_what_ends_in_no_line_or_no_column_is_named():
    given = child("speech_commands", "acc"), child("voxceleb1", "acc"), child("ctc", "per", granularity="sample")
    french = child("ctc", "wer") | {"seed": 3}
    french["config"]["downstream_expert"] = {"corpus": {"name": "common_voice", "path": "/cv/fr/clips"}}
    table = superb_table(runs(*given, french), {})
    assert len(table.rows) == 1 and {row["task"] for row in table.values} == {"ks", "sid"}
    assert table.notes[0] == (
        "pr has no line, because it is the only task of hubert, child fisher P 0.1, tuning.fisher.granularity sample: a "
        "line is of one upstream, one kind of features and one section tuning."
    )
    assert "hubert, child fisher P 0.1: 3.json (ood, wer) has no column." in table.notes
    assert not any("no line" in note or "no column" in note for note in superb_table(runs(*given[:2]), {}).notes)


def test_scores_of_a_part_of_a_split_are_named():
    part = recognition("es", value=30.0)
    part["config"]["runner"] = {"evaluate_ratio": 0.1}
    table = superb_table(runs(part, *LANGUAGES[1:]), {})
    assert table is not None and sum("part of test, runner.evaluate_ratio 0.1." in note for note in table.notes) == 1


@pytest.mark.parametrize(
    ("split", "ratio", "offset", "said"),
    [
        ("test", 0.1, 0, True),
        ("test", 0.9, 0, False),
        ("test", 0.9, 1, True),
        ("test", 1, 1, False),
        ("train", 0.1, 0, False),
    ],
)
def test_every_nth_clip_is_a_part_of_a_split(split, ratio, offset, said):
    part = recognition("es", split, value=30.0)
    part["config"]["downstream_expert"]["corpus"] |= {"ratio": ratio, "offset": offset}
    (row,) = rows_of(runs(part), "wer")
    settings = f"corpus.ratio {ratio:g}" + (f", corpus.offset {offset}" if offset else "")
    assert part_of_a_split(row) == (f"hubert: scored on a part of test, {settings}." if said else None)


KEYWORDS = result_files.content(
    {"acc": 0.96}, downstream="speech_commands", args={"init_ckpt": "/exp/ks/dev-best.ckpt"}
)


def recognised(decoder: str | None, wer: float, split: str = "test-clean", **changes) -> dict:
    args = {"init_ckpt": "/exp/asr/dev-clean-best.ckpt"}
    found = result_files.content({"wer": wer, "uer": 2.0}, split, downstream="asr", args=args, **changes)
    found["config"]["downstream_expert"] = {"datarc": {"decoder_args": {"decoder_type": decoder}}}
    return found


def line(*contents: dict) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the figures of SUPERB's only line by column, without those that there are none of, and its notes."""
    table = superb_table(runs(*contents), {})
    return {column: value for column, value in zip(table.head[1:], table.rows[0][1:]) if value != "-"}, table.notes


@pytest.mark.parametrize("with_dev", [False, True])
def test_recognition_with_a_language_model_is_a_figure_of_its_own(with_dev):
    with_lm, without = recognised("kenlm", 3.2), recognised("None", 6.4)
    dev = [recognised("kenlm", 3.0, "dev-clean"), recognised("None", 6.0, "dev-clean")] if with_dev else []
    shown, notes = line(KEYWORDS, with_lm, without, *dev)
    assert shown == {"KS accuracy (%) ↑": "96.00", "ASR WER (%) ↓": "6.40", "ASR with LM WER (%) ↓": "3.20"}
    assert not any("configurations" in note for note in notes)
    assert line(KEYWORDS, with_lm)[0] == {"KS accuracy (%) ↑": "96.00", "ASR with LM WER (%) ↓": "3.20"}
    assert line(KEYWORDS, recognised(None, 6.4))[0]["ASR WER (%) ↓"] == "6.40"


def test_recognition_with_a_language_model_has_tables_of_its_own(tmp_path):
    for number, one in enumerate((recognised("kenlm", 3.2), recognised("None", 6.4))):
        result_files.write(tmp_path / str(number), one)
    assert main([str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## asr with LM, test-clean: WER" in text and "## asr, test-clean: WER" in text and "-50.00" not in text


def test_recognition_with_a_language_model_has_no_place_in_a_paper_without_one(tmp_path, capsys):
    tuned = {"tuning": {"method": "full"}}
    result_files.write(tmp_path / "lm", recognised("kenlm", 3.2, **tuned))
    result_files.write(tmp_path / "none", recognised("None", 6.4, **tuned))
    assert main([str(tmp_path), "--out", str(tmp_path / "report"), "--paper", "ad_tuning.table2"]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "ad_tuning.table2 has no place for 1 results" in text and "6.40" in text and "3.20" not in text


def test_each_figure_of_recognition_has_its_own_files_of_utterances(tmp_path):
    for decoder, said in (("noLM", "u1 A X"), ("LM", "u1 A B")):
        (tmp_path / f"test-clean-{decoder}-hyp.ark").write_text(f"{said}\n")
        (tmp_path / f"test-clean-{decoder}-ref.ark").write_text("u1 A B\n")
    both = (recognised("None", 50.0), recognised("kenlm", 0.0))
    rows = [rows_of(runs_of(ResultRecord(tmp_path / "result.json", one)), "wer")[0] for one in both]
    found = compare_rows(*rows)
    assert found is not None and (found.utterances, found.metric) == (1, "wer")


def verified(eer: float, step: int, of: str | None = None, seed: int = 1) -> dict:
    """A test of speaker verification with a checkpoint of a training of 200,000 steps."""
    args = {"init_ckpt": f"/exp/asv/{of or f'states-{step}.ckpt'}"}
    found = result_files.content({"EER": eer}, downstream="sv_voxceleb1", step=step, args=args, seed=seed)
    return found | {"config": {"runner": {"total_steps": 200000}, "downstream_expert": {}}}


OWN_RULE = "SUPERB's own rule, over states-20000, 40000 ... 200000."
ASV = "ASV EER (%) ↓"


def test_verification_is_of_the_checkpoint_that_is_best_on_test():
    shown, notes = line(KEYWORDS, verified(0.07, 200000), verified(0.06, 20000), verified(0.08, 40000))
    assert shown[ASV] == "6.00"
    assert f"hubert: asv is of step 20000, the best on test of step 20000, step 40000, last: {OWN_RULE}" in notes
    assert not any("configurations" in note or "best on dev, and" in note for note in notes)


def test_verification_takes_the_best_checkpoint_of_each_seed():
    seeds = [verified(eer, step, seed=seed) for seed, step, eer in (
        (1, 20000, 0.06), (1, 40000, 0.08), (2, 20000, 0.09), (2, 40000, 0.05))]  # fmt: skip
    shown, notes = line(KEYWORDS, *seeds)
    assert shown[ASV] == "5.50" and any("asv is of step 20000, step 40000, the best on test" in note for note in notes)


def test_verification_of_one_checkpoint_alone_is_named():
    shown, notes = line(KEYWORDS, verified(0.07, 200000))
    assert shown[ASV] == "7.00"
    assert (
        "hubert: asv is of one checkpoint alone (last), and SUPERB's figure is the best on test of "
        + ("states-20000, 40000 ... 200000: evaluate these.")
        in notes
    )


def test_verification_with_a_dev_is_chosen_by_it():
    contents = [verified(0.07, 200000), verified(0.06, 20000)]
    for eer, step in ((0.02, 200000), (0.03, 20000)):
        one = verified(eer, step)
        contents.append(one | {"metrics": {"dev": one["metrics"]["test"]}, "intervals": {}, "items": {}})
    shown, notes = line(KEYWORDS, *contents)
    assert shown[ASV] == "7.00" and not any("on test of" in note for note in notes)
    shown, notes = line(KEYWORDS, verified(0.07, 20000, of="dev-best.ckpt"))
    assert shown[ASV] == "7.00" and not any("asv" in note for note in notes)


def test_of_two_trainings_of_verification_without_a_dev_none_is_chosen():
    other = verified(0.06, 20000)
    other["config"]["optimizer"] = {"lr": 0.1}
    shown, notes = line(KEYWORDS, verified(0.07, 200000), verified(0.08, 20000), other)
    assert ASV not in shown and any("2 configurations of asv" in note for note in notes)


def test_last_steps_in_superbs_line_are_named():
    trained = [
        result_files.content({"acc": 0.9}, downstream=name, mode="train") for name in ("speech_commands", "voxceleb1")
    ]
    said = "hubert: SUPERB's figures are of the checkpoint that is best on dev, and here not all are"
    assert f"{said} (last: ks, sid): evaluate it of each task." in line(*trained)[1]
    assert f"{said} (best: ks; last: sid): evaluate it of each task." in line(KEYWORDS, trained[1])[1]
    best = result_files.content({"acc": 0.9}, downstream="voxceleb1", args={"init_ckpt": "/exp/sid/dev-best.ckpt"})
    assert not any(
        "best on dev" in note.replace("at the setting that is best on dev", "") for note in line(KEYWORDS, best)[1]
    )


def test_query_by_example_says_that_its_values_were_not_compared():
    searched = result_files.content({"mtwv": 0.05}, downstream="quesst14_dtw", step=0)
    said = "not compared with those of QUESST's own scorer"
    assert any(said in note for note in line(KEYWORDS, searched)[1])
    assert not any(said in note for note in line(KEYWORDS, recognised("None", 6.4))[1])
