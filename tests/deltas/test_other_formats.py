"""LoRA in the format of peft, both ways, and child networks as sparse task vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from s3prl_ext.commands import apply, export, merge
from s3prl_ext.deltas import TaskSwitch
from s3prl_ext.deltas.trained_task import TrainedTask
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.prediction import load as load_for_prediction
from tests.support import factories
from tests.support import tuned as made

LORA = {"method": "lora", "rank": 3, "alpha": 6, "projections": ["q_proj", "v_proj", "fc1"], "layers": [1]}
WIDTH, INNER, RANK = 32, 64, 3

# upstream as in tests.support.tuned -> a module of it, as transformers' AutoModel names it
MODULES = {
    "hf_hubert_custom": "encoder.layers.{}.attention.q_proj",
    "hf_speech_custom:conformer": "encoder.layers.{}.self_attn.linear_q",
    "hf_speech_custom:ast": "layers.{}.attention.q_proj",
    "hf_speech_custom:moonshine": "encoder.layers.{}.self_attn.q_proj",
}


def peft_folder(folder: Path, modules: dict[str, tuple[int, int]], prefix: str = "", **settings) -> Path:
    """Write random factors as peft does; `modules` maps names to outputs and inputs."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (outputs, inputs) in modules.items():
        key = f"base_model.model.{prefix}{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator)
        tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 12,
        "target_modules": ["q_proj"],
        "bias": "none",
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def projections(template: str = "encoder.layers.{}.attention.{}") -> dict[str, tuple[int, int]]:
    return {template.format(layer, name): (WIDTH, WIDTH) for layer in (0, 1) for name in ("q_proj", "k_proj")}


