"""Query by example: the maximum term weighted value by its definition, and the search of s3prl that it is taken from."""

from __future__ import annotations

import json
import logging
import shutil
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import distance

from s3prl_ext.compat import quesst14
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation import significance
from s3prl_ext.tasks import UNAVAILABLE, qbe
from s3prl_ext.tasks.qbe import BETA, maximum_twv, over_queries
from tests.support.experiments import make_args, task_config


def by_definition(scores, targets) -> float:
    """Return the largest TWV over all thresholds, each query's misses and false alarms counted one by one."""
    best = 0.0
    for threshold in sorted({score for row in scores for score in row}):
        values = []
        for row, holds in zip(scores, targets, strict=True):
            missed = sum(1 for score, target in zip(row, holds) if target and score < threshold)
            false = sum(1 for score, target in zip(row, holds) if not target and score >= threshold)
            values.append(1 - missed / sum(holds) - 12.49 * false / (len(holds) - sum(holds)))
        best = max(best, sum(values) / len(values))
    return best


def searches(seed: int, ties: bool = False, queries: int = 6, documents: int = 40):
    rng = np.random.default_rng(seed)
    targets = [rng.permutation(documents) < rng.integers(1, 5) for _ in range(queries)]
    scores = [rng.normal(3.0 * holds, 1.0) for holds in targets]
    return [np.round(row) if ties else row for row in scores], targets


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_maximum_over_thresholds(seed, ties):
    scores, targets = searches(seed, ties)
    assert maximum_twv(scores, targets) == pytest.approx(by_definition(scores, targets), abs=1e-9)


def test_prior_and_costs_are_those_of_quesst_2014():
    assert pytest.approx(12.49) == BETA
    holds = np.array([True, False, False, False])
    assert maximum_twv([np.array([4.0, 3.0, 2.0, 1.0])], [holds]) == 1
    assert maximum_twv([np.array([1.0, 2.0, 3.0, 4.0])], [holds]) == 0, "accepting nothing is never worse than 0"
    many = [holds] + [np.arange(100) == 0] * 2
    found = [np.array([1.0, 2.0, 0.0, 0.0]), *[np.where(np.arange(100) == 0, 1.0, 0.0)] * 2]
    assert maximum_twv(found, many) == pytest.approx(0.0 + max(0, (3 - 12.49 / 3) / 3)), "one of three is a false alarm"


def test_scores_that_are_not_numbers_have_no_value():
    assert np.isnan(maximum_twv([np.array([np.nan, 1.0])], [np.array([True, False])]))


def test_queries_come_by_name_whatever_the_order_of_the_search(tmp_path):
    truth, found = {f"q{n}": {"d0"} for n in range(4)}, []
    for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
        root = ET.Element("stdlist")
        for n in order:
            query = ET.SubElement(root, "detected_termlist", termid=f"q{n}")
            for document, score in (("d0", n / 10), ("d1", 0.2)):
                ET.SubElement(query, "term", file=document, score=str(score))
        ET.ElementTree(root).write(tmp_path / "search.xml")
        found.append(quesst14.scored(tmp_path / "search.xml", truth))
    assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])


def test_the_interval_is_that_of_queries_drawn_anew(monkeypatch):
    scores, targets = searches(3, ties=True)
    monkeypatch.setattr(qbe, "DRAWS", 200)
    drawn = []
    for times in np.random.default_rng(qbe.SEED).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), 200):
        often = np.repeat(np.arange(len(scores)), times)
        drawn.append(maximum_twv([scores[i] for i in often], [targets[i] for i in often]))
    found = over_queries({"twv_scores": scores, "twv_targets": targets})
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]))


def test_the_value_lies_in_its_interval():
    scores, targets = searches(3)
    assert qbe.DRAWS == significance.DRAWS == 10_000
    found = over_queries({"twv_scores": scores, "twv_targets": targets})
    assert found is not None and found.low < found.value == maximum_twv(scores, targets) < found.high


@pytest.fixture
def corpus(corpus_variables, tmp_path, monkeypatch) -> Path:
    root = Path(shutil.copytree(corpus_variables / "quesst14Database", tmp_path / "quesst14Database"))
    monkeypatch.setenv("QUESST14", str(root))
    return root


