"""What was trained on the other last hidden state of a pre-norm model says so when it is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from s3prl_ext.child_tuning import delta as delta_files
from s3prl_ext.commands.export import main as export
from s3prl_ext.deltas import TaskSwitch, TrainedTask
from s3prl_ext.evaluation.result_records import read_record
from s3prl_ext.evaluation.scored_runs import runs_of
from s3prl_ext.training import checkpoint
from s3prl_ext.training.last_hidden_state import KEY, PRESENT, warn_where_unknown
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.hf_speech.expert import TransformersSpeechModel
from tests.support import experiments, factories
from tests.support import tuned as made

WARNING = "does not say which last hidden state of this model it was trained on"
CHILD = {"method": "child", "mask": "magnitude", "density": 0.05}


def of_0_1_0(file: Path) -> Path:
    """Take the record out of a checkpoint, delta or export, as version 0.1.0 wrote them."""
    if file.is_dir():
        record = json.loads((file / "export.json").read_text())
        assert record["info"].pop(KEY) == PRESENT
        del record["files"]  # the hashes of its files came later too
        (file / "export.json").write_text(json.dumps(record))
        of_0_1_0(file / "head.ckpt")
    elif file.suffix == ".safetensors":
        delta = delta_files.load(file)
        assert delta.info[KEY] == PRESENT
        info = {key: value for key, value in delta.info.items() if key != KEY}
        delta_files.save(dataclasses.replace(delta, info=info), file)
    else:
        states = checkpoint.load(file)
        assert states.get(checkpoint.EXTENSION_KEY, states).pop(KEY) == PRESENT
        torch.save(states, file)
    return file


def test_checkpoints_deltas_and_exports(build, tmp_path, caplog):
    folder = factories.hubert_folder(tmp_path / "hubert", stable_norm=True)
    flags = {"upstream": "hf_hubert_custom", "upstream_ckpt": str(folder)}
    exp = tmp_path / "exp"
    build(experiments.make_args(exp, **flags), experiments.task_config("ks", CHILD, total_steps=2, eval_step=2)).train()
    states, delta, exported = exp / "states-2.ckpt", exp / "delta.safetensors", tmp_path / "exported"
    assert export(["--delta", str(delta), "--out", str(exported)]) == 0

    def evaluate(file: Path, **changes: str) -> None:
        args = experiments.make_args(tmp_path / "again", mode="evaluate", init_ckpt=str(file), **(flags | changes))
        build(args, experiments.task_config("ks", None if changes else CHILD))

    def use(file: Path) -> None:
        if file.is_dir():
            evaluate(file / "head.ckpt", upstream_ckpt=str(file))
        else:
            evaluate(file)
            TaskSwitch(made.build(upstream=flags["upstream"], ckpt=folder), {"ks": file})
            export(["--delta", str(file), "--dry-run"])
        (TrainedTask.read_export if file.is_dir() else TrainedTask.read)(file).build()

    for file, count in ((states, 4), (delta, 4), (exported, 2)):
        caplog.clear()
        use(file)
        assert WARNING not in caplog.text, file
        use(of_0_1_0(file))
        assert caplog.text.count(WARNING) == count, file
        assert f"{exported / 'head.ckpt' if file == exported else file} does not say" in caplog.text


@pytest.mark.parametrize(
    ("options", "ours", "selection", "layer", "warns"),
    [
        ({"stable_norm": True}, False, "hidden_states", None, True),
        ({"stable_norm": True}, True, "hidden_states", None, True),
        ({"stable_norm": True}, False, "hidden_states", -1, True),
        ({"stable_norm": True}, False, "hidden_states", 2, True),
        ({"stable_norm": True}, False, "hidden_states", 1, False),
        ({"stable_norm": True}, False, "last_hidden_state", None, True),  # s3prl takes the last of the list
        ({"stable_norm": True}, True, "last_hidden_state", None, False),
        ({"stable_norm": False}, False, "hidden_states", None, False),
    ],
)
def test_only_what_reads_that_state_is_warned_of(options, ours, selection, layer, warns, tmp_path, caplog):
    folder = factories.hubert_folder(tmp_path, **options)
    upstream = TransformersSpeechModel(folder) if ours else made.build("hf_hubert_custom", folder)
    args = RunSpec(upstream_feature_selection=selection, upstream_layer_selection=layer)
    warn_where_unknown(PRESENT, upstream, args, "x.ckpt")
    assert not caplog.records
    warn_where_unknown(None, upstream, args, "x.ckpt")
    assert (WARNING in caplog.text) is warns


def test_upstreams_that_are_not_of_transformers(tmp_path, caplog):
    path = made.write_model("hubert_local", tmp_path)
    info = made.about("hubert_local", path, CHILD)
    delta = made.save_delta(made.tune(made.build("hubert_local", path)), info, tmp_path / "delta.safetensors")
    TrainedTask.read(delta).check_features(made.build("hubert_local", path))
    assert WARNING not in caplog.text


@pytest.mark.parametrize("stable_norm", [True, False])
def test_results_of_both_are_not_counted_as_one_row(build, tmp_path, stable_norm):
    folder = factories.hubert_folder(tmp_path / "hubert", stable_norm=stable_norm)
    args = experiments.make_args(tmp_path / "exp", upstream="hf_hubert_custom", upstream_ckpt=str(folder))
    build(args, experiments.task_config("ks", {"method": "frozen"}, total_steps=2, eval_step=2)).train()
    file = tmp_path / "exp" / "result.json"
    content = json.loads(file.read_text())
    assert content.pop(KEY) == (PRESENT if stable_norm else None)
    (tmp_path / "old").mkdir()
    old = tmp_path / "old" / "result.json"
    old.write_text(json.dumps(content))
    now, before = (run.key() for path in (file, old) for run in runs_of(read_record(path)))
    assert (now == before) == (not stable_norm)
