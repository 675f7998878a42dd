"""Choosing masks for a task: the ways of estimating Fisher information, interrupting the pass, controls."""

from __future__ import annotations

import copy
import signal
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from s3prl_ext import randomness
from s3prl_ext.child_tuning import mask_files, masks
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.errors import DataError, StoppedByUser, UsageError
from s3prl_ext.run_folder import FISHER_FILE, MASK_FILE, RunFolder
from s3prl_ext.training.selection import pass_facts, scoring_pass
from s3prl_ext.training.selection.child_selection import choose_mask, choose_masks
from s3prl_ext.training.selection.choice import Choice
from s3prl_ext.training.selection.fisher_batches import UtteranceBatches
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.tuning_config import FisherConfig
from tests.support.experiments import interrupt_at_loss, make_args, task_config

CHILD = {"method": "child", "density": 0.1}


@pytest.fixture
def runner(build, tmp_path, hubert_ckpt):
    """Return a function that builds a Runner with the given section ``tuning.fisher``."""

    def make(folder="exp", task="ks", downstream="speech_commands", optimizer=None, clipping=1.0, **tuning):
        args = make_args(tmp_path / folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt, downstream=downstream)
        config = task_config(task, tuning=CHILD | tuning, gradient_clipping=clipping)
        config["optimizer"] = (
            optimizer if optimizer and "name" in optimizer else config["optimizer"] | (optimizer or {})
        )
        return build(args, config)

    return make


def scores_of(runner, expdir=None, split="train", facts=None):
    parameters = eligible_parameters(runner.upstream.model)
    with randomness.preserved(1337):
        folder = RunFolder(expdir) if expdir else None
        found = FisherPass(Choice(runner.models, parameters, runner.tuning, split, 1337, folder, facts)).scores()
    return {name: score.clone() for name, score in found.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options",
    [
        {"granularity": "sample", "max_batches": 5},
        {"clip": "tensor", "max_norm": 1e-3},
        {"clip": "global"},
        {"mode": "train"},
        {"warm_head": 3},
        {"preset": "official"},
    ],
    ids=["sample", "tensor", "global", "train", "warm", "official"],
)
def test_every_way_leaves_models_and_random_states_as_found(runner, options):
    plain, other = runner(fisher={"max_batches": 3}), runner("other", fisher={"max_batches": 3} | options)
    weights = [copy.deepcopy(m.state_dict()) for m in other.models.modules()]
    modes = [m.training for top in other.models.modules() for m in top.modules()]
    state = randomness.get_state()
    found = scores_of(other)
    assert torch.equal(state["torch"], randomness.get_state()["torch"])
    assert state["numpy"] == randomness.get_state()["numpy"] and state["python"] == randomness.get_state()["python"]
    assert modes == [m.training for top in other.models.modules() for m in top.modules()]
    for module, before in zip(other.models.modules(), weights):
        assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
        assert all(p.grad is None for p in module.parameters())
    assert same(found, scores_of(other)), "a second pass gives the same"
    if options not in ({"clip": "global"}, {"mode": "train"}):
        assert not same(found, scores_of(plain)), "the option has an effect"


def test_samples_are_batches_of_one(runner):
    by_sample = runner(fisher={"granularity": "sample", "max_batches": 4})
    by_batch = runner("other", fisher={"max_batches": 4})
    by_batch.downstream.model.datarc["batch_size"] = 1
    assert same(scores_of(by_sample), scores_of(by_batch))


def test_scores_by_sample_equal_a_loop_over_utterances(runner):
    """Eq. 6 of AD-TUNING, by hand: the mean over drawn utterances of the squared gradient of each one's loss."""
    model = runner(fisher={"granularity": "sample", "max_batches": 5})
    found = scores_of(model)
    upstream, featurizer, downstream = (entry.model.eval() for entry in model.all_entries)
    parameters = eligible_parameters(upstream)
    dataset = downstream.get_dataloader("train").dataset
    expected = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1337))[:5]
    for number in sorted(drawn.tolist()):
        wavs, *others = dataset.collate_fn([dataset[number]])
        wavs = [torch.tensor(wav, dtype=torch.float32) for wav in wavs]
        loss = downstream("train", featurizer(wavs, upstream(wavs)), *others, records=defaultdict(list))
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients):
            expected[name] += 0 if gradient is None else gradient.double() ** 2 / 5
    assert sum(score.sum() for score in expected.values()) > 0
    for name, score in expected.items():
        torch.testing.assert_close(found[name].double(), score, rtol=1e-4, atol=1e-12, msg=name)


