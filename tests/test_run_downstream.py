"""Completing the command line of run_downstream before s3prl parses it."""

from __future__ import annotations

import os
from argparse import Namespace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from s3prl.utility.helper import override

from s3prl_ext import run_downstream
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import DataError, UsageError, one_sentence_errors, sentence, show_errors_as_sentences
from s3prl_ext.run_flags import overrides_of
from s3prl_ext.training import checkpoint


@pytest.fixture(autouse=True)
def corpora(monkeypatch):
    for name in ("SPEECH_COMMANDS", "FLUENT_SPEECH_COMMANDS", "LIBRISPEECH", "LIBRI2MIX_DIARIZATION", "VOXCELEB1"):
        monkeypatch.setenv(name, "/corpora")
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def command(tmp_path, *flags):
    return ["-m", "train", "-u", "fbank", "-p", str(tmp_path / "exp"), *flags]


def value_of(argv, flag):
    """Return the last value of a flag, the one that argparse takes."""
    return [b for a, b in pairwise(argv) if a == flag][-1]


@pytest.mark.parametrize(
    ("flags", "preset"),
    [
        (["-d", "asr", "-c", "asr/ad_tuning"], "asr/ad_tuning"),
        (["-d", "asr"], "asr/superb"),
        (["-d", "speech_commands"], "ks/superb"),
        (["-d", "diarization", "-c", "sd/mini.yaml"], "sd/mini"),
    ],
)
def test_task_files_are_found(tmp_path, flags, preset):
    argv = run_downstream.complete(command(tmp_path, *flags))
    assert value_of(argv, "-c") == str(shipped_dir("downstream_configs") / f"{preset}.yaml")


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text((shipped_dir("downstream_configs") / "ks" / "mini.yaml").read_text())
    argv = run_downstream.complete(command(tmp_path, "-d", "speech_commands", "-c", str(own)))
    assert value_of(argv, "-c") == str(own)


def test_completing_twice_changes_nothing(tmp_path):
    once = run_downstream.complete(command(tmp_path, "-d", "asr"))
    assert run_downstream.complete(once) == once


@pytest.mark.skipif(torch.cuda.is_available(), reason="without CUDA only")
def test_cpu_where_there_is_no_cuda(tmp_path):
    argv = run_downstream.complete(command(tmp_path, "-d", "asr"))
    assert value_of(argv, "--device") == "cpu" and value_of(argv, "--backend") == "gloo"
    given = run_downstream.complete(command(tmp_path, "-d", "asr", "--device", "cpu:0"))
    assert value_of(given, "--device") == "cpu:0"


