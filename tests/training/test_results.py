"""Result files of real runs: complete, valid, and a record of what failed."""

from __future__ import annotations

import copy
import getpass
import hashlib
import json
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from s3prl_ext.configs import expand_variables
from s3prl_ext.corpora import esc50, librispeech, ljspeech, vctk
from s3prl_ext.errors import DataError, ExtError, StoppedByUser, UsageError
from s3prl_ext.evaluation.result_records import OUTCOME, SCHEMA, problems, read_record
from s3prl_ext.run_folder import RunFolder
from s3prl_ext.training import checkpoint
from s3prl_ext.training.batching import corpus_hash
from s3prl_ext.training.batching.corpus_hash import Corpus
from s3prl_ext.training.forward import TaskFailed
from s3prl_ext.training.results import provenance, result_file
from s3prl_ext.training.train_state import Diverged
from tests.support.experiments import interrupt_at_loss, make_args, task_config


@pytest.fixture
def runner(build, tmp_path):
    return build(make_args(tmp_path / "exp"), task_config("ks", total_steps=2))


def test_a_training_writes_a_complete_record(runner, tmp_path):
    runner.train()
    path = tmp_path / "exp" / "result.json"
    content = json.loads(path.read_text())
    assert problems(content) == [] and read_record(path)["schema"] == SCHEMA
    assert set(OUTCOME) <= set(content)
    assert content["error"] is None and content["step"] == 2
    assert content["data"]["files"] > 10 and len(content["data"]["sha256"]) == 64
    assert 0 < content["seconds_per_step"] < content["seconds"]
    assert content["peak_memory"]["process"] > 50e6 and content["machine"]["cpu"]
    assert all(row["unit"] for rows in content["metrics"].values() for row in rows.values())
    assert content["config"]["runner"]["total_steps"] == 2 and content["machine"]["processes"] == 1
    low, high = content["intervals"]["dev"]["acc"]
    assert low < content["metrics"]["dev"]["acc"]["value"] < high and content["items"]["dev"] > 5
    assert len(content["splits_sha256"]) == 64
    text = path.read_text()
    assert f'"{platform.node()}"' not in text and f'"{getpass.getuser()}"' not in text


def test_a_run_without_a_best_checkpoint_says_so(build, tmp_path, caplog):
    """ASR counts from a word error rate of 100 %, which two steps do not beat."""
    caplog.set_level("WARNING")
    for task, downstream in (("asr", "asr"), ("sd", "diarization")):
        build(make_args(tmp_path / task, downstream=downstream), task_config(task, total_steps=2)).train()
    (said,) = [line for line in caplog.messages if "no best checkpoint" in line]
    assert (
        "no delta.safetensors" in said
        and "none of the 1 evaluations" in said
        and f"{tmp_path}/asr/states-2.ckpt" in said
    )
    assert (tmp_path / "asr" / "states-2.ckpt").is_file() and (tmp_path / "sd" / "best-states-dev.ckpt").is_file()


def test_a_failed_run_is_recorded_and_a_later_success_takes_the_record_away(runner, build, tmp_path):
    def broken(*inputs, **kwargs):
        raise RuntimeError("the loss is broken")

    forward = runner.downstream.model.forward
    runner.downstream.model.forward = broken
    with pytest.raises(TaskFailed):
        runner.train()
    failed = tmp_path / "exp" / "result-failed.json"
    content = json.loads(failed.read_text())
    assert problems(content) == [] and "RuntimeError: the loss is broken" in content["error"]
    assert not (tmp_path / "exp" / "result.json").exists()
    runner.downstream.model.forward = forward
    runner.train()
    assert (tmp_path / "exp" / "result.json").is_file() and not failed.exists()


