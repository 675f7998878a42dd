"""Figures of the MAM paper, by what is merged."""

from __future__ import annotations

import pytest

from s3prl_ext.papers.figures import mam_figure, mam_tables
from s3prl_ext.sweeps.grid import PRESETS


@pytest.mark.parametrize(
    ("asked", "printed"),
    [
        (("ljspeech", "all", "none", 0.1), "9.06"),
        (("vctk", "all", "standard", 0.25), "100.00"),
        (("esc50", "all", "source", 0.3), "26.82"),
        (("ljspeech", "-", None, 0.0), "9.25"),
        (("ljspeech", "12-19", "none", 0.25), "8.63"),
        (("ljspeech", "12-19", "none", 0.1), None),
        (("ljspeech", "12-19", "target", 0.25), None),
        (("esc50", "4-11", "none", 0.1), "10.50"),
        (("vctk", "swd top-10", "none", 0.05), "5.51"),
        (("esc50", "swd top-6", "none", 0.1), None),
        (("ljspeech", "3,5", "none", 0.25), None),
    ],
)
def test_figures(asked, printed):
    assert mam_figure(*asked) == printed


def test_every_preset_finds_its_table():
    for corpus, preset in (("ljspeech", "table1-asr"), ("vctk", "table1-asr"), ("esc50", "table1-esc50")):
        for lambda_ in PRESETS[preset]["lambda"]:
            for noise in PRESETS[preset]["noise"]:
                assert (mam_figure(corpus, "all", noise, lambda_) is None) == (lambda_ == 0 and noise != "none")
    for corpus, preset in (("ljspeech", "table2-24"), ("vctk", "table2-24"), ("esc50", "table2-12")):
        given = mam_tables()["table2"][corpus]["lambda"]
        assert given in PRESETS[preset]["lambda"]
        assert all(mam_figure(corpus, block, "none", given) for block in PRESETS[preset]["layers"])
