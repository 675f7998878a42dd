"""Which cell of a paper's table a run stands beside, and that the figures are the printed ones."""

from __future__ import annotations

from dataclasses import fields

import pytest

from s3prl_ext.adapters import ADAPTERS
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.tuning_facts import OPTIONS
from s3prl_ext.papers import tables
from s3prl_ext.papers.figures import ad_tuning_tables
from s3prl_ext.papers.names import TABLE_NAMES
from s3prl_ext.papers.tables import Cell, paper_table
from s3prl_ext.training.parameter_groups import FULL_KEYS, RatesConfig
from s3prl_ext.training.tuning_config import TuningConfig

MERGED = {"lambda": 0.1, "layers": "all", "noise": "none", "learnable": False, "method": "frozen"}
PLAIN = {"method": "frozen"}


@pytest.mark.parametrize(
    ("table", "task", "facts", "cell", "figure"),
    [
        ("mam.table1", "ljspeech", MERGED, Cell("ljspeech", "0.10", "Source"), "9.06"),
        ("mam.table1", "vctk", MERGED | {"noise": "standard"}, Cell("vctk", "0.10", "N(0,1)"), "54.53"),
        ("mam.table1", "esc50", PLAIN, Cell("esc50", "0.00", "Source"), "11.75"),
        ("mam.table1", "ljspeech", MERGED | {"lambda": 0.07}, Cell("ljspeech", "0.07", "Source"), None),
        ("mam.table1", "ljspeech", MERGED | {"lambda": 0.025}, Cell("ljspeech", "0.025", "Source"), None),
        ("mam.table2", "ljspeech", MERGED | {"layers": "0-2"}, Cell("ljspeech", "0-2"), None),
        ("mam.table2", "ljspeech", MERGED, None, None),
        ("mam.table1", "ljspeech", MERGED | {"layers": "0-7"}, None, None),
        ("mam.table2", "ljspeech", MERGED | {"layers": "12-19"}, Cell("ljspeech", "12-19"), "8.63"),
        ("mam.table2", "ljspeech", MERGED | {"layers": "12-19", "chosen": False}, None, None),
        ("mam.table2", "vctk", MERGED | {"lambda": 0.0, "layers": "none"}, Cell("vctk", "None"), "5.58"),
        ("mam.table3", "vctk", MERGED | {"layers": "swd top-8"}, Cell("vctk", "k = 8", "swd"), "5.52"),
        ("mam.table5", "esc50", MERGED | {"method": "full"}, Cell("esc50", "MAM + FT"), "7.75"),
        ("mam.table5", "esc50", MERGED | {"method": "full", "learnable": True}, Cell("esc50", "L-MAM + FT"), "7.75"),
        ("mam.table5", "vctk", {"method": "full"}, Cell("vctk", "FT"), "5.52"),
        ("mam.table5", "vctk", {"method": "child"}, None, None),
        ("mam.table5", "vctk", MERGED | {"noise": "source"}, None, None),
        ("mam.table5", "esc50", MERGED | {"method": "full", "learnable": True, "merge.lambda": "0.1 in 4-11"},
         Cell("esc50", "L-MAM + FT"), "7.75"),
        ("mam.table5", "esc50", MERGED | {"method": "full", "learnable": "head, clamp"}, None, None),
        ("mam.table1", "ljspeech", MERGED | {"merge.target_sha256": "a", "merge.source_sha256": "b"},
         Cell("ljspeech", "0.10", "Source"), "9.06"),
        ("mam.table1", "ljspeech", MERGED | {"merge.layers": "0-3"}, None, None),
        ("mam.table2", "ljspeech", MERGED | {"layers": "12-19", "merge.layers": "0-3"}, None, None),
        ("ad_tuning.table1", "pr", {"method": "child", "tuning.density": 0.1, "tuning.mask": "random"},
         Cell("pr", "CHILD-TUNING_F"), "2.65"),
        ("ad_tuning.table2", "asr", {"method": "child", "tuning.density": 0.01}, Cell("asr", "CHILD-TUNING (P=0.01)"), "6.195"),
        ("ad_tuning.table2", "sd", {"method": "child", "race": True, "tuning.density": [0.1, 0.01]}, Cell("sd", "AD-TUNING"), "3.25"),
        ("ad_tuning.table2", "ks", {"method": "weighted_sum"}, Cell("ks", "Weighted-sum"), "96.30"),
        ("ad_tuning.table2", "ks", {"method": "bitfit"}, None, None),
        ("ad_tuning.table2", "ks", MERGED, None, None),
    ],
)  # fmt: skip
def test_cells(table, task, facts, cell, figure):
    paper = paper_table(table)
    assert paper.match(task, facts) == cell
    assert (paper.figures.get(cell) if cell else None) == figure


@pytest.mark.parametrize(
    "otherwise",
    [
        {"method": "slerp"}, {"biases": True}, {"align": "heads"}, {"projections": "q"}, {"layer_map": "2 in 1"},
        {"sources": 2}, {"lambda": "0.1 in 0, 0.2 in 1"},
    ],
)  # fmt: skip
def test_only_merges_as_mam_has_them_stand_next_to_its_figures(otherwise):
    facts = MERGED | {f"merge.{name}": value for name, value in otherwise.items()}
    for table, more in (
        ("mam.table1", {}),
        ("mam.table2", {"layers": "12-19", "lambda": 0.25}),
        ("mam.table3", {"layers": "swd top-6", "merge.layers": "1,2,3,4,5,6"}),
        ("mam.table5", {"method": "full"}),
        ("mam.table5", {"method": "full", "learnable": True}),
    ):
        assert paper_table(table).match("ljspeech", MERGED | more) is not None
        if not (more.get("learnable") and "lambda" in otherwise):
            assert paper_table(table).match("ljspeech", facts | more) is None