@pytest.mark.parametrize(
    ("error", "active", "begun", "recorded"),
    [
        (UsageError("a flag"), True, True, False),
        (StoppedByUser("a stop"), True, True, False),
        (DataError("a file"), True, False, False),
        (FileNotFoundError("a file"), True, False, False),
        (DataError("a file"), True, True, True),
        (RuntimeError("a crash"), True, False, True),
        (Diverged("not finite"), True, False, True),
        (RuntimeError("a crash"), False, True, False),  # another rank
    ],
)
def test_what_counts_as_a_failed_run(tmp_path, error, active, begun, recorded):
    args = make_args(tmp_path / "exp", mode="evaluate")
    if begun:
        (tmp_path / "exp" / "states-1.ckpt").touch()
    with pytest.raises(type(error)), result_file.failures_recorded(args, {}, "test", active=active):
        raise error
    failed = tmp_path / "exp" / "result-test-failed.json"
    assert failed.is_file() == recorded
    assert not recorded or json.loads(failed.read_text())["diverged"] == isinstance(error, Diverged)


def test_intervals_and_items_are_kept_as_plain_values(tmp_path):
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="ljspeech")
    found = {"test": {"wer": (4.0, 6.5)}}
    path = result_file.write(
        args, {}, {"test": {"wer": 5.0, "loss": 1.0}}, 0, 1.0, {}, intervals=found, items={"test": 9}
    )
    content = json.loads(path.read_text())
    assert content["intervals"] == {"test": {"wer": [4.0, 6.5]}} and content["items"] == {"test": 9}


FIRST = {
    "upstream_sha256": "a" * 64, "upstream_settings": {"HubertConfig.num_attention_heads": 2, "transformers": "5.0"},
    "weights_sha256": "1" * 64, "merge": None,
}  # fmt: skip
MERGE = {
    "target": {"name": "/a/hubert", "attention_sha256": "d" * 64}, "biases": False,
    "sources": [{"name": "/a/minilm", "attention_sha256": "e" * 64, "lambda": {"query": [0.3]}, "layer_map": [0]}],
}  # fmt: skip
# What an evaluation of acc 0.75 has otherwise than that of acc 0.5: task file, arguments, facts of its result, step ->
# what the earlier one is said to be of; None where both are the same evaluation.
OTHER_EVALUATIONS = {
    "the same": ({}, {}, {}, 7, None),
    "moved, with more workers": (
        {"downstream_expert": {"datarc": {"num_workers": 9}}}, {"init_ckpt": "/new/exp/dev-best.ckpt"}, {}, 7, None,
    ),
    "a model that was moved": ({}, {"upstream_ckpt": "/new/hubert.pt"}, {}, 7, None),
    "another model that was moved there": (
        {}, {"upstream_ckpt": "/new/hubert.pt"}, {"upstream_sha256": "b" * 64}, 7,
        "another upstream (upstream_sha256 aaaaaaaaaaaa in place of bbbbbbbbbbbb)",
    ),
    "a part of the split": (
        {"runner": {"evaluate_ratio": 0.1}}, {}, {}, 7,
        "other settings (runner.evaluate_ratio nothing in place of 0.1)",
    ),
    "another layer": (
        {}, {"upstream_layer_selection": 3}, {}, 7, "other settings (args.upstream_layer_selection -1 in place of 3)",
    ),
    "another task": (
        {}, {"downstream": "sv_voxceleb1"}, {}, 7, "other settings (-d speech_commands in place of sv_voxceleb1)",
    ),
    "the last": ({}, {"init_ckpt": "exp/states-7.ckpt"}, {}, 7, "another checkpoint (exp/dev-best.ckpt, step 7)"),
    "a later best": ({}, {}, {}, 9, "another checkpoint (exp/dev-best.ckpt, step 7)"),
    "other weights in its place": ({}, {}, {"weights_sha256": "2" * 64}, 7,
                                   "another checkpoint (exp/dev-best.ckpt, step 7)"),
    "another upstream": ({}, {"upstream": "mfcc"}, {}, 7, "another upstream (upstream fbank in place of mfcc)"),
    "settings of the upstream": (
        {}, {}, {"upstream_settings": {"HubertConfig.num_attention_heads": 1, "transformers": "5.0"}}, 7,
        "another upstream (HubertConfig.num_attention_heads 2 instead of 1)",
    ),
    "options": (
        {}, {"upstream_model_config": "lambda=0.3"}, {}, 7,
        "another upstream (upstream_model_config nothing in place of lambda=0.3)",
    ),
    "merged": ({}, {"upstream_model_config": "merge.yaml"}, {"merge": MERGE}, 7,
               "another merge (lambda nothing in place of 0.3, layers nothing in place of all, "),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_EVALUATIONS)