def test_asr_buckets_are_split_into_utterances(runner):
    asr = runner(task="asr", downstream="asr")
    buckets = UtteranceBatches(asr.downstream.model, "train")
    singles = UtteranceBatches(asr.downstream.model, "train", FisherConfig(granularity="sample"))
    names = [batch[2] for batch in buckets.batches()]
    assert [name for bucket in names for name in bucket] == [n for batch in singles.batches() for n in batch[2]]
    assert max(map(len, names)) > 1 and all(len(batch[0]) == 1 for batch in singles.batches())


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "train"}, {"warm_head": 2}, {"granularity": "sample"}, {"preset": "official", "warm_head": 2}],
    ids=["eval", "train", "warm", "sample", "official"],
)  # fmt: skip
def test_an_interrupted_pass_goes_on_bitwise(runner, tmp_path, options):
    fisher = {"max_batches": 5} | options
    whole = runner("whole", fisher=fisher)
    expected = scores_of(whole)
    parts = runner("parts", fisher=fisher)
    interrupt_at_loss(parts, 3 + options.get("warm_head", 0))
    with pytest.raises(StoppedByUser, match="3 of 5 batches are saved.*rerun with -a to resume"):
        scores_of(parts, tmp_path / "parts")
    assert (tmp_path / "parts" / FISHER_FILE).is_file()
    again = runner("parts", fisher=fisher)
    losses = count_losses(again)
    assert same(expected, scores_of(again, tmp_path / "parts"))
    assert len(losses) == 2, "only what was missing is computed"


def count_losses(runner):
    losses, forward = [], runner.downstream.model.forward

    def counting(*inputs, **kwargs):
        losses.append(1)
        return forward(*inputs, **kwargs)

    runner.downstream.model.forward = counting
    return losses


def test_a_run_interrupted_in_the_pass_ends_as_if_it_were_not(runner, tmp_path):
    fisher = {"max_batches": 4}
    whole = runner("whole", fisher=fisher)
    whole.train()
    parts = runner("parts", fisher=fisher)
    interrupt_at_loss(parts, 2)
    with pytest.raises(StoppedByUser, match="in the Fisher pass"):
        parts.train()
    assert not list((tmp_path / "parts").glob("*.ckpt"))
    again = runner("parts", fisher=fisher)
    again.train()
    a, b = (r.upstream.model.state_dict() for r in (whole, again))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not (tmp_path / "parts" / FISHER_FILE).exists(), "removed once the mask is chosen"


def test_the_clock_saves_the_pass_too(runner, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring_pass, "SAVE_SECONDS", -1.0)
    going = runner(fisher={"max_batches": 3})
    scores_of(going, tmp_path / "exp")
    saved = torch.load(tmp_path / "exp" / FISHER_FILE, weights_only=True)
    assert saved["batches"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fisher": {"max_batches": 3, "clip": "tensor"}}, r"fisher\.clip none instead of tensor"),
        ({"fisher": {"max_batches": 4}}, r"fisher\.max_batches 3 instead of 4"),
        ({"weights": True}, "other weights of the upstream"),
        ({"facts": {"corpus": "x"}}, "other files in the corpus"),
    ],
    ids=["clip", "batches", "weights", "data"],
)
def test_a_partial_pass_of_other_settings_is_refused(runner, tmp_path, changes, message):
    parts = runner("parts", fisher={"max_batches": 3})
    interrupt_at_loss(parts, 1)
    with pytest.raises(StoppedByUser):
        scores_of(parts, tmp_path / "parts")
    other = runner("parts", fisher=changes.get("fisher", {"max_batches": 3}))
    if "weights" in changes:
        with torch.no_grad():
            next(iter(eligible_parameters(other.upstream.model).values())).add_(1)
    with pytest.raises(UsageError, match=message):
        scores_of(other, tmp_path / "parts", facts=changes.get("facts"))
    assert (tmp_path / "parts" / FISHER_FILE).is_file(), "nothing is lost"


