"""``runner.cache: extractor``: what the frozen extractor gives for a clip as its batch pads it, in every run that asks."""

from __future__ import annotations

import copy
import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from s3prl_ext.adapters.architectures import find_encoder
from s3prl_ext.errors import UsageError
from s3prl_ext.training.batching import clip_store
from s3prl_ext.training.batching.clip_store import ClipStore
from s3prl_ext.training.batching.extractor_cache import ExtractorCache, check_frozen, extractor_of
from tests.adapters.models import build as build_upstream
from tests.adapters.models import clips, states
from tests.support.experiments import make_args, record_losses, task_config

FAMILIES = ["s3prl-hubert", "transformers-hubert", "s3prl-wav2vec2-large", "transformers-wavlm-large", "merged"]


def cached(model, folder: Path, **options) -> ExtractorCache:
    cache = ExtractorCache(extractor_of(model), folder, **options)
    cache.attach()
    return cache


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def no_write(*_):
    pytest.fail("everything is in its file")


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_gradients_are_those_without_a_cache(tmp_path, name, monkeypatch):
    """Of one clip bit by bit; of a batch to rounding, with group norm as with layer norm: padding is part of the key."""
    model = build_upstream(name, tmp_path)
    found = find_encoder(model)
    trained = [p.requires_grad_(True) for layer in found.layers for p in layer.parameters()]

    def outcome(wavs):
        made = torch.stack(states(model, wavs))
        weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad((made * weights).sum(), trained, allow_unused=True)
        return made.detach(), torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    batches = [clips(8000), clips(8000, 6000, 3000), clips(6000, 5000, seed=1)]
    plain = [outcome(batch) for batch in batches]
    cached(model, tmp_path / "cache")
    first = [outcome(batch) for batch in batches]
    assert len(files(tmp_path / "cache")) == 5  # the clip of 8000 samples comes twice without padding
    monkeypatch.setattr(ClipStore, "_write", no_write)
    second = [outcome(batch) for batch in batches]
    for number, expected in enumerate(plain):
        for a, b, c in zip(expected, first[number], second[number], strict=True):
            assert torch.equal(b, c) and (b - a).norm() <= 1e-5 * a.norm()
            assert number > 0 or torch.equal(a, b)


def test_padding_changes_the_output_of_group_norm_and_so_the_file(tmp_path):
    model = build_upstream("transformers-hubert", tmp_path)
    extractor = extractor_of(model)
    short = clips(6000)[0]
    padded = torch.nn.functional.pad(short, (0, 4000))
    with torch.no_grad():
        alone, among = extractor(short[None])[0], extractor(padded[None])[0][:, : extractor(short[None]).shape[-1]]
    assert (alone - among).abs().max() > 1e-3
    cache = cached(model, tmp_path / "cache")
    assert torch.equal(cache(short[None])[0], alone) and torch.equal(
        cache(padded[None])[0][:, : alone.shape[-1]], among
    )
    assert len(files(tmp_path / "cache")) == 2


def test_another_extractor_or_clip_has_files_of_its_own(tmp_path):
    model = build_upstream("transformers-hubert", tmp_path)
    cache, (clip,) = cached(model, tmp_path / "cache"), clips(8000)
    before = cache(clip[None])
    changed = clip.clone()
    changed[7] += 1e-6
    cache(changed[None])
    with torch.no_grad():
        next(cache.store.model.parameters()).mul_(1.5)  # in place, after the cache was made
    after = cache(clip[None])
    assert not torch.equal(after, before) and len(files(tmp_path / "cache")) == 3
    twin = copy.deepcopy(model)
    assert torch.equal(extractor_of(twin)(clip[None]), after) and len(files(tmp_path / "cache")) == 3


def _cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flipped])
def test_a_damaged_file_is_computed_again(tmp_path, damage, caplog):
    cache, (clip,) = cached(build_upstream("s3prl-hubert", tmp_path), tmp_path / "cache"), clips(4000)
    expected = cache(clip[None])
    damage(files(tmp_path / "cache")[0])
    assert torch.equal(cache(clip[None]), expected) and "is corrupt" in caplog.text


def test_a_full_disk_ends_the_writing_and_not_the_run(tmp_path, monkeypatch, caplog):
    cache, wavs = cached(build_upstream("s3prl-hubert", tmp_path), tmp_path / "cache"), torch.stack(clips(4000, 4000))

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_store, "save_file", no_space)
    assert torch.equal(cache(wavs), cache(wavs)) and files(tmp_path / "cache") == []
    assert caplog.text.count("further extractor outputs cannot be written") == 1


