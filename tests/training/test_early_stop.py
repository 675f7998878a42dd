"""The arithmetic of the race, and the released code's keys."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.metrics import METRICS
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.tasks import TASKS, named
from s3prl_ext.training.methods import METHODS, resolve_tuning
from s3prl_ext.training.racing.candidates import Candidate, candidates_of
from s3prl_ext.training.racing.early_stop import EarlyStopConfig, best_of
from s3prl_ext.training.racing.race import judged_by
from s3prl_ext.training.results.evaluation import evaluate
from s3prl_ext.training.task_file import TaskFile, translate
from tests.support.experiments import make_args, task_config


def entrants(*densities: float) -> list[Candidate]:
    return [Candidate(f"density={d:g}", {"method": "child", "density": d}) for d in densities]


def test_lists_make_candidates_in_their_order():
    section = {"method": "child", "density": [0.1, 0.01], "lr": ["1e-3", 0.0001], "eligible": ["*a*", "*b*"]}
    made = candidates_of(section)
    assert [c.name for c in made] == [
        "density=0.1,lr=0.001", "density=0.1,lr=0.0001", "density=0.01,lr=0.001", "density=0.01,lr=0.0001",
    ]  # fmt: skip
    assert made[0].tuning == {"method": "child", "density": 0.1, "lr": "1e-3", "eligible": ["*a*", "*b*"]}
    assert len(candidates_of({"method": ["lora", "houlsby"]})) == 2
    patterns = [["encoder.layers.?.*"], ["encoder.layers.*.*"], ["head"]]
    wild = candidates_of({"method": "child", "eligible": patterns, "density": [0.123456781, 0.123456782]})
    assert [c.tuning["eligible"] for c in wild[::2]] == patterns and len({c.name for c in wild}) == 6
    assert wild[4].name.startswith("eligible=head,density=0.123457~"), "a name that is the only one stays as it is"
    many = candidates_of({"method": "child", "eligible": [[f"encoder.layers.{n}.*" for n in range(24)], ["head"]]})
    assert len(many[0].name.encode()) < 255 and many[1].name == "eligible=head"
    with pytest.raises(UsageError, match=r"tuning.density names a candidate twice: 0.001, 0.001"):
        candidates_of({"method": "child", "density": ["1e-3", 0.001]})
    assert [c.name for c in candidates_of({"method": "lora", "projections": [["q_proj"], ["q_proj", "v_proj"]]})] == [
        "projections=q_proj", "projections=q_proj+v_proj",
    ]  # fmt: skip
    assert len(candidates_of({"method": "lora", "projections": ["q_proj", "v_proj"]})) == 1


def test_a_method_gets_only_the_keys_that_it_takes():
    made = candidates_of({"method": ["child", "lora"], "density": 0.01, "rank": [4, 8], "lr": "1e-3", "mask": "random"})
    child = {"method": "child", "density": 0.01, "lr": "1e-3", "mask": "random"}
    lora = {"method": "lora", "lr": "1e-3"}
    assert made == [
        Candidate("method=child", child),
        Candidate("method=lora,rank=4", lora | {"rank": 4}),
        Candidate("method=lora,rank=8", lora | {"rank": 8}),
    ]
    first = candidates_of({"rank": [4, 8], "method": ["lora", "houlsby"], "layers": "0-1"})
    assert [c.name for c in first] == ["rank=4,method=lora", "method=houlsby", "rank=8,method=lora"]
    assert all(c.tuning["layers"] == "0-1" for c in first)


@pytest.mark.parametrize("key", ["rnak", "bottleneck"])
def test_a_key_of_no_candidate_stays_to_be_refused(key):
    assert all(key in c.tuning for c in candidates_of({"method": ["lora", "prefix"], key: 3}))


def test_a_raced_method_has_the_keys_that_it_reads():
    section = {
        "density": [0.1, 0.01],
        "method": ["child", "lora", "frozen"],
        "rank": 4,
        "lr": [1e-3, 1e-4],
        "mask": "random",
    }
    made = {c.name: c.tuning for c in candidates_of(section)}
    child = {"method": "child", "mask": "random"}
    assert made == {
        "density=0.1,method=child,lr=0.001": child | {"density": 0.1, "lr": 1e-3},
        "density=0.1,method=child,lr=0.0001": child | {"density": 0.1, "lr": 1e-4},
        "method=lora,lr=0.001": {"method": "lora", "rank": 4, "lr": 1e-3},
        "method=lora,lr=0.0001": {"method": "lora", "rank": 4, "lr": 1e-4},
        "method=frozen": {"method": "frozen"},
        "density=0.01,method=child,lr=0.001": child | {"density": 0.01, "lr": 1e-3},
        "density=0.01,method=child,lr=0.0001": child | {"density": 0.01, "lr": 1e-4},
    }
    masks = candidates_of(
        {"method": "child", "mask": ["fisher", "random"], "fisher": {"max_batches": 2}, "redraw": True}
    )
    assert [(c.name, set(c.tuning)) for c in masks] == [
        ("mask=fisher", {"method", "mask", "fisher"}), ("mask=random", {"method", "mask", "redraw"}),
    ]  # fmt: skip
    (odd,) = candidates_of({"method": ["child"], "rank": 4})
    assert odd.tuning["rank"] == 4, "a key that no raced method reads stays, and is refused"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_keys_that_it_reads_and_no_other(method):
    values = {
        "method": method, "lr": 1e-3, "lambda_lr": 1e-3, "layer_decay": 0.9, "train_layers": "0", "mask": "random",
        "density": 0.1, "eligible": ["*"], "redraw": True, "sparse_gradients": True, "clip_scope": "active", "fisher": {},
        "budget": "global", "unit": "entry", "lottery": {}, "reselect_every": None, "gradual": None,
        "bottleneck": 3, "layers": "0", "rank": 2, "alpha": 1, "projections": ["q_proj"], "length": 3, "scale": 0.1,
        "param_matched": False, "base_dtype": "float32",
    }  # fmt: skip
    read = set(METHODS[method].keys)
    assert read <= {*values, "upstream_lr"}
    resolve_tuning(task_config(), {key: value for key, value in values.items() if key in read})
    for key in values.keys() - read:
        section = {"method": method, key: values[key]} | ({"density": 0.1} if method == "child" else {})
        with pytest.raises(UsageError, match=f"tuning.*{key}"):
            resolve_tuning(task_config(), section)


@pytest.mark.parametrize("section", [{"density": []}, {"density": [0.1, "1.0e-1"]}])
def test_odd_lists_are_refused(section):
    with pytest.raises(UsageError, match="tuning.density"):
        candidates_of(section)


def test_steps_of_the_released_settings():
    # AD-TUNING's settings: T and r of each task and the step at which its candidates are compared
    for total, ratio, k in (
        (200000, 0.2, 40000), (100000, 0.1, 10000), (30000, 0.1, 3000), (200000, 0.1, 20000), (50000, 0.1, 5000),
    ):  # fmt: skip
        assert EarlyStopConfig(ratio=ratio).steps_before_cut(total) == k
    assert EarlyStopConfig(ratio=0.001).steps_before_cut(10) == 1
    assert EarlyStopConfig(ratio=0.15).steps_before_cut(7) == 1  # 1.05: no equality of floats decides
    assert EarlyStopConfig(ratio=0.1).budget(3, 1000) == 3 * 100 + 900
    assert EarlyStopConfig(ratio=0.2, keep=2).budget(5, 100) == 5 * 20 + 2 * 80


def test_selection_against_all_orders():
    rng = random.Random(0)
    for _ in range(200):
        count = rng.randint(1, 5)
        scores = [rng.choice([0.1, 0.2, 0.3, math.nan]) for _ in range(count)]
        densities = [rng.choice([0.001, 0.01, 0.1]) for _ in range(count)]
        keep = rng.randint(1, count)
        if all(map(math.isnan, scores)):
            with pytest.raises(DataError, match="NaN"):
                best_of(scores, "wer", keep, densities)
            continue
        for name, sign in (("wer", 1), ("acc", -1)):
            finite = [i for i in range(count) if not math.isnan(scores[i])]
            best = min(
                itertools.permutations(finite),
                key=lambda order: [(sign * scores[i], densities[i], i) for i in order],
            )
            assert best_of(scores, name, keep, densities) == list(best)[:keep]


def test_the_metric_of_a_task():
    assert judged_by(None, named("ctc"), ["loss", "per", "wer"]) == "per"
    assert judged_by(None, named("ctc"), ["slot_type_f1", "wer"]) == "slot_type_f1"
    assert judged_by(None, named("ood"), ["loss", "cer"]) == "cer", "-d ctc is also of tasks that report no wer"
    assert judged_by("loss", named("asr"), ["loss", "wer"]) == "loss"
    with pytest.raises(UsageError, match="ks does not report der.*acc"):
        judged_by("der", named("ks"), ["acc", "loss"])


# task -> what its candidates are compared by, and whether more of it is better
JUDGED_BY = {
    "ks": ("acc", True), "ic": ("acc", True), "sid": ("acc", True), "asr": ("wer", False), "pr": ("per", False),
    "sf": ("slot_type_f1", True), "sd": ("der", False), "ljspeech": ("wer", False), "vctk": ("wer", False),
    "esc50": ("error", False), "er": ("acc", True), "asv": ("EER", False), "ood": ("wer", False), "se": ("pesq", True),
    "ss": ("si_sdr", True),
}  # fmt: skip


def test_every_task_has_a_metric_with_a_direction():
    trained = {row.task.downstream for row in TRAINED.values()}
    assert set(JUDGED_BY) == set(TRAINED) and trained | {"librispeech_zeroshot"} == {
        row.downstream for row in TASKS if row.trains
    }
    for task, (name, higher) in JUDGED_BY.items():
        assert named(task).metrics[0] == name and name in TRAINED[task].task.metrics
        assert METRICS[name].higher_is_better is higher
        assert best_of([0.9, 0.1], name, 1, [0.1, 0.01]) == [0 if higher else 1]


@pytest.mark.slow
@pytest.mark.parametrize("task", TRAINED)
def test_every_task_reports_that_metric(build, tmp_path, task):
    config = task_config(task)
    config.pop("tuning", None)
    runner = build(make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream), config)
    split = config["runner"]["eval_dataloaders"][0]
    reported = evaluate(runner.models, split, 1337, ratio=1e-9).metrics
    assert judged_by(None, runner.models.task, list(reported)) == JUDGED_BY[task][0]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"ratio": 0}, "early_stop.ratio"),
        ({"ratio": 1.5}, "early_stop.ratio"),
        ({"keep": 4}, "only 3 candidates"),
        ({"keep": 0.5}, "early_stop.keep"),
        ({"keep": math.inf}, "early_stop.keep must be a whole number of at least 1, got inf"),
        ({"ratio": math.nan}, "early_stop.ratio must be a finite number"),
        ({"metric": "accc"}, "did you mean 'acc'"),
        ({"metric": ["wer", "cer"]}, r"early_stop.metric must be one of .*wer.*, got \['wer', 'cer'\]"),
        ({"split": ["dev"]}, r"early_stop.split must be a name, got \['dev'\]"),
        ({"metric": 1, "split": {}}, "early_stop.metric must be one of .*, got 1. early_stop.split must be a name"),
        ({"ration": 0.1}, "did you mean 'ratio'"),
        ([1], "must be a mapping"),
        ({"rungs": [100, 100]}, r"early_stop.rungs must be rising whole numbers such as .*, got \[100, 100\]"),
        ({"rungs": []}, "early_stop.rungs must be rising"),
        ({"rungs": [0, 5]}, "early_stop.rungs must be a whole number of at least 1, got 0"),
        ({"rungs": [1.5]}, "early_stop.rungs must be a whole number"),
        ({"rungs": [10], "eta": 1}, "early_stop.eta must be above 1, got 1"),
        (
            {"rungs": [10], "ratio": 0.1, "keep": 1},
            "has ratio and keep, of one comparison, next to rungs, .* keep one of the two",
        ),
        ({"keep": 1, "eta": 3}, "has keep, of one comparison, next to eta, of successive halving"),
        ({"eta": 3}, "early_stop.eta belongs to successive halving: add early_stop.rungs"),
        ({"rung": [10]}, "did you mean 'rungs'"),
    ],
)
def test_bad_sections_are_refused(section, said):
    with pytest.raises(UsageError, match=said):
        EarlyStopConfig.from_config({"early_stop": section}, 3)


def test_rungs_lie_below_the_end_and_those_without_effect_are_named():
    section = {"method": "full", "lr": [1e-3, 1e-4, 1e-5]}
    config = task_config(tuning=section, total_steps=10) | {"early_stop": {"rungs": ["2", 5, 9], "eta": 3}}
    assert TaskFile.read(config).remarks == (
        "early_stop.rungs 5, 9 of 3 candidates have no effect: with eta 3 as many are left after as before",
    )
    config["early_stop"]["rungs"] = [2, 10]
    with pytest.raises(
        UsageError, match="early_stop.rungs ends with 10, but a run has 10 steps: rungs must be below its end"
    ):
        TaskFile.read(config)


def test_candidates_need_a_race():
    with pytest.raises(UsageError, match="early_stop"):
        EarlyStopConfig.from_config({}, 3)
    assert EarlyStopConfig.from_config({}, 1) is None
    nothing_scored = {"runner": {"eval_dataloaders": []}, "early_stop": {}}
    with pytest.raises(UsageError, match="name it in early_stop.split"):
        EarlyStopConfig.from_config(nothing_scored, 2)
    assert EarlyStopConfig.from_config(nothing_scored | {"early_stop": {"split": "dev"}}, 2).split == "dev"
    assert EarlyStopConfig.from_config({"early_stop": {}}, 1) is None


def released(**runner):
    config = load_yaml(shipped_dir("downstream_configs") / "pr" / "mini.yaml")
    config["runner"] |= {"strive_ratio": 0.1, "observation": ["dev", "per"]} | runner
    config["optimizer"] = {"name": "ChildnetAdamW", "lr": 3e-4, "reserve_p": [0.1, 0.01, 0.001]}
    return config


def test_released_keys_become_sections():
    config = translate(released())
    assert config["tuning"]["density"] == [0.1, 0.01, 0.001] and config["tuning"]["method"] == "child"
    assert config["early_stop"] == {"ratio": 0.1, "split": "dev", "metric": "per"}
    assert config["optimizer"] == {"name": "ChildnetAdamW", "lr": 3e-4}
    assert not {"strive_ratio", "observation"} & set(config["runner"])
    other = translate(released(observation=["dev", "per"], eval_dataloaders=["test", "dev-clean"]))
    assert other["early_stop"] == {"ratio": 0.1, "metric": "per"}, "the task's own dev"
    plain = load_yaml(shipped_dir("downstream_configs") / "pr" / "mini.yaml")
    assert translate(plain) == plain


def test_two_kinds_of_mixed_precision_contradict_each_other():
    config = load_yaml(shipped_dir("downstream_configs") / "pr" / "mini.yaml")
    for amp in ("fp16", None):
        config["runner"] |= {"fp16": True, "amp": amp}
        assert TaskFile.read(config).runner.amp == "fp16"
    config["runner"]["amp"] = "bf16"
    with pytest.raises(UsageError, match="runner.fp16: true and runner.amp: bf16 contradict each other"):
        TaskFile.read(config)


def test_released_and_own_keys_exclude_each_other():
    with pytest.raises(UsageError, match="keep one"):
        translate(released() | {"early_stop": {"ratio": 0.1}})
    with pytest.raises(UsageError, match="keep one"):
        translate(released() | {"tuning": {"method": "child", "density": 0.1}})
    with pytest.raises(UsageError, match="training loss"):
        translate(released(observation=["train", "loss"]))


def test_redrawn_gradients_cannot_be_clipped_by_the_norm_of_all():
    section = {"method": "child", "mask": "random", "density": 0.1, "redraw": True}
    with pytest.raises(UsageError, match=r"redraw draws which .*clip_scope all cannot .*: leave one of the two"):
        resolve_tuning(task_config(), section | {"clip_scope": "all"})
    assert resolve_tuning(task_config(), section).redraw