@pytest.mark.parametrize(
    ("prefix", "settings", "scale"), [("", {}, 4.0), ("hubert.", {"use_rslora": True}, 12 / 3**0.5)]
)
def test_an_adapter_of_peft_is_a_delta(prefix, settings, scale, tmp_path):
    model = factories.hubert_folder(tmp_path / "model", ctc=True)
    adapter = peft_folder(tmp_path / "adapter", projections(), prefix, base_model_name_or_path=str(model), **settings)
    assert apply.main(["--delta", str(adapter), "--model", str(model), "--out", str(tmp_path / "out")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    factors = load_file(adapter / "adapter_model.safetensors")
    for name, old in before.items():
        module = name.removeprefix("hubert.").removesuffix(".weight")
        a, b = (factors.get(f"base_model.model.{prefix}{module}.lora_{factor}.weight") for factor in "AB")
        expected = old if a is None or name.endswith(".bias") else old + scale * (b @ a)
        tolerance = {"rtol": 0, "atol": 0} if a is None else {"rtol": 1e-6, "atol": 1e-5}  # of sums of up to 100
        torch.testing.assert_close(after[name], expected, **tolerance)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"hubert.{name}.weight" for name in projections()}


def test_an_adapter_of_peft_is_switched_on_and_off(tmp_path):
    model = factories.whisper_folder(tmp_path / "model")
    names = projections("encoder.layers.{}.self_attn.{}")
    adapter = peft_folder(tmp_path / "adapter", names, base_model_name_or_path=str(model))
    task = TrainedTask.read(adapter)
    assert task.spec.upstream == "whisper_custom" and task.spec.upstream_ckpt == str(model)
    upstream = made.build("whisper_custom", model)
    base = made.features(upstream)
    switch = TaskSwitch(upstream, {"other": adapter})
    switch.switch("other")
    assert not torch.allclose(made.features(upstream)[-1], base[-1], atol=1e-3)
    switch.switch(None)
    assert made.same(made.features(upstream), base)


@pytest.mark.parametrize("upstream", MODULES)
def test_our_lora_is_written_and_read_back(upstream, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    model = made.build(upstream, ckpt)
    tuned = made.tune_adapter(model, LORA)
    delta = made.save_delta(tuned, made.about(upstream, ckpt, LORA), tmp_path / "delta.safetensors")
    out = tmp_path / "adapter"
    assert export.main(["--delta", str(delta), "--format", "peft", "--out", str(out)]) == 0
    tensors, module = load_file(out / "adapter_model.safetensors"), MODULES[upstream].format(1)
    assert len(tensors) == 6 and tensors[f"base_model.model.{module}.lora_A.weight"].shape == (RANK, WIDTH)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, str(ckpt))
    assert module in config["target_modules"] and len(config["target_modules"]) == 3
    assert "merge_and_unload" in (out / "README.md").read_text() and (out / "head.ckpt").is_file()
    again = made.build(upstream, ckpt)
    switch = TaskSwitch(again, {"tuned": out})
    switch.switch("tuned")
    assert made.same(made.features(again), made.features(model))


@pytest.mark.parametrize("upstream", ["hf_hubert_custom", "hf_speech_custom:ast"])
def test_peft_itself_agrees(upstream, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModel

    ckpt = made.write_model(upstream, tmp_path)
    model = made.build(upstream, ckpt)
    tuned = made.tune_adapter(model, LORA)
    delta = made.save_delta(tuned, made.about(upstream, ckpt, LORA), tmp_path / "delta.safetensors")
    export.main(["--delta", str(delta), "--format", "peft", "--out", str(tmp_path / "ours")])
    theirs = made.build(upstream, ckpt)
    wrapped = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(ckpt), str(tmp_path / "ours"))
    theirs.model.load_state_dict(wrapped.merge_and_unload().state_dict(), strict="moonshine" not in upstream)
    for one, other in zip(made.features(theirs), made.features(model), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft_model = peft.get_peft_model(AutoModel.from_pretrained(ckpt), config)
    peft_model.save_pretrained(tmp_path / "theirs")
    assert apply.main(["--delta", str(tmp_path / "theirs"), "--model", str(ckpt), "--out", str(tmp_path / "out")]) == 0
    merged = made.build(upstream, ckpt)
    merged.model.load_state_dict(peft_model.merge_and_unload().state_dict())
    for one, other in zip(made.features(made.build(upstream, tmp_path / "out")), made.features(merged), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def spoil(folder: Path, **settings) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def drop(folder: Path, part: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if part not in name}, file)


BROKEN = [
    (lambda f: spoil(f, peft_type="IA3"), "peft's type IA3: only LORA is read"),
    (lambda f: spoil(f, use_dora=True), "uses use_dora: true, which our LoRA does not have: merge the adapter"),
    (lambda f: spoil(f, bias="all", modules_to_save=["lm_head"]), r'bias: "all", modules_to_save: \["lm_head"\]'),
    (lambda f: spoil(f, use_qalora=True), "uses use_qalora: true, which our LoRA does not have"),
    (lambda f: spoil(f, init_lora_weights="pissa_niter_4"), "pissa_niter_4, which changed the base as well"),
    (lambda f: spoil(f, init_lora_weights="olora"), "olora, which changed the base as well"),
    (lambda f: spoil(f, r=4), "factors have rank .3., but adapter_config.json says r: 4"),
    (lambda f: spoil(f, lora_alpha="x"), "lora_alpha must be a number above 0"),
    (lambda f: (f / "adapter_config.json").write_text("{"), "not readable as JSON"),
    (lambda f: (f / "adapter_model.safetensors").unlink(), "lacks adapter_model.safetensors"),
    (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 40), "not readable as safetensors"),
    (
        lambda f: drop(f, "layers.1.attention.k_proj.lora_B"),
        "the two factors of encoder.layers.1.attention.k_proj are not",
    ),
    (lambda f: drop(f, "layers.1.attention.k_proj"), "3 modules, which are not the same projections in each layer"),
    (lambda f: drop(f, ""), "has no factors"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_what_is_not_such_an_adapter_is_refused_in_one_sentence(change, message, tmp_path):
    model = factories.hubert_folder(tmp_path / "model")
    adapter = peft_folder(tmp_path / "adapter", projections(), base_model_name_or_path=str(model))
    change(adapter)
    with pytest.raises(DataError, match=message):
        apply.main(["--delta", str(adapter), "--model", str(model), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path):
    model = factories.hubert_folder(tmp_path / "model", width=16)
    other = peft_folder(tmp_path / "other", {"model.layers.0.mlp.up_proj": (WIDTH, WIDTH)})
    with pytest.raises(DataError, match="modules that no known speech encoder has .model.layers.0.mlp.up_proj"):
        apply.main(["--delta", str(other), "--model", str(model), "--out", str(tmp_path / "out")])
    wide = peft_folder(tmp_path / "wide", projections())
    with pytest.raises(DataError, match="the weights do not belong to lora with these options on this upstream"):
        apply.main(["--delta", str(wide), "--model", str(model), "--out", str(tmp_path / "out")])


def test_an_adapter_has_no_head(tmp_path):
    adapter = peft_folder(tmp_path / "adapter", projections(), base_model_name_or_path="x")
    twice = [
        "--deltas",
        str(adapter),
        str(peft_folder(tmp_path / "other", projections())),
        "--lambda",
        "0.5",
        "--out",
        "y",
    ]
    for command in (
        lambda: load_for_prediction(adapter),
        lambda: export.main(["--delta", str(adapter), "--out", "y"]),
        lambda: merge.main(twice),
    ):
        with pytest.raises(
            DataError, match="an adapter without the head of a task: write its model with s3prl-ext apply"
        ):
            command()


@pytest.mark.parametrize("upstream", ["hubert_local", "hf_hubert_custom", "hf_speech_custom:ast"])
def test_a_child_network_is_a_sparse_task_vector(upstream, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    model = made.build(upstream, ckpt)
    tuning = {"method": "child", "density": 0.05}
    tuned = made.tune(model)
    delta = made.save_delta(tuned, made.about(upstream, ckpt, tuning), tmp_path / "delta.safetensors")
    run = ["--delta", str(delta), "--out"]
    assert export.main([*run, str(tmp_path / "vector"), "--format", "task_vector"]) == 0
    assert export.main([*run, str(tmp_path / "model_out")]) == 0
    written = tmp_path / "model_out" / ("" if ckpt.is_dir() else ckpt.name)
    base, whole = made_state(ckpt), made_state(written)
    with safe_open(tmp_path / "vector" / "task_vector.safetensors", "pt") as vector:
        header = vector.metadata()
        names = {key.rpartition(".")[0] for key in vector.keys()}  # noqa: SIM118
        assert header["format"] == "sparse_task_vector" and set(json.loads(header["shapes"])) == names
        for name in names:
            base[name].view(-1)[vector.get_tensor(f"{name}.indices")] += vector.get_tensor(f"{name}.values")
    assert names == {name for name in whole if not torch.equal(whole[name], made_state(ckpt)[name])}
    for name, tensor in whole.items():
        torch.testing.assert_close(base[name], tensor, rtol=0, atol=1e-7)


def made_state(path: Path) -> dict[str, torch.Tensor]:
    from s3prl_ext.attention.files import open_weights, weight_files

    readers = [open_weights(file) for file in weight_files(path)]
    return {name: reader[name].clone() for reader in readers for name in reader.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("upstream", "tuning", "kind", "message"),
    [
        (
            "hf_hubert_custom",
            {"method": "houlsby", "bottleneck": 2},
            "peft",
            "holds houlsby; peft's format takes a lora",
        ),
        ("hf_hubert_custom", {"method": "houlsby", "bottleneck": 2}, "task_vector", "holds houlsby; a task vector is"),
        ("hf_hubert_custom", LORA, "task_vector", "holds lora; a task vector is .* for a lora use --format peft"),
        ("hubert_local", LORA, "peft", "model.pt is a checkpoint of s3prl; peft takes transformers folders only"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(upstream, tuning, kind, message, tmp_path):
    ckpt = made.write_model(upstream, tmp_path)
    tuned = made.tune_adapter(made.build(upstream, ckpt), tuning)
    delta = made.save_delta(tuned, made.about(upstream, ckpt, tuning), tmp_path / "delta.safetensors")
    with pytest.raises(UsageError, match=message):
        export.main(["--delta", str(delta), "--format", kind, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_winner_of_a_race_is_written_with_its_own_settings(tmp_path):
    ckpt = made.write_model("hf_hubert_custom", tmp_path)
    tuned = made.tune_adapter(made.build("hf_hubert_custom", ckpt), LORA)
    raced = {**LORA, "alpha": [6, 32]}
    info = made.about("hf_hubert_custom", ckpt, raced, candidate="alpha=6")
    delta = made.save_delta(tuned, info, tmp_path / "exp" / "delta.safetensors")
    out = tmp_path / "adapter"
    assert export.main(["--delta", str(delta), "--format", "peft", "--out", str(out)]) == 0
    assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 6