def test_ranks_of_launchers(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    launched = run_downstream.complete(command(tmp_path, "-d", "asr", "--local-rank=1"))
    assert "--local_rank=1" in launched and "--local-rank=1" not in launched
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert "--local_rank=3" in run_downstream.complete(command(tmp_path, "-d", "asr"))
    assert "--local_rank=3" not in run_downstream.complete(command(tmp_path, "-d", "asr", "--local_rank=1"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-d", "asrr"], r"unknown task \(-d\) 'asrr'; did you mean 'asr'"),
        (["-d", "asr", "-u", "fbnk"], r"unknown upstream \(-u\) 'fbnk'; did you mean 'fbank'"),
        (["-d", "asr", "-c", "asr/superbb"], "did you mean 'asr/superb'"),
        (["-d", "ctc"], "pr/superb"),
        (["-d", "mosei"], "-c is missing: name the task file of -d mosei"),
        (["-d", "asr", "-e", "/nowhere"], "no such checkpoint"),
        (["-d", "asr", "-i", "/nowhere"], "no such checkpoint"),
        (["-d", "asr", "-o", "optimizer.lr=1"], "config.KEY=VALUE"),
        (["-d", "asr", "-o", "config.optimizer.lr=1=2"], "config.KEY=VALUE"),
        (["-d", "asr", "--push_to_hf_hub", "True"], "hf upload"),
        (["-d", "asr", "--hub", "huggingface"], "hf_hubert_custom"),
    ],
)
def test_flags_that_cannot_work(tmp_path, flags, message):
    with pytest.raises(UsageError, match=message):
        run_downstream.complete(command(tmp_path, *flags))
    assert not (tmp_path / "exp").exists()


def given_to_s3prl(argv):
    """Return what s3prl makes of ``-o``: the arguments and the settings that it sets."""
    args, config = Namespace(), {}
    override(value_of(argv, "-o"), args, config)
    return vars(args), config


def test_lower_case_booleans_do_not_reach_s3prl_as_text(tmp_path):
    """s3prl keeps what is not a Python literal as text, and the text 'false' is true."""
    options = (
        "args.upstream_trainable=false,,args.upstream_feature_normalize=false,,config.runner.total_steps=4,,"
        "config.runner.checkpoint_upstream=false,,config.runner.eval_dataloaders=[test],,"
        "config.downstream_expert.modelrc.select=UtteranceLevel,,args.until=null"
    )
    argv = run_downstream.complete(command(tmp_path, "-d", "speech_commands", "-o", options))
    args, config = given_to_s3prl(argv)
    assert args == {"upstream_trainable": False, "upstream_feature_normalize": False, "until": None}
    assert config["runner"] == {"total_steps": 4, "checkpoint_upstream": False, "eval_dataloaders": ["test"]}
    assert config["downstream_expert"] == {"modelrc": {"select": "UtteranceLevel"}}
    assert run_downstream.complete(argv) == argv


def test_options_are_set_in_their_order(tmp_path):
    options = "config.tuning.method=full,,config.tuning={'method': 'frozen'},,config.tuning.method=weighted_sum"
    argv = run_downstream.complete(command(tmp_path, "-d", "asr", "-o", options))
    assert given_to_s3prl(argv)[1] == {"tuning": {"method": "weighted_sum"}}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("args.upstream_trainable=fasle", "-o args.upstream_trainable must be true or false, got 'fasle'"),
        ("args.upstream_trainable='false'", "must be true or false, got 'false'"),
        ("args.overwrite=no", "args.overwrite: no may mean false or a text: write false"),
        ("args.seed=x", "-o args.seed must be a number, got 'x'"),
        ("config.downstream_expert.modelrc.Wav2Letter.total_rate=x", "total_rate must be a number, got 'x'"),
        ("config.downstream_expert.datarc.train=train-clean-100", r"datarc.train must be a list such as \[a, b\], got"),
        ("config.downstream_expert.modelrc.RNNs={'bidirection': 'false'}", "RNNs.bidirection must be true or false"),
        ("config.downstream_expert.datarc=x", "datarc must be a mapping"),
        ("config=3", "must read config.KEY=VALUE"),
    ],
)
def test_texts_in_place_of_other_values(tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-o", option))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("args.device=cpuu", "cpuu is not a device of torch; did you mean 'cpu'"),
        ("args.seed=-1", "--seed must be between 0 and"),
        ("args.seed=2.5", "--seed must be a whole number, got 2.5"),
        ("args.upstream_layer_selection=1.5", "--upstream_layer_selection must be a whole number"),
        ("args.upstream=fbnk", r"unknown upstream \(-u\) 'fbnk'; did you mean 'fbank'"),
        ("args.upstream=hf_hubert_custom", "name its checkpoint or folder with -k"),
        ("args.upstream_ckpt=x.pt", "-u fbank does not read -k x.pt"),
        ("args.init_ckpt=/nowhere.ckpt", "-i /nowhere.ckpt: no such checkpoint"),
        ("args.hub=huggingface", "hf_hubert_custom"),
        ("args.config=asr/superb", "-o args.config: s3prl has read it by then; give -c instead"),
        ("args.mode=evaluate", "give -m instead"),
    ],
)
def test_arguments_of_options_are_checked_as_flags(tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-o", option))


def test_the_folder_of_an_option_is_not_overwritten(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dev-best.ckpt").write_bytes(b"x")
    with pytest.raises(UsageError, match="other already holds an experiment"):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-o", f"args.expdir='{tmp_path / 'other'}'"))


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        (
            "speech_commands",
            "asr/mini",
            "-c asr/mini is of -d asr, not of -d speech_commands: give that, or -c ks/superb",
        ),
        ("asr", str(shipped_dir("downstream_configs") / "ood" / "mini.yaml"), "is of -d ctc, not of -d asr"),
    ],
)
def test_the_task_file_of_another_task(tmp_path, task, config, message):
    with pytest.raises(UsageError, match=message):
        run_downstream.complete(command(tmp_path, "-d", task, "-c", config))


