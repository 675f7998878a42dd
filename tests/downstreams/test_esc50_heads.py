"""Heads of ESC-50: the convex fit against its optimality conditions, the class map, the classifier of a tuned BEATs."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import s3prl_ext
from s3prl_ext.corpora.esc50 import CLASSES
from s3prl_ext.downstreams.esc50.config import default_class_map, parse_config
from s3prl_ext.downstreams.esc50.heads import (
    AudioSetHead,
    TrainingFeatures,
    choose_linear,
    fit_linear,
    read_class_map,
)
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.upstreams.beats.expert import steps_of
from tests.support import factories


@pytest.fixture
def data():
    """Return features [90, 6] of three classes that overlap, and the classes."""
    rng = torch.Generator().manual_seed(0)
    targets = torch.arange(90) % 3
    centres = torch.randn(3, 6, generator=rng)
    scale = torch.tensor([0.1, 1, 5, 1, 1, 20])
    return (centres[targets] + torch.randn(90, 6, generator=rng)) * scale + 3, targets


@pytest.mark.parametrize("l2", [0.1, 1.0, 30.0])
def test_fit_is_the_optimum_of_the_penalised_problem(data, l2):
    features, targets = data
    weight, bias = (tensor.double() for tensor in fit_linear(features, targets, l2, classes=3))
    x = features.double()
    error = (x @ weight.T + bias).softmax(1) - F.one_hot(targets, 3)
    std = x.std(0, correction=0)
    # gradient of sum of cross entropies + l2/2 |W|^2 in standardised features, where W = weight * std
    gradient = error.T @ ((x - x.mean(0)) / std) + l2 * weight * std
    assert gradient.abs().max() < 1e-3 and error.sum(0).abs().max() < 1e-3
    assert error.abs().max() > 0.1, "the classes overlap, so the optimum is no trivial one"


def test_fit_does_not_depend_on_order_or_scale(data):
    features, targets = data
    weight, bias = fit_linear(features, targets, 1.0, classes=3)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    again = fit_linear(features[order], targets[order], 1.0, classes=3)
    assert torch.allclose(again[0], weight, atol=1e-5) and torch.allclose(again[1], bias, atol=1e-4)
    scaled = fit_linear(7 * features - 100, targets, 1.0, classes=3)
    assert torch.allclose(7 * scaled[0], weight, atol=1e-5)


def test_fit_leaves_random_state_and_grad_mode_alone(data):
    state = torch.get_rng_state()
    with torch.no_grad():
        fit_linear(*data, 1.0, classes=3)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


def test_constant_feature_does_no_harm(data):
    features, targets = data
    features[:, 2] = 4.0
    weight, bias = fit_linear(features, targets, 1.0, classes=3)
    assert weight.isfinite().all() and bias.isfinite().all()


def test_penalty_is_the_best_on_dev_and_the_largest_of_equals(data):
    features, targets = data
    train, dev = (features[:60], targets[:60]), (features[60:], targets[60:])
    (weight, bias), accuracies = choose_linear(train, dev, [1e-3, 1.0, 1e4])
    best = max(accuracies.values())
    chosen = max(l2 for l2, value in accuracies.items() if value == best)
    expected = fit_linear(*train, chosen)
    assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])
    assert weight.shape == (50, 6)


def test_training_features_are_complete_or_refused():
    kept = TrainingFeatures(["b", "a"])
    kept.add(["a"], torch.tensor([[1.0, 2.0]]), [7])
    with pytest.raises(UsageError, match=r"all 2 training clips, but 1 have not been seen.*runner.epochs: 1"):
        kept.collected()
    kept.add(["b"], torch.tensor([[3.0, 4.0]]), [5])
    features, targets = kept.collected()
    assert features.tolist() == [[3, 4], [1, 2]] and targets.tolist() == [5, 7]


def test_shipped_class_map_is_complete_and_without_shared_labels():
    rows = read_class_map(default_class_map())
    assert len(rows) == len(CLASSES) == 50
    mids = [mid for row in rows for mid in row]
    assert len(mids) == len(set(mids)), "a label that stands for two classes could never tell them apart"
    assert all(mid.startswith(("/m/", "/t/", "/g/")) for mid in mids)
    assert rows[CLASSES.index("dog")] == ["/m/0bt9lr", "/m/05tny_"]
    assert rows[CLASSES.index("hand_saw")] == ["/m/01b82r"]


@pytest.mark.parametrize("change", ["missing", "unknown", "empty", "columns"])
def test_bad_class_maps_are_refused(tmp_path, change):
    lines = default_class_map().read_text().splitlines()
    if change == "missing":
        lines.pop()
    elif change == "unknown":
        lines[1] = lines[1].replace("dog", "wolf", 1)
    elif change == "empty":
        lines[1] = "dog\t\tDog\tgood"
    else:
        lines[0] = "class\tmids"
    (tmp_path / "map.tsv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="class map|50 classes of ESC-50 once"):
        read_class_map(tmp_path / "map.tsv")


@pytest.fixture
def audioset_ckpt(tmp_path):
    """A tiny fine-tuned BEATs with the labels of the class map, in another order, and one more."""
    mids = sorted({mid for row in read_class_map(default_class_map()) for mid in row} | {"/m/09x0r"})
    path = factories.beats_ckpt(tmp_path / "tuned.pt", finetuned_model=True, predictor_class=len(mids))
    content = torch.load(path, weights_only=True)
    torch.save(content | {"label_dict": dict(enumerate(mids))}, path)
    return path


def test_audioset_head_equals_the_models_own_classifier(audioset_ckpt):
    s3prl_ext.install()
    from s3prl import hub

    upstream = hub.beats_local(ckpt=str(audioset_ckpt)).eval()
    rng = torch.Generator().manual_seed(0)
    wavs = [0.1 * torch.randn(n, generator=rng) for n in (80000, 30000)]
    with torch.no_grad():
        probabilities = upstream.class_probabilities(wavs)
        states = upstream(wavs)["last_hidden_state"]
        steps = [steps_of(len(wav)) for wav in wavs]  # of the second clip s3prl's rounding counts the last one twice
        pooled = torch.stack([state[:n].mean(0) for state, n in zip(states, steps)])
        scores = AudioSetHead(audioset_ckpt, default_class_map()).eval()(pooled).sigmoid()
    index = {mid: number for number, mid in upstream.labels.items()}
    for target, mids in enumerate(read_class_map(default_class_map())):
        expected = torch.stack([probabilities[:, index[mid]] for mid in mids]).amax(0)
        assert torch.allclose(scores[:, target], expected, atol=1e-5), CLASSES[target]


def test_checkpoints_without_audiosets_classifier_are_refused(tmp_path, audioset_ckpt):
    pretrained = factories.beats_ckpt(tmp_path / "pretrained.pt")
    with pytest.raises(DataError, match=r"pretrained.pt is only pre-trained: .*fine-tuned on AudioSet"):
        AudioSetHead(pretrained, default_class_map())
    content = torch.load(audioset_ckpt, weights_only=True)
    content["label_dict"] = {number: f"class_{number}" for number in content["label_dict"]}
    torch.save(content, audioset_ckpt)
    with pytest.raises(DataError, match=r"labels, but not /.* of audioset.tsv: it was not fine-tuned on AudioSet"):
        AudioSetHead(audioset_ckpt, default_class_map())


def test_configuration_problems_are_reported_at_once():
    section = {
        "datarc": {"esc50_root": "/x", "batch": 3, "eval_batch_size": 0},
        "fold": 6,
        "split": "fold",
        "head": {"kind": "lineer", "l2": [0.0], "weights": 1},
    }
    with pytest.raises(UsageError) as caught:
        parse_config(section)
    sentence = str(caught.value)
    for part in (
        "fold must be 1, 2, 3, 4 or 5",
        "did you mean 'folds'",
        "unknown kind 'lineer'; did you mean 'linear'",
        "head.l2 must be above 0",
        "unknown key 'weights'",
        "unknown key 'batch'",
        "eval_batch_size must be a whole number",
    ):
        assert part in sentence, sentence
    with pytest.raises(UsageError, match="esc50_root is missing"):
        parse_config({"datarc": {}})


def test_head_may_be_a_name_and_numbers_may_be_strings():
    config = parse_config({"datarc": {"esc50_root": "/x"}, "head": "linear"})
    assert (config.head.kind, config.head.fit, config.fold, config.split) == ("linear", "sgd", 1, "folds")
    config = parse_config({"datarc": {"esc50_root": "/x"}, "head": {"fit": "convex", "l2": "1e-2"}})
    assert config.head.l2 == (0.01,) and math.isclose(sum(config.head.l2), 0.01)
