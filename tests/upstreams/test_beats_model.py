"""The BEATs model: the published implementation's numbers, its sizes, its gradients, its checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from s3prl_ext.child_tuning.eligible import eligible_names
from s3prl_ext.errors import DataError
from s3prl_ext.upstreams.beats.config import BeatsConfig
from s3prl_ext.upstreams.beats.encoder import BeatsEncoder, PositionalConv, buckets
from s3prl_ext.upstreams.beats.frontend import fbank, frame_count
from s3prl_ext.upstreams.beats.model import Beats, load_checkpoint
from tests.support import factories

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MODELS = ["beats_tiny", "beats_tiny_finetuned"]
RELEASED = {"deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
BASE = BeatsConfig(**RELEASED)
TINY = BeatsConfig(
    **RELEASED,
    embed_dim=16,
    encoder_layers=3,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=48,
    encoder_attention_heads=2,
    conv_pos=16,
    conv_pos_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
)


def golden(name):
    return load_checkpoint(GOLDEN / f"{name}.pt")[0], np.load(GOLDEN / f"{name}_io.npz")


def golden_inputs(numbers):
    a, b = torch.from_numpy(numbers["wav_a"]), torch.from_numpy(numbers["wav_b"])
    batch = torch.stack([a, F.pad(b, (0, len(a) - len(b)))])
    mask = torch.arange(len(a)) >= torch.tensor([[len(a)], [len(b)]])
    return {"a": (a[None], None), "b": (b[None], None), "batch": (batch, mask)}


def difference(ours, theirs):
    assert tuple(ours.shape) == theirs.shape
    return np.abs(ours.numpy() - theirs).max()


ROUNDING = 1e-4  # the first filter bank differs by up to 4e-5 between processors: its float32 sums cancel


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clips", ["a", "b", "batch"])
@torch.no_grad()
def test_equals_the_published_implementation(name, clips):
    model, numbers = golden(name)
    wavs, padding = golden_inputs(numbers)[clips]
    states, mask = model(wavs, padding)
    assert len(states) == 4
    for layer, state in enumerate(states[1:]):
        assert difference(state, numbers[f"layer{layer}_{clips}"]) < ROUNDING
    out = states[-1] if model.predictor is None else model.class_probabilities(states[-1], mask)
    assert difference(out, numbers[f"out_{clips}"]) < ROUNDING
    if clips == "batch":
        assert np.array_equal(mask.numpy(), numbers["padding_mask_batch"]) and mask.any()


def test_filter_banks_equal_the_published_ones_alone_in_a_batch_and_under_autocast():
    _, numbers = golden(MODELS[0])
    wav = torch.from_numpy(numbers["wav_a"])
    assert difference(fbank(wav[None])[0], numbers["fbank_a"]) < ROUNDING
    others = torch.randn(2, len(wav), generator=torch.Generator().manual_seed(0))
    batch = torch.stack([others[0], wav, others[1]])
    assert difference(fbank(batch)[1], numbers["fbank_a"]) < ROUNDING
    with torch.autocast("cpu", torch.bfloat16):
        assert difference(fbank(batch)[1], numbers["fbank_a"]) < ROUNDING


@pytest.mark.parametrize("samples", [400, 559, 560, 561, 2800, 3001])
def test_filter_banks_have_every_whole_frame(samples):
    assert fbank(torch.randn(3, samples)).shape == (3, frame_count(samples), 128)
    assert frame_count(samples) == len(torch.zeros(samples).unfold(0, 400, 160))


@pytest.mark.parametrize("name", MODELS)
def test_state_dict_is_that_of_the_checkpoint(name):
    stored = torch.load(GOLDEN / f"{name}.pt", weights_only=True)["model"]
    state = golden(name)[0].state_dict()
    assert set(state) == set(stored)
    assert all(torch.equal(state[key], tensor) for key, tensor in stored.items())


def test_base_size_has_the_released_number_of_weights():
    with torch.device("meta"):
        model, classifier = Beats(BASE), Beats(BeatsConfig(**RELEASED, finetuned_model=True))
    assert sum(p.numel() for p in model.parameters()) == 90_311_792
    assert sum(p.numel() for p in classifier.parameters()) == 90_311_792 + 769 * 527
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    chosen = set(eligible_names(names))
    per_layer = 4 * 768 * 769 + (64 + 1) * 8 + 12 + 4 * 768 + 768 * 3072 * 2 + 3072 + 768
    expected = 12 * per_layer + 320 * 12 + 2 * 768 + 2 * 512  # position buckets once, encoder norm, patch norm
    assert sum(p.numel() for name, p in model.named_parameters() if f"model.{name}" in chosen) == expected == 85_067_248


@pytest.mark.slow
@torch.no_grad()
def test_base_size_runs():
    states, _ = Beats(BASE).eval()(torch.randn(1, 80000))
    assert len(states) == 13 and all(state.shape == (1, 31 * 8, 768) for state in states)
    assert all(state.isfinite().all() for state in states)


def test_layers_share_the_position_buckets():
    model, _ = golden(MODELS[0])
    first = model.encoder.layers[0].self_attn.relative_attention_bias
    assert all(layer.self_attn.relative_attention_bias is first for layer in model.encoder.layers)


def test_buckets_equal_a_loop():
    def slow(distance, number, longest):
        half, exact = number // 2, number // 4
        far = abs(distance)
        if far >= exact:
            far = min(half - 1, exact + int(math.log(far / exact) / math.log(longest / exact) * (half - exact)))
        return far + (half if distance > 0 else 0)

    distances = torch.arange(-1000, 1001)
    assert buckets(distances, 320, 800).tolist() == [slow(d, 320, 800) for d in distances.tolist()]


@pytest.mark.parametrize("kernel", [15, 16])
def test_positional_conv_equals_weight_norm_of_torch(kernel):
    conv = PositionalConv(8, kernel, 2)
    torch.nn.init.normal_(conv.weight_g)
    torch.nn.init.normal_(conv.bias)
    theirs = torch.nn.Conv1d(8, 8, kernel, padding=kernel // 2, groups=2)
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs, dim=2)
    theirs.load_state_dict(conv.state_dict())  # it understands the old names weight_g and weight_v
    x = torch.randn(2, 8, 21)
    torch.testing.assert_close(conv(x), theirs(x)[..., :21])


def test_initial_weights_are_scaled_for_deep_norm():
    torch.manual_seed(0)
    encoder = BeatsEncoder(BeatsConfig(**RELEASED, encoder_layers=2, encoder_embed_dim=256, encoder_ffn_embed_dim=512))
    attention = encoder.layers[1].self_attn
    xavier = math.sqrt(2 / (256 + 256))
    assert attention.q_proj.weight.std().item() == pytest.approx(xavier, rel=0.02)
    assert attention.v_proj.weight.std().item() == pytest.approx(xavier * 16**-0.25, rel=0.02)
    conv = encoder.pos_conv[0]
    torch.testing.assert_close(conv.weight_g, conv.weight_v.norm(dim=(0, 1), keepdim=True))


def encoded(model, decay=1.0):
    """Return the last state of a padded batch of two clips."""
    model.encoder.gradient_decay = decay
    features = torch.randn(2, 48, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model.encode(features, torch.arange(24) >= torch.tensor([[24], [16]]))[-1]


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    model = Beats(TINY).double().train()
    weight = torch.randn(32, dtype=torch.float64)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((encoded(model) @ weight).square().mean(), parameters)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    losses = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=step)
            losses.append((encoded(model) @ weight).square().mean().item())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=1e-5) and slope != 0


def test_gradient_decay_scales_each_layer_and_leaves_the_output():
    torch.manual_seed(0)
    model = Beats(TINY).double()
    weights = [layer.fc1.weight for layer in model.encoder.layers] + [model.patch_embedding.weight]
    true = torch.autograd.grad(encoded(model).pow(3).sum(), weights)
    decayed = torch.autograd.grad(encoded(model, 0.6).pow(3).sum(), weights)
    assert torch.equal(encoded(model), encoded(model, 0.6))
    for power, (plain, scaled) in zip((2, 1, 0, 3), zip(true, decayed, strict=True), strict=True):
        torch.testing.assert_close(scaled, plain * 0.6**power)


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 32},
        {"conv_bias": True},
        {"gru_rel_pos": False},
        {"relative_position_embedding": False},
        {"deep_norm": False},
        {"activation_fn": "relu"},
        {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "dropout_input": 0.1},
    ],
    ids=str,
)
def test_switches_of_the_configuration(options, tmp_path):
    standard, _ = load_checkpoint(factories.beats_ckpt(tmp_path / "standard.pt"))
    model, _ = load_checkpoint(factories.beats_ckpt(tmp_path / "beats.pt", **options))
    assert ("post_extract_proj.weight" in model.state_dict()) == ("embed_dim" not in options)
    assert ("patch_embedding.bias" in model.state_dict()) == ("conv_bias" in options)
    assert any("grep_a" in key for key in model.state_dict()) == ("gru_rel_pos" not in options)
    shared = {k: v for k, v in standard.state_dict().items() if k in model.state_dict() and "embed_dim" not in options}
    model.load_state_dict(shared, strict=False)
    wavs = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    if "dropout" in options:  # without effect in evaluation mode
        torch.testing.assert_close(model(wavs)[0][-1], standard(wavs)[0][-1])
        model.train()
    assert not torch.allclose(model(wavs)[0][-1], standard(wavs)[0][-1], atol=1e-3)
    assert model(wavs)[0][-1].shape == (2, 24, 32)


def altered(tmp_path, **changes):
    content = torch.load(GOLDEN / "beats_tiny.pt", weights_only=True)
    content["cfg"] |= changes.pop("cfg", {})
    content["model"] = {k: v for k, v in (content["model"] | changes.pop("model", {})).items() if v is not None}
    content |= changes
    torch.save({k: v for k, v in content.items() if v is not None}, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cfg": {"layer_norm_first": True}}, "layer_norm_first True"),
        ({"cfg": {"input_patch_size": 8}}, "input_patch_size 8"),
        ({"cfg": {"activation_fn": "glu"}}, "activation_fn 'glu'"),
        ({"cfg": {"encoder_attention_heads": 5}}, "5 heads at a width of 64"),
        ({"cfg": {"encoder_layers": 4}}, r"lacks encoder\.layers\.3\.\S+, .* and \d+ more"),
        ({"cfg": {"encoder_layers": 2}}, r"has unknown encoder\.layers\.2\."),
        ({"cfg": {"finetuned_model": True}}, r"lacks predictor\.weight, predictor\.bias\.$"),
        ({"cfg": {"encoder_ffn_embed_dim": 96}}, r"another shape in encoder\.layers\.0\.fc1\.weight"),
        ({"model": {"layer_norm.weight": None, "extra": torch.ones(1)}}, r"lacks layer_norm\.weight; it has unknown extra"),
        ({"model": {"layer_norm.weight": 3}}, r"lacks layer_norm\.weight"),
        ({"model": None, "model_weight": {}}, r"holds cfg, model_weight in place of 'cfg' and 'model'"),
    ],
)  # fmt: skip
def test_unsuitable_checkpoint_is_one_sentence(tmp_path, changes, message):
    if changes.get("model", 0) is None:
        torch.save({"cfg": {}, "model_weight": {}}, tmp_path / "altered.pt")
        path = tmp_path / "altered.pt"
    else:
        path = altered(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_entries_of_the_cfg_without_a_meaning_are_reported(tmp_path, caplog):
    load_checkpoint(altered(tmp_path, cfg={"mask_prob": 0.75}))
    assert "mask_prob" in caplog.text


@pytest.mark.parametrize("family", ["hubert_local_ckpt", "wav2vec2_local_ckpt", "wavlm_local_ckpt"])
def test_checkpoint_of_another_family_is_one_sentence(family, tmp_path):
    path = getattr(factories, family)(tmp_path / "other.pt")
    with pytest.raises(DataError, match="is not a BEATs checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_and_truncated_checkpoints_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no such checkpoint file: .*none.pt"):
        load_checkpoint(tmp_path / "none.pt")
    whole = (GOLDEN / "beats_tiny.pt").read_bytes()
    for length in (0, 10, len(whole) // 2):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(DataError, match="not readable as a checkpoint") as caught:
            load_checkpoint(tmp_path / "cut.pt")
        assert "\n" not in str(caught.value)


class Executed:
    """An object whose unpickling writes a file."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return (Path.touch, (Path(self.file),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    torch.save({"cfg": Executed(tmp_path / "trace"), "model": {}}, tmp_path / "evil.pt")
    with pytest.raises(DataError, match="not readable as a checkpoint of plain tensors"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "trace").exists()


def test_loading_draws_no_random_numbers_and_gives_float32(tmp_path):
    content = torch.load(GOLDEN / "beats_tiny.pt", weights_only=True)
    content["model"] = {key: tensor.half() for key, tensor in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    state = torch.get_rng_state()
    model, _ = load_checkpoint(tmp_path / "half.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_class_probabilities_need_a_fine_tuned_model():
    model, _ = golden("beats_tiny")
    with pytest.raises(DataError, match="only pre-trained"):
        model.class_probabilities(torch.zeros(1, 8, 64))