@pytest.fixture
def evaluate(corpus, build, tmp_path):
    pytest.importorskip("dtw")

    def run(split: str, **args):
        flags = {"mode": "evaluate", "evaluate_split": split, "downstream": "quesst14_dtw", "upstream": "fbank"} | args
        runner = build(make_args(tmp_path / "exp", **flags), task_config("qbe"))
        (tmp_path / "exp").mkdir(exist_ok=True)
        runner.evaluate()
        return runner, json.loads((tmp_path / "exp" / f"result-{split}.json").read_text())

    return run


@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_search_is_scored_with_the_truth_of_its_split(evaluate, corpus, tmp_path, split):
    _, result = evaluate(split)
    part = {"dev": "dev", "test": "eval"}[split]
    lines = (corpus / f"scoring/groundtruth_quesst14_{part}/quesst14_{part}.rttm").read_text().splitlines()
    truth = {(line.split()[5], line.split()[1]) for line in lines}
    wanted = [[line.split()[0].rpartition("/")[2][:-4] for line in (corpus / f"scoring/language_key_{name}.lst").read_text().splitlines()
               if line.endswith("nnenglish")] for name in (part, "utterances")]  # fmt: skip
    document = ET.parse(tmp_path / "exp" / "benchmark.stdlist.xml").getroot()
    assert [query.get("termid") for query in document] == wanted[0]
    assert all([term.get("file") for term in query] == wanted[1] for query in document)
    scores, targets = [], []
    for query in ET.parse(tmp_path / "exp" / "benchmark.stdlist.xml").getroot():
        scores.append([float(term.get("score")) for term in query])
        targets.append([(query.get("termid"), term.get("file")) in truth for term in query])
    assert {query.get("termid")[:13] for query in ET.parse(tmp_path / "exp" / "benchmark.stdlist.xml").getroot()} == {
        f"quesst14_{part}_"[:13]
    }
    value = result["metrics"][split]["mtwv"]["value"]
    assert len(scores) >= 6 and value == pytest.approx(by_definition(scores, targets), abs=1e-9) and value > 0.3
    low, high = result["intervals"][split]["mtwv"]
    assert low <= value <= high and result["items"][split] == len(scores) + 24


def test_a_document_costs_what_the_best_path_through_it_costs(evaluate):
    """The search by dtw-python against a table filled by hand: any beginning and end, each query frame once."""
    runner, _ = evaluate("dev")
    from s3prl.downstream.quesst14_dtw.expert import cosine_exp, match

    rng = np.random.default_rng(0)
    query, document = rng.normal(size=(7, 5)), rng.normal(size=(20, 5))
    settings = {"step_pattern": "asymmetric", "keep_internals": False, "distance_only": False,
                "open_begin": True, "open_end": True}  # fmt: skip
    score = match(query, document, "q", "d", cosine_exp, True, settings)[2]
    cost = np.exp(distance.cdist(query, document, "cosine")) - 1
    cost = (cost - cost.min(1, keepdims=True)) / (cost.max(1, keepdims=True) - cost.min(1, keepdims=True))
    table = cost.copy()
    for i in range(1, len(query)):
        for j in range(len(document)):
            table[i, j] += min(table[i - 1, max(0, j - step)] for step in (0, 1, 2) if j - step >= 0)
    assert score == pytest.approx(-table[-1].min() / len(query))
    assert runner.downstream.model.dtwrc["step_pattern"] == "asymmetric"


def test_there_is_nothing_to_train(build, tmp_path):
    with pytest.raises(UsageError, match="-d quesst14_dtw has nothing to train: evaluate it, -m evaluate -t dev"):
        build(make_args(tmp_path / "exp", downstream="quesst14_dtw", upstream="fbank"), task_config("qbe"))


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_a_task_that_cannot_run_says_what_is_missing(build, tmp_path, name):
    with pytest.raises(UsageError, match=f"-d {name} cannot run: .*(fairseq|pyworld)"):
        build(make_args(tmp_path / "exp", downstream=name, upstream="fbank"), task_config("ks"))


