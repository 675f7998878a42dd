"""``s3prl-ext report``: what may be averaged, set against a baseline, or called one model, and what is said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.commands.report import main
from s3prl_ext.reading import file_sha256
from tests.support.result_files import content, merge, write, write_hypotheses


def report(folder: Path, *contents: dict, flags: tuple[str, ...] = ()) -> str:
    """Return the report of result files without its sources."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(contents):
        write(folder / "runs" / str(number), one)
    assert main([str(folder / "runs"), "--out", str(folder / "out"), *flags]) == 0
    return (folder / "out" / "report.md").read_text().split("## Sources")[0]


def keywords(accuracy: float, seed: int = 1, **changes) -> dict:
    return content({"acc": accuracy}, downstream="speech_commands", seed=seed, **changes)


def unmerged_and_merged() -> tuple[dict, dict]:
    return keywords(0.9, merge=merge(0.0)), keywords(0.95, merge=merge(0.1))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data", {"sha256": "1" * 64}, "another corpus"),
        ("splits_sha256", "3" * 64, "another division into splits"),
        ("merge", merge(0.0) | {"target": {"name": "hubert", "attention_sha256": "9" * 64}}, "target (by its weights)"),
    ],
)
def test_no_change_is_shown_against_a_baseline_of_other_data_or_weights(tmp_path, key, value, said):
    base, merged = unmerged_and_merged()
    merged["splits_sha256"] = base["splits_sha256"] = "2" * 64
    merged["merge"]["target"]["attention_sha256"] = base["merge"]["target"]["attention_sha256"] = "8" * 64
    assert "| hubert, λ 0.1 | 1 | 95.00 | +5.56 |" in report(tmp_path / "alike", base, merged)
    base[key] = value
    text = report(tmp_path / "unlike", base, merged)
    assert "| hubert, λ 0.1 | 1 | 95.00 | - |" in text and "+5.56" not in text
    (sentence,) = [line for line in text.splitlines() if line.startswith("- No change is shown")]
    assert sentence.startswith("- No change is shown of hubert, λ 0.1: the baseline hubert, λ 0 has another")
    assert said in sentence


def test_another_upstream_is_no_baseline_unless_it_is_named(tmp_path):
    full, lora = keywords(0.9, tuning={"method": "full"}), keywords(0.95, tuning={"method": "lora"})
    assert "+5.56" in report(tmp_path / "alike", full, lora)
    lora |= {"upstream": "wavlm", "upstream_sha256": "7" * 64}
    text = report(tmp_path / "unlike", full, lora)
    assert "+5.56" not in text and "the baseline hubert, full has another upstream (by its weights)" in text
    text = report(tmp_path / "named", full, lora, flags=("--baseline", "hubert, full"))
    assert "+5.56" in text and "in upstream (wavlm, the baseline's hubert), upstream (by its weights), too." in text


def test_other_settings_than_the_baselines_are_named(tmp_path):
    base, merged = unmerged_and_merged()
    base["config"]["runner"]["total_steps"] = 200000
    text = report(tmp_path, base, merged)
    assert "+5.56" in text
    assert (
        "- hubert, λ 0.1: differs from the baseline hubert, λ 0 in total_steps (4, the baseline's 200000), too." in text
    )


def test_what_is_compared_is_not_named(tmp_path):
    full, lora = keywords(0.9, tuning={"method": "full"}), keywords(0.95, tuning={"method": "lora", "rank": 4})
    assert "differs from the baseline" not in report(tmp_path / "methods", full, lora)
    assert "differs from the baseline" not in report(tmp_path / "merges", *unmerged_and_merged())
    base, merged = unmerged_and_merged()
    merged["config"]["tuning"] = {"method": "lora"}
    assert "in method (lora, the baseline's weighted_sum)" in report(tmp_path / "both", base, merged)


def test_cells_of_other_corpora_in_a_papers_table_are_named(tmp_path):
    base, merged = (content({"wer": 9.0}, merge=merge(value), tuning={"method": "frozen"}) for value in (0.0, 0.1))
    flags = ("--paper", "mam.table1")
    assert "cannot be compared" not in report(tmp_path / "alike", base, merged, flags=flags)
    base["data"]["sha256"] = "1" * 64
    text = report(tmp_path / "unlike", base, merged, flags=flags)
    grid, details = text.split("## ")[1:3]
    assert "ljspeech: 0.10, Source cannot be compared with 0.00, Source, which has another corpus." in grid
    assert "No change is shown of 0.10, Source: the baseline 0.00, Source has another corpus." in details


