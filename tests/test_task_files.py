"""The shipped task files of the seven SUPERB tasks: complete, and with the values they are meant to carry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s3prl_ext import plugin, run_downstream
from s3prl_ext.configs import expand_variables, load_yaml, shipped_dir
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import LAYOUTS
from s3prl_ext.studies.check import check_runs
from s3prl_ext.studies.plan import cells_of
from s3prl_ext.studies.study_file import read_study
from s3prl_ext.tasks import corpus_variables
from s3prl_ext.training.racing.race import judged_by
from s3prl_ext.training.task_file import TaskFile
from s3prl_ext.training.tuning_config import FisherConfig
from tests.support.experiments import make_args

TASKS = ("ks", "ic", "sid", "asr", "pr", "sf", "sd")
PRESETS = ("superb", "ad_tuning", "mini")
RUNNER_KEYS = {
    "total_steps",
    "gradient_clipping",
    "gradient_accumulate_steps",
    "log_step",
    "eval_step",
    "save_step",
    "max_keep",
    "eval_dataloaders",
}
# Keys that s3prl's experts read without a default: dotted below downstream_expert.
UTTERANCE_KEYS = {"modelrc.projector_dim", "modelrc.select", "modelrc.UtteranceLevel.pooling"}
CTC_KEYS = {
    *(f"corpus.{key}" for key in ("name", "path", "train", "dev", "test", "bucketing", "batch_size", "num_workers")),
    *("text.mode", "text.vocab_file", "model.project_dim", "model.select", "model.zero_infinity"),
    *("metric", "metric_higher_better", "save_best_on"),
}
EXPERT_KEYS = {
    "ks": {
        *(
            f"datarc.{key}"
            for key in ("speech_commands_root", "speech_commands_test_root", "num_workers", "batch_size")
        ),
        *UTTERANCE_KEYS,
    },
    "ic": {
        *(f"datarc.{key}" for key in ("file_path", "num_workers", "train_batch_size", "eval_batch_size")),
        *UTTERANCE_KEYS,
    },
    "sid": {
        *(f"datarc.{key}" for key in ("file_path", "meta_data", "num_workers", "train_batch_size", "eval_batch_size")),
        *UTTERANCE_KEYS,
    },
    "asr": {
        *(f"datarc.{key}" for key in ("train", "dev-clean", "test-clean", "batch_size", "eval_batch_size")),
        *(f"datarc.{key}" for key in ("libri_root", "bucket_file", "dict_path", "zero_infinity", "num_workers")),
        *("modelrc.project_dim", "modelrc.select", "modelrc.RNNs.total_rate", "modelrc.RNNs.dim"),
    },
    "pr": {*CTC_KEYS, "corpus.lexicon"},
    "sf": {*CTC_KEYS, "corpus.train_speakers", "corpus.valid_speakers", "corpus.test_speakers", "text.slots_file"},
    "sd": {
        *(f"datarc.{key}" for key in ("chunk_size", "frame_shift", "subsampling", "num_speakers", "rate")),
        *(f"loaderrc.{key}" for key in ("num_workers", "train_batchsize", "eval_batchsize")),
        *("loaderrc.train_dir", "loaderrc.dev_dir", "loaderrc.test_dir", "scorerc.save_predictions"),
        *("modelrc.rnn_layers", "modelrc.hidden_size"),
    },
}
BATCH_KEY = {"ks": "datarc.batch_size", "ic": "datarc.train_batch_size", "sid": "datarc.train_batch_size"}
BATCH_KEY |= {"asr": "datarc.batch_size", "pr": "corpus.batch_size", "sf": "corpus.batch_size"}
BATCH_KEY |= {"sd": "loaderrc.train_batchsize"}

# Steps, batch, accumulation, learning rate, warm-up steps, evaluation interval.
VALUES = {
    ("ks", "superb"): (200000, 32, 1, 1e-4, 0, 5000),
    ("ic", "superb"): (200000, 32, 1, 1e-4, 0, 5000),
    ("sid", "superb"): (200000, 8, 4, 1e-4, 0, 5000),
    ("asr", "superb"): (200000, 32, 1, 1e-4, 0, 2000),
    ("pr", "superb"): (100000, 16, 2, 1e-2, 0, 1000),
    ("sf", "superb"): (200000, 32, 1, 1e-4, 0, 2000),
    ("sd", "superb"): (30000, 8, 4, 1e-4, 0, 500),
    ("ks", "ad_tuning"): (50000, 32, 1, 5e-4, 0, 1000),
    ("ic", "ad_tuning"): (200000, 12, 1, 5e-4, 1000, 5000),
    ("sid", "ad_tuning"): (200000, 8, 4, 1e-3, 5000, 5000),
    ("asr", "ad_tuning"): (200000, 16, 1, 1e-4, 0, 2000),
    ("pr", "ad_tuning"): (100000, 4, 2, 3e-4, 5000, 1000),
    ("sf", "ad_tuning"): (200000, 8, 1, 5e-5, 0, 2000),
    ("sd", "ad_tuning"): (30000, 4, 4, 5e-4, 0, 500),
}


def task_file(task: str, preset: str) -> Path:
    """Return the path of a shipped task file."""
    return shipped_dir("downstream_configs") / task / f"{preset}.yaml"


def value_at(mapping: dict, dotted: str):
    """Return the value at a dotted key; KeyError where it is missing."""
    for key in dotted.split("."):
        mapping = mapping[key]
    return mapping


@pytest.fixture(params=[(task, preset) for task in TASKS for preset in PRESETS], ids="/".join)
def shipped(request) -> tuple[str, str, dict]:
    """Return task, preset and content of each shipped file."""
    task, preset = request.param
    return task, preset, load_yaml(task_file(task, preset))


def test_file_has_the_keys_that_runner_and_expert_read(shipped):
    task, preset, config = shipped
    assert set(config["runner"]) == RUNNER_KEYS
    for key in EXPERT_KEYS[task]:
        value_at(config["downstream_expert"], key)
    known = {"runner", "optimizer", "scheduler", "specaug", "tuning", "early_stop", "downstream_expert"}
    assert set(config) <= known
    assert ("tuning" in config) == ("early_stop" in config) == (preset == "ad_tuning")
    assert isinstance(config["optimizer"]["lr"], float)
    # s3prl neither evaluates nor saves at the end, so the last step has to be a multiple of both.
    assert config["runner"]["total_steps"] % config["runner"]["save_step"] == 0
    assert config["runner"]["total_steps"] % config["runner"]["eval_step"] == 0
    dev = {"asr": "dev-clean"}.get(task, "dev")
    assert dev in config["runner"]["eval_dataloaders"]


def test_presets_carry_the_published_values(shipped):
    task, preset, config = shipped
    if preset == "mini":
        expected = config["runner"]["total_steps"]
        assert expected <= 500 and value_at(config["downstream_expert"], BATCH_KEY[task]) in (4, 8)
        return
    found = (
        config["runner"]["total_steps"],
        value_at(config["downstream_expert"], BATCH_KEY[task]),
        config["runner"]["gradient_accumulate_steps"],
        config["optimizer"]["lr"],
        config.get("scheduler", {}).get("num_warmup_steps", 0),
        config["runner"]["eval_step"],
    )
    assert found == VALUES[task, preset]


# k, the step at which the released settings compare the candidates
COMPARED_AT = {"asr": 40000, "sf": 40000, "pr": 10000, "sd": 3000, "sid": 20000, "ic": 20000, "ks": 5000}


@pytest.mark.parametrize("task", TASKS)
def test_released_settings_race_three_densities(task, monkeypatch):
    for name in corpus_variables():
        monkeypatch.setenv(name, "/somewhere")
    file = TaskFile.read(expand_variables(load_yaml(task_file(task, "ad_tuning"))))
    assert [tuning.density for tuning in file.tunings] == [0.1, 0.01, 0.001]
    assert {(tuning.method, tuning.mask) for tuning in file.tunings} == {("child", "fisher")}
    steps = VALUES[task, "ad_tuning"][2]
    assert {tuning.fisher for tuning in file.tunings} == {
        FisherConfig("batch", "tensor", 1.0, "train", "task", None, steps)
    }
    total, k = file.runner.total_steps, COMPARED_AT[task]
    assert file.early_stop.keep == 1 and file.early_stop.steps_before_cut(total) == k
    assert file.early_stop.budget(3, total) == 3 * k + total - k
    assert judged_by(None, LAYOUTS[task].task, ["loss", file.early_stop.metric]) == file.early_stop.metric


def test_every_variable_is_explained_and_no_path_is_someones_own(shipped):
    task, preset, _ = shipped
    text = task_file(task, preset).read_text()
    used = set(re.findall(r"\$\{([A-Z0-9_]+)", text)) - {"S3PRL_EXT_DOWNSTREAM_CONFIGS", "S3PRL_PACKAGE"}
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert used and all(f"# {name}:" in comments for name in used)
    assert not re.search(r"/(home|groups|app)/", text)


def test_unset_variable_names_itself_and_the_key(shipped, monkeypatch):
    _, _, config = shipped
    for name in ("SPEECH_COMMANDS", "FLUENT_SPEECH_COMMANDS", "VOXCELEB1", "VOXCELEB1_SPLIT", "LIBRISPEECH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("LIBRISPEECH_LENGTHS", "LIBRISPEECH_LEXICON", "AUDIO_SNIPS", "LIBRI2MIX_DIARIZATION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=r"config\.downstream_expert\..* needs the environment variable"):
        expand_variables(config)


def test_files_named_beside_a_task_file_are_shipped():
    folder = shipped_dir("downstream_configs")
    named = {
        name
        for path in folder.glob("*/*.yaml")
        for name in re.findall(r"\$\{S3PRL_EXT_DOWNSTREAM_CONFIGS\}/(\S+)", path.read_text())
    }
    assert {"asr/char.dict", "pr/phoneme.txt", "sf/character.txt"} <= named
    assert all((folder / name).is_file() for name in named)


def test_vocabularies_have_the_size_of_the_published_models():
    folder = shipped_dir("downstream_configs")
    symbols = [line.split() for line in (folder / "asr/char.dict").read_text().splitlines()]
    assert len(symbols) == 28 and symbols[0] == ["|", "1980202"] and all(count.isdigit() for _, count in symbols)
    phones = (folder / "pr/phoneme.txt").read_text().splitlines()
    assert len(phones) == len(set(phones)) == 71 and phones[:3] == ["SIL", "SPN", "AA0"] and phones[-1] == "ZH"
    characters = (folder / "sf/character.txt").read_text().split("\n")[:-1]
    assert characters == [" ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'"]


# Of the tasks that came later: steps, key and size of a batch, accumulation, learning rate, evaluation interval, as in s3prl.
LATER = {
    "er/superb": (30000, "datarc.train_batch_size", 4, 8, 1e-4, 1000),
    "asv/superb": (200000, "datarc.train_batch_size", 10, 5, 1e-4, 10000),
    "se/superb": (150000, "loaderrc.train_batchsize", 8, 1, 1e-4, 1250),
    "ss/superb": (150000, "loaderrc.train_batchsize", 8, 1, 1e-4, 2000),
    "ood/es": (500000, "corpus.batch_size", 16, 1, 1e-4, 2000),
    "ood/ar": (500000, "corpus.batch_size", 16, 1, 1e-4, 5000),
    "ood/zh": (500000, "corpus.batch_size", 16, 1, 1e-4, 5000),
    "ood/sbcsae": (500000, "corpus.batch_size", 16, 1, 1e-4, 2000),
}


@pytest.mark.parametrize("preset", LATER)
def test_values_of_the_later_tasks(preset):
    task, name = preset.split("/")
    config = load_yaml(task_file(task, name))
    steps, key, batch, accumulated, rate, interval = LATER[preset]
    section, _, last = key.partition(".")
    runner = config["runner"]
    assert (runner["total_steps"], runner["gradient_accumulate_steps"], runner["eval_step"]) == (
        steps,
        accumulated,
        interval,
    )
    assert config["downstream_expert"][section][last] == batch and config["optimizer"]["lr"] == rate


def test_query_by_example_searches_as_s3prl_does():
    section = load_yaml(task_file("qbe", "superb"))["downstream_expert"]
    assert section["feature_normalization"] is True and section["dtwrc"] == {
        "dist_method": "cosine_exp", "minmax_norm": True, "step_pattern": "asymmetric", "subsequence": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("sf", {"metric": ["slot_value_cer", "slot_type_f1"]}, "slot_value_cer, of which lower is better"),
        ("pr", {"metric_higher_better": True}, "set metric_higher_better to False"),
        ("sf", {"metric_higher_better": "False", "metric": ["wer"]}, "metric_higher_better is 'False'"),
        ("pr", {"metric": "per"}, r"metric must be a list of names such as \[per\], got 'per'"),
        ("pr", {"metric": []}, "metric is empty"),
        ("sf", {"metric": ["slot_value_cer"], "metric_higher_better": False}, None),
        ("sf", {"metric": ["mine", "wer"]}, None),
    ],
)
def test_the_checkpoint_that_is_kept_is_the_best_one(task, changes, said, monkeypatch):
    for name in corpus_variables():
        monkeypatch.setenv(name, "/somewhere")
    config = expand_variables(load_yaml(task_file(task, "superb")))
    config["downstream_expert"] |= changes
    if said is None:
        assert TaskFile.read(config, downstream="ctc").config == config
        return
    with pytest.raises(UsageError, match=said):
        TaskFile.read(config, downstream="ctc")
    assert TaskFile.read(config, stored=True, downstream="ctc"), "a checkpoint of such a run is scored"


def test_it_is_judged_by_a_study_a_command_and_a_run(tmp_path, monkeypatch):
    for name in corpus_variables():
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "study.yaml").write_text(
        "upstreams: fbank\ntasks: sf\npreset: mini\nset: {downstream_expert.metric_higher_better: false}\n"
    )
    with pytest.raises(UsageError, match="set metric_higher_better to True"):
        check_runs(cells_of(read_study(tmp_path / "study.yaml"), tmp_path), variables=False)
    wrong = "config.downstream_expert.metric_higher_better=False"
    flags = ["-m", "train", "-u", "fbank", "-p", str(tmp_path), "-d", "ctc", "-c", "sf/mini", "-o", wrong]
    with pytest.raises(UsageError, match="set metric_higher_better to True"):
        run_downstream.complete(flags)
    plugin.install()
    from s3prl_ext.training.runner import Runner

    config = load_yaml(task_file("sf", "mini"))
    config["downstream_expert"]["metric_higher_better"] = False
    with pytest.raises(UsageError, match="set metric_higher_better to True"):
        Runner(make_args(tmp_path / "exp", downstream="ctc"), config)


@pytest.mark.parametrize("metric", [{"metric": "acc"}, {"metric": {"name": "wer"}}, {"metric": ["wer"]}, {}])
def test_a_task_of_an_extension_means_its_own_by_the_keys_of_ctc(metric, monkeypatch):
    monkeypatch.setenv("SPEECH_COMMANDS", "/somewhere")
    config = expand_variables(load_yaml(task_file("ks", "mini")))
    config["downstream_expert"] = {**metric, "metric_higher_better": True, "datarc": {}}
    assert TaskFile.read(config, downstream="my_task").config == config
