"""Sweeps on a tiny HuBERT and BERT: weights in place, selection on dev, resuming, reports."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.merging.noise import NoiseConfig
from s3prl_ext.metrics import METRICS
from s3prl_ext.sweeps import parts, report
from s3prl_ext.sweeps.grid import BASELINE, Arm, Group
from s3prl_ext.sweeps.run import Sweep
from s3prl_ext.sweeps.selection import choose_lambda, point, summarize
from s3prl_ext.sweeps.store import Store, origins_of
from s3prl_ext.sweeps.stored import read_sweep
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.tasks import named
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.support import factories
from tests.sweeps.toy import toy_models

GROUPS = [Group("all", (0, 1), "none", (0.25, 0.5), 1), Group("1", (1,), "target", (0.5,), 2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target, source = factories.hubert_folder(folder / "hubert"), factories.bert_folder(folder / "bert")
    config = folder / "my.yaml"
    config.write_text(f"target:\n  model: {target}\nsource:\n  model: {source}\nlambda: 0\n")
    return config, source


@pytest.fixture
def upstream(pair):
    return merged_attention(model_config=str(pair[0])).eval()


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def arm_weights(upstream, source, **options):
    return ArmWeights(extract(upstream.state_dict()), read_attention(source), [0, 1], PROJECTIONS, **options)


@pytest.mark.parametrize(
    ("arm", "overrides"),
    [
        (Arm((0, 1), "none", 0, 0.3), "lambda=0.3"),
        (Arm((1,), "none", 0, 1.0), "lambda=1,,layers=1"),
        (Arm((0,), "source", 3, 0.2), "lambda=0.2,,layers=0,,noise={kind: source, draw: 3, seed: 7}"),
        (Arm((0, 1), "target", 1, 0.2), "lambda=0.2,,noise={kind: target, draw: 1, seed: 7}"),
        (Arm((1,), "standard", 0, 0.2), "lambda=0.2,,layers=1,,noise={kind: standard, draw: 0, seed: 7}"),
    ],
)
def test_an_arm_equals_the_merged_upstream_bit_for_bit(arm, overrides, pair, upstream):
    weights = arm_weights(upstream, pair[1], noise=NoiseConfig("standard", seed=7))
    weights.apply(Arm((0, 1), "target", 0, 0.9))  # whatever came before leaves nothing behind
    weights.apply(arm)
    assert_equal(upstream, merged_attention(model_config=f"{pair[0]},,{overrides}").state_dict())


def test_lambda_zero_and_restore_give_the_target_back(pair, upstream):
    before = state_of(upstream)
    weights = arm_weights(upstream, pair[1])
    for arm in (Arm((0, 1), "none", 0, 0.7), Arm((0,), "standard", 0, 0.5), Arm((1,), "none", 0, 1.0)):
        weights.apply(arm)
        weights.apply(BASELINE)
        assert_equal(upstream, before)
    weights.apply(Arm((0,), "none", 0, 0.5))
    weights.restore()
    assert_equal(upstream, before)


def test_biases_and_projections(pair, upstream):
    before = state_of(upstream)
    weights = ArmWeights(extract(upstream.state_dict()), read_attention(pair[1]), [0, 1], ["v_proj"], biases=True)
    weights.apply(Arm((0, 1), "none", 0, 0.5))
    changed = {name for name, tensor in upstream.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"model.encoder.layers.{layer}.attention.v_proj.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }


def test_applying_an_arm_allocates_no_matrix(pair, upstream):
    target = extract(upstream.state_dict())
    weights = ArmWeights(target, read_attention(pair[1]), [0, 1], PROJECTIONS)
    pointers = [tensor.data_ptr() for tensor in target.values()]
    weights.apply(Arm((0, 1), "none", 0, 0.5))
    after = extract(upstream.state_dict())
    assert [tensor.data_ptr() for tensor in after.values()] == pointers


def test_a_sweep_whose_model_was_moved_scores_nothing(pair, upstream, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1])
    upstream.double().float()
    with pytest.raises(RuntimeError, match="6 of 6 matrices of a sweep are no longer those of its model"):
        sweep.run()
    assert not sweep.store.content["results"]


def test_nan_is_found_before_anything_is_scored(pair, upstream):
    source = {slot: tensor.clone() for slot, tensor in read_attention(pair[1]).items()}
    next(iter(source.values()))[0, 0] = torch.nan
    with pytest.raises(DataError, match=r"layer 0 q_proj.weight of the source holds NaN"):
        ArmWeights(extract(upstream.state_dict()), source, [0, 1], PROJECTIONS)


def make_sweep(folder, upstream, source, groups=GROUPS, settings=None, **options):
    folder.mkdir(exist_ok=True)
    models = toy_models(upstream, folder)
    store = Store(folder, settings or {"task": "toy"}, options.pop("overwrite", False))
    values = {"dev": "dev", "test": "test", "seed": 0, "metric_name": "loss"} | options
    return Sweep(named("toy"), models, arm_weights(upstream, source), groups, store, folder / "arms", **values)


def scored(sweep):
    return sweep.models.downstream.evaluations


def test_a_sweep_chooses_on_dev_and_scores_the_chosen_on_test(pair, upstream, tmp_path, capsys):
    before = state_of(upstream)
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1])
    rows = sweep.run()
    assert_equal(upstream, before)
    assert "what a task prints" not in capsys.readouterr().out

    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert content["summary"] == json.loads(json.dumps(rows))
    # one batch first, which knows the metrics
    assert scored(sweep).count("dev") == 1 + 1 + 2 + 2 and scored(sweep).count("test") == 1 + 1 + 2
    for row, group in zip(rows, GROUPS, strict=True):
        means = {value: point(group.arms(value), "dev", sweep.lookup).mean for value in group.lambdas}
        assert row["lambda"] == min(means, key=means.get)
        assert row["dev"]["mean"] == means[row["lambda"]] and row["test"]["mean"] > 0
        unmerged = sweep.lookup(BASELINE, "dev")[0]
        assert row["better_than_target_on_dev"] == (means[row["lambda"]] < unmerged)
    assert rows[1]["dev"]["std"] > 0 and rows[1]["dev"]["draws"] == 2

    merged = merged_attention(model_config=f"{pair[0]},,lambda=0.25").eval()
    alone = make_sweep(tmp_path / "alone", merged, pair[1], groups=GROUPS[:1])
    alone.run()
    assert alone.lookup(BASELINE, "dev") == sweep.lookup(GROUPS[0].arms(0.25)[0], "dev")
    transcripts = tmp_path / "sweep" / "arms"
    assert {path.name for path in transcripts.iterdir()} >= {
        "target",
        "all_lambda_0.25",
        "1_noise_target_draw_1_lambda_0.5",
    }


def test_test_all_and_no_test(pair, upstream, tmp_path):
    everything = make_sweep(tmp_path / "all", upstream, pair[1], test_all=True)
    everything.run()
    assert scored(everything).count("test") == 5
    nothing = make_sweep(tmp_path / "none", upstream, pair[1], test=None)
    assert all(row["test"] is None for row in nothing.run())
    assert "test" not in scored(nothing)


def test_what_the_paper_prints_is_scored_on_test_at_its_lambda(pair, upstream, tmp_path):
    groups = [Group("12-19", (1,), "none", (0.1, 0.25, 0.5), 1), Group("0-1", (0,), "none", (0.1, 0.25), 1)]
    groups += [Group("swd top-6", (0, 1), "none", (0.1, 0.25), 1), Group("12-19", (1,), "target", (0.25,), 2)]
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1], groups=groups, paper="ljspeech")
    rows = sweep.run()
    assert sweep.lookup(groups[0].arms(0.25)[0], "test") and sweep.lookup(groups[2].arms(0.1)[0], "test")
    chosen = {arm for row, group in zip(rows, groups, strict=True) for arm in group.arms(row["lambda"])}
    printed = {groups[0].arms(0.25)[0], groups[2].arms(0.1)[0]}
    assert scored(sweep).count("test") == len({BASELINE} | chosen | printed)
    report.write_table(
        tmp_path / "sweep.md", groups, rows, "dev", "test", "loss", METRICS["loss"], sweep.lookup, "a", "ljspeech"
    )
    part = (tmp_path / "sweep.md").read_text().partition("## The paper's λ")[2].partition("## All arms")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    assert [(line.split(" | ")[0], line.split(" | ")[-1]) for line in lines] == [
        ("| 12-19", "8.63 |"), ("| swd top-6", "8.73 |")
    ]  # fmt: skip
    assert all(line.split(" | ")[3] != "-" for line in lines)


def test_noise_of_another_version_is_not_continued_but_merges_are(pair, upstream, tmp_path):
    old, new = ({"noise": {"seed": 0} | more} for more in ({}, {"streams": "by kind"}))
    make_sweep(tmp_path / "merges", upstream, pair[1], groups=GROUPS[:1], settings=old, test=None).run()
    more = make_sweep(tmp_path / "merges", upstream, pair[1], settings=new, test=None)
    more.run()
    assert scored(more) == ["dev", "dev"]
    assert json.loads((tmp_path / "merges" / "sweep.json").read_text())["settings"] == new
    make_sweep(tmp_path / "noise", upstream, pair[1], settings=old, test=None).run()
    with pytest.raises(UsageError, match="made with another noise"):
        make_sweep(tmp_path / "noise", upstream, pair[1], settings=new)


def test_interrupted_and_resumed_equals_uninterrupted(pair, upstream, tmp_path):
    whole = make_sweep(tmp_path / "whole", upstream, pair[1]).run()
    before = state_of(upstream)

    first = make_sweep(tmp_path / "parts", upstream, pair[1])
    task = first.models.downstream
    task.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if len(task.evaluations) == 4 else None)
    with pytest.raises(StoppedByUser, match="3 results are kept .* the same command again to go on"):
        first.run()
    assert_equal(upstream, before)

    second = make_sweep(tmp_path / "parts", upstream, pair[1])
    assert second.run() == whole
    assert len(scored(first)) + len(scored(second)) == 10  # one of them a batch
    third = make_sweep(tmp_path / "parts", upstream, pair[1])
    assert third.run() == whole and scored(third) == []


def test_overwriting_leaves_no_earlier_results_even_where_it_is_stopped_at_once(pair, upstream, tmp_path):
    make_sweep(tmp_path / "sweep", upstream, pair[1], test=None).run()
    for name in ("sweep.md", "sweep.png"):
        (tmp_path / "sweep" / name).write_text("of the earlier sweep")
    again = make_sweep(tmp_path / "sweep", upstream, pair[1], test=None, overwrite=True, anew=True)
    task = again.models.downstream
    task.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if task.evaluations else None)
    with pytest.raises(
        StoppedByUser, match="0 results are kept .* the same command again without --overwrite to go on"
    ):
        again.run()
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["results"] == {}
    assert not (tmp_path / "sweep" / "sweep.md").exists() and not (tmp_path / "sweep" / "sweep.png").exists()
    assert not list((tmp_path / "sweep" / "arms").glob("*/*"))


def test_a_larger_grid_that_is_interrupted_is_unfinished(pair, upstream, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1], groups=GROUPS[:1], test=None)
    sweep.store.content |= {"target": {"name": "a"}, "source": {"name": "b"}}
    sweep.store.content["settings"] |= {"task": "ljspeech", "task file": {}, "seed": 1}
    rows = sweep.run()
    assert rows[0]["lambdas"] == [0.25, 0.5]
    path = tmp_path / "sweep" / "sweep.json"
    assert [group.lambdas for group in read_sweep(path).groups] == [(0.25, 0.5)]

    settings = sweep.store.content["settings"]
    wider = [Group("all", (0, 1), "none", (0.25, 0.5, 0.75, 1.0), 1)]
    more = make_sweep(tmp_path / "sweep", upstream, pair[1], groups=wider, test=None, settings=settings)
    task = more.models.downstream
    task.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGINT) if len(task.evaluations) == 1 else None)
    with pytest.raises(StoppedByUser):
        more.run()
    assert len(more.store.content["results"]) == 4
    with pytest.raises(DataError, match="is unfinished"):
        read_sweep(path)

    narrow = [Group("all", (0, 1), "none", (0.25,), 1)]
    make_sweep(tmp_path / "sweep", upstream, pair[1], groups=narrow, test=None, settings=settings).run()
    assert [group.lambdas for group in read_sweep(path).groups] == [(0.25,)]  # not what other grids have scored


def test_results_of_a_part_reopen_a_finished_sweep(pair, upstream, tmp_path):
    make_sweep(tmp_path / "sweep", upstream, pair[1], groups=GROUPS[:1], test=None).run()
    make_sweep(tmp_path / "part", upstream, pair[1], test=None).run()
    store = make_sweep(tmp_path / "sweep", upstream, pair[1], test=None).store
    there = Store(tmp_path / "part", store.content["settings"], origin={"versions": {"torch": "9.9.9"}})
    there.add(GROUPS[0].arms(0.3)[0], "dev", {"metrics": {"loss": 1.0}, "intervals": {}})
    parts.merge(store, tmp_path / "sweep")  # nothing new
    assert "summary" in store.content
    parts.merge(store, tmp_path / "part")
    content = json.loads(store.path.read_text())
    assert "summary" not in content and origins_of(content) == [{"versions": {"torch": "9.9.9"}}]


def test_a_larger_grid_scores_what_is_new(pair, upstream, tmp_path):
    make_sweep(tmp_path / "sweep", upstream, pair[1], groups=GROUPS[:1], test=None).run()
    more = make_sweep(tmp_path / "sweep", upstream, pair[1], test=None)
    more.run()
    assert scored(more) == ["dev", "dev"]


def test_grids_in_one_folder_leave_each_arm_the_files_that_it_wrote(pair, upstream, tmp_path):
    """One name for other layers, another name for the same layers, and lambdas that are written alike."""
    first, second = Group("block", (0,), "none", (0.25, 0.5), 1), Group("block", (1,), "none", (0.5, 0.5000001), 1)
    renamed = Group("1-1", (1,), "none", (0.5,), 1)
    folder = tmp_path / "sweep"
    grids = ([first], [second], [first], [renamed, first])
    for groups in grids:
        make_sweep(folder, upstream, pair[1], groups=groups).run()
        store = Store(folder, {"task": "toy"})
        assert len(set(store.folders.values())) == len(store.folders)
        for group in groups:
            for arm in [arm for value in group.lambdas for arm in group.arms(value)]:
                written = json.loads((folder / "arms" / store.folders[arm.key] / "dev.txt").read_text())
                assert sum(written) / len(written) == store.get(arm, "dev")["metrics"]["loss"], (groups, arm)
    names = store.folders
    assert [names[arm.key] for arm in (BASELINE, *first.arms(0.25), *first.arms(0.5))] == [
        "target", "block_lambda_0.25", "block_lambda_0.5"
    ]  # fmt: skip
    assert all(names[arm.key] == f"block_lambda_0.5_{arm.key}" for arm in (*second.arms(0.5), *second.arms(0.5000001)))


def test_the_folders_of_an_earlier_version_stay_their_arms(pair, upstream, tmp_path):
    first, second = Group("block", (0,), "none", (0.5,), 1), Group("block", (1,), "none", (0.5,), 1)
    make_sweep(tmp_path / "sweep", upstream, pair[1], groups=[first], test=None).run()
    path = tmp_path / "sweep" / "sweep.json"
    content = json.loads(path.read_text())
    for result in content["results"].values():
        assert result.pop("folder")
    path.write_text(json.dumps(content))
    again = make_sweep(tmp_path / "sweep", upstream, pair[1], groups=[second], test=None)
    again.run()
    assert [again.store.folders[group.arms(0.5)[0].key] for group in (first, second)] == [
        "block_lambda_0.5", f"block_lambda_0.5_{second.arms(0.5)[0].key}"
    ]  # fmt: skip


def test_other_settings_are_refused_unless_overwritten(pair, upstream, tmp_path):
    make_sweep(tmp_path / "sweep", upstream, pair[1], settings={"head": "a", "seed": 1}, test=None).run()
    with pytest.raises(UsageError, match=r'made with another head \("a", now "b"\).*--overwrite'):
        make_sweep(tmp_path / "sweep", upstream, pair[1], settings={"head": "b", "seed": 1})
    anew = make_sweep(tmp_path / "sweep", upstream, pair[1], settings={"head": "b"}, test=None, overwrite=True)
    anew.run()
    assert len(scored(anew)) == 6


def test_other_data_are_refused(pair, upstream, tmp_path, monkeypatch):
    make_sweep(tmp_path / "sweep", upstream, pair[1], test=None).run()
    again = make_sweep(tmp_path / "sweep", upstream, pair[1], test=None)
    loader = again.models.downstream.get_dataloader
    monkeypatch.setattr(again.models.downstream, "get_dataloader", lambda split: loader(split)[:-1])
    with pytest.raises(UsageError, match="data of split 'dev' differ"):
        again.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dev": "valid"}, "no split 'valid'"),
        ({"test": "testing"}, "no split 'testing'"),
        ({"dev": "test"}, "chosen on the split 'test' and would be reported on it too"),
        ({"metric_name": "wer"}, "does not report the metric 'wer': choose with --metric among acc, loss"),
        ({"metric_name": "beauty"}, "unknown metric 'beauty'"),
    ],
)
def test_bad_input_is_one_sentence(options, message, pair, upstream, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1], **options)
    with pytest.raises(UsageError) as error:
        sweep.run()
    assert message in str(error.value)
    assert not sweep.store.path.exists(), "nothing is scored before"


def test_a_choice_on_the_split_that_the_task_reports_is_named(pair, upstream, tmp_path, caplog):
    make_sweep(tmp_path / "sweep", upstream, pair[1], groups=GROUPS[:1], dev="test", test=None).run()
    assert "lambda is chosen on test, the split that the task reports" in caplog.text


def test_main_metric_is_taken_without_asking(pair, upstream, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1], metric_name=None)
    sweep.run()
    assert sweep.metric_name == "acc"
    _, bounds = sweep.lookup(BASELINE, "dev")
    assert bounds is not None and 0 <= bounds[0] <= bounds[1] <= 1


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match="is not a result of a sweep"):
        Store(tmp_path, {})


def table(values):
    """Return a lookup over made-up scores: (layers, noise, draw, lambda) -> value."""
    return lambda arm, split: (values[arm.noise, arm.draw, arm.lambda_], None)


def test_ties_go_to_the_smallest_lambda_and_nan_never_wins():
    group = Group("all", (0,), "none", (0.1, 0.2, 0.3), 1)
    scores = {("none", 0, 0.0): 9.0, ("none", 0, 0.1): 8.0, ("none", 0, 0.2): 8.0, ("none", 0, 0.3): float("nan")}
    assert choose_lambda(group, "dev", METRICS["wer"], table(scores)) == 0.1
    scores["none", 0, 0.1] = float("nan")
    assert choose_lambda(group, "dev", METRICS["wer"], table(scores)) == 0.2
    scores["none", 0, 0.1] = 8.5
    assert choose_lambda(group, "dev", METRICS["acc"], table(scores)) == 0.1
    (row,) = summarize([group], "dev", None, METRICS["acc"], table(scores))
    assert row["better_than_target_on_dev"] is False


def test_mean_and_deviation_over_draws():
    group = Group("all", (0,), "target", (0.1,), 3)
    scores = {("target", draw, 0.1): value for draw, value in enumerate((1.0, 2.0, 6.0))}
    found = point(group.arms(0.1), "dev", table(scores))
    assert found.mean == 3.0 and found.draws == 3 and found.std == pytest.approx(7**0.5)


def test_table_and_plot(pair, upstream, tmp_path):
    sweep = make_sweep(tmp_path / "sweep", upstream, pair[1])
    rows = sweep.run()
    metric = METRICS["loss"]
    path = tmp_path / "sweep.md"
    report.write_table(path, GROUPS, rows, "dev", "test", "loss", metric, sweep.lookup, "bert into hubert", "ljspeech")
    text = path.read_text()
    for part in ("# bert into hubert", "λ chosen on dev", "N(target)", "±", "| all | source | 0.25 |", "9.25", "11.12"):
        assert part in text, part
    report.plot(tmp_path / "sweep.png", GROUPS, "dev", "loss", sweep.lookup, "bert into hubert", items=6)
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_ratios_are_shown_in_per_cent_as_in_reports(tmp_path):
    group = Group("all", (0, 1), "none", (0.1,), 1)
    scores = {BASELINE: (0.25, (0.2, 0.3)), group.arms(0.1)[0]: (0.1053, (0.05, 0.15))}
    point = {"mean": 0.1053, "std": None, "interval": (0.05, 0.15), "draws": 1}
    row = {
        "group": "all",
        "noise": "none",
        "lambda": 0.1,
        "better_than_target_on_dev": True,
        "dev": point,
        "test": None,
    }

    def lookup(arm, split):
        return scores[arm] if split == "dev" else None

    report.write_table(tmp_path / "sweep.md", [group], [row], "dev", "test", "acc", METRICS["acc"], lookup, "title")
    text = (tmp_path / "sweep.md").read_text()
    assert "Metric: acc (%), higher is better" in text and "Unmerged target: dev 25.00 [20.00, 30.00]" in text
    assert text.count("10.53 [5, 15.00]") == 2, text
    assert row["dev"]["mean"] == 0.1053, "what is stored stays a ratio"
