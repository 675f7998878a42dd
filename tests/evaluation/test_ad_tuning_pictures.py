"""Numbers behind AD-TUNING's pictures: thresholds of Fisher histograms, shares by layer and module, means over seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s3prl_ext.child_tuning.masks import score_histogram, top_k
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.fisher_plot import ScoreHistogram, plot_fisher
from s3prl_ext.evaluation.layer_share_plot import LayerShares, module_of, plot_layer_shares
from s3prl_ext.evaluation.series_panels import Series, SeriesPanel, plot_series_panels


def size_of(path) -> tuple[int, int]:
    """Return width and height of a PNG."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


@pytest.fixture(scope="module")
def scores() -> dict[str, torch.Tensor]:
    """Ten thousand log-normal scores, a fifth of them zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.exp(3 * torch.randn(10_000, generator=generator))
    values[:2000] = 0
    return {"weight": values}


def histogram_of(scores) -> ScoreHistogram:
    edges, counts = score_histogram(scores)
    return ScoreHistogram("task", edges.tolist(), counts.tolist())


@pytest.mark.parametrize("density", [0.1, 0.01, 0.001])
def test_threshold_is_that_of_the_mask(scores, density):
    histogram = histogram_of(scores)
    chosen = scores["weight"][top_k(scores, density)["weight"].long()]
    edge = histogram.threshold(density)
    assert edge <= chosen.min() < edge * 2 ** (1 / 8) * 1.01, "the bin of an eighth of an octave that holds it"
    assert histogram.total == 10_000 and histogram.zeros == pytest.approx(0.2)


def test_a_density_that_reaches_into_the_zeros_has_no_line(scores, tmp_path):
    with pytest.raises(DataError, match="20 % of weights whose score is zero"):
        histogram_of(scores).threshold(0.9)
    plot_fisher([histogram_of(scores), histogram_of(scores)], [0.1, 0.9], tmp_path / "f.png", "title")
    assert size_of(tmp_path / "f.png")[0] > 900
    with pytest.raises(DataError, match="every score is zero"):
        plot_fisher([ScoreHistogram("none", [0, 1], [5, 0])], [0.1], tmp_path / "g.png", "title")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


SIZES = {
    "model.encoder.layers.0.self_attn.q_proj.weight": 100, "model.encoder.layers.0.self_attn.q_proj.bias": 10,
    "model.encoder.layers.1.self_attn.q_proj.weight": 100, "model.encoder.layers.1.fc1.weight": 200,
    "model.encoder.layer_norm.weight": 10,
}  # fmt: skip


def test_shares_by_layer_and_module():
    changed = {"model.encoder.layers.0.self_attn.q_proj.weight": 11, "model.encoder.layers.1.fc1.weight": 50}
    shares = LayerShares("ks", changed, SIZES)
    assert shares.by_layer() == pytest.approx([11 / 110, 50 / 300])
    names, table = shares.by_module()
    assert names == ["biases", "query", "feed-forward in"]
    np.testing.assert_allclose(table, [[0, np.nan], [0.11, 0], [np.nan, 0.25]])
    assert shares.density == pytest.approx(61 / 420)


def test_modules_in_both_namings():
    names = {
        "self_attn.k_proj.weight": "key", "attention.v_proj.weight": "value", "attention.out_proj.bias": "biases",
        "final_layer_norm.weight": "norms", "layer_norm.weight": "norms", "fc2.weight": "feed-forward out",
        "feed_forward.intermediate_dense.weight": "feed-forward in", "feed_forward.output_dense.weight": "feed-forward out",
        "self_attn.relative_attention_bias.weight": "other",
    }  # fmt: skip
    assert {name: module_of(name) for name in names} == names


def test_layer_picture_and_its_refusal(tmp_path):
    tasks = [LayerShares("ks", {"model.encoder.layers.1.fc1.weight": 50}, SIZES), LayerShares("asr", {}, SIZES)]
    plot_layer_shares(tasks, tmp_path / "l.png", "title")
    assert size_of(tmp_path / "l.png")[0] > 1000
    with pytest.raises(DataError, match="no layers to draw"):
        plot_layer_shares([LayerShares("x", {}, {"head.weight": 3})], tmp_path / "m.png", "title")
    assert not (tmp_path / "m.png").exists()


def test_series_are_means_with_sample_deviations():
    places, means, spread = Series("a", [{1: 2.0, 2: 4.0}, {1: 4.0}]).points()
    assert places == [1, 2]
    np.testing.assert_allclose(means, [3, 4])
    np.testing.assert_allclose(spread, [2**0.5, 0])
    with pytest.raises(DataError, match="no value for 'b'"):
        Series("b", [{}]).points()


def test_panels_are_drawn_and_too_many_lines_refused(tmp_path):
    series = [Series("a", [{0.5: 2.0, 10: 1.0}, {0.5: 3.0, 10: 1.0}])]
    panel = SeriesPanel("pr", series, "hours", "PER (%)", log_x=True)
    plot_series_panels(
        [panel, SeriesPanel("ks", series, "step", "acc", cut=("comparison", 5))], tmp_path / "s.png", "t"
    )
    assert size_of(tmp_path / "s.png")[0] > 1000
    with pytest.raises(UsageError, match="9 lines"):
        plot_series_panels([SeriesPanel("pr", series * 9, "hours", "PER")], tmp_path / "t.png", "t")