def test_an_evaluation_does_not_overwrite_that_of_another_model_or_of_other_settings(tmp_path, name, caplog):
    config, changes, facts, step, said = OTHER_EVALUATIONS[name]
    args = make_args(
        tmp_path / "exp", mode="evaluate", init_ckpt="exp/dev-best.ckpt", upstream_layer_selection=-1,
        upstream_ckpt="hubert.pt",
    )  # fmt: skip
    first = {"runner": {"total_steps": 9}}
    path = result_file.write(args, first, {"test": {"acc": 0.5}}, 7, 1.0, {}, **FIRST)
    vars(args).update(changes)
    result_file.write(args, {**first, **config}, {"test": {"acc": 0.75}}, step, 1.0, {}, **(FIRST | facts))
    assert json.loads(path.read_text())["metrics"]["test"]["acc"]["value"] == 0.75
    kept = path.with_name("result-test.json.step-7")
    assert kept.is_file() == (said is not None)
    if said is not None:
        assert json.loads(kept.read_text())["metrics"]["test"]["acc"]["value"] == 0.5
        assert f"{path} was the result of {said}" in caplog.text and f"): it is kept as {kept.name}" in caplog.text


def test_evaluations_of_other_models_in_one_folder_are_kept_and_moved_ones_are_the_same(build, tmp_path):
    """A trained head scored from a copy of its run on a copy of its corpus, then another head, then none."""

    def scored(run: str | None, root: Path | None = None, **changes) -> list[str]:
        config = copy.deepcopy(task_config("ks"))
        config["downstream_expert"]["datarc"] |= {} if root is None else roots(root)
        ckpt = {} if run is None else dict.fromkeys(("past_exp", "init_ckpt"), str(tmp_path / run / "states-1.ckpt"))
        build(make_args(tmp_path / "scored", mode="evaluate", **ckpt, **changes), config).evaluate()
        return sorted(path.name for path in (tmp_path / "scored").glob("result-test.json*"))

    def roots(root: Path) -> dict[str, str]:
        paths = task_config("ks")["downstream_expert"]["datarc"]
        return {key: str(root / Path(path).name) for key, path in paths.items() if "${" in str(path)}

    for name, rate in (("a", 0.1), ("b", 0.5)):
        config = task_config("ks", total_steps=1)
        config["optimizer"]["lr"] = rate
        build(make_args(tmp_path / name / "exp"), config).train()
    expanded = expand_variables(task_config("ks"))["downstream_expert"]["datarc"]
    for key, path in roots(tmp_path / "corpus").items():
        shutil.copytree(expanded[key], path, dirs_exist_ok=True)
    assert scored("a/exp") == ["result-test.json"]
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert scored("moved/exp", tmp_path / "corpus") == ["result-test.json"]
    assert scored("b/exp") == ["result-test.json", "result-test.json.step-1"]
    assert scored(None) == ["result-test.json", "result-test.json.step-1", "result-test.json.step-1-2"]
    assert "result-test.json.step-0" in scored(None, upstream="mfcc")


