"""``s3prl-ext apply``, ``revert`` and ``export``: what they write loads and is the tuned model, or the base, bitwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from s3prl_ext.attention.files import open_weights, weight_files
from s3prl_ext.cli import main as cli
from s3prl_ext.commands import apply as commands
from s3prl_ext.commands import export
from s3prl_ext.deltas import TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.tasks.record import LABELS
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.divisions import division_of
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.training.upstream_settings import KEY, stated_settings
from tests.support import factories
from tests.support import tuned as made
from tests.support.result_files import content, write

FOLDED = [f"hf_speech_custom:{family}" for family in ("conformer", "sew-d", "ast", "moonshine")]
CHILD = {"method": "child", "mask": "fisher", "density": 0.05}


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: reader[name] for reader in map(open_weights, weight_files(path)) for name in reader.keys()}  # noqa: SIM118


def same_tensors(a: Path, b: Path) -> bool:
    first, second = tensors(a), tensors(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def child_task(
    tmp_path: Path, upstream: str, about: dict | None = None, **options
) -> tuple[Path, Path, list[torch.Tensor]]:
    """Tune a tiny model by hand; returns its path, the delta and the features of the tuned upstream."""
    ckpt = made.write_model(upstream, tmp_path, **options)
    model = made.build(upstream, ckpt)
    info = made.about(upstream, ckpt, CHILD, **(about or {}))
    delta = made.save_delta(made.tune(model), info, tmp_path / "exp" / "delta.safetensors")
    return ckpt, delta, made.features(model)


def run(command, *flags) -> None:
    assert command([str(flag) for flag in flags]) == 0


def no_file_of_its_own(folder: Path) -> Path:
    """Write a checkpoint that says it was made with fbank."""
    return made.save_checkpoint({}, made.about("fbank", None, {}), folder / "fbank.ckpt")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("upstream", list(made.MODELS))
def test_apply_and_revert(upstream, tmp_path):
    ckpt, delta, expected = child_task(tmp_path, upstream)
    suffix = "" if ckpt.is_dir() else ".pt"
    tuned, base = tmp_path / f"tuned{suffix}", tmp_path / f"base{suffix}"
    run(commands.main, "--delta", delta, "--model", ckpt, "--out", tuned)
    assert made.same(made.features(made.build(upstream, tuned)), expected)
    assert not same_tensors(tuned, ckpt)
    run(commands.revert_main, "--delta", delta.parent, "--model", tuned, "--out", base)
    assert same_tensors(base, ckpt)
    run(export.main, "--delta", delta, "--out", tmp_path / "exported")
    written = tmp_path / "exported" / ("" if ckpt.is_dir() else ckpt.name)
    assert same_tensors(written, tuned)
    run(commands.revert_main, "--delta", delta, "--model", written, "--out", tmp_path / "again")
    assert not (tmp_path / "again" / "export.json").exists() and same_tensors(tmp_path / "again", ckpt)
    if ckpt.is_dir():
        assert all((base / p.name).read_bytes() == p.read_bytes() for p in ckpt.glob("*.json"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("upstream", list(made.MODELS))
def test_export_is_a_plain_model(upstream, tmp_path):
    ckpt, delta, expected = child_task(tmp_path, upstream)
    out = tmp_path / "out"
    run(export.main, "--delta", delta, "--out", out)
    written = out if ckpt.is_dir() else out / "model.pt"
    assert made.same(made.features(made.build(upstream, written)), expected)
    assert not list(tmp_path.glob(".*"))
    if ckpt.is_dir():
        assert_opens_in_transformers(out)


def assert_opens_in_transformers(folder: Path) -> None:
    """Load a folder with the class that its config.json names; every weight must be there and none be left over."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    _, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


