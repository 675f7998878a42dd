"""``s3prl-ext merge`` on every kind of target: what it writes loads, and differs in query, key and value only."""

from __future__ import annotations

import json
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from s3prl_ext.attention.files import read_attention, read_torch_state
from s3prl_ext.attention.layouts import Slot, find_attention
from s3prl_ext.cli import main
from s3prl_ext.commands import merge as merge_command
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.commands.test_delta_commands import assert_opens_in_transformers
from tests.support import factories

LAMBDA = 0.25


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return factories.bert_folder(tmp_path_factory.mktemp("bert") / "bert")


def write_config(folder: Path, target: str, source: Path | str, more: str = f"lambda: {LAMBDA}") -> Path:
    file = folder / "my.yaml"
    file.write_text(f"target:\n  {target}\nsource:\n  model: {source}\n{more}\n")
    return file


def merge(capsys, *flags) -> str:
    """Run the command in this process, where its errors stay exceptions."""
    from s3prl_ext.commands.merge import main as command

    assert command([str(flag) for flag in flags]) == 0
    return capsys.readouterr().out


def assert_only_attention_differs(out: dict, target: dict, expected: int) -> None:
    assert list(out) == list(target) or sorted(out) == sorted(target)
    changed = [name for name in target if not torch.equal(out[name], target[name])]
    assert all(out[name].dtype == target[name].dtype for name in target)
    assert len(changed) == expected and all(name.endswith("_proj.weight") for name in changed), changed


