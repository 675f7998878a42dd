"""The extra positions of a prefix stay inside the encoder: lengths, padding, batches of one."""

from __future__ import annotations

import pytest
import torch

from s3prl_ext import adapters
from s3prl_ext.adapters.architectures import find_encoder
from tests.adapters.models import MODELS, WITHOUT_PREFIX, build, clips, states

LENGTH = 10
TAKE_PREFIX = [name for name in MODELS if name not in WITHOUT_PREFIX]
# The group norm of the base models' first block sees padding: there a clip's states depend on its batch, also frozen.
INDEPENDENT = [
    "s3prl-hubert-large",
    "s3prl-wavlm-large",
    "transformers-hubert-large",
    "transformers-mms",
    "transformers-w2v-bert",
    "beats",
    "whisper",
]


def with_prefix(name, folder):
    model = build(name, folder)
    parameters = adapters.insert(model, "prefix", seed=1)
    with torch.no_grad():
        for parameter in parameters.values():  # away from the zero start
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("name", TAKE_PREFIX)
def test_states_have_the_length_of_the_clips(tmp_path, name):
    frozen, prefixed = build(name, tmp_path), with_prefix(name, tmp_path)
    for lengths in ((8000,), (8000, 6000), (5000, 5000, 1600), (7321, 400)):
        with torch.no_grad():
            expected, found = states(frozen, clips(*lengths)), states(prefixed, clips(*lengths))
        assert [s.shape for s in found] == [s.shape for s in expected], lengths
        assert all(bool(torch.isfinite(s).all()) for s in found), lengths
        assert not torch.allclose(found[-1], expected[-1], atol=1e-3), f"no effect of the prefix: {lengths}"


@pytest.mark.parametrize("name", TAKE_PREFIX)
def test_prefix_positions_are_never_padding(tmp_path, name):
    """Every layer gets a mask in which the first positions are valid, and padding stays padding."""
    model = with_prefix(name, tmp_path)
    found = find_encoder(model)
    masks = []

    def keep(encoder, args, kwargs):
        mask = kwargs.get(found.architecture.mask)
        masks.append(mask if mask is not None else args[1])

    found.encoder.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        frames = states(model, clips(8000, 4000))[0].shape[1]
    padding = masks[0] != found.architecture.valid
    assert not padding[:, :LENGTH].any()
    assert padding[1, LENGTH:].any() and not padding[0, LENGTH:].any()
    if name not in ("beats", "transformers-w2v-bert"):  # which may repeat the last state, as the featurizer keeps it
        assert padding.shape[1] == LENGTH + frames


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_clip_gives_the_same_alone_and_beside_a_longer_one(tmp_path, monkeypatch, name):
    model = with_prefix(name, tmp_path)
    short, long = clips(6400, 11520)
    with torch.no_grad():
        alone = states(model, [short])
        if name.startswith("s3prl"):
            # its mask counts a frame or two of padding as valid, also without a prefix: put the exact one in place
            def exact(features, mask):
                return (torch.arange(features.shape[1]) >= alone[0].shape[1]) & mask.any(1, keepdim=True)

            monkeypatch.setattr(find_encoder(model).root, "forward_padding_mask", exact)
        together = states(model, [long, short])
    valid = 2 if name == "beats" else alone[0].shape[1]
    for one, both in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0, :valid], both[1, :valid], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["s3prl-hubert", "transformers-hubert", "transformers-hubert-large"])
def test_each_layer_sees_the_prefix(tmp_path, name):
    """A change of one layer's vectors changes the output of that layer and of later ones, not of earlier ones."""
    model = with_prefix(name, tmp_path)
    with torch.no_grad():
        before = states(model, clips())
        find_encoder(model).layers[1].prefix.vectors.add_(torch.randn(LENGTH, 32))
        after = states(model, clips())
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert not torch.allclose(before[2], after[2], atol=1e-4)


@pytest.mark.parametrize("name", ["s3prl-hubert", "transformers-wavlm", "beats"])
def test_nothing_of_a_pass_stays_behind(tmp_path, name):
    model = with_prefix(name, tmp_path)
    states(model, clips())
    assert find_encoder(model).encoder.prefix.running.state is None
    with pytest.raises(Exception):  # noqa: B017  any failure in the middle of the encoder
        handle = find_encoder(model).layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        states(model, clips())
    handle.remove()
    assert find_encoder(model).encoder.prefix.running.state is None


def test_half_precision_keeps_its_type(tmp_path):
    model = with_prefix("transformers-hubert", tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(bool(torch.isfinite(s).all()) for s in states(model, clips()))