def test_processes_that_write_the_same_clips_or_are_killed_leave_nothing_wrong(tmp_path):
    cache, wavs = cached(build_upstream("s3prl-hubert", tmp_path), tmp_path / "cache"), torch.stack(clips(*[4000] * 6))
    expected = torch.stack([cache._computed(wav) for wav in wavs])
    children = []
    for number in range(3):
        children.append(os.fork())
        if not children[-1]:
            if number == 0:
                clip_store.save_file = lambda tensors, path, metadata: (
                    Path(path).write_bytes(b"half"), os.kill(os.getpid(), signal.SIGKILL)
                )  # fmt: skip
            os._exit(0 if torch.equal(cache(wavs), expected) else 1)
    ends = [os.waitpid(child, 0)[1] for child in children]
    assert ends[1:] == [0, 0] and (ends[0] == 0 or os.WTERMSIG(ends[0]) == signal.SIGKILL)
    assert torch.equal(cache(wavs), expected)


@pytest.mark.parametrize("name", ["whisper", "beats"])
def test_an_upstream_without_such_an_extractor_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="convolutional extractor on the waveform"):
        extractor_of(build_upstream(name, tmp_path))


def test_an_extractor_that_draws_is_refused(tmp_path):
    model = build_upstream("s3prl-hubert", tmp_path)
    extractor_of(model).add_module("dropout", torch.nn.Dropout(0.1))
    with pytest.raises(UsageError, match="without dropout and batch norm, and this one has dropout"):
        extractor_of(model)


def test_an_extractor_that_trains_is_refused(tmp_path):
    model = build_upstream("s3prl-hubert", tmp_path)
    check_frozen(model)
    next(extractor_of(model).parameters()).requires_grad_(True)
    with pytest.raises(UsageError, match="an extractor that does not train, and its conv_layers.0.0.weight does"):
        check_frozen(model)


# --- runs


def trained(build, folder, hubert_ckpt, tuning, batch_size=1, **runner):
    config = task_config("ks", tuning=tuning, total_steps=3, eval_step=3, **runner)
    config["downstream_expert"]["datarc"] |= {"batch_size": batch_size, "num_workers": 0}
    made = build(make_args(folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
    losses = record_losses(made)
    made.train()
    return losses, [p.detach().clone() for entry in made.all_entries for p in entry.model.parameters()]


@pytest.mark.parametrize(
    "tuning",
    [
        pytest.param({"method": "child", "density": 0.1}, marks=pytest.mark.slow),
        {"method": "houlsby"},
        {"method": "full"},
    ],
    ids=lambda t: t["method"],
)
def test_a_run_in_batches_of_one_is_the_run_without_a_cache(build, tmp_path, hubert_ckpt, tuning, monkeypatch):
    options = {"cache": "extractor", "cache_folder": str(tmp_path / "cache")}
    plain = trained(build, tmp_path / "plain", hubert_ckpt, tuning)
    first = trained(build, tmp_path / "first", hubert_ckpt, tuning, **options)
    monkeypatch.setattr(ClipStore, "_write", no_write)
    second = trained(build, tmp_path / "second", hubert_ckpt, tuning, **options)
    for losses, weights in (first, second):
        assert losses == plain[0] and all(map(torch.equal, weights, plain[1]))


def test_a_checkpoint_is_scored_from_the_same_files(build, tmp_path, hubert_ckpt, monkeypatch):
    folder, tuning = tmp_path / "run", {"method": "lora"}
    options = {"cache": "extractor", "cache_folder": str(tmp_path / "cache")}
    trained(build, folder, hubert_ckpt, tuning, **options)
    config = task_config("ks", tuning=tuning, **options)
    config["downstream_expert"]["datarc"] |= {"batch_size": 1, "num_workers": 0}
    args = {"upstream": "hubert_local", "upstream_ckpt": hubert_ckpt, "mode": "evaluate", "evaluate_split": "dev"}
    made = build(make_args(folder, init_ckpt=str(folder / "states-3.ckpt"), **args), config)
    monkeypatch.setattr(ClipStore, "_write", no_write)
    made.evaluate()


def test_candidates_of_a_race_share_the_files(build, tmp_path, hubert_ckpt, caplog):
    config = task_config(
        "ks", tuning={"method": ["child", "lora"], "density": 0.1}, total_steps=2, eval_step=2,
        cache="extractor", cache_folder=str(tmp_path / "cache"),
    )  # fmt: skip
    config["early_stop"] = {"ratio": 0.5}
    made = build(make_args(tmp_path / "run", upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
    computed, compute = [], made.clip_store.compute
    made.clip_store.compute = lambda wav: (computed.append(wav), compute(wav))[1]
    made.train()
    assert len({wav.numpy().tobytes() for wav in computed}) == len(computed) == len(files(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("tuning", "sentence"),
    [
        ({"method": "weighted_sum"}, "does not train; take features"),
        ({"method": "cnn_adapter"}, "an extractor that does not train"),
        ({"method": "child", "density": 0.1, "eligible": ["*"]}, "an extractor that does not train"),
    ],
)
def test_what_does_not_fit_is_refused(build, tmp_path, hubert_ckpt, tuning, sentence):
    with pytest.raises(UsageError, match=sentence):
        args = make_args(tmp_path, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
        build(args, task_config("ks", tuning=tuning, cache="extractor"))