def test_without_dtw_the_extra_is_named(build, tmp_path, monkeypatch):
    from s3prl_ext.tasks.record import Task

    monkeypatch.setattr(Task, "lacks", lambda task: ["dtw-python"])
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="quesst14_dtw", upstream="fbank")
    with pytest.raises(
        UsageError, match=r"-d quesst14_dtw needs dtw-python, not installed here: pip install 's3prl_ext\[superb\]'"
    ):
        build(args, task_config("qbe"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "no such QUESST14 folder: .*set QUESST14"),
        (lambda root: shutil.rmtree(root / "scoring"), "no such list: .*language_key_utterances.lst"),
        (lambda root: next(root.glob("Audio/*.wav")).unlink(), "lists .*Audio/quesst14_.*wav, not in"),
        (lambda root: next(root.glob("dev_queries/*.wav")).unlink(), "lists .*dev_queries/quesst14_dev_.*, not in"),
        (lambda root: (root / "scoring/language_key_dev.lst").write_text("a.wav\n"), "line 1 must be 'FOLDER"),
        (
            lambda root: (root / "scoring/language_key_dev.lst").write_text("d/q/a.wav albanian\n"),
            r"no English recording \(nnenglish\)",
        ),
        (lambda root: shutil.rmtree(root / "scoring/groundtruth_quesst14_dev"), "no such list: .*quesst14_dev.rttm"),
        (
            lambda root: (root / "scoring/groundtruth_quesst14_dev/quesst14_dev.rttm").write_text("SPEAKER\n"),
            "has no line 'LEXEME DOCUMENT",
        ),
    ],
)
def test_a_corpus_that_does_not_fit_is_refused(corpus, spoil, message):
    quesst14.check_corpus(corpus, "dev")
    spoil(corpus)
    with pytest.raises(DataError, match=message):
        quesst14.check_corpus(corpus, "dev")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dist_method": "cosin"}, "Unknown Distance Metric: cosin"),
        ({"step_pattern": "symmetric2"}, "only works under asymmetric setting"),
        ({"step_pattern": "symetric2", "subsequence": False}, "Step pattern undefined: symetric2"),
        ({"dist_method": "cosine_neg_log"}, "normalization cannot be used with cosine_neg_log"),
    ],
)
@pytest.mark.parametrize("task", ["qbe"])
def test_a_search_that_cannot_run_ends_before_the_corpus_is_read(task, build, corpus, tmp_path, settings, message):
    shutil.rmtree(corpus)
    config = task_config(task)
    config["downstream_expert"]["dtwrc"] |= settings
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="quesst14_dtw", upstream="fbank")
    with pytest.raises(UsageError, match=rf"the search cannot run .*{message}.*: correct dtwrc"):
        build(args, config)


@pytest.mark.parametrize(
    "settings", [{"dist_method": "cosine_neg_log"}, {"step_pattern": "symmetric2", "subsequence": False}]
)
@pytest.mark.parametrize("task", ["qbe"])
def test_other_searches_of_s3prl_are_taken(task, build, corpus, tmp_path, settings):
    config = task_config(task)
    config["downstream_expert"] |= {"feature_normalization": False}
    config["downstream_expert"]["dtwrc"] |= settings
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="quesst14_dtw", upstream="fbank")
    assert build(args, config).downstream.model.test_dataset is None


def test_queries_that_are_too_short_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        quesst14.warn_of_short([np.zeros((5, 2))], "dev")
        assert not caplog.text
        quesst14.warn_of_short([np.zeros((5, 2)), np.zeros((4, 2)), np.zeros((1, 2))], "dev")
    assert "split 'dev': 2 of 3 queries have fewer than 5 frames" in caplog.text


def test_an_interrupt_ends_the_search_with_what_is_running(tmp_path):
    def stop(pool) -> None:
        futures.extend(pool.submit(time.sleep, 0.1) for _ in range(400))
        raise KeyboardInterrupt

    futures: list = []
    with pytest.raises(KeyboardInterrupt), quesst14.Pool(max_workers=2) as pool:
        stop(pool)
    assert sum(future.cancelled() for future in futures) > 300 and all(future.done() for future in futures)
