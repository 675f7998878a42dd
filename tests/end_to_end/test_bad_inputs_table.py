"""A table of bad inputs, one row each: one sentence, exit status 1 or 2, nothing half-written.

Rows are commands as they are typed behind ``s3prl-ext``; ``{exp}`` and the like are files that the fixtures make.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3prl_ext import cli
from s3prl_ext.configs import shipped_dir
from s3prl_ext.errors import show_errors_as_sentences
from s3prl_ext.mini_superb import ALL, LAYOUTS, variables
from tests.end_to_end.conftest import Outcome
from tests.support import factories

USAGE, DATA = 2, 1
KS = "run -m train -u fbank -d speech_commands -c ks/mini -p {exp} -o config.runner.total_steps=2"
HUBERT = (
    "run -m train -u hf_hubert_custom -k {hubert} -d speech_commands -c ks/mini -p {exp} -o config.runner.total_steps=2"
)
EVALUATE = "run -m evaluate -e {trained}"
UNTRAINED = KS.replace("-m train", "-m evaluate")
MODELS = {  # settings of a HuBERT
    "odd_model": {"conv_kernel": 7},
    "deep_model": {"num_hidden_layers": 10**12},
    "split_model": {"num_attention_heads": 5},
    "slow_model": {},
}


@pytest.fixture(scope="module")
def inputs(
    mini_superb: Path, upstreams: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Files that rows name, made once."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "text.txt").write_text("no model\n")
    for name, text in (("damaged_export", '{"model": 3}'), ("deep_export", "[" * 100_000)):
        (folder / name).mkdir()
        (folder / name / "export.json").write_text(text)
    for name, change in MODELS.items():
        odd = Path(shutil.copytree(upstreams["hf_hubert_custom"][-1], folder / name))
        config = json.loads((odd / "config.json").read_text())
        if name == "slow_model":
            change = {"conv_stride": [100_000, *config["conv_stride"][1:]]}
        (odd / "config.json").write_text(json.dumps(config | change))
    trained = folder / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["s3prl-ext"])
        for name, value in variables(ALL, mini_superb).items():
            patch.setenv(name, value)
        assert not cli.main(KS.format(exp=trained).split())
    show_errors_as_sentences(False)
    return {
        "damaged_export": folder / "damaged_export",
        "deep_export": folder / "deep_export",
        **{name: folder / name for name in MODELS},
        "trained": trained,
        "hubert": upstreams["hf_hubert_custom"][-1],
        "ckpt": upstreams["hubert_local"][-1],
        "text": folder / "text.txt",
        "folder": folder,
    }


@pytest.fixture
def shell(
    corpora: Path, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., Outcome]:
    """Run a command line of ``s3prl-ext`` in this process."""
    monkeypatch.setattr("sys.argv", ["s3prl-ext"])
    monkeypatch.chdir(tmp_path)

    def run(line: str, **more: Any) -> Outcome:
        names = inputs | {"exp": tmp_path / "exp", "tmp": tmp_path, "corpora": corpora} | more
        argv = [part.format_map(names) for part in line.split()]
        capsys.readouterr()
        code: object = 0
        try:
            code = cli.main(argv)
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            show_errors_as_sentences(False)
        captured = capsys.readouterr()
        assert isinstance(code, int), code
        return Outcome(code, captured.out, captured.err)

    return run


def check(outcome: Outcome, code: int, parts: tuple[str, ...], exp: Path) -> None:
    """Require the status, one sentence with all `parts`, and no experiment."""
    assert outcome.code == code, outcome.err[-2000:]
    assert all(part in outcome.sentence for part in parts), outcome.sentence
    assert not exp.exists(), sorted(path.name for path in exp.iterdir())


Row = tuple[str, int, tuple[str, ...]]

GIVEN_AND_NOT_USED: list[Row] = [
    (KS + " -k {ckpt}", USAGE, ("-u fbank does not read -k", "leave -k out")),
    (KS.replace("fbank", "hubert_base") + " -k {ckpt}", USAGE, ("-u hubert_base does not read -k", "-u hubert_local -k FILE")),
    (KS.replace("fbank", "vq_wav2vec") + " -k {ckpt}", USAGE, ("-u vq_wav2vec_custom -k FILE",)),
    (KS + " -g lambda=0.1", USAGE, ("-u fbank does not read -g lambda=0.1", "-u merged_attention -g FILE", "whisper_local", "beats_local", "stft_mag")),
    (HUBERT + " -g lambda=0.1", USAGE, ("-u hf_hubert_custom does not read -g",)),
    (KS + ",,config.optimizer.upstream_lr=1e-4", USAGE, ("optimizer.upstream_lr is not read", "tuning: {{method: full, lr: 0.0001}}")),
    (KS + ",,config.optimizer={{'name':'AdamW','lr':1e-3,'weight_decay':0.1}}", USAGE, ("unknown key 'weight_decay'", "TorchOptim")),
    (KS + ",,config.optimizer={{'name':'Adam','lr':1e-3,'lrr':1}}", USAGE, ("'lrr'; did you mean 'lr'?",)),
    (KS + ",,config.optimizer={{'name':'Lamb','lr':1e-3}}", USAGE, ("unknown optimizer.name 'Lamb'", "Lamb_with_schedule")),
    (KS + ",,config.downstream_expert.datarc.batchsize=3", USAGE, ("'batchsize'", "did you mean 'batch_size'")),
    (KS + ",,config.downstream_expert.modelrc.projector_dims=3", USAGE, ("did you mean 'projector_dim'",)),
    (KS + ",,config.runner.total_steps.x=3", USAGE, ("cannot be set: runner.total_steps is a value",)),
    (KS + ",,args.expdri=x", USAGE, ("unknown argument 'expdri'; did you mean 'expdir'?",)),
    (KS + ",,config.specaug={{'freq_mask_widht_range':[0,20]}}", USAGE, ("specaug: unknown key", "did you mean 'freq_mask_width_range'")),
    (KS + " --upstream_revision abc", USAGE, ("--upstream_revision belongs to --hub huggingface", "OWNER/NAME@REVISION")),
    (KS + " --upstream_model_name m.pt", USAGE, ("--upstream_model_name belongs to --hub huggingface",)),
    ("run -m train -e {trained} -i {trained}/states-2.ckpt", USAGE, ("-e resumes an experiment and -i starts a new one",)),
    (KS + " -s hidden_stat", USAGE, ("unknown features (-s) 'hidden_stat'", "did you mean 'hidden_states'")),
    (HUBERT + " -s last_hiden_state", USAGE, ("'last_hiden_state'", "hidden_states")),
    (HUBERT + " -l 99", USAGE, ("-l 99 is out of range", "3 hidden states, 0 (the input of the first block) to 2")),
    (HUBERT + " -l -4", USAGE, ("-l -4 is out of range",)),
    ("run -m train -u hubert_local -k {ckpt} -d speech_commands -c ks/mini -p {exp} -s hidden_state_1 -l 0", USAGE,
     ("-l 0 has no effect on -s hidden_state_1",)),
    (HUBERT + ",,config.tuning={{'method':'child','density':1e-9,'mask':'random'}}", USAGE,
     ("tuning.density 1e-09", "less than one weight", "larger density")),
    (HUBERT + ",,config.tuning={{'method':'child','density':[0.1,1e-9]}},,config.early_stop={{}}", USAGE,
     ("tuning.density 1e-09", "less than one weight")),
]  # fmt: skip

NUMBERS_AND_DEVICES: list[Row] = [
    (KS + " --device cuda", USAGE, ("torch finds no CUDA device here", "leave --device out")),
    (KS.replace("fbank", "hubert_base") + " --device cuda:3", USAGE, ("--device cuda:3: torch finds no CUDA device",)),
    (KS + " --device gpu", USAGE, ("--device gpu is not a device of torch; did you mean 'cuda'?",)),
    (KS + " --device cup", USAGE, ("did you mean 'cpu'?",)),
    (KS + " --seed -1", USAGE, ("--seed must be between 0 and 4294967295, got -1",)),
    (KS + " --seed 4294967296", USAGE, ("got 4294967296",)),
    (KS + " --seed abc", USAGE, ("--seed must be a whole number, got abc",)),
    (KS + " -l two", USAGE, ("--upstream_layer_selection must be a whole number, got two",)),
    (KS + " --local_rank 0", USAGE, ("--local_rank is set by torchrun", "leave it out")),
    (KS + ",,config.downstream_expert.datarc.batch_size=0", USAGE, ("datarc.batch_size must be a whole number of at least 1, got 0",)),
    (KS + ",,config.downstream_expert.datarc.batch_size=2.5", USAGE, ("at least 1, got 2.5",)),
    (KS + ",,config.downstream_expert.datarc.num_workers=-1", USAGE, ("num_workers must be a whole number from 0 to 1024, got -1",)),
    (KS + ",,config.downstream_expert.datarc.num_workers=None", USAGE, ("num_workers must be a whole number", "got None")),
    (KS + ",,config.runner.gradient_accumulate_steps=999999999999", USAGE,
     ("runner.gradient_accumulate_steps must be a whole number from 1 to 100000",)),
    (KS.replace("fbank", "hubert_local"), USAGE, ("-u hubert_local cannot be built without a model", "with -k")),
    (KS.replace("fbank", "hf_hubert_custom"), USAGE, ("-u hf_hubert_custom cannot be built without a model",)),
    (KS.replace("fbank", "hf_speech_custom"), USAGE, ("needs a transformers folder or hub id: -k FOLDER",)),
    (KS.replace("fbank", "hubert_local -k {tmp}/none.pt"), USAGE, ("none.pt: no such file or folder",)),
    ("methods -u fbank -k {ckpt}", USAGE, ("-u fbank does not read -k",)),
]  # fmt: skip

PLACES: list[Row] = [
    (KS.replace("{exp}", "{text}"), USAGE, ("text.txt is a file: name the folder of the experiment",)),
    (KS.replace("{exp}", "{text}/exp"), USAGE, ("text.txt/exp cannot be made (Not a directory)",)),
    ("report {trained} --out {text}", DATA, ("text.txt is a file, and a folder is needed", "choose another path")),
    ("report {tmp}/none --out {tmp}/report", USAGE, ("none",)),
    ("report {hubert} --out {tmp}/report", USAGE, ("contains no result.json",)),
    ("report {trained} --out {tmp}/report --metric accc", USAGE, ("did you mean 'acc'",)),
    ("report {trained} --out {tmp}/report --paper mam.table9", USAGE, ("mam.table9",)),
    ("compare {tmp}/a.jsonl {tmp}/b.jsonl", DATA, ("a.jsonl",)),
    ("run -m evaluate -e {folder}", USAGE, ("has no states-N.ckpt",)),
    ("run -m evaluate -e {text}", DATA, ("text.txt",)),
    ("run -m inference -e {trained} -t {tmp}/none.wav", USAGE, ("no such audio file",)),
    (UNTRAINED, USAGE, ("the head of -d speech_commands is untrained", "give its checkpoint with -e (or -i)", "args.untrained_head=True")),
    (UNTRAINED.replace("-m evaluate", "-m inference"), USAGE, ("is untrained",)),
    (KS + ",,args.untrained_head=True", USAGE, ("args.untrained_head is for -m evaluate without a checkpoint",)),
    (EVALUATE + " -o args.untrained_head=True", USAGE, ("args.untrained_head is for -m evaluate without a checkpoint",)),
    (EVALUATE + " -t tset", USAGE, ("no split 'tset'", "dev and test")),
    (EVALUATE + " -u hubert_base", USAGE, ("-u: fbank in the checkpoint, hubert_base here",)),
    (EVALUATE + " -o config.runner.evaluate_ratio", USAGE, ("must read config.KEY=VALUE",)),
    (EVALUATE + " --device cuda", USAGE, ("torch finds no CUDA device here",)),
    ("predict {tmp}/none {text}", DATA, ("no such checkpoint, delta or folder of a run",)),
    ("predict {trained} {text} --device gpu", USAGE, ("--device gpu is not a device of torch",)),
    ("predict {damaged_export} {text}", DATA, ("export.json is corrupt", "export again")),
    ("predict {deep_export} {text}", DATA, ("export.json is corrupt", "nested too deeply")),
    ("apply --model {hubert} --delta {text} --out {tmp}/out", DATA, ("text.txt",)),
    ("apply --model {hubert} --delta {tmp}/none --out {tmp}/out", DATA, ("none",)),
    ("export --delta {folder} --out {tmp}/out", DATA, ("no delta.safetensors: name the folder of a run",)),
    ("merge -g {tmp}/none.yaml --out {tmp}/out", USAGE, ("no such configuration file",)),
    ("prepare mini_superbb --out {tmp}/mini", USAGE, ("did you mean 'mini_superb'",)),
    ("prepare mini_superb --out {tmp}/mini --tasks kss", USAGE, ("kss",)),
    ("methods -u hubertt", USAGE, ("did you mean 'hubert'",)),
    ("trian -m train", USAGE, ("unknown command 'trian'",)),
    (HUBERT.replace("{hubert}", "{odd_model}"), DATA, ("odd_model/config.json: conv_kernel must be a list of whole numbers",)),
    (HUBERT.replace("{hubert}", "{deep_model}"), DATA, ("num_hidden_layers must be a whole number from 1 to 1,000",)),
    (HUBERT.replace("{hubert}", "{split_model}"), DATA, ("cannot load -k", "config.json")),
    (HUBERT.replace("{hubert}", "{slow_model}"), DATA, ("slow_model fails at one second of audio", "config.json")),
    (KS + ",,config.downstream_expert.modelrc.select='FrameLevl'", USAGE, ("unknown name 'FrameLevl' in the task file", "did you mean 'FrameLevel'?")),
    (KS + ",,config.downstream_expert.modelrc.projector_dim=-1", DATA, ("the task speech_commands cannot be built", "task file")),
    (KS.replace("-u fbank", "-u hubert_local -k {text}"), DATA, ("text.txt",)),
    (KS.replace("-u fbank", "-u hubert_local -k {hubert}"), DATA, ("it is a transformers model of type hubert, for -u hf_hubert_custom",)),
    (KS.replace("-u fbank", "-u hubert_local -k /etc/passwd"), DATA, ("a file of another kind", "a transformers model is a folder")),
    (KS.replace("-u fbank", "-u os"), USAGE, ("unknown upstream (-u) 'os'",)),
]  # fmt: skip

FLAGS: list[Row] = [
    ("merge --otu {tmp}/out", USAGE, ("unknown flag --otu; did you mean '--out'?", "See s3prl-ext merge --help.")),
    ("apply --model {hubert} --out {tmp}/out", USAGE, ("required: --delta", "See s3prl-ext apply --help.")),
    ("revert --model {hubert} --delta {text} --out", USAGE, ("argument --out: expected one argument", "s3prl-ext revert --help")),
    ("export --detla {text} --out {tmp}/out", USAGE, ("did you mean '--delta'?", "s3prl-ext export --help")),
    ("sweep -u fbank -d ljspeech --lamda 0,1 -p {exp}", USAGE, ("did you mean '--lambda'?", "s3prl-ext sweep --help")),
    ("predict {trained} {text} --format josnl", USAGE, ("invalid choice: 'josnl'", "did you mean 'jsonl'?")),
    ("predict", USAGE, ("arguments are required", "See s3prl-ext predict --help.")),
    ("report {trained} --ouput {tmp}/report", USAGE, ("did you mean '--out'?", "s3prl-ext report --help")),
    ("compare {tmp}/a.jsonl {tmp}/b.jsonl --top ten", USAGE, ("--top: invalid int value: 'ten'",)),
    ("layers --out {tmp}/out", USAGE, ("s3prl-ext layers --help",)),
    ("methods --upstreem hubert", USAGE, ("did you mean '--upstream'?",)),
    ("doctor --network yes", USAGE, ("See s3prl-ext doctor --help.",)),
    ("prepare mini_superb --outt {tmp}/mini", USAGE, ("See s3prl-ext prepare mini_superb --help.",)),
    ("prepare esc50 --source {tmp}", USAGE, ("See s3prl-ext prepare esc50 --help.",)),
    ("prepare whisper", USAGE, ("required: --out", "See s3prl-ext prepare whisper --help.")),
    (KS + " --sede 1", USAGE, ("unknown flag --sede; did you mean '--seed'?", "See s3prl-ext run --help.")),
]  # fmt: skip


YAML = {
    "twice": ("runner: {{total_steps: 2}}\nrunner: {{total_steps: 3}}\n", ("line 2: the key 'runner' is there twice",)),
    "bomb": ("".join(f"a{i}: &a{i} [{', '.join(['x' if i == 0 else f'*a{i - 1}'] * 9)}]\n" for i in range(9)), ("more than 100,000 values",)),
    "deep": ("a: " + "[" * 100_000, ("nested too deeply",)),
    "empty": ("", ("must hold a mapping",)),
    "tab": ("runner:\n\ttotal_steps: 2\n", ("not readable as YAML",)),
    "tag": ("runner: !!python/object/apply:os.getcwd []\n", ("not readable as YAML",)),
    "no optimizer": ("runner: {{total_steps: 2}}\ndownstream_expert: {{}}\n", ("section 'optimizer' is missing",)),
    "steps and epochs": ("runner: {{total_steps: 2, epochs: 1}}\noptimizer: {{name: Adam}}\ndownstream_expert: {{}}\n", ("either total_steps or epochs",)),
    "no section of the task": ("runner: {{total_steps: 2}}\noptimizer: {{name: Adam}}\n", ("section 'downstream_expert' is missing",)),
    "a list": ("runner: [1]\noptimizer: {{name: Adam}}\ndownstream_expert: {{}}\n", ("runner is a value, [1], not a section",)),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML)
@pytest.mark.parametrize("kind", ["task file", "merge"])
def test_bad_yaml(shell, tmp_path, name, kind):
    text, parts = YAML[name]
    (tmp_path / "bad.yaml").write_text(text.replace("{{", "{").replace("}}", "}"))
    task = KS.replace("ks/mini", "{tmp}/bad.yaml")
    outcome = shell(task if kind == "task file" else KS.replace("-u fbank", "-u merged_attention -g {tmp}/bad.yaml"))
    check(outcome, USAGE, parts if kind == "task file" or name in ("twice", "bomb", "deep") else (), tmp_path / "exp")


@pytest.mark.parametrize(("variables", "parts"), [
    ({"SPEECH_COMMANDS": "${SPEECH_COMMANDS}"}, ("SPEECH_COMMANDS refers to itself",)),
    ({"SPEECH_COMMANDS": "${SPEECH_COMMANDS}/sub"}, ("SPEECH_COMMANDS -> SPEECH_COMMANDS",)),
    ({"SPEECH_COMMANDS": "${OTHER}", "OTHER": "${SPEECH_COMMANDS}"}, ("SPEECH_COMMANDS -> OTHER -> SPEECH_COMMANDS",)),
    ({"SPEECH_COMMANDS": ""}, ("SPEECH_COMMANDS, which is empty", "export SPEECH_COMMANDS=")),
])  # fmt: skip
def test_bad_variables(shell, tmp_path, monkeypatch, variables, parts):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check(shell(KS), USAGE, parts, tmp_path / "exp")


SD = "run -m train -u fbank -d diarization -c sd/mini -p {exp} -o config.runner.total_steps=2"


@pytest.mark.parametrize(("table", "change", "parts"), [
    ("segments", lambda text: text[: len(text) // 2 + 3].rstrip()[:-4], ("wav.scp names", "segments lacks")),
    ("segments", lambda text: text.replace(" ", " x ", 1), ("segments, line 1", "must read")),
    ("segments", lambda text: "\n" + text, ("segments, line 1",)),
    ("segments", lambda text: "", ("segments is empty",)),
    ("utt2spk", lambda text: "\n".join(text.splitlines()[1:]), ("segments names", "utt2spk lacks")),
    ("utt2spk", lambda text: text.replace(" ", "", 1), ("utt2spk, line 1", "UTTERANCE SPEAKER")),
    ("reco2dur", lambda text: "\n".join(text.splitlines()[1:]), ("wav.scp names", "reco2dur lacks")),
    ("reco2dur", lambda text: text.replace(text.split()[1], "long", 1), ("reco2dur, line 1", "RECORDING SECONDS")),
    ("reco2dur", None, ("no such table", "reco2dur")),
    ("wav.scp", lambda text: text.replace(" ", "", 1), ("wav.scp, line 1", "RECORDING FILE")),
])  # fmt: skip
def test_bad_kaldi_tables(shell, corpora, tmp_path, monkeypatch, table, change, parts):
    layout = LAYOUTS["sd"]
    folder = tmp_path / layout.folder
    shutil.copytree(corpora / layout.folder, folder, copy_function=os.link)
    monkeypatch.setenv(layout.task.variable, str(folder))
    path = folder / "train" / table
    text = path.read_text()
    path.unlink()
    if change is not None:
        path.write_text(change(text))
    check(shell(SD), DATA, parts, tmp_path / "exp")


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    GIVEN_AND_NOT_USED + NUMBERS_AND_DEVICES + PLACES + FLAGS,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input(shell, tmp_path, line, code, parts):
    check(shell(line), code, tuple(part.format() for part in parts), tmp_path / "exp")


def test_an_untrained_head_does_not_replace_the_result_of_a_trained_one(shell, inputs, tmp_path):
    exp = shutil.copytree(inputs["trained"], tmp_path / "kept")
    assert shell("run -m evaluate -e {kept} -t dev", kept=exp).code == 0
    before = {path.name: path.read_bytes() for path in exp.glob("result*.json")}
    outcome = shell(UNTRAINED.replace("{exp}", "{kept}") + ",,args.untrained_head=True", kept=exp)
    assert (
        outcome.code == USAGE
        and "holds the scores of step 2" in outcome.sentence
        and "another folder" in outcome.sentence
    )
    assert {path.name: path.read_bytes() for path in exp.glob("result*.json")} == before
    for _ in range(2):  # its own result may be made anew
        assert shell(UNTRAINED + ",,args.untrained_head=True").code == 0
    assert json.loads((tmp_path / "exp" / "result-test.json").read_text())["step"] == 0
    head = "-i {kept}/states-2.ckpt"  # of the same step
    assert shell(UNTRAINED.replace("{exp}", "{kept}").replace("-u fbank", f"-u fbank {head}"), kept=exp).code == 0


# -- settings that are right and have no effect -------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "remark"), [
    (",,config.downstream_expert.datarc.foo=3", "config.downstream_expert.datarc.foo has no effect"),
    (",,config.downstream_expert.batch_size=3", "in the task file 'batch_size' is config.downstream_expert.datarc.batch_size"),
    (",,args.mine=3", "-o args.mine: s3prl has no such argument"),
    (",,config.optimizer.lr=0", "optimizer.lr is 0"),
    (",,config.tuning={{'method':'frozen'}},,config.early_stop={{'ratio':0.5}}", "section early_stop has no effect"),
])  # fmt: skip
def test_a_setting_without_effect_is_mentioned_once(shell, caplog, options, remark):
    outcome = shell(KS + options)
    assert outcome.code == 0, outcome.err[-2000:]
    assert (outcome.err + caplog.text).count(remark) == 1, outcome.err + caplog.text


@pytest.mark.parametrize(("flags", "remark"), [
    (" -t dev", "-t has no effect on a training"),
    (" -n named", "-n named has no effect: -p names the folder, "),
    (" --upstream_feature_normalize -s last_hidden_state", "--upstream_feature_normalize has no effect"),
    (" -c {tmp}/mine.yaml", "downstream_expert.datarc.batchsize is not read by the task speech_commands; did you mean 'batch_size'?"),
])  # fmt: skip
def test_a_flag_without_effect_is_mentioned_once(shell, caplog, tmp_path, flags, remark):
    text = (shipped_dir("downstream_configs") / "ks" / "mini.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("    batch_size: 8", "    batch_size: 8\n    batchsize: 3"))
    outcome = shell(HUBERT + flags)
    assert outcome.code == 0, outcome.err[-2000:]
    assert (outcome.err + caplog.text).count(remark) == 1, outcome.err + caplog.text


def test_another_unfinished_folder_e_is_mentioned(shell, caplog, tmp_path):
    assert shell(EVALUATE + " -t dev -p {tmp}/elsewhere").code == 0
    assert "elsewhere has no effect with -e" in caplog.text and not (tmp_path / "elsewhere").exists()


def test_optional_keys_of_a_task_are_no_matter(shell, caplog):
    outcome = shell(KS + ",,config.downstream_expert.modelrc.UtteranceLevel.hidden_dim=16,,config.scheduler=None")
    assert "no effect" not in outcome.err + caplog.text


def test_a_merge_of_no_layers_is_mentioned(shell, inputs, tmp_path, caplog):
    source = factories.bert_folder(tmp_path / "bert", width=32)
    merge = tmp_path / "merge.yaml"
    merge.write_text(f"target: {{model: {inputs['hubert']}}}\nsource: {{model: {source}}}\nlambda: 0.1\nlayers: []\n")
    assert shell(KS.replace("-u fbank", "-u merged_attention -g {merge}"), merge=merge).code == 0
    assert "layers names no layer" in caplog.text


def test_the_checkpoint_of_a_fork_is_evaluated_with_a_warning(shell, tmp_path, caplog):
    import torch

    assert shell(KS).code == 0
    content = torch.load(tmp_path / "exp" / "states-2.ckpt", weights_only=False)
    content.pop("S3prlExt")
    content["Config"]["runner"] |= {"freeze_layers": False, "baseline": "custom"}
    content["Config"]["optimizer"] = {"name": "MyAdam", "lr": 0.1}
    (tmp_path / "fork").mkdir()
    torch.save(content, tmp_path / "fork" / "fork.ckpt")
    outcome = shell("run -m evaluate -e {tmp}/fork/fork.ckpt")
    assert outcome.code == 0, outcome.err[-2000:]
    assert "unknown key 'freeze_layers'" in caplog.text and (tmp_path / "fork" / "result-test.json").is_file()
    outcome = shell("run -m train -e {tmp}/fork/fork.ckpt")
    assert outcome.code == USAGE and "unknown key 'freeze_layers'" in outcome.sentence
