"""Pictures have what they need, and appear whole or not at all."""

from __future__ import annotations

import pytest
from matplotlib import image

from s3prl_ext.errors import UsageError
from s3prl_ext.evaluation.layer_panels import LayerPanel, plot_layer_panels
from s3prl_ext.evaluation.plots import Curve, plot_curves


def test_picture_shows_each_curve(tmp_path):
    plain, path = tmp_path / "plain.png", tmp_path / "curves.png"
    plot_curves([], plain, "title", "dev accuracy (%)", baseline=("chance", 8.3), y_range=(0, 100))
    curves = [Curve("frozen", [50, 100], [20.0, 40.0]), Curve("child", [50, 100], [30.0, 60.0])]
    plot_curves(curves, path, "title", "dev accuracy (%)", baseline=("chance", 8.3), y_range=(0, 100))
    without, pixels = image.imread(plain), image.imread(path)
    assert pixels.shape == without.shape
    for red, green, blue in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        colour = [red / 255, green / 255, blue / 255]
        assert (abs(pixels[..., :3] - colour) < 0.02).all(axis=-1).sum() > 50
        assert (abs(without[..., :3] - colour) < 0.02).all(axis=-1).sum() == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "plain.png"]


def test_panels_mark_the_chosen_layers_alone(tmp_path):
    blue = [0, 0x72 / 255, 0xB2 / 255]
    inked = []
    for name, chosen in (("none", []), ("two", [1, 4])):
        panel = LayerPanel("swd (small = similar)", [0, 1, 3, 4], [3.0, 1.0, 2.0, 0.5], chosen)
        plot_layer_panels([panel, panel], tmp_path / f"{name}.png", "title")
        pixels = image.imread(tmp_path / f"{name}.png")
        inked.append((abs(pixels[..., :3] - blue) < 0.02).all(axis=-1).sum())
    assert inked[1] > inked[0] + 200  # filled squares beside open circles


def test_more_curves_than_styles_are_refused(tmp_path):
    curves = [Curve(str(n), [0, 1], [0.0, 1.0]) for n in range(9)]
    with pytest.raises(UsageError, match="at most 8"):
        plot_curves(curves, tmp_path / "many.png", "t", "y")
    plot_curves(curves[:8], tmp_path / "eight.png", "t", "y", cut=("comparison", 0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["eight.png"]