def test_a_folder_that_cannot_be_made(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_downstream.py", *command(Path("/proc/x"), "-d", "asr")])
    try:
        with pytest.raises(SystemExit):
            run_downstream.prepare_argv()
    finally:
        show_errors_as_sentences(False)
    assert "the folder /proc/x/exp cannot be made (No such file or directory)" in capsys.readouterr().err


def test_missing_flags(tmp_path):
    with pytest.raises(UsageError, match="-d is missing"):
        run_downstream.complete(command(tmp_path))
    with pytest.raises(UsageError, match="-u is missing"):
        run_downstream.complete(["-m", "train", "-d", "asr", "-p", "x"])
    with pytest.raises(UsageError, match="-p is missing"):
        run_downstream.complete(["-m", "train", "-u", "fbank", "-d", "asr"])


def test_existing_experiment(tmp_path):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "dev-best.ckpt").write_bytes(b"x")
    for flags in ([], ["-o", "args.overwrite=false"], ["-o", "args.overwrite=False"]):
        with pytest.raises(UsageError, match=r"already holds an experiment \(dev-best.ckpt\)"):
            run_downstream.complete(command(tmp_path, "-d", "asr", *flags))
    run_downstream.complete(command(tmp_path, "-d", "asr", "-o", "args.overwrite=true"))
    run_downstream.complete(command(tmp_path, "-d", "asr", "-o", "args.overwrite=True"))


def test_help_of_the_stock_command_and_unparsable_flags_are_left_to_s3prl(tmp_path):
    assert run_downstream.complete(["-h"]) == ["-h"]
    assert run_downstream.complete(["-m"]) == ["-m"]


def test_errors_are_one_sentence_with_an_exit_code(capsys, monkeypatch):
    monkeypatch.delenv("S3PRL_EXT_DEBUG", raising=False)
    show_errors_as_sentences()
    try:
        for error, code, text in (
            (UsageError("say what."), 2, "s3prl-ext: say what."),
            (FileNotFoundError(2, "gone", "/x/y"), 1, "No such file or directory: /x/y"),
            (
                OSError(28, "full", "/x/z"),
                1,
                "the disk is full while writing /x/z; free some space and give the same command again (a training with -a)",
            ),
            (KeyError("slot"), 1, "KeyError: 'slot' (S3PRL_EXT_DEBUG=1"),
        ):
            with pytest.raises(SystemExit) as exit_info, one_sentence_errors():
                raise error
            assert exit_info.value.code == code
            err = capsys.readouterr().err
            assert text in err and "Traceback" not in err
        monkeypatch.setenv("S3PRL_EXT_DEBUG", "1")
        with pytest.raises(KeyError), one_sentence_errors():
            raise KeyError("slot")
    finally:
        show_errors_as_sentences(False)


def trained(folder, made_in=None):
    """Write a checkpoint that says it was made in `made_in`."""
    folder.mkdir(parents=True)
    states = {"Step": 2, "Featurizer": {}, "Args": Namespace(expdir=str(made_in or folder))}
    torch.save(states, folder / "states-2.ckpt")
    return folder


def test_a_copied_experiment_stays_in_its_folder(tmp_path):
    copy = trained(tmp_path / "copy", made_in=tmp_path / "original")
    for flags in (["-e", str(copy)], ["-e", str(copy / "states-2.ckpt")], ["-a", "-p", str(copy)]):
        argv = run_downstream.complete(["-m", "train", *flags, "-o", "config.runner.total_steps=4"])
        assert value_of(argv, "-o") == "config.runner.total_steps=4"
        assert run_downstream.complete(argv) == argv
        assert torch.load(copy / "states-2.ckpt")["Args"].expdir == str(copy)
    own = trained(tmp_path / "own", made_in=os.path.relpath(tmp_path / "own"))
    run_downstream.complete(["-m", "evaluate", "-e", str(own)])
    assert torch.load(own / "states-2.ckpt")["Args"].expdir == os.path.relpath(own)


@pytest.mark.parametrize(
    "flags", [["-e", "{exp}"], ["-a", "-p", "{exp}"], ["-e", "{exp}", "-o", "config.runner.total_steps=5"]]
)
def test_a_checkpoint_is_read_once(tmp_path, monkeypatch, flags):
    exp, read = str(trained(tmp_path / "exp")), []
    monkeypatch.setattr(checkpoint, "load", lambda *given, load=checkpoint.load: read.append(1) or load(*given))
    run_downstream.complete(["-m", "train", *(flag.format(exp=exp) for flag in flags)])
    assert len(read) == 1