def logits(folder: Path) -> torch.Tensor:
    from transformers import HubertForCTC

    model = HubertForCTC.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.randn(1, 8000, generator=torch.Generator().manual_seed(3))).logits


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_transformers_folder_with_ctc_head(options, tmp_path, bert, capsys):
    from transformers import HubertForCTC

    target = factories.hubert_folder(tmp_path / "hubert", ctc=True, stable_norm=True, **options)
    file = write_config(tmp_path, f"model: {target}", bert)
    out = tmp_path / "merged"
    assert merge(capsys, "-g", file, "--out", out).strip() == str(out)

    before = {k: v for part in sorted(target.glob("*.safetensors")) for k, v in load_file(part).items()}
    after = {k: v for part in sorted(out.glob("*.safetensors")) for k, v in load_file(part).items()}
    assert_only_attention_differs(after, before, 6)
    source, weights = read_attention(bert), read_attention(out)
    for slot, old in read_attention(target).items():
        new = torch.lerp(old, source[slot], LAMBDA) if slot.kind == "weight" else old
        assert torch.equal(weights[slot], new), slot

    for name in ("config.json", "vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (out / name).read_bytes() == (target / name).read_bytes()
    head = HubertForCTC.from_pretrained(out).lm_head.weight
    assert torch.equal(head, HubertForCTC.from_pretrained(target).lm_head.weight)
    assert not torch.allclose(logits(out), logits(target), atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_target_in_half_precision_is_written_as_it_is_scored(dtype, options, tmp_path, bert, capsys):
    """What changed is float32, the rest keeps its bits, and transformers loads all of it as float32."""
    from transformers import HubertForCTC

    target = factories.hubert_folder(tmp_path / "hubert", ctc=True, dtype=dtype, **options)
    file, out = write_config(tmp_path, f"model: {target}", bert), tmp_path / "merged"
    merge(capsys, "-g", file, "--out", out)
    before = {k: v for part in sorted(target.glob("*.safetensors")) for k, v in load_file(part).items()}
    after = {k: v for part in sorted(out.glob("*.safetensors")) for k, v in load_file(part).items()}
    changed = {name for name in before if after[name].dtype != dtype}
    assert len(changed) == 6 and all(torch.equal(after[name], before[name]) for name in before.keys() - changed)
    upstream = merged_attention(model_config=str(file)).eval()
    loaded = HubertForCTC.from_pretrained(out).eval()
    scored = {f"hubert.{name.removeprefix('model.')}": tensor for name, tensor in upstream.state_dict().items()}
    same = [torch.equal(tensor, scored[name]) for name, tensor in loaded.state_dict().items() if name in scored]
    assert len(same) > 40 and all(same) and loaded.dtype == torch.float32
    exported = merged_attention(model_config=f"{file},,lambda=0", ckpt=str(out)).eval()
    wavs = [torch.randn(9000, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        assert torch.equal(upstream(wavs)["last_hidden_state"], exported(wavs)["last_hidden_state"])
    record = json.loads((out / "merge.json").read_text())["merge"]
    assert record["target"]["attention_sha256"] == upstream.merge_record["target"]["attention_sha256"]
    index = out / "model.safetensors.index.json"
    if index.is_file():
        assert json.loads(index.read_text())["metadata"]["total_size"] == sum(t.nbytes for t in after.values())


def test_matrices_in_half_precision_are_widened_one_at_a_time(tmp_path, bert, capsys, monkeypatch):
    made: list[weakref.ref] = []
    most = [0]
    widened = merge_command._widened

    def watched(tensor):
        result = widened(tensor)
        made.extend([weakref.ref(result)] if result is not tensor else [])  # not what was written in float32
        most.append(sum(one() is not None for one in made))
        return result

    monkeypatch.setattr(merge_command, "_widened", watched)
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True, dtype=torch.float16)
    merge(capsys, "-g", write_config(tmp_path, f"model: {target}", bert), "--out", tmp_path / "merged")
    assert len(made) > 24 and max(most) <= 3


def test_a_checkpoint_in_half_precision_is_written_as_it_is_scored(tmp_path, bert, capsys):
    import s3prl.hub

    target = factories.hubert_local_ckpt(tmp_path / "target.pt")
    content = torch.load(target, weights_only=True)
    content["model_weight"] = {name: tensor.half() for name, tensor in content["model_weight"].items()}
    torch.save(content, target)
    file = write_config(tmp_path, f"upstream: hubert_local\n  ckpt: {target}", bert)
    merge(capsys, "-g", file, "--out", tmp_path / "merged")
    folded = merged_attention(model_config=str(file)).state_dict()
    written = s3prl.hub.hubert_local(ckpt=str(tmp_path / "merged" / "target.pt")).state_dict()
    assert folded.keys() == written.keys() and all(torch.equal(folded[name], written[name]) for name in folded)


@pytest.mark.parametrize("family", ["hubert", *factories.SPEECH_FAMILIES])
def test_features_equal_those_of_the_merged_upstream(family, tmp_path, bert, capsys):
    writer = factories.SPEECH_FAMILIES.get(family) or partial(factories.hubert_folder, ctc=True)
    target = writer(tmp_path / family)
    file = write_config(tmp_path, f"model: {target}", bert)
    merge(capsys, "-g", file, "--out", tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (target, tmp_path / "merged"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {
        name for slot, name in find_attention(before, family).names.items() if slot.kind == "weight"
    }
    assert_opens_in_transformers(tmp_path / "merged")
    folded = merged_attention(model_config=str(file)).eval()
    exported = merged_attention(model_config=f"{file},,lambda=0", ckpt=str(tmp_path / "merged")).eval()
    wavs = [torch.randn(9000, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        assert torch.equal(folded(wavs)["last_hidden_state"], exported(wavs)["last_hidden_state"])


def test_bin_folder_becomes_safetensors(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True)
    state = load_file(target / "model.safetensors")
    torch.save(state, target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    merge(capsys, "-g", write_config(tmp_path, f"model: {target}", bert), "--out", tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("*.bin"))
    assert_only_attention_differs(load_file(tmp_path / "merged" / "model.safetensors"), state, 6)
    logits(tmp_path / "merged")


@pytest.mark.parametrize("name", ["hubert_local", "wav2vec2_local", "wavlm_local", "beats_local"])
def test_checkpoint_keeps_its_format(name, tmp_path, bert, capsys):
    import s3prl.hub

    factory = {"beats_local": factories.beats_ckpt}.get(name) or getattr(factories, f"{name}_ckpt")
    target = factory(tmp_path / "target.pt")
    file = write_config(tmp_path, f"upstream: {name}\n  ckpt: {target}", bert, f"lambda: {LAMBDA}\nlayers: 1")
    merge(capsys, "-g", file, "--out", tmp_path / "merged")
    written = tmp_path / "merged" / "target.pt"
    assert_only_attention_differs(read_torch_state(written), read_torch_state(target), 3)
    old, new = (torch.load(path, weights_only=True) for path in (target, written))
    assert old.keys() == new.keys()
    assert all(old[key] == new[key] for key in old if key not in ("model", "model_weight"))
    wavs = [torch.randn(9000, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        exported = getattr(s3prl.hub, name)(ckpt=str(written)).eval()(wavs)["hidden_states"]
        folded = merged_attention(model_config=str(file)).eval()(wavs)["hidden_states"]
    assert all(torch.equal(a, b) for a, b in zip(exported, folded, strict=True))


def test_released_model_of_s3prl_is_taken_from_its_download(tmp_path, bert, capsys, monkeypatch):
    from s3prl.upstream.hubert import hubconf

    file = factories.hubert_local_ckpt(tmp_path / "hubert_base_ls960.pt")
    asked = []
    monkeypatch.setattr(hubconf, "_urls_to_filepaths", lambda url, refresh=False: asked.append(url) or str(file))
    config = write_config(tmp_path, "upstream: hubert_base", bert)
    merge(capsys, "-g", config, "--out", tmp_path / "merged")
    assert asked[0].endswith("hubert_base_ls960.pt")
    assert_only_attention_differs(read_torch_state(tmp_path / "merged" / file.name), read_torch_state(file), 6)
    assert f"-u hubert_local -k {tmp_path / 'merged' / file.name}" in (tmp_path / "merged" / "README.md").read_text()
    assert hubconf._UpstreamExpert.__name__ == "UpstreamExpert"


def test_zero_lambda_gives_the_same_file(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert")
    merge(capsys, "-g", f"{write_config(tmp_path, f'model: {target}', bert)},,lambda=0", "--out", tmp_path / "merged")
    name = "model.safetensors"
    assert (tmp_path / "merged" / name).read_bytes() == (target / name).read_bytes()


def test_fused_target(tmp_path, bert):
    """BERT into a model with one tensor for q, k and v: the other two parts keep their bits."""
    from s3prl_ext.merging.export import write_model

    target = factories.mgp_str_folder(tmp_path / "timm")
    (tmp_path / "out").mkdir()
    source, before = read_attention(bert), read_attention(target)
    slots = [Slot(0, "k_proj"), Slot(1, "q_proj"), Slot(1, "v_proj")]
    write_model(target, tmp_path / "out", slots, lambda slot, old: source[slot].clone())
    after = read_attention(tmp_path / "out")
    for slot, old in before.items():
        assert torch.equal(after[slot], source[slot] if slot in slots else old), slot


def test_card_and_record(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True)
    file = write_config(tmp_path, f"model: {target}", bert, "lambda: [0.25, 0.5]\nprojections: [q_proj, v_proj]")
    out = tmp_path / "merged"
    merge(capsys, "-g", f"{file},,biases=true", "--out", out)
    record = json.loads((out / "merge.json").read_text())
    card = (out / "README.md").read_text()
    upstream = merged_attention(model_config=f"{file},,biases=true")
    assert record["merge"] == json.loads(json.dumps(upstream.merge_record))
    assert len(record["rows"]) == 8
    for text in (
        str(target), str(bert), record["merge"]["target"]["attention_sha256"], record["merged_attention_sha256"],
        record["merge"]["sources"][0]["attention_sha256"], "| 1 | 1 | 0.5 | 0 | 0.5 |", "licences", "HubertForCTC",
    ):  # fmt: skip
        assert text in card, text
    merge(capsys, "-g", out / "merge.yaml", "--out", tmp_path / "again")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    assert yaml.safe_load((out / "merge.yaml").read_text())["biases"] is True


def test_noise_is_written_with_its_own_hash(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert")
    file = write_config(tmp_path, f"model: {target}", bert, "lambda: 0.5\nnoise: standard")
    file.write_text(file.read_text().replace(f"source:\n  model: {bert}\n", ""))
    merge(capsys, "-g", file, "--out", tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert len(record["merge"]["sources"][0]["noise"]["sha256"]) == 64
    expected = read_attention(tmp_path / "merged")[Slot(1, "v_proj")]
    upstream = merged_attention(model_config=str(file))
    assert torch.equal(upstream.state_dict()["model.encoder.layers.1.attention.v_proj.weight"], expected)


def test_dry_run_names_the_tensors_and_writes_nothing(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert", ctc=True)
    file = write_config(tmp_path, f"model: {target}", bert, "lambda: {q_proj: 0.1, v_proj: 0.2}\nlayers: 1")
    before = sorted(tmp_path.rglob("*"))
    lines = merge(capsys, "-g", file, "--dry-run", "--out", tmp_path / "merged").splitlines()
    assert lines[0].split() == ["layer", "projection", "lambda", "target", "source", "shape"]
    assert [line.split() for line in lines[1:-1]] == [
        ["1", name, value, f"hubert.encoder.layers.1.attention.{name}.weight",
         f"encoder.layer.1.attention.self.{theirs}.weight", "32x32"]
        for name, value, theirs in (("q_proj", "0.1", "query"), ("v_proj", "0.2", "value"))
    ]  # fmt: skip
    assert lines[-1] == "2 of 12 attention tensors; nothing was written."
    assert sorted(tmp_path.rglob("*")) == before


def test_full_folder_is_refused_and_failure_leaves_nothing(tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert")
    file = write_config(tmp_path, f"model: {target}", bert)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already and is not empty"):
        merge(capsys, "-g", file, "--out", out)
    damaged = load_file(target / "model.safetensors")
    damaged["encoder.layers.1.attention.k_proj.weight"][0, 0] = float("nan")
    from safetensors.torch import save_file

    save_file(damaged, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layer 1 k_proj.weight of the target holds NaN"):
        merge(capsys, "-g", file, "--out", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hubert", "my.yaml", "out"]
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-g", "{file}"], "--out is missing"),
        (["-g", "{file},,lambda=1.5", "--out", "{out}"], "must be between 0"),
        (["-g", "{file},,layers=1-7", "--out", "{out}"], "layer 7 is out of range"),
        (["-u", "mam_nothing", "--out", "{out}"], "unknown upstream configuration 'mam_nothing'"),
        (["-g", "{file},,target={{upstream: fbank}}", "--out", "{out}"], "fbank has no checkpoint file of its own"),
        (["-g", "{file},,target={{upstream: hubert_local, ckpt: /no}}", "--out", "{out}"], "no such checkpoint file"),
    ],
)
def test_bad_input_is_one_sentence(flags, message, tmp_path, bert, capsys):
    target = factories.hubert_folder(tmp_path / "hubert")
    file = write_config(tmp_path, f"model: {target}", bert)
    with pytest.raises(SystemExit) as ended:
        main(["merge", *(flag.format(file=file, out=tmp_path / "out") for flag in flags)])
    assert ended.value.code in (1, 2)
    shown = capsys.readouterr().err.strip().splitlines()
    assert message in shown[-1] and "Traceback" not in "".join(shown)
    assert not (tmp_path / "out").exists()