@pytest.mark.parametrize(
    ("field", "changes"),
    [("init_ckpt", {"init_ckpt": "exp/lr=0.01/seed=0/dev-best.ckpt"}), ("upstream_ckpt", {"upstream_ckpt": "b/h.pt"})],
)
def test_evaluations_that_do_not_say_their_weights_are_told_apart_by_the_places_of_these(tmp_path, field, changes):
    args = make_args(
        tmp_path / "exp", mode="evaluate", init_ckpt="exp/lr=0.1/seed=0/dev-best.ckpt", upstream_ckpt="a/h.pt"
    )
    path = result_file.write(args, {}, {"test": {"acc": 0.5}}, 7, 1.0, {})
    setattr(args, field, str(Path(getattr(args, field)).absolute()))
    result_file.write(args, {}, {"test": {"acc": 0.625}}, 7, 1.0, {}, **FIRST)
    assert list(path.parent.glob("result*")) == [path], "the same place, written otherwise"
    vars(args).update(changes)
    result_file.write(args, {}, {"test": {"acc": 0.75}}, 7, 1.0, {})
    assert json.loads(path.with_name("result-test.json.step-7").read_text())["metrics"]["test"]["acc"]["value"] == 0.625


def test_evaluations_of_several_checkpoints_of_verification_stand_beside_each_other(tmp_path):
    """SUPERB reports the best of them."""
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="sv_voxceleb1")

    def evaluate(step: int, eer: float, ckpt: str | None = None, **runner) -> None:
        args.init_ckpt = f"exp/{ckpt or f'states-{step}.ckpt'}"
        result_file.write(args, {"runner": runner}, {"test": {"EER": eer}}, step, 1.0, {})

    def found() -> dict[str, tuple[int, float]]:
        records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "exp").iterdir()}
        return {name: (one["step"], one["metrics"]["test"]["EER"]["value"]) for name, one in records.items()}

    for step, eer in ((20, 0.6), (40, 0.5), (60, 0.7)):
        evaluate(step, eer)
    three = {
        "result-test.json": (60, 0.7),
        "result-test-step-20.json": (20, 0.6),
        "result-test-step-40.json": (40, 0.5),
    }
    assert found() == three
    evaluate(20, 0.61)
    again = {
        "result-test.json": (20, 0.61),
        "result-test-step-40.json": (40, 0.5),
        "result-test-step-60.json": (60, 0.7),
    }
    assert found() == again | {"result-test-step-20.json.step-20": (20, 0.6)}, "one step counts once, and none is lost"
    args.init_ckpt = "other/states-20.ckpt"
    result_file.write(args, {"runner": {}}, {"test": {"EER": 0.1}}, 20, 1.0, {})
    assert found()["result-test.json.step-20"] == (20, 0.61) and "result-test-step-20.json" not in found()
    evaluate(20, 0.62, evaluate_ratio=0.1)
    assert found()["result-test.json.step-20-2"] == (20, 0.1), "with other settings"
    evaluate(60, 0.7, "dev-best.ckpt", evaluate_ratio=0.1)
    evaluate(20, 0.63, evaluate_ratio=0.1)
    assert found()["result-test.json.step-60"] == (60, 0.7) and "result-test-step-60.json" in found()


def test_wall_time_and_memory_count_all_sessions(tmp_path, build):
    config = task_config("ks", total_steps=3, save_step=1)
    first = build(make_args(tmp_path / "exp"), config)
    interrupt_at_loss(first, 2)
    with pytest.raises(StoppedByUser):
        first.train()
    newest = RunFolder(tmp_path / "exp").numbered()[-1]
    states = checkpoint.load(newest)
    cost = states[checkpoint.EXTENSION_KEY]["spent"]
    assert 0 < cost["seconds"] < 60 and cost["process"] > 50e6
    cost |= {"seconds": 1000.0, "process": 2**50}  # as if the first session had been long and large
    checkpoint.save(states, newest)
    args = make_args(tmp_path / "exp")
    args.init_ckpt, args.past_exp = str(newest), str(newest)
    build(args, config).train()
    content = json.loads((tmp_path / "exp" / "result.json").read_text())
    assert 1000 < content["seconds"] < 1060 and content["peak_memory"]["process"] == 2**50
    assert content["seconds_per_step"] < 60


def test_commit_of_a_checkout_and_of_none(tmp_path):
    assert provenance.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("a")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert provenance.commit(tmp_path) == head
    (tmp_path / "file").write_text("b")
    assert provenance.commit(tmp_path) == f"{head}-dirty"


