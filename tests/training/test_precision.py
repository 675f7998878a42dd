"""Mixed precision on a processor that is slow or wrong in it."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from s3prl_ext.errors import UsageError, is_out_of_memory
from s3prl_ext.mini_superb import TRAINED
from s3prl_ext.training import devices
from s3prl_ext.training.forward import TaskFailed
from tests.support import factories
from tests.support.experiments import make_args, record_losses, task_config

PLAIN, MODERN = "flags\t\t: fpu avx512f avx512_vnni\n", "flags\t\t: fpu avx512f avx512_bf16\n"


@pytest.mark.parametrize(
    ("info", "device", "amp", "figure"),
    [
        (PLAIN, "cpu", "bf16", "15 to 26 times"),
        (PLAIN, "cpu", "fp16", "30 to 80 times"),
        (MODERN, "cpu", "bf16", None),
        (MODERN, "cpu", "fp16", "30 to 80 times"),
        (PLAIN, "cuda:0", "bf16", None),
        (PLAIN, "cpu", None, None),
        ("Features\t: fp asimd\n", "cpu", "bf16", None),  # an ARM processor
        (None, "cpu", "bf16", None),
    ],
)
def test_where_mixed_precision_is_slow(tmp_path, monkeypatch, info, device, amp, figure):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    if info is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{info}")
    found = devices.slow_precision(device, amp)
    assert (found is None) == (figure is None) and (found is None or (figure in found and amp in found))


def test_a_run_says_so_and_goes_on(tmp_path, monkeypatch, build, caplog):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(PLAIN)
    with caplog.at_level(logging.WARNING):
        build(make_args(tmp_path / "exp"), task_config("ks", amp="bf16"))
    assert sum("15 to 26 times slower" in record.getMessage() for record in caplog.records) == 1


def beats_in_bf16(build, tmp_path, groups: int):
    ckpt = factories.beats_ckpt(tmp_path / "beats.pt", conv_pos_groups=groups)
    args = make_args(tmp_path / "exp", upstream="beats_local", upstream_ckpt=str(ckpt))
    return build(args, task_config("ks", amp="bf16"))


def test_a_convolution_that_is_wrong_in_this_precision_is_refused(tmp_path, monkeypatch, build):
    right = devices.F.conv1d

    def wrong_in_groups_of_eight(signal, weight, *rest, **options):
        out = right(signal, weight, *rest, **options)
        return out + 1 if weight.dtype == torch.bfloat16 and weight.shape[1] == 8 else out

    monkeypatch.setattr(devices.F, "conv1d", wrong_in_groups_of_eight)
    beats_in_bf16(build, tmp_path, 2)
    named = r"runner.amp: bf16: the convolution '\S*pos_conv\S*' of the upstream \(8 channels in a group, kernel 16\)"
    with pytest.raises(UsageError, match=named):
        beats_in_bf16(build, tmp_path, 4)


def test_this_processor_is_asked(tmp_path, build):
    """Where the run is let through, the first hidden state, which follows the convolution, is near that in float32."""
    try:
        runner = beats_in_bf16(build, tmp_path, 4)
    except UsageError as error:
        assert "gives wrong values" in str(error)
        return
    model = runner.upstream.model
    wavs = [torch.randn(16000, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        exact = model(wavs)["hidden_states"][0]
        with torch.autocast("cpu", torch.bfloat16):
            found = model(wavs)["hidden_states"][0]
    assert (found.float() - exact).abs().max() < 0.15


ONEDNN = "could not create a primitive descriptor for the LSTM forward propagation primitive"
QUICK = ("ks", "sid", "pr", "sd", "er", "ood", "esc50")


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in QUICK else pytest.mark.slow) for task in TRAINED]
)
def test_every_task_trains_in_bf16(build, tmp_path, task):
    args = make_args(tmp_path / "exp", downstream=TRAINED[task].task.downstream)
    settings = {"total_steps": 2, "log_step": 1, "evaluate_ratio": 1.0 if task == "asv" else 0.3}
    runner = build(args, task_config(task, amp="bf16", **settings))
    losses = record_losses(runner)
    try:
        runner.train()
    except TaskFailed as error:
        assert ONEDNN in str(error) and "leave runner.amp out" in str(error), error
        pytest.skip("this processor has no LSTM in bfloat16")
    assert len(losses) > 2 and all(map(math.isfinite, losses[:2]))


@pytest.mark.parametrize(
    ("amp", "error", "advice"),
    [
        ("bf16", TypeError("Got unsupported ScalarType BFloat16"), "in this precision: leave runner.amp out"),
        ("fp16", RuntimeError(ONEDNN), "in this precision: leave runner.amp out"),
        ("bf16", ValueError("no label"), "check these clips and their labels"),
        (None, TypeError("Got unsupported ScalarType BFloat16"), "check these clips and their labels"),
    ],
)
def test_an_error_about_the_precision_does_not_blame_the_clips(build, tmp_path, amp, error, advice):
    runner = build(make_args(tmp_path / "exp"), task_config("ks", amp=amp))

    def failing(*inputs, **kwargs):
        raise error

    runner.downstream.model.forward = failing
    with pytest.raises(TaskFailed) as caught:
        runner.train()
    assert advice in str(caught.value) and str(error)[:60] in str(caught.value)


def test_what_a_processor_cannot_compute_is_not_a_lack_of_memory():
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError(ONEDNN))
