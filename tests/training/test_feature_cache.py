"""``runner.cache: features``: those of a batch of one, bit by bit, whatever happens to the files."""

from __future__ import annotations

import errno
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from s3prl_ext.errors import UsageError
from s3prl_ext.training.batching import clip_store
from s3prl_ext.training.batching.clip_store import ClipStore, announce
from s3prl_ext.training.batching.feature_cache import FeatureCache
from s3prl_ext.training.checkpoint import Checkpoint
from s3prl_ext.training.forward import TaskModels
from s3prl_ext.training.resume import check_runner
from tests.support.experiments import make_args, record_losses, task_config


class Upstream(nn.Module):
    """Three hidden states of 320 samples a frame; counts its calls. A clip's features depend on its batch."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(320, 8, generator=torch.Generator().manual_seed(0)))
        self.calls: list[int] = []

    def forward(self, wavs):
        self.calls.append(len(wavs))
        padded = nn.utils.rnn.pad_sequence(wavs, batch_first=True)
        frames = padded[:, : padded.shape[1] // 320 * 320].reshape(len(wavs), -1, 320) @ self.weight
        frames = frames + 0.01 * padded.mean()
        return {"hidden_states": [frames, 2 * frames, frames.tanh()]}

    def get_downsample_rates(self, key):
        return 320


class Downstream(nn.Module):
    pass


def models(cache_folder: Path, upstream: Upstream | None = None, layer: int | None = None, **options) -> TaskModels:
    from s3prl.upstream.interfaces import Featurizer

    upstream = upstream or Upstream()
    featurizer = Featurizer(upstream, upstream_device="cpu", layer_selection=layer)
    if layer is None:
        featurizer.weights.data = torch.tensor([0.3, -1.0, 2.0])
    made = TaskModels(upstream, featurizer, Downstream(), "cpu")
    made.cache = FeatureCache(upstream, featurizer, {}, cache_folder, **options)
    upstream.calls.clear()
    return made


def clips(*seconds: float):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(int(16000 * s), generator=generator).numpy() for s in seconds]


def alone(made: TaskModels, wavs) -> list[torch.Tensor]:
    """Return the features of each clip as a batch of its own, without a cache."""
    plain = TaskModels(made.upstream, made.featurizer, made.downstream, "cpu")
    return [plain.features([wav])[0] for wav in wavs]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("layer", [None, 1])
def test_features_are_those_of_a_batch_of_one_whatever_the_batch(tmp_path, layer):
    made, wavs = models(tmp_path, layer=layer), clips(1.0, 0.43, 2.017, 1.0)
    expected = alone(made, wavs)
    made.upstream.calls.clear()
    for batch in (wavs, wavs[:1], wavs[::-1]):
        for found, wav in zip(made.features(batch), batch, strict=True):
            number = next(n for n, other in enumerate(wavs) if other is wav)
            assert torch.equal(found, expected[number])
    assert made.upstream.calls == [1, 1, 1, 1] and len(files(tmp_path)) == 4


def test_the_weights_of_the_sum_train_as_without(tmp_path):
    made, (wav,) = models(tmp_path), clips(0.9)
    plain = TaskModels(made.upstream, made.featurizer, made.downstream, "cpu")
    gradients = []
    for way in (plain, made, made):
        made.featurizer.zero_grad()
        way.features([wav])[0].square().sum().backward()
        gradients.append(made.featurizer.weights.grad.clone())
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[1], gradients[2])
    assert made.upstream.weight.grad is None


def test_another_upstream_clip_or_dtype_has_files_of_its_own(tmp_path):
    (wav,) = clips(1.0)
    first = models(tmp_path)
    first.features([wav])
    changed = wav.copy()
    changed[5] += 1e-6
    first.features([changed])
    for other in (models(tmp_path, Upstream(1.0001)), models(tmp_path, layer=2), models(tmp_path, dtype="float16")):
        before = len(files(tmp_path))
        expected = alone(other, [wav])[0]
        found = other.features([wav])[0]
        assert len(files(tmp_path)) == before + 1
        assert torch.equal(found, expected) or other.cache.store.dtype is torch.float16
    assert len(files(tmp_path)) == 5


def test_weights_that_are_written_in_place_are_another_upstream(tmp_path):
    made, (wav,) = models(tmp_path), clips(1.0)
    made.features([wav])
    for change in (lambda w: w.mul_(1.5), lambda w: made.upstream.load_state_dict({"weight": w * 1.1})):
        with torch.no_grad():
            change(made.upstream.weight)
        assert torch.equal(made.features([wav])[0], alone(made, [wav])[0])


def test_features_too_large_for_half_precision_are_refused(tmp_path):
    made = models(tmp_path, dtype="float16")
    made.upstream.weight.data *= 1e6
    with pytest.raises(UsageError, match="float16 cannot hold these features .above 65504.: take float32"):
        made.features(clips(0.5))
    assert files(tmp_path) == []


def test_half_precision_is_the_same_in_the_first_epoch_and_later(tmp_path):
    made, (wav,) = models(tmp_path, dtype="float16"), clips(1.0)
    first, second = made.features([wav])[0], made.features([wav])[0]
    assert torch.equal(first, second) and first.dtype == torch.float32
    torch.testing.assert_close(first, alone(made, [wav])[0], atol=0.05, rtol=2e-3)
    with safe_open(files(tmp_path)[0], framework="pt") as file:
        assert file.get_tensor("features").dtype == torch.float16


def _cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def _emptied(path):
    path.write_bytes(b"")


def _flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _of_another_clip(path):
    with safe_open(path, framework="pt") as file:
        said = file.metadata() | {"clip": "0" * 64}
        save_file({"features": file.get_tensor("features")}, path, said)


@pytest.mark.parametrize("damage", [_cut, _emptied, _flipped, _of_another_clip])
def test_a_damaged_file_is_computed_again(tmp_path, damage, caplog):
    made, (wav,) = models(tmp_path), clips(1.0)
    expected = made.features([wav])[0]
    damage(files(tmp_path)[0])
    assert torch.equal(made.features([wav])[0], expected) and "is corrupt" in caplog.text
    assert torch.equal(made.features([wav])[0], expected) and made.upstream.calls == [1, 1]


def test_a_full_disk_ends_the_writing_and_not_the_run(tmp_path, monkeypatch, caplog):
    made, wavs = models(tmp_path), clips(1.0, 0.5, 0.7)
    made.features(wavs[:1])
    monkeypatch.setattr(clip_store, "save_file", _no_space)
    for _ in range(2):
        for found, expected in zip(made.features(wavs), alone(made, wavs), strict=True):
            assert torch.equal(found, expected)
    assert caplog.text.count("cannot be written") == 1 and len(files(tmp_path)) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def _no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_process_killed_while_it_writes_leaves_no_feature(tmp_path):
    made, (wav,) = models(tmp_path), clips(1.0)
    child = os.fork()
    if not child:
        save = clip_store.save_file

        def save_half(tensors, path, metadata):
            save(tensors, path, metadata)
            _cut(Path(path))
            os.kill(os.getpid(), signal.SIGKILL)

        clip_store.save_file = save_half
        made.features([wav])
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert files(tmp_path) == [] or all(path.name.startswith(".") for path in files(tmp_path))
    assert torch.equal(made.features([wav])[0], alone(made, [wav])[0])


def test_several_processes_write_the_same_clips(tmp_path):
    made, wavs = models(tmp_path), clips(*[0.3 + 0.01 * n for n in range(20)])
    expected = alone(made, wavs)
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            same = all(map(torch.equal, made.features(wavs), expected))
            os._exit(0 if same else 1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert all(map(torch.equal, made.features(wavs), expected)) and made.upstream.calls[-20:] == [1] * 20
    assert len(files(tmp_path)) == 20


def test_an_upstream_that_draws_is_refused(tmp_path):
    class Drawing(Upstream):
        def forward(self, wavs):
            found = super().forward(wavs)
            return {"hidden_states": [layer + torch.rand(()) for layer in found["hidden_states"]]}

    with pytest.raises(UsageError, match="the same features each time"):
        models(tmp_path, Drawing())


def test_the_room_is_said_and_bounds_what_random_crops_take(tmp_path, caplog):
    made, wavs = models(tmp_path), clips(*[0.5] * 7)
    loader = torch.utils.data.DataLoader(wavs[:2], batch_size=2, collate_fn=lambda batch: (batch, None))
    with caplog.at_level(logging.INFO):
        announce(made.cache.store, [loader])
    size = 2 * 3 * 25 * 8 * 4
    assert "about 2 clips" in caplog.text and f"about {size / 1e9:.3g} GB" in caplog.text
    for found, expected in zip(made.features(wavs), alone(made, wavs), strict=True):
        assert torch.equal(found, expected)
    assert len(files(tmp_path)) == 4 and caplog.text.count("cuts them at random") == 1


# --- runs


def trained(build, folder, hubert_ckpt, tuning, **runner):
    config = task_config("ks", tuning=tuning, total_steps=3, eval_step=3, **runner)
    config["downstream_expert"]["datarc"] |= {"batch_size": 1, "num_workers": 0}
    runner = build(make_args(folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt), config)
    losses = record_losses(runner)
    runner.train()
    weights = [p.detach().clone() for entry in runner.all_entries[1:] for p in entry.model.parameters()]
    return losses, weights


@pytest.mark.parametrize("method", ["frozen", "weighted_sum"])
def test_a_run_in_batches_of_one_is_the_run_without_a_cache(build, tmp_path, hubert_ckpt, method, monkeypatch):
    tuning = {"method": method}
    options = {"cache": "features", "cache_folder": str(tmp_path / "cache")}
    plain = trained(build, tmp_path / "plain", hubert_ckpt, tuning)
    first = trained(build, tmp_path / "first", hubert_ckpt, tuning, **options)
    monkeypatch.setattr(ClipStore, "_write", lambda *_: pytest.fail("all features are there"))
    second = trained(build, tmp_path / "second", hubert_ckpt, tuning, **options)
    for losses, weights in (first, second):
        assert losses == plain[0] and all(map(torch.equal, weights, plain[1]))


@pytest.mark.parametrize(
    ("tuning", "runner", "sentence"),
    [
        ({"method": "child", "density": 0.1}, {"cache": "features"}, "for upstreams that do not train"),
        ({"method": "lora"}, {"cache": "features"}, "for upstreams that do not train"),
        ({"method": "frozen"}, {"cache": "features", "amp": "bf16"}, "do not go together"),
        ({"method": "frozen"}, {"cache_dtype": "float16"}, "options of runner.cache"),
        ({"method": "frozen"}, {"cache": "feature"}, "features"),
    ],
)
def test_what_does_not_fit_is_refused(build, tmp_path, hubert_ckpt, tuning, runner, sentence):
    with pytest.raises(UsageError, match=sentence):
        args = make_args(tmp_path, upstream="hubert_local", upstream_ckpt=hubert_ckpt)
        build(args, task_config("ks", tuning=tuning, **runner))


@pytest.mark.parametrize("now", [{}, {"cache": "features", "cache_dtype": "float16"}])
def test_a_run_is_resumed_with_the_same_features(now):
    ckpt = Checkpoint(config={"runner": {"cache": "features"}}, path=Path("states-4.ckpt"))
    args = make_args(".", past_exp="states-4.ckpt")
    check_runner(ckpt, {"runner": {"cache": "features", "cache_dtype": "float32", "cache_folder": "elsewhere"}}, args)
    with pytest.raises(UsageError, match="states-4.ckpt was trained with "):
        check_runner(ckpt, {"runner": now}, args)
