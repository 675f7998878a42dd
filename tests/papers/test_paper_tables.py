"""Which cell of a paper's table a run stands beside, and that the figures are the printed ones."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields

import pytest

from s3prl_ext.adapters import ADAPTERS
from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation import tuning_facts
from s3prl_ext.evaluation.scored_runs import ScoredRun
from s3prl_ext.evaluation.tuning_facts import LAST_STATE, OPTIONS
from s3prl_ext.papers import tables, transcript_tables
from s3prl_ext.papers.figures import ad_tuning_tables
from s3prl_ext.papers.names import TABLE_NAMES
from s3prl_ext.papers.tables import Cell, paper_table
from s3prl_ext.training.methods import METHODS
from s3prl_ext.training.parameter_groups import FULL_KEYS, RatesConfig
from s3prl_ext.training.racing.early_stop import EarlyStopConfig
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


@pytest.mark.parametrize("table", ["mam.table1", "mam.table2", "mam.table3", "mam.table5"])
@pytest.mark.parametrize("method", ["frozen", "weighted_sum"])
def test_a_trained_head_does_not_stand_next_to_a_models_own(table, method):
    trained = {"method": method, "checkpoint": "best"}
    paper = paper_table(table)
    assert paper.match("vctk", {"method": "frozen"}) is not None and paper.match("vctk", trained) is None
    if table not in ("mam.table2", "mam.table3"):
        assert paper.match("esc50", trained) is not None, "whose head is always trained"
    if table == "mam.table5":
        assert paper.match("vctk", {"method": "full", "checkpoint": "last"}) == Cell("vctk", "FT")


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
        # features: the last hidden state of Baseline and FT, the weighted sum of the others
        ("ad_tuning.table2", "ks", {"method": "frozen", "features": "hidden_states/-1"}, {"features": "hidden_states/None"}),
        ("ad_tuning.table2", "ks", {"method": "full", "features": "last_hidden_state/None"}, {"features": "hidden_states/None"}),
        ("ad_tuning.table2", "ks", {"method": "weighted_sum", "features": "hidden_states/None"}, {"features": "hidden_states/2"}),
        ("ad_tuning.table2", "ks", CHILD | {"features": "hidden_states/None"}, {"features": "last_hidden_state/None"}),
        ("ad_tuning.table2", "ks", CHILD | {"features": "hidden_states/None"}, {"features": "hidden_states/None/normalised"}),
        ("mam.table5", "vctk", {"method": "full", "features": "hidden_states/-1"}, {"features": "hidden_states/None"}),
        # AD-TUNING compares once, on dev, and keeps one
        ("ad_tuning.table2", "ks", RACE | {"early_stop.ratio": 0.2}, {"early_stop.rungs": [3, 6], "early_stop.eta": 2}),
        ("ad_tuning.table2", "ks", RACE | {"early_stop.keep": 1}, {"early_stop.keep": 2}),
        ("ad_tuning.table2", "asr", RACE | {"early_stop.split": "dev-clean"}, {"early_stop.split": "test-clean"}),
        ("ad_tuning.table2", "sd", RACE | {"early_stop.metric": "der"}, {"early_stop.metric": "acc"}),
        ("ad_tuning.table2", "ks", RACE, {"early_stop.evaluations": 3}),
        ("ad_tuning.table2", "ks", RACE, {"early_stop.patience": 2}),
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


def test_the_features_of_each_row_are_those_that_its_method_reads_by_default():
    assert set(LAST_STATE) == {name for name, method in METHODS.items() if not method.weighted_sum}


def test_the_race_of_the_paper_is_that_of_the_defaults():
    usual = EarlyStopConfig()
    assert {key: getattr(usual, key) for key in tuning_facts.RACE} == dict(tuning_facts.RACE)


def test_of_merges_the_best_on_dev_is_compared_and_none_that_diverged(tmp_path):
    def run(score: float, name: str) -> ScoredRun:
        facts = {"lambda": 0.1}
        return ScoredRun(
            "ljspeech", "test", {"wer": 9.0}, {}, "0", facts, "evaluate", 0, tmp_path / name, None, dev={"wer": score}
        )

    runs = [run(math.nan, "diverged"), run(8.0, "good"), run(9.0, "worse")]
    for order in itertools.permutations(runs):
        assert transcript_tables._best_on_dev(order, order).source.name == "good"
    assert transcript_tables._best_on_dev(runs[:1] * 2, runs) is None


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