def evaluated(accuracy: float, seed: int, checkpoint: str, **changes) -> dict:
    found = keywords(accuracy, seed, **changes)
    found["args"] |= {"init_ckpt": f"/exp/{seed}/{checkpoint}", "past_exp": f"/exp/{seed}/{checkpoint}"}
    return found


def labels(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| hubert")]


def test_trainings_of_one_and_of_eight_processes_are_no_seeds_of_one(tmp_path):
    one, eight = keywords(0.9, 1, processes=1), keywords(0.5, 2, processes=8)
    assert labels(report(tmp_path / "a", one, eight)) == ["hubert, processes 1", "hubert, processes 8"]
    earlier = keywords(0.9, 1, mode="train"), keywords(0.5, 2, mode="train")
    earlier[1]["machine"]["processes"] = 8
    assert labels(report(tmp_path / "b", *earlier)) == ["hubert, processes 1", "hubert, processes 8"]
    unknown = keywords(0.9, 3, machine={})
    assert labels(report(tmp_path / "c", one, unknown)) == ["hubert"]


def test_an_evaluation_of_an_earlier_version_was_trained_as_the_training_in_its_folder(tmp_path):
    trained, tested = keywords(0.5, mode="train"), evaluated(0.9, 1, "dev-best.ckpt")
    trained["machine"]["processes"] = 8
    trained["args"] |= {"init_ckpt": "/exp/first/states-4.ckpt", "past_exp": None}
    write(tmp_path / "runs" / "0", trained)
    text = report(tmp_path, tested, evaluated(0.7, 2, "dev-best.ckpt"))
    assert labels(text) == [
        "hubert, begins_with states-4.ckpt, processes 8",
        "hubert, begins_with -, processes 1",
    ]
    assert "result.json: its test is left out" in text


def test_trainings_begun_with_weights_are_no_seeds_of_those_from_scratch(tmp_path):
    fresh, begun, other = (
        keywords(value, seed, mode="train", begins_with=begin)
        for value, seed, begin in ((0.9, 1, None), (0.5, 2, "states-4.ckpt (aa)"), (0.6, 3, "states-4.ckpt (bb)"))
    )
    assert len(labels(report(tmp_path, fresh, begun, other))) == 3


def begun(folder: Path, seed: int, first_seed: int, value: float, name: str = "head", **first) -> dict:
    """Return a training that began with the last checkpoint of another one, which it writes."""
    head = folder / name / str(first_seed)
    write(head, keywords(0.4, first_seed, mode="train", **first))
    checkpoint = head / "states-4.ckpt"
    checkpoint.write_bytes(f"weights of {head}".encode())
    with_hash = f"states-4.ckpt ({file_sha256(checkpoint)[:12]})"
    found = keywords(value, seed, mode="train", begins_with=with_hash)
    found["args"] |= {"init_ckpt": str(checkpoint)}
    return found


def test_seeds_that_begin_with_the_checkpoint_of_their_own_seed_are_one_row(tmp_path):
    own = [begun(tmp_path, seed, seed, 0.5 + seed / 10) for seed in (1, 2)]
    (row,) = [line for line in report(tmp_path, *own).splitlines() if line.startswith("| hubert")]
    assert row.split("|")[2].strip() == "2" and "65.00 ± 7.07" in row
    other = begun(tmp_path, 3, 3, 0.9, "other", config={"optimizer": {"lr": 9.0}, "runner": {"total_steps": 4}})
    text = report(tmp_path / "kinds", *own, other)
    assert len(labels(text)) == 2 and "65.00 ± 7.07" in text, "heads of another training are another row"


def test_seeds_that_began_otherwise_keep_the_rows_of_their_checkpoints(tmp_path):
    shared = [begun(tmp_path / "a", seed, 1, 0.5 + seed / 10) for seed in (1, 2)]
    assert len(labels(report(tmp_path / "a", *shared))) == 1, "the same checkpoint is the same beginning"
    crossed = [begun(tmp_path / "b", 1, first, 0.5 + first / 10) for first in (1, 2)]
    assert len(labels(report(tmp_path / "b", *crossed))) == 2, "one seed twice is no contradiction"
    replaced = [begun(tmp_path / "c", seed, seed, 0.5 + seed / 10) for seed in (1, 2)]
    (tmp_path / "c" / "head" / "2" / "states-4.ckpt").write_bytes(b"of another training")
    assert len(labels(report(tmp_path / "c", *replaced))) == 2, "what lies there now is not what it began with"


def test_best_and_last_checkpoints_are_not_averaged(tmp_path):
    best, last = evaluated(0.9, 1, "dev-best.ckpt"), evaluated(0.5, 2, "states-4.ckpt")
    text = report(tmp_path / "seeds", best, last)
    assert labels(text) == ["hubert, checkpoint best", "hubert, checkpoint last"]
    last_of_both = evaluated(0.5, 1, "states-4.ckpt")
    text = report(tmp_path / "one", best, last_of_both)
    assert len(labels(text)) == 2, "two evaluations of one training do not contradict each other"
    deltas = [evaluated(0.9, 1, "dev-best.ckpt"), evaluated(0.8, 2, "delta.safetensors")]
    assert labels(report(tmp_path / "deltas", *deltas)) == ["hubert"]
    early = evaluated(0.4, 2, "states-2.ckpt", step=2)
    assert labels(report(tmp_path / "early", best, early))[1] == "hubert, checkpoint step 2"


def test_the_last_checkpoint_of_a_training_by_epochs_is_that_of_its_end(tmp_path):
    runner = {"optimizer": {"lr": 0.001}, "runner": {"epochs": 3}, "downstream_expert": {}}
    early = evaluated(0.5, 1, "states-50.ckpt", step=50, config=runner)
    late = evaluated(0.9, 2, "states-150.ckpt", step=150, config=runner)
    apart = ["hubert, checkpoint step 50", "hubert, checkpoint step 150"]
    assert labels(report(tmp_path / "unknown", early, late)) == apart
    for number, one in enumerate((early, late)):
        training = keywords(0.1, one["seed"], mode="train", step=150, config=runner, metrics={})
        write(tmp_path / "known" / "runs" / str(number), training)
    assert labels(report(tmp_path / "known", early, late)) == [apart[0], "hubert, checkpoint last"]


def test_the_end_of_a_prolonged_training_is_the_later_one(tmp_path):
    early, late = evaluated(0.5, 1, "states-4.ckpt"), evaluated(0.9, 2, "states-4.ckpt")
    write(tmp_path / "runs" / "0", keywords(0.1, 1, mode="train", step=8, metrics={}))
    assert labels(report(tmp_path, early, late)) == ["hubert, checkpoint step 4", "hubert, checkpoint last"]


def test_a_baseline_of_another_checkpoint_is_named(tmp_path):
    base, merged = evaluated(0.9, 1, "dev-best.ckpt", merge=merge(0.0)), keywords(0.5, mode="train", merge=merge(0.1))
    assert "in checkpoint (last, the baseline's best), too." in report(tmp_path, base, merged)


def test_versions_of_packages_are_named(tmp_path):
    one, other = keywords(0.9, 1), keywords(0.5, 2)
    one["versions"] = {"s3prl_ext": "0.1.0", "torch": "2", "s3prl": "0.4.17", "transformers": "5"}
    other["versions"] = {"s3prl_ext": "0.2.0", "torch": "2", "s3prl": "0.4.18", "transformers": "4"}
    text = report(tmp_path, one, other, keywords(0.4, 3, versions={}))
    for said in ("s3prl_ext (0.1.0, 0.2.0)", "s3prl (0.4.17, 0.4.18)", "transformers (4, 5)"):
        assert f"the results come from 2 versions of {said}" in text
    assert "versions of torch" not in text


def speakers(**changes) -> dict:
    return content({"acc": 0.8}, downstream="voxceleb1", **changes)


def test_superbs_line_is_of_one_section_tuning_and_of_one_kind_of_features(tmp_path):
    lora = {"method": "lora", "rank": 4, "lr": 0.1}
    both = keywords(0.9, tuning=lora), speakers(tuning=lora | {"lr": 0.2})
    assert "SUPERB: all tasks" in report(tmp_path / "rates", *both)
    for number, other in enumerate(({"rank": 64}, {"alpha": 99})):
        both = keywords(0.9, tuning=lora), speakers(tuning=lora | other)
        assert "SUPERB: all tasks" not in report(tmp_path / str(number), *both)
    both = keywords(0.9), speakers()
    both[1]["args"]["upstream_feature_selection"] = "last_hidden_state"
    assert "SUPERB: all tasks" not in report(tmp_path / "features", *both)


def stated(normalize: bool | None, version: str | None = "5.0") -> dict:
    """Return what a result says of the settings of its upstream; None: it is of an earlier version."""
    settings = {"preprocessing.do_normalize": normalize, "transformers": version}
    return {} if normalize is None else {"upstream_settings": settings}


@pytest.mark.parametrize(
    ("first", "second", "rows"),
    [
        (stated(True), stated(False), 2),
        (stated(True), stated(True), 1),
        (stated(True), stated(True, "4.0"), 1),
        (stated(True), stated(False, "4.0"), 1),  # may mean the same
        (stated(True), stated(None), 1),
        (stated(True), {"upstream_settings": {"new in 5.1": 3, "transformers": "5.1"}}, 1),
    ],
)
def test_seeds_with_other_settings_of_the_upstream_are_not_averaged(tmp_path, first, second, rows):
    text = report(tmp_path, keywords(0.8, 1, **first), keywords(0.9, 2, **second))
    found = [line for line in text.splitlines() if line.startswith("| hubert")]
    assert len(found) == rows
    assert ("| 2 | 85.00 " in text) == (rows == 1) and ("upstream_settings" in found[0]) == (rows == 2)


def test_a_result_of_unknown_settings_is_averaged_with_none_of_two(tmp_path):
    seeds = [keywords(0.8, 1, **stated(True)), keywords(0.9, 2, **stated(False)), keywords(0.7, 3)]
    assert len([line for line in report(tmp_path, *seeds).splitlines() if line.startswith("| hubert")]) == 3


def test_other_settings_of_the_upstream_are_no_baseline(tmp_path):
    full = keywords(0.9, tuning={"method": "full"}, **stated(True))
    lora = keywords(0.95, tuning={"method": "lora"})
    assert "+5.56" in report(tmp_path / "alike", full, lora | stated(True))
    text = report(tmp_path / "unlike", full, lora | stated(False))
    assert "+5.56" not in text and "the baseline hubert, full has another upstream (by its settings)" in text
    assert "+5.56" in report(tmp_path / "named", full, lora | stated(False), flags=("--baseline", "hubert, full"))


def test_superbs_line_is_of_one_upstream_with_its_settings(tmp_path):
    def line(name: str, first: dict, second: dict) -> bool:
        return "SUPERB: all tasks" in report(tmp_path / name, keywords(0.9, **first), speakers(**second))

    def given(options: str | None) -> dict:
        return {"args": {"upstream_trainable": False, "upstream_model_config": options}}

    assert line("alike", stated(True), stated(True)) and line("unknown", stated(True), {})
    assert not line("settings", stated(True), stated(False))
    assert line("same", given("window=30"), given("window=30"))
    assert not line("options", given("window=30"), given(None))


def test_tasks_of_superbs_line_scored_with_other_checkpoints_are_named(tmp_path):
    best = evaluated(0.9, 1, "dev-best.ckpt")
    text = report(tmp_path / "unlike", best, speakers(mode="train"))
    assert "and here not all are (best: ks; last: sid)" in text
    second = speakers()
    second["args"] |= {"init_ckpt": "/exp/x/dev-best.ckpt"}
    assert "and here not all are" not in report(tmp_path / "alike", best, second)


def transcribed(folder: Path, said: str, lambda_: float, seed: int = 1, dev: dict[int, float] | None = None) -> None:
    """Write a test of the checkpoint of step 4, and its training, which ends at step 10, with its scores on dev."""
    folder.mkdir(parents=True)
    wer = write_hypotheses(folder, [("one two three four", said)])
    tuned = {"tuning": {"method": "full"}, "merge": merge(lambda_), "seed": seed}
    write(folder, content({"wer": wer}, step=4, **tuned))
    if dev is not None:
        trained = content({"wer": dev[10]}, "dev", mode="train", **tuned)
        history = [{"step": step, "split": "dev", "wer": one} for step, one in dev.items()]
        write(folder, trained | {"step": 10, "history": history})


def test_tables_4_and_6_take_the_checkpoint_that_is_best_on_dev(tmp_path):
    transcribed(tmp_path / "runs" / "base", "one x three x", 0.0)
    transcribed(tmp_path / "runs" / "good", "one two three four", 0.1, dev={4: 5.0, 10: 60.0})
    transcribed(tmp_path / "runs" / "bad", "x x x x", 0.2, dev={4: 50.0, 10: 20.0})
    text = report(tmp_path)
    assert "MAM, Table 4: transcripts, ljspeech, test: hubert, λ 0, full and hubert, λ 0.1, full" in text
    assert "The unmerged run is of seed" not in text


def test_tables_4_and_6_name_a_pair_of_two_seeds(tmp_path):
    transcribed(tmp_path / "runs" / "base", "one x three x", 0.0, seed=7)
    transcribed(tmp_path / "runs" / "good", "one two three four", 0.1)
    assert report(tmp_path).count("- The unmerged run is of seed 7, the merged one of seed 1") == 2