# -- the corpus --------------------------------------------------------------------------------------------------------


def libri(folder, **splits):
    """Write a corpus root with one folder per split; returns the task file for asr."""
    for split, files in splits.items():
        for name, text in files.items():
            path = folder / split.replace("_", "-") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return {"downstream_expert": {"datarc": {"libri_root": str(folder), "train": ["train-clean-100"]}}}


def test_the_hash_depends_on_names_and_sizes_not_on_the_place(tmp_path):
    files = {"1/a.flac": "xx", "1/b.flac": "y"}
    first = Corpus("asr", libri(tmp_path / "first", train_clean_100=files)).hash
    assert first == Corpus("asr", libri(tmp_path / "second", train_clean_100=files)).hash
    assert first["files"] == 2 and first["bytes"] == 3
    longer = Corpus("asr", libri(tmp_path / "third", train_clean_100=files | {"1/b.flac": "yy"})).hash
    renamed = Corpus("asr", libri(tmp_path / "fourth", train_clean_100={"1/a.flac": "xx", "1/c.flac": "y"})).hash
    assert len({first["sha256"], longer["sha256"], renamed["sha256"]}) == 3


def test_only_the_folders_that_are_read_count(tmp_path):
    config = libri(tmp_path / "a", train_clean_100={"a.flac": "x"}, test_other={"b.flac": "x"})
    assert Corpus("asr", config).hash["files"] == 1
    del config["downstream_expert"]["datarc"]["train"]
    assert Corpus("asr", config).hash["files"] == 2


CORPORA = {
    "ljspeech": ("path", ljspeech.CARD.folder, ["metadata.csv", "wavs/a.wav"]),
    "vctk": ("path", vctk.CARD.folder, [f"{name}/a" for name in vctk.CARD.contents[:2]]),
    "librispeech_zeroshot": (
        "path",
        librispeech.CARD.folder,
        ["test-clean/1/2/1-2.trans.txt", "test-clean/1/2/a.flac"],
    ),
    "esc50": ("esc50_root", esc50.CARD.folder, [str(esc50.META), "audio/a.wav"]),
}


def hash_of(task, path):
    config = {"downstream_expert": {"datarc": {CORPORA[task][0]: str(path), "split": "hash"}}}
    return Corpus(task, config).hash