def test_a_damaged_partial_pass_is_refused(runner, tmp_path):
    (tmp_path / "exp").mkdir(exist_ok=True)
    (tmp_path / "exp" / FISHER_FILE).write_bytes(b"nonsense")
    with pytest.raises(DataError, match="truncated or corrupt"):
        scores_of(runner(fisher={"max_batches": 1}), tmp_path / "exp")


def test_an_interrupt_in_the_last_batch_is_heeded(runner, tmp_path):
    expected = scores_of(runner("whole", fisher={"max_batches": 3}))
    last = runner("parts", fisher={"max_batches": 3})
    interrupt_at_loss(last, 3)
    with pytest.raises(StoppedByUser, match="3 of 3 batches are saved"):
        scores_of(last, tmp_path / "parts")
    again = runner("parts", fisher={"max_batches": 3})
    losses = count_losses(again)
    assert same(expected, scores_of(again, tmp_path / "parts")) and not losses


def test_an_interrupt_before_the_first_batch_saves_nothing(runner, tmp_path):
    warm = runner(fisher={"max_batches": 2, "warm_head": 3})
    interrupt_at_loss(warm, 1)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedByUser, match="nothing was saved, -a restarts the pass"):
        scores_of(warm, tmp_path / "exp")
    assert not (tmp_path / "exp" / FISHER_FILE).exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_masks_are_written_once_and_taken_again(runner, tmp_path):
    first = runner(fisher={"max_batches": 2})
    parameters, densities = eligible_parameters(first.upstream.model), [0.1, 0.01]
    choice = Choice(first.models, parameters, first.tuning, "train", 1337, RunFolder(tmp_path / "exp"))
    chosen = choose_masks(choice, densities)
    stored, origin, histogram = mask_files.load(tmp_path / "exp" / MASK_FILE)
    assert same(stored.indices, chosen.indices) and origin["seed"] == 1337
    assert int(histogram[1].sum()) == sum(p.numel() for p in parameters.values())
    losses = count_losses(first)
    assert same(choose_masks(choice, densities).indices, chosen.indices) and not losses
    other = choose_masks(choice, [0.1])  # another density: chosen again
    assert len(losses) == 2 and same(other.at(0.1), chosen.at(0.1))
    for corpus in ("some files", "some files", "others"):
        choose_masks(replace(choice, facts={"corpus": corpus}), densities)
    assert len(losses) == 6, "chosen again where the corpus is another"
    with pytest.raises(UsageError, match="another corpus, and candidates of this race have trained on it"):
        choose_masks(replace(choice, facts={"corpus": "third"}), densities, trained=True)
    kept = choose_masks(replace(choice, facts={"corpus": "others", "versions": "new"}), densities, trained=True)
    assert len(losses) == 6 and same(kept.indices, chosen.indices), "of other versions they are kept"
    others = replace(choice, facts={"corpus": "others"})
    choose_masks(others, [1.0, *densities])  # as 0.1.0 did for a race with a candidate of all weights
    assert same(choose_masks(others, densities, trained=True).at(0.01), chosen.at(0.01)) and len(losses) == 8

    def of_settings(version: str, heads: int) -> Choice:
        return replace(choice, facts={"corpus": "fourth", "settings": [{"heads": heads, "transformers": version}]})

    choose_masks(of_settings("4", 2), densities)
    choose_masks(of_settings("5", 3), densities, trained=True)  # another version may read the same files differently
    with pytest.raises(UsageError, match="another settings, and candidates of this race have trained on it"):
        choose_masks(of_settings("4", 3), densities, trained=True)
    assert len(losses) == 10


CHANGES = {
    "head": lambda config: config["downstream_expert"]["modelrc"].update(projector_dim=8),
    "batch size": lambda config: config["downstream_expert"]["datarc"].update(batch_size=3),
    "SpecAugment": lambda config: config.update(specaug={"apply_time_warp": False}),
    "budget": lambda config: config["tuning"].update(budget="layer"),
    "pass": lambda config: config["tuning"].update(fisher={"max_batches": 3}),
}