CHILD = {"method": "child", "tuning.mask": "fisher", "tuning.density": 0.1}
RACE = {"method": "child", "race": True, "tuning.density": [0.1, 0.01]}


@pytest.mark.parametrize(
    ("table", "task", "usual", "otherwise"),
    [
        ("ad_tuning.table2", "ks", RACE, {"method": "lora", "tuning.rank": [4, 8]}),
        ("ad_tuning.table2", "ks", RACE, {"method": "houlsby"}),
        ("ad_tuning.table2", "ks", RACE, {"tuning.mask": "random"}),
        ("ad_tuning.table2", "ks", RACE, {"tuning.lr": [0.1, 0.2]}),
        ("ad_tuning.table2", "ks", RACE, {"tuning.density": 0.1, "tuning.lr": [0.1, 0.2]}),
        ("ad_tuning.table2", "ks", RACE, {"tuning.eligible": ["*.bias"]}),
        ("ad_tuning.table2", "ks", CHILD, {"tuning.eligible": ["*.bias"]}),
        ("ad_tuning.table2", "ks", CHILD, {"tuning.reselect_every": 10}),
        ("ad_tuning.table1", "pr", CHILD | {"tuning.mask": "random"}, {"tuning.redraw": True}),
        ("ad_tuning.table1", "pr", CHILD, {"tuning.eligible": ["*.bias"]}),
        ("ad_tuning.table2", "ks", {"method": "lora", "tuning.rank": "8"}, {"tuning.rank": 64}),
        ("ad_tuning.table2", "ks", {"method": "lora", "tuning.projections": ["v_proj", "q_proj"]},
         {"tuning.projections": ["fc1"]}),
        ("ad_tuning.table2", "ks", {"method": "lora", "tuning.layers": "all"}, {"tuning.layers": "0-3"}),
        ("ad_tuning.table2", "ks", {"method": "houlsby", "tuning.bottleneck": 32}, {"tuning.bottleneck": 256}),
        ("ad_tuning.table2", "ks", {"method": "prefix"}, {"tuning.length": 100}),
        ("ad_tuning.table2", "ks", {"method": "cnn_adapter", "tuning.param_matched": True}, {"tuning.scale": 1}),
        ("ad_tuning.table2", "ks", {"method": "full", "tuning.layer_decay": 1}, {"tuning.layer_decay": 0.9}),
        ("ad_tuning.table2", "ks", {"method": "full"}, {"tuning.train_layers": "11"}),
        ("mam.table5", "vctk", {"method": "full", "tuning.train_layers": "all"}, {"tuning.train_layers": "11"}),
        ("mam.table5", "vctk", MERGED | {"method": "full", "learnable": True, "tuning.lambda_lr": 0.01},
         {"tuning.lambda_lr": 0}),
        ("mam.table5", "vctk", MERGED | {"method": "full", "learnable": True}, {"tuning.lambda_lr": "0"}),
    ],
)  # fmt: skip
def test_only_methods_as_the_papers_have_them_stand_next_to_their_figures(table, task, usual, otherwise):
    assert paper_table(table).match(task, usual) is not None
    assert paper_table(table).match(task, usual | otherwise) is None


def test_the_papers_options_are_the_defaults_of_each_method():
    defaults = {name: {row.name: row.default for row in fields(file.Config)} for name, file in ADAPTERS.items()}
    for name in ("cnn_adapter", "chapter"):
        assert defaults[name].pop("param_matched") is False
    for name, config, keys in (("full", RatesConfig(), FULL_KEYS), ("child", TuningConfig("child"), OPTIONS["child"])):
        defaults[name] = {key: getattr(config, key, None) for key in keys}  # gradual.start: without a section
    assert {name: dict(options) for name, options in OPTIONS.items()} == {
        name: options for name, options in defaults.items() if options
    }


def test_every_table_has_a_name():
    assert tuple(tables._TABLES) == TABLE_NAMES


@pytest.mark.parametrize("name", TABLE_NAMES)
def test_every_table_is_whole(name):
    paper = paper_table(name)
    assert set(paper.tasks) <= set(paper.metrics)
    assert all(paper.baselines[task] in paper.figures for task in paper.tasks)
    assert all(figure is None or float(figure) > 0 for figure in paper.figures.values())


def test_rows_of_ad_tuning_have_a_figure_per_column():
    for table in ad_tuning_tables().values():
        assert {len(row) for row in table.values()} == {len(table["columns"])}


def test_unknown_tables_list_the_known_ones_and_transcripts_come_by_themselves():
    with pytest.raises(UsageError, match=r"'mam.tabel1'; did you mean 'mam.table1'"):
        paper_table("mam.tabel1")
    with pytest.raises(UsageError, match="compares transcripts"):
        paper_table("mam.table6")
