"""Mixed precision on a processor without units for it is said, with how much slower it is."""

from __future__ import annotations

import logging

import pytest

from s3prl_ext.training import devices
from tests.support.experiments import make_args, task_config

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
