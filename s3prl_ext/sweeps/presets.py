"""Grids of MAM's tables, by the names that ``--grid`` takes. They load at once, for ``--help``."""

from __future__ import annotations

from typing import Any

from s3prl_ext.merging.names import NOISE_KINDS

NOISES = ("none", *NOISE_KINDS)  # none: the source itself

_ASR_LAMBDAS = [0, 0.05, 0.10, 0.15, 0.20, 0.25]
_ESC50_LAMBDAS = [0, 0.10, 0.15, 0.20, 0.25, 0.30]
# Grids of MAM's tables. The lambda of Tables 2 and 3 is chosen on dev for every layer set.
PRESETS: dict[str, dict[str, Any]] = {
    "table1-asr": {"lambda": _ASR_LAMBDAS, "layers": ["all"], "noise": list(NOISES)},
    "table1-esc50": {"lambda": _ESC50_LAMBDAS, "layers": ["all"], "noise": list(NOISES)},
    "table2-24": {"lambda": _ASR_LAMBDAS, "layers": ["0-7", "4-11", "8-15", "12-19", "16-23"]},
    "table2-12": {"lambda": _ESC50_LAMBDAS, "layers": ["0-3", "4-7", "8-11", "0-7", "4-11"]},
    "table3-ljspeech": {"lambda": _ASR_LAMBDAS, "by": ["euclidean", "swd", "inner_product"], "top_k": [4, 6, 8]},
    "table3-vctk": {"lambda": _ASR_LAMBDAS, "by": ["euclidean", "swd", "inner_product"], "top_k": [6, 8, 10]},
}