def test_masks_of_other_facts_are_not_taken(build, runner, tmp_path, hubert_ckpt, monkeypatch):
    """What a mask depends on is in its file: of a changed head, batch size or version it is chosen again."""
    passes = []
    scores = FisherPass.scores
    monkeypatch.setattr(FisherPass, "scores", lambda self: passes.append(self) or scores(self))

    def train(folder="exp", change=None, **more):
        args = make_args(tmp_path / folder, upstream="hubert_local", upstream_ckpt=hubert_ckpt, **more)
        config = task_config(tuning=CHILD | {"fisher": {"max_batches": 2}}, total_steps=1)
        if change:
            CHANGES[change](config)
        for kind in ("*.ckpt", "result.json", "delta.safetensors"):
            for left in (tmp_path / folder).glob(kind):
                left.unlink()  # stopped short of the first checkpoint
        build(args, config).train()
        return len(passes)

    assert train() == 1 and train() == 1, "taken again"
    for number, change in enumerate(CHANGES):
        assert train(change=change) == 2 * number + 2, change
        assert train() == 2 * number + 3, change
    monkeypatch.setattr(pass_facts, "versions", lambda: {"torch": "0"})
    assert train() == len(passes) == 2 * len(CHANGES) + 2


def test_snip_scores_are_the_derivative_by_a_factor_on_each_weight(runner):
    """SNIP's own definition: |dL/dc| at c = 1 where the layer uses c * w, by autograd on the factors."""
    sensitive = runner(mask="snip", fisher={"max_batches": 3})
    parameters = eligible_parameters(sensitive.upstream.model)
    with randomness.preserved(1337):
        found = FisherPass(Choice(sensitive.models, parameters, sensitive.tuning, "train", 1337)).scores()
    found = {name: score.clone() for name, score in found.items()}
    factors = {name: torch.ones_like(p, requires_grad=True) for name, p in parameters.items()}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    scaled = {name: factors[name] * p.detach() for name, p in parameters.items()}

    class Scaled(torch.nn.Module):
        def forward(self, wavs):
            return torch.func.functional_call(sensitive.models.upstream, scaled, (wavs,))

    models = replace(sensitive.models, upstream=Scaled())
    for module in sensitive.models.modules():
        module.eval()
    batches = UtteranceBatches(sensitive.models.downstream, "train", sensitive.tuning.fisher, 1337)
    for wavs, *others in batches.batches(0, 1, 0):
        loss = models.loss("train", wavs, others, defaultdict(list), with_upstream_grad=True)
        gradients = torch.autograd.grad(loss, list(factors.values()), retain_graph=True, allow_unused=True)
        for name, gradient in zip(factors, gradients, strict=True):
            sums[name] += 0 if gradient is None else gradient
    for name, total in sums.items():
        torch.testing.assert_close(found[name], (total / 3).abs(), rtol=1e-3, atol=1e-7)


def test_snip_chooses_the_largest_and_a_pass_for_another_mask_is_not_resumed(runner, tmp_path):
    sensitive, fisher = runner(mask="snip", fisher={"max_batches": 3}), runner("other", fisher={"max_batches": 3})
    chosen = {}
    for name, made in (("snip", sensitive), ("fisher", fisher)):
        parameters = eligible_parameters(made.upstream.model)
        chosen[name] = choose_mask(Choice(made.models, parameters, made.tuning, "train", 1337))
    assert masks.count(chosen["snip"]) == masks.count(chosen["fisher"])
    assert any(not torch.equal(chosen["snip"][n], chosen["fisher"][n]) for n in chosen["snip"])
    with pytest.raises(StoppedByUser):
        interrupt_at_loss(fisher, 2)
        scores_of(fisher, tmp_path)
    with pytest.raises(UsageError, match="Fisher pass with mask fisher instead of snip"):
        parameters = eligible_parameters(sensitive.upstream.model)
        FisherPass(Choice(sensitive.models, parameters, sensitive.tuning, "train", 1337, RunFolder(tmp_path))).scores()


def test_magnitude_is_a_control(runner):
    control = runner(mask="magnitude")
    parameters = eligible_parameters(control.upstream.model)
    mask = choose_mask(Choice(control.models, parameters, control.tuning, "train", 1337))
    every = torch.cat([p.detach().abs().reshape(-1) for p in parameters.values()])
    chosen = torch.cat([parameters[n].detach().abs().reshape(-1)[i.long()] for n, i in mask.items()])
    assert chosen.min() >= every.sort(descending=True).values[: len(chosen)].min()
    assert masks.count(mask) == round(0.1 * every.numel())