def test_a_resumed_command_is_compared_with_its_checkpoint(tmp_path):
    """Not the task file of a checkpoint of s3prl's own, which may lack what its tasks have taken out."""
    config = load_yaml(shipped_dir("downstream_configs") / "asr" / "superb.yaml")
    args = Namespace(expdir=str(tmp_path / "exp"), upstream="fbank", downstream="asr", seed=1337, upstream_ckpt=None)
    states = {"Step": 2, "Featurizer": {}, "Args": args, "Config": config}
    (tmp_path / "exp").mkdir()
    path = tmp_path / "exp" / "states-2.ckpt"
    resume = command(tmp_path, "-d", "asr", "-a")
    torch.save(states | {"S3prlExt": {}}, path)
    run_downstream.complete(resume)
    features = {"upstream_feature_selection": "hidden_states", "upstream_layer_selection": None}
    full = Namespace(**vars(args), **features, downstream_variant=None)
    torch.save(states | {"S3prlExt": {}, "Args": full}, path)
    for flag, value in {"--seed": "5", "-s": "wav", "-l": "1", "-v": "x"}.items():  # -o does not change these either
        with pytest.raises(UsageError, match=r"repeat the first command, or start a new experiment with another -p\.$"):
            run_downstream.complete([*resume, flag, value])
    with pytest.raises(UsageError, match="--seed: 1337 in the checkpoint, 5 here"):
        run_downstream.complete([*resume, "--seed", "5"])
    lacking = config | {"downstream_expert": {"datarc": config["downstream_expert"]["datarc"]}}
    torch.save(states | {"S3prlExt": {}, "Config": lacking}, path)
    with pytest.raises(
        UsageError, match=r"downstream_expert.modelrc: \(nothing\) in the checkpoint, .* here\): repeat .*, change a"
    ):
        run_downstream.complete(resume)
    torch.save(states | {"Config": lacking}, path)
    run_downstream.complete(resume)
    completed = config | {"downstream_expert": config["downstream_expert"] | {"labels": ["a", "b"]}}
    torch.save(states | {"S3prlExt": {}, "Config": completed}, path)
    run_downstream.complete(resume)


def test_resuming_and_overwriting_exclude_each_other(tmp_path):
    trained(tmp_path / "exp")
    with pytest.raises(UsageError, match="give one of the two"):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-a", "-o", "args.overwrite=True"))


def test_auto_resume_without_a_numbered_checkpoint_takes_the_newest_best(tmp_path):
    for name, step in (("dev-best", 2), ("test-best", 4)):
        torch.save({"Step": step, "Featurizer": {}}, tmp_path / f"{name}.ckpt")
    flags = ["-m", "train", "-a", "-u", "fbank", "-d", "asr", "-p", str(tmp_path)]
    argv = run_downstream.complete(flags)
    assert value_of(argv, "-e") == str(tmp_path / "test-best.ckpt")
    assert run_downstream.complete(argv) == argv
    assert value_of(run_downstream.complete(["-m", "train", "-a", "-p", str(tmp_path)]), "-e") == value_of(argv, "-e")
    assert "-e" not in run_downstream.complete(["-m", "evaluate", "-e", str(tmp_path / "dev-best.ckpt")])[3:]
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "dev-best.ckpt").write_bytes(b"x")
    with pytest.raises(DataError, match="dev-best.ckpt is truncated"):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-a"))
    with pytest.raises(UsageError, match="already holds an experiment"):
        run_downstream.complete(command(tmp_path, "-d", "asr", "-o", "args.overwrite=False"))


@pytest.mark.parametrize("name", ["x", "x[1]", "x?", "*"])
def test_a_folder_is_resumed_at_its_latest_checkpoint_whatever_it_is_called(name, tmp_path, monkeypatch):
    from s3prl.run_downstream import get_downstream_args

    folder, other = tmp_path / name, tmp_path / "x1"
    for place, steps in ((folder, (9, 10)), (other, (11,))):
        trained(place)
        for step in steps:
            states = torch.load(place / "states-2.ckpt", weights_only=False)
            torch.save(states | {"Config": {}}, place / f"states-{step}.ckpt")
    new = ["-u", "fbank", "-d", "asr", "-c", "asr/superb"]
    for flags in (["-m", "train", "-a", "-p", str(folder), *new], ["-m", "train", "-e", str(folder)],
                  ["-m", "evaluate", "-e", str(folder)]):  # fmt: skip
        argv = run_downstream.complete(flags)
        assert value_of(argv, "-e") == str(folder / "states-10.ckpt") and run_downstream.complete(argv) == argv
        monkeypatch.setattr("sys.argv", ["run_downstream.py", *argv])
        assert get_downstream_args()[0].init_ckpt == str(folder / "states-10.ckpt")
    (tmp_path / "y[1]").mkdir()
    trained(tmp_path / "y1")
    argv = run_downstream.complete(["-m", "train", "-a", "-p", str(tmp_path / "y[1]"), *new])
    monkeypatch.setattr("sys.argv", ["run_downstream.py", *argv])
    assert get_downstream_args()[0].past_exp is None, "a new run is not that of another folder"


