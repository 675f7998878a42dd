"""``s3prl-ext report``: what may be averaged, set against a baseline, or called one model, and what is said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3prl_ext.commands.report import main
from tests.support.result_files import content, merge, write


def report(folder: Path, *contents: dict, flags: tuple[str, ...] = ()) -> str:
    """Return the report of result files without its sources."""
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