def test_biases_of_the_keys_are_not_chosen(runner):
    """Softmax is shift invariant: the loss does not depend on k_proj.bias, its Fisher information is rounding noise."""
    model = runner(fisher={"max_batches": 4})
    scores = scores_of(model)
    chosen = masks.top_k(scores, 0.1)
    assert not [name for name in chosen if name.endswith("k_proj.bias")]
    largest = max(float(score.max()) for score in scores.values())
    assert all(float(s.max()) < 1e-8 * largest for n, s in scores.items() if n.endswith("k_proj.bias"))


def test_a_draw_without_an_entry_is_refused(runner):
    """Of two expected entries one draw in seven has none; its checkpoints would not say that nothing trains."""
    model = runner(mask="random")
    name, parameter = next((n, p) for n, p in eligible_parameters(model.upstream.model).items() if p.dim() == 1)
    tuning, outcomes = replace(model.tuning, density=2 / parameter.numel()), set()
    for seed in range(40):
        try:
            mask = choose_mask(Choice(model.models, {name: parameter}, tuning, "train", seed, None, None))
            outcomes.add(masks.count(mask) > 0)
        except UsageError as error:
            assert f"the draw of seed {seed} " in str(error) and "chose none of" in str(error)
            outcomes.add("refused")
    assert outcomes == {True, "refused"}


def test_redrawn_masks_train_every_weight(runner):
    redrawn = runner(mask="random", redraw=True)
    before = copy.deepcopy(redrawn.upstream.model.state_dict())
    redrawn.train()
    moved = sum(int((before[n] != t).sum()) for n, t in redrawn.upstream.model.state_dict().items())
    assert moved > 0.3 * len(redrawn.child) and redrawn.child.whole


def test_released_optimizer_by_its_name(runner):
    released = runner(mask="random", optimizer={"name": "ChildnetAdamW", "lr": 1e-3})
    before = copy.deepcopy(released.upstream.model.state_dict())
    released.train()
    moved = sum(int((before[n] != t).sum()) for n, t in released.upstream.model.state_dict().items())
    assert 0.9 * len(released.child) < moved <= len(released.child)


def test_clip_scope_all_scales_the_step_by_the_dense_norm(runner):
    steps = {}
    for scope in ("active", "all"):
        sgd = {"torch_optim_name": "SGD", "lr": 1.0}
        model = runner(scope, mask="random", clip_scope=scope, optimizer=sgd, clipping=1e-3)
        before = copy.deepcopy(model.upstream.model.state_dict())
        model.train()
        after = model.upstream.model.state_dict()
        steps[scope] = sum(float((after[n] - t).abs().sum()) for n, t in before.items() if t.is_floating_point())
    assert 0 < steps["all"] < 0.99 * steps["active"]


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"fisher": {"granularity": "utterance"}}, "granularity 'utterance'"),
        ({"fisher": {"preset": "paper"}}, "preset 'paper'"),
        ({"fisher": {"warm_head": -1}}, r"fisher\.warm_head"),
        ({"fisher": {"clip": "tensor", "max_norm": 0}}, r"fisher\.max_norm must be above 0"),
        ({"mask": "random", "fisher": {"clip": "tensor"}}, "belongs to mask fisher"),
        ({"redraw": True}, "tuning.redraw belongs to mask random"),
        ({"clip_scope": "everything"}, "clip_scope 'everything'"),
        ({"mask": "random", "redraw": True, "unit": "row"}, "leave out tuning.unit"),
        ({"mask": "random", "redraw": True, "budget": "layer"}, "leave out tuning.budget"),
        ({"unit": "row", "budget": "tensor"}, "tuning.unit row spans tensors.*use budget: layer"),
        ({"unit": "column"}, "unit 'column'"),
        ({"sparse_gradients": "no"}, "tuning.sparse_gradients must be true or false"),
    ],
)
def test_bad_settings_are_refused(runner, tuning, message):
    with pytest.raises(UsageError, match=message):
        runner(**tuning)
