"""BEATs through s3prl's hub: lengths, padding, options, training, merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import s3prl.hub
import torch
from s3prl.upstream.interfaces import Featurizer
from torch.nn import functional as F

from s3prl_ext.attention.files import read_attention
from s3prl_ext.attention.layouts import Slot
from s3prl_ext.attention.weights import extract
from s3prl_ext.child_tuning.eligible import eligible_names
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.beats.frontend import frame_count
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.support import factories

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
# Around the bounds of frames, patches and rounding; 80000 = 5 s, the length of an ESC-50 clip.
LENGTHS = [400, 640, 1279, 1280, 1281, 2560, 2799, 2800, 3839, 3840, 3841, 6400, 16000, 23456, 32000, 80000]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return factories.beats_ckpt(tmp_path_factory.mktemp("beats") / "beats.pt", finetuned_model=True, predictor_class=5)


@pytest.fixture
def upstream(ckpt):
    return s3prl.hub.beats_local(ckpt=str(ckpt), model_config=None, refresh=False).eval()


@pytest.fixture
def all_tokens(ckpt):
    return s3prl.hub.beats_local(ckpt=str(ckpt), model_config="tokens=all").eval()


def noise(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in lengths]


@pytest.mark.parametrize("name", ["beats_tiny", "beats_tiny_finetuned"])
@torch.no_grad()
def test_features_are_the_published_ones_pooled_over_frequency(name):
    numbers = np.load(GOLDEN / f"{name}_io.npz")
    wavs = [torch.from_numpy(numbers[f"wav_{clip}"]) for clip in "ab"]
    model = s3prl.hub.beats_custom(ckpt=str(GOLDEN / f"{name}.pt")).eval()
    features = model(wavs)
    assert len(features["hidden_states"]) == 4
    assert torch.equal(features["last_hidden_state"], features["hidden_states"][-1])
    for row, clip in enumerate("ab"):
        for layer in range(3):
            expected = torch.from_numpy(numbers[f"layer{layer}_{clip}"]).unflatten(1, (-1, 8)).mean(2)[0]
            found = features["hidden_states"][layer + 1][row, : len(expected)]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if "finetuned" in name:
        expected = torch.from_numpy(np.concatenate([numbers["out_a"], numbers["out_b"]]))
        torch.testing.assert_close(model.class_probabilities(wavs), expected, atol=1e-5, rtol=0)
        assert len(model.labels) == 50


@torch.no_grad()
def test_first_hidden_state_is_the_input_of_the_first_layer(upstream):
    seen = []
    upstream.model.encoder.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    first = upstream(noise(16000))["hidden_states"][0]
    torch.testing.assert_close(first, seen[0].unflatten(1, (6, 8)).mean(2))


@pytest.mark.parametrize("fixture, rate", [("upstream", 2560), ("all_tokens", 320)])
@torch.no_grad()
def test_lengths_are_those_of_the_featurizer(fixture, rate, request):
    upstream = request.getfixturevalue(fixture)
    featurizer = Featurizer(upstream, "hidden_states", upstream_device="cpu")
    assert (featurizer.output_dim, featurizer.downsample_rate, featurizer.layer_num) == (32, rate, 3)
    for length in LENGTHS:
        features = upstream(noise(length))
        assert features["last_hidden_state"].shape == (1, max(1, round(length / rate)), 32), length
        assert [len(f) for f in featurizer(noise(length), features)] == [round(length / rate)]
    wavs = noise(*LENGTHS)
    assert [len(f) for f in featurizer(wavs, upstream(wavs))] == [round(length / rate) for length in LENGTHS]


def test_no_whole_patch_of_a_clip_is_left_out():
    assert all(0 <= max(1, round(n / 2560)) - max(1, frame_count(n) // 16) <= 1 for n in range(400, 60000))


@pytest.mark.parametrize("length", [*range(2800, 5400, 200), 4 * 2560, 48000, 51234, 80000])
@torch.no_grad()
def test_every_length_is_cut_as_the_published_implementation_does(upstream, length):
    """`Beats.forward`, equal to the published arrays, sees the whole clip; a vector more than it gives is the last one."""
    (wav,) = noise(length)
    states, _ = upstream.model(wav[None])
    found = upstream([wav])["hidden_states"]
    for published, state in zip(states, found, strict=True):
        expected = published.unflatten(1, (-1, 8)).mean(2)
        steps = frame_count(length) // 16
        assert expected.shape[1] == steps and state.shape[1] == round(length / 2560) <= steps + 1
        torch.testing.assert_close(state[:, :steps], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(state[:, steps:], state[:, steps - 1 : steps].expand(-1, state.shape[1] - steps, -1))


@torch.no_grad()
def test_probabilities_of_an_uneven_clip_are_the_published_ones():
    numbers = np.load(GOLDEN / "beats_tiny_finetuned_io.npz")
    model = s3prl.hub.beats_custom(ckpt=str(GOLDEN / "beats_tiny_finetuned.pt")).eval()
    wav = torch.from_numpy(numbers["wav_b"])
    whole = 9 * 2560 + 240
    assert frame_count(len(wav)) // 16 == 9 and whole < len(wav)
    # the published code drops what is behind the ninth patch, up to one sample below a tenth
    longer = torch.cat([wav[:whole], torch.randn(2559, generator=torch.Generator().manual_seed(0))])
    assert round(len(longer) / 2560) == 10
    expected = torch.from_numpy(numbers["out_b"])
    torch.testing.assert_close(model.class_probabilities([longer]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fixture", ["upstream", "all_tokens"])
@torch.no_grad()
def test_features_do_not_depend_on_the_batch(fixture, request):
    """The published padding mask lets a few tokens through at a clip's end; here each clip has its own exact end."""
    upstream = request.getfixturevalue(fixture)
    lengths = [5000, 23456, 400, 16000, 1300, 9999]
    wavs = noise(*lengths)
    together = upstream(wavs)
    for row, wav in enumerate(wavs):
        alone = upstream([wav])
        for one, many in zip(alone["hidden_states"], together["hidden_states"], strict=True):
            torch.testing.assert_close(many[row, : one.shape[1]], one[0], atol=1e-5, rtol=1e-5)
    probabilities = torch.cat([upstream.class_probabilities([wav]) for wav in wavs])
    torch.testing.assert_close(upstream.class_probabilities(wavs), probabilities, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_without_a_whole_patch_is_padded_with_zeros_to_one(upstream):
    (wav,) = noise(2000)
    assert frame_count(len(wav)) // 16 == 0
    states, _ = upstream.model(F.pad(wav, (0, 2800 - 2000))[None])
    torch.testing.assert_close(upstream([wav])["last_hidden_state"], states[-1].unflatten(1, (1, 8)).mean(2))


@torch.no_grad()
def test_all_tokens_are_in_time_order_and_the_last_one_is_repeated(all_tokens):
    wavs = noise(80000, 16000)
    features = all_tokens(wavs)["last_hidden_state"]
    tokens, _ = all_tokens.model(wavs[0][None])
    assert tokens[-1].shape == (1, 31 * 8, 32) and features.shape == (2, 250, 32)
    torch.testing.assert_close(features[0, :248], tokens[-1][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(features[0, 248:], features[0, 247].expand(2, -1))
    assert torch.equal(features[1, 48:50], features[1, 47].expand(2, -1))
    # Time-major: other sound in the last time step changes the first layer's output there, pooled or not, alike.
    pooled = features[:1, :248].unflatten(1, (31, 8)).mean(2)
    all_tokens.options = type(all_tokens.options)()
    torch.testing.assert_close(all_tokens(wavs[:1])["last_hidden_state"], pooled, atol=1e-5, rtol=1e-5)


def test_unsuitable_clips_are_one_sentence(upstream):
    with pytest.raises(DataError, match=r"clip 1 of the batch has 399 samples \(0\.025 s\), less than one frame"):
        upstream(noise(16000, 399))
    with pytest.raises(DataError, match=r"clip 0 of the batch has shape \(2, 16000\): convert it to 16 kHz mono"):
        upstream([torch.zeros(2, 16000)])


@pytest.mark.parametrize("selection", ["hidden_states", "last_hidden_state"])
def test_fine_tuning_reaches_every_weight(upstream, selection):
    torch.manual_seed(0)  # of its dropout
    featurizer = Featurizer(upstream, selection, upstream_device="cpu")
    upstream.train()
    wavs = noise(16000, 5000)
    before = {name: parameter.detach().clone() for name, parameter in upstream.named_parameters()}
    optimizer = torch.optim.SGD(upstream.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        features = featurizer(wavs, upstream(wavs))
        loss = sum(feature.pow(3).mean() for feature in features) + upstream.class_probabilities(wavs)[:, 0].log().sum()
        loss.backward()
        optimizer.step()
    missed = [name for name, parameter in upstream.named_parameters() if torch.equal(parameter, before[name])]
    assert missed == [name for name in before if name in missed and name.endswith("k_proj.bias")]
    assert all(parameter.grad is not None for parameter in upstream.parameters())


def test_every_layer_runs_in_training_too(tmp_path):
    """The checkpoint asks for layerdrop; s3prl's featurizer needs as many hidden states in every pass."""
    path = factories.beats_ckpt(tmp_path / "beats.pt", encoder_layerdrop=0.9)
    upstream = s3prl.hub.beats_local(ckpt=str(path)).train()
    wavs = noise(8000)
    states = upstream(wavs)["hidden_states"]
    assert len(states) == 3 and not torch.equal(states[0], states[1]) and not torch.equal(states[1], states[2])
    assert all(torch.equal(a, b) for a, b in zip(states, upstream(wavs)["hidden_states"], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(tmp_path, dtype):
    # 16 channels in a group: with 8, oneDNN's convolution in bfloat16 is wrong on processors with AMX
    ckpt = factories.beats_ckpt(tmp_path / "beats.pt", conv_pos_groups=2)
    upstream = s3prl.hub.beats_local(ckpt=str(ckpt))
    featurizer = Featurizer(upstream, "hidden_states", upstream_device="cpu")
    wavs = noise(16000, 5000)
    with torch.no_grad():
        exact = upstream(wavs)["last_hidden_state"]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = upstream(wavs)
        features = featurizer(wavs, output)
    assert (output["last_hidden_state"] - exact).abs().max() < (0.15 if dtype == torch.bfloat16 else 1e-6)
    sum(feature.float().square().sum() for feature in features).backward()
    assert all(p.grad.isfinite().all() for n, p in upstream.named_parameters() if "predictor" not in n)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 0.2), (torch.float16, 0.1)])
def test_gpu_equals_cpu(upstream, dtype, tolerance):
    wavs = noise(16000, 5000)
    with torch.no_grad():
        expected = upstream(wavs)["last_hidden_state"]
    upstream.cuda()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = upstream([wav.cuda() for wav in wavs])["last_hidden_state"]
    found.float().square().sum().backward()
    torch.testing.assert_close(found.float().cpu().detach(), expected, atol=tolerance, rtol=0)


def test_gradient_decay_of_the_checkpoint_is_an_option(ckpt):
    assert s3prl.hub.beats_local(ckpt=str(ckpt)).model.encoder.gradient_decay == 1.0
    decayed = s3prl.hub.beats_local(ckpt=str(ckpt), model_config="gradient_decay=checkpoint")
    assert decayed.model.encoder.gradient_decay == 0.6


def test_options_come_from_a_file_and_are_checked(ckpt, tmp_path):
    file = tmp_path / "beats.yaml"
    file.write_text("tokens: all\n")
    assert s3prl.hub.beats_custom(ckpt=str(ckpt), model_config=str(file)).get_downsample_rates("hidden_states") == 320
    override = f"{file},,tokens=pooled"
    assert s3prl.hub.beats_custom(ckpt=str(ckpt), model_config=override).get_downsample_rates("hidden_states") == 2560
    file.write_text("token: all\ngradient_decay: 0.6\n")
    with pytest.raises(UsageError) as caught:
        s3prl.hub.beats_custom(ckpt=str(ckpt), model_config=str(file))
    assert "unknown key 'token'; did you mean 'tokens'?" in str(caught.value)
    assert "gradient_decay must be one of checkpoint, none, got 0.6." in str(caught.value)
    with pytest.raises(UsageError, match=r"no such configuration file: .*none\.yaml"):
        s3prl.hub.beats_local(ckpt=str(ckpt), model_config=str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="needs a checkpoint: -k"):
        s3prl.hub.beats_local(ckpt=None)


def merge(tmp_path, ckpt, source, more):
    file = tmp_path / "merge.yaml"
    file.write_text(f"target: {{upstream: beats_local, ckpt: {ckpt}}}\nsource: {{model: {source}}}\n{more}\n")
    return merged_attention(model_config=str(file)).eval()


@torch.no_grad()
def test_attention_merges_into_beats(ckpt, upstream, tmp_path):
    source = factories.vit_folder(tmp_path / "vit")
    merged = merge(tmp_path, ckpt, source, "lambda: 0.25")
    before, other = read_attention(ckpt), read_attention(source)
    assert len(before) == 2 * 3 * 2
    for slot, tensor in extract(merged.state_dict()).items():
        expected = before[slot] if slot.kind == "bias" else torch.lerp(before[slot], other[slot], 0.25)
        assert torch.equal(tensor, expected), slot
    wavs = noise(16000, 5000)
    plain = upstream(wavs)["last_hidden_state"]
    assert not torch.allclose(merged(wavs)["last_hidden_state"], plain, atol=1e-3)
    unmerged = merge(tmp_path, ckpt, source, "lambda: 0.0")
    assert torch.equal(unmerged(wavs)["last_hidden_state"], plain)


@torch.no_grad()
def test_key_bias_changes_nothing(upstream):
    wavs = noise(16000, 5000)
    before = upstream(wavs)["hidden_states"]
    weights = extract(upstream.state_dict())
    for layer in range(2):
        weights[Slot(layer, "k_proj", "bias")].add_(torch.randn(32))
    for old, new in zip(before, upstream(wavs)["hidden_states"], strict=True):
        torch.testing.assert_close(old, new, atol=1e-5, rtol=0)
    weights[Slot(0, "q_proj", "bias")].add_(1.0)
    assert not torch.allclose(upstream(wavs)["last_hidden_state"], before[-1], atol=1e-3)


def test_child_networks_find_the_encoder(upstream):
    names = [name for name, _ in upstream.named_parameters()]
    left_out = set(names) - set(eligible_names(names))
    assert {name.split(".")[1] for name in left_out} == {"patch_embedding", "post_extract_proj", "encoder", "predictor"}
    assert {name for name in left_out if "encoder" in name} == {n for n in names if "pos_conv" in n}


def test_parametrization_acts_on_the_attention(upstream):
    class Double(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    wavs = noise(16000)
    before = upstream(wavs)["last_hidden_state"]
    torch.nn.utils.parametrize.register_parametrization(
        upstream.model.encoder.layers[0].self_attn.q_proj, "weight", Double()
    )
    assert not torch.allclose(before, upstream(wavs)["last_hidden_state"], atol=1e-4)
