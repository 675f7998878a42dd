"""Exact, global, nested masks against a slow oracle; ties, zeros, and the sizes of the base models."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from s3prl_ext.child_tuning import mask_files, masks
from s3prl_ext.child_tuning.eligible import eligible_names, eligible_parameters
from s3prl_ext.errors import DataError, UsageError
from tests.support.reference import slow_top_k


def scores(seed: int, zeros: float = 0.0, levels: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        n: torch.rand(shape, generator=generator) for n, shape in (("a", (7, 9)), ("b", (50,)), ("c", (3, 4, 5)))
    }
    for tensor in tensors.values():
        if levels:
            tensor.mul_(levels).floor_()
        tensor[torch.rand(tensor.shape, generator=generator) < zeros] = 0
    return tensors


@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.37, 0.999, 1.0])
@pytest.mark.parametrize(
    "values", [scores(0), scores(1, zeros=0.95), scores(2, levels=3), scores(3, zeros=0.5, levels=2)],
    ids=["distinct", "mostly_zero", "ties", "ties_and_zeros"],
)  # fmt: skip
def test_top_k_equals_oracle(values, density):
    mask = masks.top_k(values, density)
    total = sum(v.numel() for v in values.values())
    assert masks.count(mask) == round(density * total)
    expected = slow_top_k({n: v.reshape(-1).tolist() for n, v in values.items()}, round(density * total))
    assert {n: i.tolist() for n, i in mask.items()} == expected


def test_masks_are_nested():
    values = scores(4, zeros=0.6, levels=4)
    sets = []
    for density in (0.01, 0.1, 0.5, 1.0):
        sets.append({(n, i) for n, indices in masks.top_k(values, density).items() for i in indices.tolist()})
    assert all(small < large for small, large in pairwise(sets))


@pytest.mark.parametrize(
    "values", [scores(0), scores(1, zeros=0.95), scores(2, levels=3)], ids=["distinct", "mostly_zero", "ties"]
)
def test_one_pass_gives_the_masks_of_all_densities(values):
    densities = (0.01, 0.37, 0.1, 1.0)
    nested = masks.nested_top_k(values, densities)
    assert nested.densities == (1.0, 0.37, 0.1, 0.01)
    for density in densities:
        one = masks.top_k(values, density)
        assert {n: i.tolist() for n, i in nested.at(density).items()} == {n: i.tolist() for n, i in one.items()}
    assert all(i.dtype == torch.int32 for i in nested.indices.values())


def test_densities_that_select_nothing():
    nested = masks.nested_top_k(scores(0), (0.1, 1e-6))
    assert nested.at(1e-6) == {} and masks.count(nested.at(0.1)) == 17


def test_histogram_counts_every_score_in_its_bin():
    values = scores(6, zeros=0.5)
    edges, counts = masks.score_histogram(values)
    flat = torch.cat([v.reshape(-1) for v in values.values()])
    assert int(counts.sum()) == flat.numel()
    assert counts[0] == int((flat < edges[1]).sum())
    for position in torch.nonzero(counts).squeeze(1).tolist():
        low, high = edges[position], edges[position + 1]
        assert counts[position] == int(((flat >= low) & (flat < high)).sum())


def test_mask_files(tmp_path):
    values = scores(7)
    nested = masks.nested_top_k(values, (0.5, 0.1))
    path = tmp_path / "masks.safetensors"
    mask_files.save(nested, path, {"seed": 3}, masks.score_histogram(values))
    found, origin, histogram = mask_files.load(path)
    assert found.densities == nested.densities and origin == {"seed": 3}
    for density in nested.densities:
        assert {n: i.tolist() for n, i in found.at(density).items()} == {
            n: i.tolist() for n, i in nested.at(density).items()
        }
    assert int(histogram[1].sum()) == sum(v.numel() for v in values.values())
    assert [p.name for p in tmp_path.iterdir()] == ["masks.safetensors"]
    content = path.read_bytes()
    for position in (content.index(b'"seed') + 2, len(content) - 40):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DataError, match="corrupt or was edited"):
            mask_files.load(path)
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, path, {key: value for key, value in metadata.items() if key != "content_sha256"})
    assert mask_files.load(path)[0].densities == nested.densities, "a file from before there was a checksum"
    path.write_bytes(content[:-40])
    with pytest.raises(DataError, match="truncated or corrupt"):
        mask_files.load(path)
    with pytest.raises(DataError, match="cannot write the masks"):
        mask_files.save(nested, tmp_path / "none" / "masks.safetensors", {}, None)


def test_selection_is_global_not_per_tensor():
    values = {"large": torch.arange(10.0) + 100, "small": torch.arange(10.0)}
    assert masks.top_k(values, 0.5).keys() == {"large"}


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_density_outside_its_range(density):
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        masks.top_k(scores(0), density)
    with pytest.raises(UsageError, match=r"\(0, 1\]"):
        masks.bernoulli({"a": 3}, density, seed=0)


@pytest.mark.parametrize("sampled, others", [(1.0, 0.0), (0.0, 1.0)])
def test_a_sample_that_misleads_changes_no_mask(sampled, others):
    """The first look at the scores is at every 61st one, which are all large here, or all small."""
    values = scores(6) | {"d": 0.1 * torch.rand(200, masks._STRIDE, generator=torch.Generator().manual_seed(1))}
    values["d"] += others
    values["d"][:, 0] += sampled - others
    for density in (0.005, 0.02, 0.3):
        expected = slow_top_k({n: v.reshape(-1).tolist() for n, v in values.items()}, round(density * 12373))
        assert {n: i.tolist() for n, i in masks.top_k(values, density).items()} == expected


def test_selection_goes_through_large_tensors_in_pieces(monkeypatch):
    values = scores(5, zeros=0.3, levels=7)
    whole = masks.top_k(values, 0.4)
    monkeypatch.setattr(masks, "_PIECE", 8)
    pieces = masks.top_k(values, 0.4)
    assert {n: i.tolist() for n, i in whole.items()} == {n: i.tolist() for n, i in pieces.items()}


def test_tiny_scores_keep_their_order():
    """Squared gradients reach down to subnormal numbers; zero and the smallest positive number are not the same."""
    values = {"a": torch.tensor([0.0, 1e-45, 1e-40, 1e-38, 0.0, 2e-45])}
    assert masks.top_k(values, 4 / 6)["a"].tolist() == [1, 2, 3, 5]


def test_useless_scores_are_refused():
    with pytest.raises(DataError, match="all scores are zero"):
        masks.top_k({"a": torch.zeros(5)}, 0.2)
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(DataError, match="the scores of 'b' hold negative, NaN or infinite"):
            masks.top_k({"a": torch.ones(5), "b": torch.tensor([1.0, bad])}, 0.2)


def test_bernoulli_mask():
    sizes = {"a": 100_000, "b": 50_000}
    state = torch.get_rng_state()
    mask = masks.bernoulli(sizes, 0.1, seed=7)
    assert torch.equal(state, torch.get_rng_state()), "the global random state is not touched"
    n, p = 150_000, 0.1
    assert abs(masks.count(mask) - n * p) < 5 * (n * p * (1 - p)) ** 0.5
    nested = masks.nested_bernoulli(sizes, (0.01, 0.1), seed=7)
    assert all(torch.equal(mask[k], nested.at(0.1)[k]) for k in mask)
    assert all(set(i.tolist()) <= set(mask[k].tolist()) for k, i in nested.at(0.01).items())
    again, other = masks.bernoulli(sizes, 0.1, seed=7), masks.bernoulli(sizes, 0.1, seed=8)
    assert all(torch.equal(mask[k], again[k]) for k in mask)
    assert not all(torch.equal(mask[k], other[k]) for k in mask)


@pytest.mark.parametrize("family", ["hubert", "wav2vec2"])
@pytest.mark.parametrize("naming", ["transformers", "s3prl"])
def test_eligible_weights_of_base_models(family, naming):
    """N = 85,057,024: 12 layers of 7,087,872, the encoder's layer norm and the projection's (AD-TUNING, Table 2)."""
    model = base_model(family, naming)
    holder = torch.nn.Module()
    holder.model = model
    parameters = eligible_parameters(holder)
    total = sum(p.numel() for p in parameters.values())
    assert total == 85_057_024
    assert [masks.child_size(total, p) for p in (0.1, 0.01, 0.001)] == [8_505_702, 850_570, 85_057]


def base_model(family: str, naming: str) -> torch.nn.Module:
    """Return a base model on the meta device; its modules are imported outside, for they make tensors of their own."""
    import s3prl_ext

    s3prl_ext.install()  # transformers imports torchaudio, whose PyPI wheel needs a shim beside a CPU build of torch
    if naming == "transformers":
        import transformers

        config, model = {
            "hubert": (transformers.HubertConfig, transformers.HubertModel),
            "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        }[family]
        with torch.device("meta"):
            return model(config())
    if family == "wav2vec2":
        from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

        with torch.device("meta"):
            return Wav2Vec2Model(Wav2Vec2Config(quantize_targets=True, final_dim=256))
    from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

    with torch.device("meta"):
        return HubertModel(
            HubertConfig(label_rate=50.0, final_dim=256),
            HubertPretrainingConfig(label_rate=50.0),
            [[str(i) for i in range(504)]],
        )


def test_patterns_choose_the_eligible_weights():
    names = ["enc.layer.0.w", "enc.layer.0.b", "enc.layer.1.w"]
    assert eligible_names(names, ["enc.layer.1.*", "*.b"]) == ["enc.layer.0.b", "enc.layer.1.w"]
    with pytest.raises(UsageError, match=r"'nothing\*' matches no weight.*enc.layer.0.w"):
        eligible_names(names, ["enc*", "nothing*"])
    with pytest.raises(UsageError, match="no encoder layers"):
        eligible_names(names)