def test_hints_fit_the_error(monkeypatch):
    monkeypatch.setattr("sys.argv", ["s3prl-ext", "report", "--out", "/x/out"])
    copied = OSError(28, "full", "/models/read.bin", None, "/out/written.bin")
    for error, parts in (
        (copied, ["the disk is full while writing /out/written.bin", "give the same command again"]),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 43648 vs 43540"),
            ["the disk is full"],
        ),
        (FileExistsError(17, "exists", __file__), [f"{__file__} is a file, and a folder is needed"]),
        (NotADirectoryError(20, "no", f"{__file__}/a/b"), [f"{__file__} is a file, and a folder is needed"]),
        (FileExistsError(17, "exists", "/"), ["it is there already"]),
        (IsADirectoryError(21, "is", "/x"), ["it is a folder, and a file is needed"]),
        (PermissionError(13, "denied", "/x/out"), ["check its permissions"]),
        (FileNotFoundError(2, "gone", "/x/out/a"), ["check the path in the command"]),
        (FileNotFoundError(2, "gone", "/corpus/a"), ["check the corpus folder"]),
        (MemoryError(), ["out of memory", "batch size"]),
        (RuntimeError("can't start new thread"), ["out of memory (can't start new thread)"]),
        (
            ValueError(
                "Unable to convert output 'input_values' (type: list) to tensor, whatever is tried, and with all of "
                "the options that transformers has for such a list of arrays of samples: Unable to allocate 20.3 MiB"
            ),
            ["out of memory (... Unable to allocate 20.3 MiB)"],
        ),
        (RuntimeError("DataLoader worker (pid(s) 21277) exited unexpectedly"), ["(pid(s) 21277)", "lower num_workers"]),
        (RecursionError("deep"), ["nested too deeply"]),
    ):
        assert all(part in sentence(error) for part in parts), sentence(error)


@pytest.mark.parametrize(
    "given",
    [
        ["--override=config.optimizer.lr=5e-2", "--track", "tensorboard"],
        ["-oconfig.optimizer.lr=5e-2", "--track", "tensorboard"],
        ["-o", "config.optimizer.lr=5e-2", "--override", "args.track='tensorboard'"],
        ["-o", "None", "--track=tensorboard", "-o=config.optimizer.lr=5e-2"],
    ],
)
def test_every_option_of_o_counts(tmp_path, given):
    argv = run_downstream.complete(command(tmp_path, "-d", "asr", *given))
    assert argv.count("-o") == 1 and not any(word.startswith(("--override", "-oc", "--track")) for word in argv)
    options = overrides_of(value_of(argv, "-o"))
    assert options == {"config.optimizer.lr": 0.05, "args.track": "tensorboard"}
    assert run_downstream.complete(argv) == argv
    with pytest.raises(UsageError, match="lrr"):
        run_downstream.complete(
            command(tmp_path, "-d", "asr", "-oconfig.optimizer.lrr=1", "-o", "config.runner.amp=bf16")
        )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--over", "config.optimizer.lr=1"], "--over is short for --override: write the flag in full"),
        (["--overrid=config.optimizer.lr=1"], "--overrid is short for --override"),
        (["--upstream_f"], "--upstream_f is short for --upstream_feature_selection or"),
        (["-aoconfig.optimizer.lr=1"], "-aoconfig.optimizer.lr=1 is several flags in one: write each by itself, -a -o"),
    ],
)
def test_abbreviations_that_no_check_would_see_are_refused(tmp_path, given, sentence):
    with pytest.raises(UsageError, match=sentence.split(" or ")[0]):
        run_downstream.complete(command(tmp_path, "-d", "asr", *given))