def lay_out(folder, files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("xx")


@pytest.mark.parametrize("task", CORPORA)
def test_a_corpus_is_the_same_where_the_folder_that_holds_it_is_named(task, tmp_path):
    """What else lies there, such as another corpus or the run itself, does not count."""
    _, own, files = CORPORA[task]
    lay_out(tmp_path / own, files)
    direct = hash_of(task, tmp_path / own)
    lay_out(tmp_path, ["exp/states-2.ckpt"])
    assert hash_of(task, tmp_path) == direct and direct["files"] == 2


@pytest.mark.parametrize("task", CORPORA)
def test_what_is_hashed_is_the_corpus_that_the_task_reads(task, tmp_path):
    """An archive that was unpacked a second time, inside the corpus, does not take its place."""
    _, own, files = CORPORA[task]
    lay_out(tmp_path, files)
    lay_out(tmp_path / own, [*files, "further"])
    assert hash_of(task, tmp_path)["files"] == 5
    assert hash_of(task, tmp_path / "nowhere") is None


def test_hidden_files_links_in_a_circle_and_tables_of_paths(tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    for name in ("segments", "wav.scp", ".hidden"):
        (root / name).write_text("x")
    (root / "loop").symlink_to(root)
    assert Corpus("diarization", {"downstream_expert": {"loaderrc": {"train_dir": str(root)}}}).hash["files"] == 1


def test_the_hash_is_that_of_names_and_sizes_in_order(tmp_path):
    """Links count with what they lead to, a folder once (under the first of its names), broken ones and hidden ones never."""
    root = tmp_path / "corpus"
    for name in ("b/c/x.wav", "b/y.wav", "top.csv", ".git/z.wav", "b/._x.wav", "b/wav.scp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "w.wav").write_text("w")
    for name in ("a", "a-b"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    (root / "b" / "back").symlink_to(root)
    (root / "b" / "broken.wav").symlink_to(tmp_path / "nowhere")
    (root / "b" / "link.wav").symlink_to(root / "b" / "y.wav")
    rows = [("a/w.wav", 1), ("b/c/x.wav", 9), ("b/link.wav", 7), ("b/y.wav", 7), ("top.csv", 7)]
    text = "".join(f"datarc.esc50_root/0/{name}\t{size}\n" for name, size in rows)
    found = Corpus("esc50", {"downstream_expert": {"datarc": {"esc50_root": str(root)}}}).hash
    assert found["sha256"] == hashlib.sha256(text.encode()).hexdigest() and found["files"] == len(rows)


def test_a_run_lists_its_corpus_once(build, tmp_path, monkeypatch):
    listed: list[str] = []
    entries = corpus_hash._entries
    monkeypatch.setattr(corpus_hash, "_entries", lambda folder: listed.append(folder) or entries(folder))
    runner = build(make_args(tmp_path / "exp"), task_config("ks", total_steps=2))
    runner.train()
    assert (tmp_path / "exp" / "result.json").is_file()
    assert len(listed) == len(set(listed)) > 12


def test_nothing_to_hash():
    assert Corpus("unknown", {}).hash is None
    assert Corpus("esc50", {"downstream_expert": {"datarc": {"esc50_root": "/nowhere"}}}).hash is None


def test_the_lists_that_divide_a_corpus_count_with_their_content(tmp_path):
    def asr(name: str, rows: str, split: str = "train-clean-100"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "train-clean-100.csv").write_text(rows)
        return {"downstream_expert": {"datarc": {"bucket_file": str(folder), "train": [split]}}}

    first = Corpus("asr", asr("a", ",file_path,length,label\n0,x.flac,5,A\n")).splits_sha256
    assert first == Corpus("asr", asr("b", ",file_path,length,label\n0,x.flac,5,A\n")).splits_sha256
    other = Corpus("asr", asr("c", ",file_path,length,label\n0,y.flac,5,A\n")).splits_sha256  # as long as the first
    renamed = Corpus("asr", asr("d", ",file_path,length,label\n0,x.flac,5,A\n", split="train-10h")).splits_sha256
    assert len({first, other, renamed}) == 3


@pytest.mark.parametrize("task", ["ks", "ic", "sid", "asr", "pr", "sf", "sd"])
def test_every_task_of_superb_has_hashes_of_corpus_and_division(task, corpus_variables):
    config = expand_variables(task_config(task))
    name = {"ks": "speech_commands", "ic": "fluent_commands", "sid": "voxceleb1", "asr": "asr", "sd": "diarization"}
    found = Corpus(name.get(task, "ctc"), config).hash["sha256"], Corpus(name.get(task, "ctc"), config).splits_sha256
    assert all(len(digest) == 64 for digest in found) and found[0] != found[1]


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ["split 'dev'", "does not fit", "evaluation batch size"]),
        (MemoryError(), ["split 'dev'", "does not fit"]),
        (ValueError("clip utt-17 is too odd"), ["of split 'dev'", ".wav", "ValueError: clip utt-17 is too odd"]),
        (AssertionError(), ["of split 'dev'", "AssertionError: no message"]),
    ],
)
def test_an_evaluation_that_fails_says_where(runner, monkeypatch, error, parts):
    expert = runner.downstream.model
    forward = expert.forward

    def failing(split, *inputs, **kwargs):
        if split == "dev":
            raise error
        return forward(split, *inputs, **kwargs)

    monkeypatch.setattr(expert, "forward", failing)
    with pytest.raises(ExtError) as raised:
        runner.train()
    assert all(part in str(raised.value) for part in parts), raised.value
