"""Fisher scores that runs share: one pass, bitwise the masks of a run's own pass, and never those of another."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from s3prl_ext.child_tuning import delta
from s3prl_ext.child_tuning.eligible import eligible_parameters
from s3prl_ext.child_tuning.fisher import estimate
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.errors import DataError
from s3prl_ext.locks import one_writer
from s3prl_ext.models.hashing import state_sha256
from s3prl_ext.run_folder import MASK_FILE
from s3prl_ext.training.selection import pass_facts, shared_scores
from s3prl_ext.training.selection.fisher_pass import FisherPass
from s3prl_ext.training.selection.pass_facts import facts_of
from s3prl_ext.training.selection.shared_scores import SharedScores, scores_of_tasks
from tests.support.experiments import make_args, task_config


@pytest.fixture
def train(build, tmp_path, hubert_ckpt, monkeypatch):
    """Train a step of a child network; returns its masks and the number of Fisher passes so far."""
    passes = []
    scores = FisherPass.scores
    monkeypatch.setattr(FisherPass, "scores", lambda self: passes.append(self) or scores(self))

    def run(name, shared="shared", seed=1337, lr=None, config=None, **tuning):
        args = make_args(tmp_path / name, upstream="hubert_local", upstream_ckpt=hubert_ckpt, seed=seed)
        args.fisher_scores = str(tmp_path / shared) if shared else None
        given = task_config(
            "ks", {"method": "child", "density": 0.1, "fisher": {"max_batches": 2}} | tuning, total_steps=1
        )
        given["optimizer"] |= {"lr": lr} if lr else {}
        given["downstream_expert"] |= config or {}
        build(args, given).train()
        return load_file(tmp_path / name / MASK_FILE), len(passes)

    return run


def equal(a, b) -> bool:
    """Return whether two sets of tensors are the same, byte for byte: an edge of the histogram may be NaN."""
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


def test_one_pass_serves_all_runs_that_would_repeat_it(train, tmp_path):
    own, count = train("own", shared=None)
    first, count = train("first")
    assert count == 2 and equal(own, first)
    same, count = train("same", lr=0.5)
    assert count == 2 and equal(own, same), "another learning rate does not change a pass"
    sparser, count = train("sparser", density=0.01)
    assert count == 2 and equal(sparser, train("sparser_own", shared=None, density=0.01)[0])
    weights = [
        torch.load(tmp_path / name / "states-1.ckpt", weights_only=False)["UpstreamDelta"]["values"]
        for name in ("own", "first")
    ]
    assert equal(*weights), "the random states after it are those of a run's own pass"


def test_the_scores_of_a_task_are_found_again_by_what_was_trained_on_them(train, tmp_path, hubert_ckpt):
    import s3prl.hub

    train("first")
    (path,) = (tmp_path / "shared").glob("*.safetensors")
    info, upstream = (
        delta.load(tmp_path / "first" / "delta.safetensors").info,
        s3prl.hub.hubert_local(ckpt=str(hubert_ckpt)),
    )
    origin = state_sha256(upstream.state_dict())
    (found,) = scores_of_tasks(tmp_path / "shared", [info], origin)
    assert equal(found, load_file(path)) and found.keys() <= upstream.state_dict().keys()
    with pytest.raises(DataError, match="no Fisher information of ks on this upstream: train"):
        scores_of_tasks(tmp_path / "shared", [info], "another")
    for change, said in (
        ({"data": info["data"] | {"sha256": "another"}}, "corpus"),
        ({"upstream_feature_selection": "last_hidden_state"}, "features"),
        ({"config": {"downstream_expert": {"datarc": {"train_batch_size": 5}}}}, "section downstream_expert"),
    ):
        with pytest.raises(
            DataError, match=f"Fisher information of ks on this upstream, only of another {said}: train"
        ):
            scores_of_tasks(tmp_path / "shared", [info | change], origin)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged: remove it and run its task again"):
        scores_of_tasks(tmp_path / "shared", [info], origin)


def test_tasks_that_share_a_name_for_d_have_scores_of_their_own(tmp_path):
    phones, slots = (
        {"downstream": "ctc", "config": {"downstream_expert": {"corpus": {"name": name}}}, "data": {"sha256": name}}
        for name in ("libriphone", "snips")
    )

    def save(info, score, **settings):
        facts = {"pass": {"mask": "fisher"} | settings, "run": info, "task file": info["config"],
                 "corpus": info["data"], "weights": ["upstream"]}  # fmt: skip
        SharedScores(tmp_path, facts).get({"w": torch.zeros(1)}, lambda: {"w": torch.tensor([score])})

    save(phones, 1.0, max_batches=3)
    with pytest.raises(DataError, match="no Fisher information of sf on this upstream: train"):
        scores_of_tasks(tmp_path, [phones, slots], "upstream")
    save(slots, 2.0, max_batches=4)
    assert [float(one["w"]) for one in scores_of_tasks(tmp_path, [phones, slots], "upstream")] == [1.0, 2.0]
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    save(phones, 1.0)
    save(slots, 2.0, clip="tensor")
    with pytest.raises(DataError, match=r"of pr and sf in .* with other settings \(clip: None and tensor\)"):
        scores_of_tasks(tmp_path, [phones, slots], "upstream")


BATCHES = {
    "asr": ({"datarc": {"train_batch_size": 8, "batch_size": 8, "eval_batch_size": 1}}, 8),
    "asr, one key set": ({"datarc": {"train_batch_size": 8, "batch_size": 4, "eval_batch_size": 1}}, 4),
    "pr": ({"corpus": {"name": "libriphone", "batch_size": 4}, "datarc": {}}, 4),
    "sd": ({"loaderrc": {"train_batchsize": 6, "eval_batchsize": 1}}, 6),
    "another": ({"modelrc": {"eval_batch_size": 1}}, None),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_batch_size_of_a_pass_is_that_of_training(name):
    expert, size = BATCHES[name]
    assert pass_facts.batch_size_in(expert) == size


def test_the_task_files_of_all_tasks_say_their_batch_size():
    for path in shipped_dir("downstream_configs").glob("*/*.yaml"):
        if path.parent.name in ("qbe", "ood") or path.stem == "audioset":  # what an evaluation alone reads
            continue
        expert = load_yaml(path)["downstream_expert"]
        assert isinstance(pass_facts.batch_size_in(expert), int), path


def test_the_batches_of_speech_recognition_are_halved_by_s3prl():
    facts = {"pass": {"granularity": "batch"}, "run": {"downstream": "asr"},
             "task file": {"downstream_expert": {"datarc": {"batch_size": 32}}}}  # fmt: skip
    assert pass_facts.estimated_by(facts)["batch size"] == 16


def test_information_by_batches_of_other_sizes_is_not_weighed(tmp_path):
    """One task seen in batches of 4 and of 32: the mean of g^2 is about eight times as large in the first."""
    torch.manual_seed(0)
    x, y, net = torch.randn(512, 10), torch.randint(0, 5, (512,)), torch.nn.Linear(10, 5)
    infos = [
        {"downstream": "ctc", "config": {"downstream_expert": {"corpus": {"name": name, "batch_size": size}}},
         "data": {"sha256": name}} for name, size in (("libriphone", 4), ("snips", 32))
    ]  # fmt: skip

    def weighed(granularity):
        for info in infos:
            corpus = info["config"]["downstream_expert"]["corpus"]
            size = 1 if granularity == "sample" else corpus["batch_size"]
            sums, count = estimate(
                dict(net.named_parameters()), zip(x.split(size), y.split(size)),
                lambda pair: torch.nn.functional.cross_entropy(net(pair[0]), pair[1]),
            )  # fmt: skip
            facts = {"pass": {"mask": "fisher", "granularity": granularity}, "run": info, "task file": info["config"],
                     "corpus": info["data"], "weights": ["upstream"]}  # fmt: skip
            SharedScores(tmp_path / granularity, facts).get(
                dict(net.named_parameters()), lambda sums=sums, count=count: {n: v / count for n, v in sums.items()}
            )
        return [one["weight"].sum() for one in scores_of_tasks(tmp_path / granularity, infos, "upstream")]

    with pytest.raises(
        DataError, match=r"\(batch size: 4 and 32\).*tuning\.fisher, \{granularity: sample\}, which reads"
    ):
        weighed("batch")
    first, second = weighed("sample")
    assert first == second
    infos[1]["config"]["downstream_expert"]["corpus"]["batch_size"] = 4
    (tmp_path / "batch").rename(tmp_path / "before")
    assert len(weighed("batch")) == 2


def test_what_changes_a_pass_has_scores_of_its_own(train, tmp_path):
    train("first")
    for number, change in enumerate(
        ({"seed": 5}, {"fisher": {"max_batches": 3}}, {"fisher": {"max_batches": 2, "clip": "tensor"}},
         {"config": {"modelrc": {"projector_dim": 8, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"}}}}),
    ):  # fmt: skip
        assert train(f"other{number}", **change)[1] == number + 2
    assert len(list((tmp_path / "shared").glob("*.safetensors"))) == 5


@pytest.fixture
def facts(build, tmp_path, hubert_ckpt):
    runner = build(
        make_args(tmp_path / "exp", upstream="hubert_local", upstream_ckpt=hubert_ckpt),
        task_config("ks", {"method": "child", "density": 0.1}),
    )
    parameters = eligible_parameters(runner.upstream.model)

    def make(data="a"):
        return facts_of(runner.models, parameters, runner.tuning, runner.args, runner.config, {"sha256": data})

    return runner, parameters, make


def test_other_weights_files_or_settings_are_another_name(facts, tmp_path, monkeypatch):
    runner, _, make = facts
    names = [SharedScores(tmp_path, make()).path]
    assert names == [SharedScores(tmp_path, make()).path]
    names.append(SharedScores(tmp_path, make("b")).path)
    with torch.no_grad():
        next(iter(runner.models.upstream.parameters()))[0] += 1e-3  # of the feature encoder, which is not eligible
    names.append(SharedScores(tmp_path, make()).path)
    next(m for m in runner.models.upstream.modules() if isinstance(m, torch.nn.Dropout)).p = 0.7
    names.append(SharedScores(tmp_path, make()).path)
    monkeypatch.setattr(pass_facts, "versions", lambda: {"torch": "0"})
    names.append(SharedScores(tmp_path, make()).path)
    assert len(set(names)) == 5


def test_a_damaged_or_exchanged_file_is_not_taken(tmp_path, caplog):
    parameters = {"w": torch.zeros(3)}
    a, b = SharedScores(tmp_path, {"data": "a"}), SharedScores(tmp_path, {"data": "b"})
    compute = lambda: {"w": torch.ones(3)}  # noqa: E731
    refuse = lambda: pytest.fail("it has them")  # noqa: E731
    a.get(parameters, compute)
    assert torch.equal(a.get(parameters, refuse)["w"], torch.ones(3))
    shutil.copy(a.path, b.path)
    assert torch.equal(b.get(parameters, lambda: {"w": torch.full((3,), 2.0)})["w"], torch.full((3,), 2.0))
    content = bytearray(a.path.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), content[:20], b""):
        a.path.write_bytes(damaged)
        assert torch.equal(a.get(parameters, compute)["w"], torch.ones(3))
        assert torch.equal(a.get(parameters, refuse)["w"], torch.ones(3)), "it is written again"
    save_file({"w": torch.ones(4)}, a.path, {"format": shared_scores.FORMAT})
    assert a.get(parameters, compute)["w"].shape == (3,) and "is damaged" in caplog.text


def test_a_run_waits_for_the_one_that_computes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_scores, "WAIT_S", 0.01)
    shared = SharedScores(tmp_path, {})
    held = iter((True, True, False))

    def writer(path):
        if next(held):
            raise shared_scores.InUse("another process computes them")
        SharedScores(tmp_path, {})._save({"w": torch.ones(2)})
        return one_writer(path)

    monkeypatch.setattr(shared_scores, "one_writer", writer)
    found = shared.get({"w": torch.zeros(2)}, lambda: pytest.fail("the other one has"))
    assert torch.equal(found["w"], torch.ones(2))


def test_where_they_cannot_be_written_a_run_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    found = SharedScores(tmp_path / "file", {}).get({"w": torch.zeros(2)}, lambda: {"w": torch.ones(2)})
    assert torch.equal(found["w"], torch.ones(2)) and "are not shared" in caplog.text