def test_a_ctc_model_keeps_its_head_and_files(tmp_path):
    from transformers import HubertForCTC

    ckpt, delta, expected = child_task(tmp_path, "hf_hubert_custom", ctc=True, stable_norm=True, max_shard_size="20KB")
    out = tmp_path / "out"
    run(export.main, "--delta", delta, "--out", out)
    assert made.same(made.features(made.build("hf_hubert_custom", out)), expected)
    before, after = HubertForCTC.from_pretrained(ckpt), HubertForCTC.from_pretrained(out)
    assert torch.equal(before.lm_head.weight, after.lm_head.weight)
    for name in ("config.json", "vocab.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (ckpt / name).read_bytes()


def test_bin_folder(tmp_path):
    ckpt = factories.hubert_folder(tmp_path / "model")
    torch.save(load_file(ckpt / "model.safetensors"), ckpt / "pytorch_model.bin")
    (ckpt / "model.safetensors").unlink()
    model = made.build("hf_hubert_custom", ckpt)
    info = made.about("hf_hubert_custom", ckpt, CHILD)
    delta = made.save_delta(made.tune(model), info, tmp_path / "delta.safetensors")
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    assert made.same(made.features(made.build("hf_hubert_custom", tmp_path / "out")), made.features(model))


@pytest.mark.parametrize("tuning", [{"method": "lora", "rank": 2}, {"method": "bitfit"}], ids=lambda t: t["method"])
@pytest.mark.parametrize("upstream", ["hubert_local", "hf_wav2vec2_custom", *FOLDED])
def test_an_adapter_is_folded(upstream, tuning, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    model = made.build(upstream, ckpt)
    tuned = made.tune_adapter(model, tuning)
    info = made.about(upstream, ckpt, tuning)
    delta = made.save_delta(tuned, info, tmp_path / "delta.safetensors")
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    written = tmp_path / "out" if ckpt.is_dir() else tmp_path / "out" / "model.pt"
    assert made.same(made.features(made.build(upstream, written)), made.features(model))
    run(commands.main, "--delta", delta, "--model", ckpt, "--out", tmp_path / "applied")
    assert same_tensors(tmp_path / "applied", written)
    back = (commands.revert_main, "--delta", delta, "--model", tmp_path / "applied", "--out", tmp_path / "base")
    if tuning["method"] == "bitfit":
        run(*back)
        assert same_tensors(tmp_path / "base", ckpt)
    else:
        with pytest.raises(UsageError, match="cannot be taken out"):
            run(*back)


@pytest.mark.parametrize("command", [export.main, commands.main])
def test_an_adapter_that_cannot_be_folded_is_refused(command, tmp_path):
    tuning = {"method": "houlsby", "bottleneck": 3}
    ckpt = made.write_model("hubert_local", tmp_path)
    tuned = made.tune_adapter(made.build("hubert_local", ckpt), tuning)
    delta = made.save_delta(tuned, made.about("hubert_local", ckpt, tuning), tmp_path / "d.safetensors")
    model = [] if command is export.main else ["--model", ckpt]
    with pytest.raises(UsageError, match="houlsby puts modules of its own .*TaskSwitch"):
        run(command, "--delta", delta, *model, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_checkpoints_are_exported(tmp_path):
    ckpt = made.write_model("hubert_local", tmp_path)
    child, full = made.build("hubert_local", ckpt), made.build("hubert_local", ckpt)
    info = made.about("hubert_local", ckpt, CHILD)
    small = made.save_checkpoint(made.delta_state(made.tune(child)), info, tmp_path / "small.ckpt")
    made.tune(full, density=0.5)
    info = made.about("hubert_local", ckpt, {"method": "full"})
    base = {"S3prlExt": {"upstream_sha256": state_sha256(made.build("hubert_local", ckpt).state_dict())}}
    whole = made.save_checkpoint({"Upstream": full.state_dict()} | base, info, tmp_path / "whole.ckpt")
    frozen = made.save_checkpoint({}, made.about("hubert_local", ckpt, {}), tmp_path / "frozen.ckpt")
    for path, model in ((small, child), (whole, full), (frozen, made.build("hubert_local", ckpt))):
        out = tmp_path / path.stem
        run(export.main, "--delta", path, "--out", out)
        assert made.same(made.features(made.build("hubert_local", out / "model.pt")), made.features(model))
        assert torch.equal(torch.load(out / "head.ckpt")["Featurizer"]["weights"], made.HEAD["Featurizer"]["weights"])
    run(commands.main, "--delta", small, "--model", ckpt, "--out", tmp_path / "applied.pt")
    assert same_tensors(tmp_path / "applied.pt", tmp_path / "small" / "model.pt")
    with pytest.raises(UsageError, match=r"give the run's delta\.safetensors"):
        run(commands.revert_main, "--delta", small, "--model", tmp_path / "applied.pt", "--out", tmp_path / "base.pt")
    with pytest.raises(UsageError, match="whole upstream"):
        run(commands.main, "--delta", whole, "--model", ckpt, "--out", tmp_path / "x.pt")
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=5)
    for path in (small, whole):
        with pytest.raises(DataError, match="belongs to another upstream"):
            run(export.main, "--delta", path, "-k", other, "--out", tmp_path / "x")


@pytest.fixture
def merged(tmp_path):
    """A task tuned on a merged upstream: config, target, delta and the features of the tuned upstream."""
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True)
    source = factories.bert_folder(tmp_path / "bert")
    config = tmp_path / "my.yaml"
    config.write_text(f"target:\n  model: {target}\nsource:\n  model: {source}\nlambda: 0.2\nlayers: 1\n")
    model = made.build("merged_attention", None, str(config))
    info = made.about("merged_attention", None, CHILD, upstream_model_config=str(config))
    delta = made.save_delta(made.tune(model), info, tmp_path / "delta.safetensors")
    return config, target, delta, made.features(model)


def test_a_task_on_a_merged_upstream(tmp_path, merged):
    from s3prl_ext.commands.merge import main as merge

    config, target, delta, expected = merged
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    assert made.same(made.features(made.build("hf_hubert_custom", tmp_path / "out")), expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| source | {tmp_path / 'bert'} | 0.2 in layers 1 (q_proj, k_proj, v_proj) |" in card
    assert "-u hf_hubert_custom -k . " in card and "multimodal-attention-merging" in card

    run(merge, "-g", config, "--out", tmp_path / "plain")
    run(commands.main, "--delta", delta, "--model", tmp_path / "plain", "--out", tmp_path / "tuned")
    assert same_tensors(tmp_path / "tuned", tmp_path / "out")
    run(commands.revert_main, "--delta", delta, "--model", tmp_path / "tuned", "--out", tmp_path / "base")
    assert same_tensors(tmp_path / "base", tmp_path / "plain")
    with pytest.raises(DataError, match="merged upstream merged_attention: write that with s3prl-ext merge"):
        run(commands.main, "--delta", delta, "--model", target, "--out", tmp_path / "x")


@pytest.mark.parametrize(
    ("method", "about"), [("linear", "W = λ · W_source + (1 - λ) · W_target"), ("slerp", "on the arc between them")]
)
def test_a_learnt_lambda_is_folded(tmp_path, method, about):
    target = factories.hubert_local_ckpt(tmp_path / "hubert.pt")
    source = factories.bert_folder(tmp_path / "bert")
    config = tmp_path / "my.yaml"
    config.write_text(
        f"target:\n  upstream: hubert_local\n  ckpt: {target}\nsource:\n  model: {source}\nlambda: 0.2\nlearnable: true\n"
        f"method: {method}\n"
    )
    model = made.build("merged_attention", None, str(config))
    with torch.no_grad():
        model.learnable_lambda.values.fill_(0.375)
    info = made.about("merged_attention", None, {"method": "full"}, upstream_model_config=str(config))
    trained = {"Upstream": {"learnable_lambda.values": model.learnable_lambda.values.detach()}}
    path = made.save_checkpoint(trained, info, tmp_path / "dev-best.ckpt")
    run(export.main, "--delta", path, "--out", tmp_path / "out")
    exported = made.build("hubert_local", tmp_path / "out" / "hubert.pt")
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(made.features(exported), made.features(model), strict=True)
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert about in card and "it ended at: layer_00 0.3750, layer_01 0.3750." in card
    assert "| upstream weights that trained | 2 of " in card


def test_learnt_lambdas_of_two_sources_are_folded(tmp_path):
    target = factories.hubert_local_ckpt(tmp_path / "hubert.pt")
    sources = [factories.bert_folder(tmp_path / f"bert_{seed}", seed=seed) for seed in (1, 2)]
    config = tmp_path / "my.yaml"
    items = "".join(f"- {{model: {source}, lambda: 0.2}}\n" for source in sources)
    config.write_text(
        f"target: {{upstream: hubert_local, ckpt: {target}}}\nsources:\n{items}learnable: {{constraint: sigmoid}}\n"
    )
    model = made.build("merged_attention", None, str(config))
    with torch.no_grad():
        model.learnable_lambda.values.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    info = made.about("merged_attention", None, {"method": "full"}, upstream_model_config=str(config))
    trained = {"Upstream": {"learnable_lambda.values": model.learnable_lambda.values.detach()}}
    path = made.save_checkpoint(trained, info, tmp_path / "dev-best.ckpt")
    run(export.main, "--delta", path, "--out", tmp_path / "out")
    exported = made.build("hubert_local", tmp_path / "out" / "hubert.pt")
    for a, b in zip(made.features(exported), made.features(model), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    first, second = torch.softmax(torch.tensor([0.0, 1.0, -1.0]), 0)[1:].tolist()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"source_0/layer_00 {first:.4f}, source_0/layer_01 {first:.4f}, source_1/layer_00 {second:.4f}" in card
    assert all(f"| source_{number} | {source} | 0.2 in layers" in card for number, source in enumerate(sources))


def test_card_head_and_record(tmp_path):
    ckpt, delta, _ = child_task(tmp_path, "hubert_local")
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    out = tmp_path / "out"
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    (shown,) = header.pop("model-index")
    scores = {
        row["metrics"][0]["type"]: (row["dataset"]["split"], row["metrics"][0]["value"]) for row in shown["results"]
    }
    assert scores["acc"] == ("dev", 0.75) and shown["name"] == "out"
    assert header == {"tags": ["speech", "s3prl", "speech_commands"]}
    record = json.loads((out / "export.json").read_text())
    trained = record["model"]["changed"]
    assert f"| upstream weights that trained | {trained:,} of " in card
    assert "| density | 0.05 |" in card and "| method | child |" in card and "| steps | 7 |" in card
    assert "| dev | acc | 0.75 | between 0 and 1 | higher |" in card and "| dev | loss | 0.5 | nats | lower |" in card
    assert "-m evaluate -u hubert_local -k model.pt -d speech_commands -c task.yaml -i head.ckpt -t dev" in card
    assert f"s3prl-ext run -m train -u hubert_local -k {ckpt} -d speech_commands -c training.yaml --seed 1337" in card
    assert "licence of the base model holds" in card
    assert yaml.safe_load((out / "training.yaml").read_text())["tuning"] == CHILD
    assert "tuning" not in yaml.safe_load((out / "task.yaml").read_text())
    head = torch.load(out / "head.ckpt", weights_only=True)
    assert all(
        torch.equal(head[part][name], value) for part, state in made.HEAD.items() for name, value in state.items()
    )


@pytest.mark.parametrize("kind", ["model", "task_vector"])
def test_the_head_names_its_labels_and_what_it_was_trained_on(tmp_path, kind):
    labels = {"emotions": ["neu", "hap", "ang", "sad"]}
    config = made.CONFIG | {"downstream_expert": {LABELS: labels, "fold": "fold2"}}
    data = {"sha256": "d" * 64, "files": 9, "bytes": 5, "covers": "names and sizes", "splits_sha256": "e" * 64}
    about = {"downstream": "emotion", "downstream_variant": "fold2", "config": config, "data": data, "splits_rule": 1}
    _, delta, _ = child_task(tmp_path, "hubert_local", about)
    run(export.main, "--delta", delta, "--out", tmp_path / "out", "--format", kind)
    head, trained = Checkpoint.read(tmp_path / "out" / "head.ckpt"), Checkpoint.read(delta)
    assert head.labels == labels and (head.extension.data, head.extension.splits_rule) == (data, 1)
    assert division_of("emotion", head.config, head.arguments["downstream_variant"]) == division_of(
        "emotion", trained.config, "fold2"
    )
    assert "tuning" not in head.config and head.arguments["upstream"] == "hubert_local"


def evaluated_of(delta: Path, scored: dict) -> dict:
    """Return the content of an evaluation as one of the best checkpoint next to a delta."""
    stored, folder = TrainedTask.read(delta), str(delta.parent)
    args = {"init_ckpt": f"{folder}/dev-best.ckpt", "expdir": folder, **RunSpec.of(stored.info).stored()}
    config = json.loads(json.dumps(stored.info["config"]))
    return scored | {"upstream_sha256": stored.delta.base_sha256, "config": config, "args": args}


def evaluated(delta: Path, **changes) -> dict:
    """Return the content of an evaluation of the best checkpoint next to a delta."""
    scored = evaluated_of(delta, content({"acc": 0.9}, downstream="speech_commands", step=7, splits_sha256="e" * 64))
    scored["config"]["downstream_expert"]["datarc"]["speech_commands_root"] = "/corpora/speech/v1"
    scored["intervals"] = {"test": {"acc": [0.8, 0.95]}}
    return scored | changes


@pytest.fixture
def task_with_data(tmp_path) -> Path:
    data = {"sha256": "d" * 64, "files": 958, "bytes": 5, "covers": "names and sizes", "splits_sha256": "e" * 64}
    datarc = {"speech_commands_root": "${SPEECH_COMMANDS}/v1", "eval_batch_size": 1}
    config = made.CONFIG | {"downstream_expert": {"datarc": datarc}}
    return child_task(tmp_path, "hubert_local", {"data": data, "config": config})[1]


def test_card_names_data_and_evaluations_of_the_same_checkpoint(tmp_path, task_with_data):
    delta = task_with_data
    write(delta.parent, evaluated(delta))
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| test | acc | 0.9 [0.8, 0.95] | between 0 and 1 | higher |" in card
    assert "| `datarc.speech_commands_root` | `${SPEECH_COMMANDS}/v1` |" in card
    assert "| files | 958 |" in card and f"`{'d' * 64}`" in card and f"`{'e' * 64}`" in card


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("step", 9, "step 9"),
        ("args.init_ckpt", "/elsewhere/dev-best.ckpt", "another checkpoint"),
        ("args.init_ckpt", "states-7.ckpt", "another checkpoint"),
        ("args.upstream_layer_selection", 3, "features"),
        ("upstream_sha256", "9" * 64, "upstream_sha256"),
        ("data", {"sha256": "0" * 64, "files": 2, "bytes": 10, "covers": "all"}, "data"),
        ("splits_sha256", "0" * 64, "splits"),
        ("config.runner.evaluate_ratio", 0.01, "part of the split"),
        ("config.downstream_expert.datarc.eval_batch_size", 8, "eval_batch_size"),
    ],
)
def test_a_foreign_score_is_not_on_the_card(tmp_path, task_with_data, caplog, key, value, reason):
    """The card gives stored scores of a split only where no evaluation of the very task replaces them."""
    delta = task_with_data
    scored = evaluated(delta)
    place = scored
    *above, last = key.split(".")
    for part in above:
        place = place.setdefault(part, {})
    place[last] = value
    scored["metrics"] = {"dev": scored["metrics"]["test"]}
    path = write(delta.parent, scored)
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| dev | acc | 0.75 |" in card and "0.9" not in card.partition("## Scores")[2].partition("##")[0]
    warned = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
    assert len(warned) == 1 and reason in warned[0]


def test_scores_of_a_part_of_a_split_are_marked_on_the_card(tmp_path):
    config = made.CONFIG | {"runner": {"evaluate_ratio": 0.1}}
    _, delta, _ = child_task(tmp_path, "hubert_local", {"config": config})
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| dev | acc | 0.75 |" in card and "Of dev a part was scored: runner.evaluate_ratio 0.1." in card
    assert "model-index" not in card, "the hub would show it without the remark"


def test_an_evaluation_of_every_tenth_clip_is_not_on_the_card(tmp_path, caplog):
    corpus = {"name": "common_voice", "path": "/cv/es/clips", "ratio": 0.1}
    about = {"downstream": "ctc", "config": made.CONFIG | {"downstream_expert": {"corpus": corpus}}}
    _, delta, _ = child_task(tmp_path, "hubert_local", about)
    stored = TrainedTask.read(delta)
    scored = evaluated_of(delta, content({"wer": 10.0}, downstream="ctc", step=7))
    write(delta.parent, scored)
    assert export._evaluations(stored) == {}
    assert "it scored a part of the split (corpus.ratio 0.1)" in caplog.text
    del scored["config"]["downstream_expert"]["corpus"]["ratio"]
    write(delta.parent, scored)
    assert export._evaluations(stored)["test"]["wer"][0] == 10.0, "of all clips, though trained with a part of dev"


def test_dry_run_writes_nothing(tmp_path, capsys):
    ckpt, delta, _ = child_task(tmp_path, "hubert_local")
    before = contents(tmp_path)
    run(export.main, "--delta", delta, "--dry-run")
    shown = capsys.readouterr().out
    assert str(ckpt) in shown and "Nothing was written." in shown and "of 51 tensors" in shown
    assert contents(tmp_path) == before
    with pytest.raises(UsageError, match="--out is missing"):
        run(export.main, "--delta", delta)


def test_a_model_that_moved_is_named(tmp_path):
    ckpt, delta, expected = child_task(tmp_path, "hubert_local")
    moved = ckpt.rename(tmp_path / "moved.pt")
    with pytest.raises(DataError, match="does not exist: name it with -k"):
        run(export.main, "--delta", delta, "--out", tmp_path / "out")
    run(export.main, "--delta", delta, "-k", moved, "--out", tmp_path / "out")
    assert made.same(made.features(made.build("hubert_local", tmp_path / "out" / "moved.pt")), expected)


def test_a_released_model(tmp_path, monkeypatch):
    from s3prl.upstream.hubert import hubconf

    ckpt = factories.hubert_local_ckpt(tmp_path / "hubert_base_ls960.pt")
    monkeypatch.setattr(hubconf, "_urls_to_filepaths", lambda url, refresh=False: str(ckpt))
    model = made.build("hubert_base", None)
    info = made.about("hubert_base", None, CHILD)
    delta = made.save_delta(made.tune(model), info, tmp_path / "delta.safetensors")
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    assert "-u hubert_local -k hubert_base_ls960.pt" in (tmp_path / "out" / "README.md").read_text()
    written = tmp_path / "out" / ckpt.name
    assert made.same(made.features(made.build("hubert_local", written)), made.features(model))
    run(commands.main, "--delta", delta, "--model", ckpt, "--out", tmp_path / "applied.pt")
    assert same_tensors(tmp_path / "applied.pt", written)

    monkeypatch.setattr(hubconf, "_urls_to_filepaths", lambda *_, **__: 1 / 0)  # the network is gone
    run(export.main, "--delta", delta, "-k", ckpt, "--out", tmp_path / "offline")
    assert same_tensors(tmp_path / "offline" / ckpt.name, written)


def test_the_wrong_model_is_refused(tmp_path):
    ckpt, delta, _ = child_task(tmp_path, "hubert_local")
    other = factories.hubert_local_ckpt(tmp_path / "other.pt", seed=5)
    foreign = factories.wav2vec2_local_ckpt(tmp_path / "foreign.pt")
    out = tmp_path / "out.pt"
    run(commands.main, "--delta", delta, "--model", ckpt, "--out", tmp_path / "tuned.pt")
    before = contents(tmp_path)
    for model, message in (
        (other, "belongs to another upstream"),
        (foreign, "hubert_local cannot load"),
        (tmp_path / "tuned.pt", "already: there is nothing to apply"),
        (tmp_path / "missing.pt", "no such model folder or checkpoint file"),
    ):
        with pytest.raises(DataError, match=message):
            run(commands.main, "--delta", delta, "--model", model, "--out", out)
    for model, message in ((other, "is not what .* makes of its base"), (ckpt, "there is nothing to revert")):
        with pytest.raises(DataError, match=message):
            run(commands.revert_main, "--delta", delta, "--model", model, "--out", out)
    with pytest.raises(DataError, match="belongs to another upstream"):
        run(export.main, "--delta", delta, "-k", other, "--out", out)
    with pytest.raises(UsageError, match="fbank has no checkpoint file that could hold tuned weights"):
        run(export.main, "--delta", no_file_of_its_own(tmp_path.parent), "--out", out)
    with pytest.raises(UsageError, match="unknown upstream"):
        run(export.main, "--delta", delta, "-u", "hubert_lokal", "--out", out)
    with pytest.raises(DataError, match="file is no|cannot load|no such"):
        run(export.main, "--delta", delta, "-u", "wav2vec2_local", "--out", out)
    for command, extra in ((commands.main, ["--model", ckpt]), (export.main, [])):
        with pytest.raises(UsageError, match="exists already"):
            run(command, "--delta", delta, *extra, "--out", other)
    assert contents(tmp_path) == before


def test_a_damaged_delta_is_refused(tmp_path):
    ckpt, delta, _ = child_task(tmp_path, "hubert_local")
    content = delta.read_bytes()
    (tmp_path / "empty").mkdir()
    cases = {
        "truncated": (content[:-10], "truncated"),
        "edited": (content[:-5] + b"\xff" + content[-4:], "corrupt or was edited"),
        "text": (b"hello", "not a delta"),
    }
    for name, (damaged, message) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        for command, extra in ((commands.main, ["--model", ckpt]), (export.main, [])):
            with pytest.raises(DataError, match=message):
                run(command, "--delta", path, *extra, "--out", tmp_path / "out")
    with pytest.raises(DataError, match=r"contains no checkpoint and no delta\.safetensors"):
        run(export.main, "--delta", tmp_path / "empty", "--out", tmp_path / "out")
    with pytest.raises(DataError, match="no such checkpoint, delta or folder"):
        run(export.main, "--delta", tmp_path / "missing.safetensors", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_that_cannot_hold_the_weights_becomes_float32(tmp_path):
    target = factories.hubert_folder(tmp_path / "hubert", dtype=torch.float16)
    config = tmp_path / "my.yaml"
    source = factories.bert_folder(tmp_path / "bert")
    config.write_text(f"target:\n  model: {target}\nsource:\n  model: {source}\nlambda: 0.2\n")
    model = made.build("merged_attention", None, str(config))
    info = made.about("merged_attention", None, CHILD, upstream_model_config=str(config))
    delta = made.save_delta(made.tune(model), info, tmp_path / "delta.safetensors")
    run(export.main, "--delta", delta, "--out", tmp_path / "out")
    loaded = made.build("hf_hubert_custom", str(tmp_path / "out")).state_dict()
    tuned = model.state_dict()
    assert loaded.keys() == tuned.keys() and all(torch.equal(loaded[name], tuned[name]) for name in loaded)
    assert_opens_in_transformers(tmp_path / "out")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    ckpt, delta, _ = child_task(tmp_path, "hubert_local")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(torch, "save", full)
    before = contents(tmp_path)
    for command, extra in ((commands.main, ["--model", ckpt]), (export.main, [])):
        with pytest.raises(OSError, match="No space"):
            run(command, "--delta", delta, *extra, "--out", tmp_path / "out")
    assert contents(tmp_path) == before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["apply", "revert", "export"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli([command, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  s3prl-ext {command} --delta" in capsys.readouterr().out


def test_a_base_with_other_settings_is_refused(tmp_path):
    """The same weights, but other features: its ``config.json`` says half as many attention heads."""
    ckpt = made.write_model("hf_hubert_custom", tmp_path)
    model = made.build("hf_hubert_custom", ckpt)
    info = made.about("hf_hubert_custom", ckpt, CHILD, **{KEY: stated_settings(model)})
    delta = made.save_delta(made.tune(model), info, tmp_path / "exp" / "delta.safetensors")
    run(commands.main, "--delta", delta, "--model", ckpt, "--out", tmp_path / "tuned")
    other = Path(shutil.copytree(ckpt, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))
    with pytest.raises(DataError, match=r"other settings of the upstream \(HubertConfig.num_attention_heads 1 instead"):
        run(commands.main, "--delta", delta, "--model", other, "--out", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
