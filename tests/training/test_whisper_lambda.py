"""L-MAM on a Whisper: the encoder with its decoder as the source, and the decoder with its encoder as the source."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import json

import pytest
import torch

from s3prl_ext.attention.weights import extract
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.learnable import find_lambda, fold
from s3prl_ext.prediction.model import load
from s3prl_ext.upstreams.merged_attention.decoder import decoder_attention
from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention
from tests.adapters.models import clips
from tests.downstreams.test_merged_decoder import _head, _merged_args, _transcripts
from tests.downstreams.test_recognition import runner, task_file
from tests.downstreams.test_whisper_recognition import corpus, folder  # noqa: F401

PARTS = ("encoder", "decoder")


@pytest.fixture
def config(folder, tmp_path):
    """Return the path of a learnable merge into one part of the tiny Whisper from the other."""

    def write(part, more=""):
        other = PARTS[1 - PARTS.index(part)]
        path = tmp_path / f"{part}.yaml"
        models = f"target: {{model: {folder}, prefix: {part}}}\nsource: {{model: {folder}, prefix: {other}}}\n"
        path.write_text(f"{models}learnable: true\nlambda: 0.2\n")
        return f"{path}{more}"

    return write


def _with_learnt(trained):
    """Return the part of an experiment that holds the learnable lambda."""
    models = [entry.model for entry in (trained.upstream, trained.downstream)]
    (model,) = [model for model in models if find_lambda(model) is not None]
    return model


def _loss(trained):
    """Return the task's loss on a training batch, with gradients through all models."""
    wavs, *others = next(iter(trained.downstream.model.get_dataloader("train")))
    return trained.models.loss(
        "train", wavs, others, {"loss": [], "ids": [], "references": [], "hypotheses": [], "special": []}, True
    )


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_the_loss_on_texts_reaches_every_lambda(corpus, config, tmp_path, part, granularity):
    more = f",,learnable={{granularity: {granularity}}}"
    trained = runner(_merged_args(tmp_path / "exp", config(part, more), mode="train"), task_file(corpus))
    model = _with_learnt(trained)
    assert (model is trained.upstream.model) == (part == "encoder")
    _loss(trained).backward()
    shared = find_lambda(model)
    assert shared.values.grad.abs().min() > 0 and shared.values.numel() == (2 if granularity == "layer" else 4)
    assert not any("source" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("part", PARTS)
def test_lambda_learns_what_a_merged_teacher_was_merged_with(folder, config, part):
    """Trained alone, from 0.2, it finds 0.6 again from the outputs of the teacher."""
    torch.manual_seed(0)
    fixed = config(part, ",,learnable=false,,lambda=[0.6, 0.4]")
    if part == "encoder":
        wavs = clips(8000, 6000)
        teacher, student = (merged_attention(model_config=c).eval() for c in (fixed, config(part)))

        def run(model):
            return model(wavs)["last_hidden_state"]
    else:
        states, tokens = torch.randn(2, 20, 32), torch.randint(0, 40, (2, 12))
        teacher, student = (_head(folder, c).eval() for c in (fixed, config(part)))

        def run(head):
            return head.whisper.model.decoder(input_ids=tokens, encoder_hidden_states=states)[0]

    with torch.no_grad():
        wanted = run(teacher)
    shared = find_lambda(student)
    optimizer = torch.optim.Adam([shared.values], lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        (run(student) - wanted).square().mean().backward()
        optimizer.step()
    assert shared.current().tolist() == pytest.approx([0.6, 0.4], abs=0.02)
    fold(student)
    found = extract(student.state_dict()) if part == "encoder" else decoder_attention(student)
    merged = extract(teacher.state_dict()) if part == "encoder" else decoder_attention(teacher)
    assert all(torch.allclose(found[slot], merged[slot], atol=0.05) for slot in merged)


def _train(corpus, config, expdir, **runner_section):
    tuning = runner_section.pop("tuning", {"method": "frozen", "lambda_lr": 0.05})
    section = task_file(corpus, text_rule="identity")
    section["tuning"] = tuning
    section["runner"] |= runner_section
    trained = runner(_merged_args(expdir, config, mode="train"), section)
    trained.train()
    return trained


@pytest.mark.parametrize("part", PARTS)
def test_a_learnable_merge_begins_as_the_fixed_one(corpus, config, tmp_path, part):
    for name, more in (("learnt", ""), ("fixed", ",,learnable=false")):
        args = _merged_args(tmp_path / name, config(part, more))
        runner(args, task_file(corpus, text_rule="identity")).evaluate("test")
    assert _transcripts(tmp_path / "learnt") == _transcripts(tmp_path / "fixed")


def test_the_lambda_of_a_decoder_trains_with_its_own_rate_and_comes_back_from_the_checkpoint(
    corpus, folder, config, tmp_path
):
    trained = _train(corpus, config("decoder"), tmp_path / "exp", eval_step=1)
    shared = find_lambda(trained.downstream.model)
    moved = (shared.current() - 0.2).abs()
    assert moved.min() > 0.01  # three steps of 0.05; the head's own rate would move it by 3e-5
    curve = json.loads((tmp_path / "exp" / "lambda.json").read_text())
    assert curve["names"] == ["layer_00", "layer_01"] and curve["lambda"][0] == [0.2, 0.2]
    assert curve["lambda"][-1] == pytest.approx(shared.current().tolist(), abs=1e-6)

    trained.evaluate("test")
    ckpt = tmp_path / "exp" / "states-3.ckpt"
    again = runner(
        _merged_args(tmp_path / "again", config("decoder"), init_ckpt=str(ckpt)),
        task_file(corpus, text_rule="identity"),
    )
    assert torch.equal(find_lambda(again.downstream.model).current(), shared.current())
    again.evaluate("test")
    assert _transcripts(tmp_path / "again") == _transcripts(tmp_path / "exp")
    row = json.loads((tmp_path / "exp" / "transcripts-test.jsonl").read_text().splitlines()[0])
    wav = corpus / "wavs" / f"{row['id']}.wav"
    assert load(ckpt, device="cpu").predict(wav).text == _transcripts(tmp_path / "exp")[0]


def test_a_learnt_decoder_is_not_exported(corpus, config, tmp_path):
    from s3prl_ext.commands.export import main as export

    _train(corpus, config("decoder"), tmp_path / "exp")
    with pytest.raises(UsageError, match="holds a learnable lambda in the decoder that transcribes"):
        export(["--delta", str(tmp_path / "exp" / "states-3.ckpt"), "--out", str(tmp_path / "out")])


def test_a_resumed_run_equals_an_uninterrupted_one(corpus, config, tmp_path):
    whole = _train(corpus, config("decoder"), tmp_path / "whole")
    _train(corpus, config("decoder"), tmp_path / "parts", total_steps=1, eval_step=1, save_step=1)
    states = torch.load(tmp_path / "parts" / "states-1.ckpt", weights_only=False)
    section = task_file(corpus, text_rule="identity")
    section["tuning"] = {"method": "frozen", "lambda_lr": 0.05}
    args = _merged_args(
        tmp_path / "parts", config("decoder"), mode="train", init_ckpt=str(tmp_path / "parts" / "states-1.ckpt"),
        past_exp=str(tmp_path / "parts"),
    )  # fmt: skip
    assert states["Step"] == 1
    resumed = runner(args, section)
    resumed.train()
    one, two = (r.downstream.model.state_dict() for r in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_rate_of_zero_keeps_lambda(corpus, config, tmp_path):
    trained = _train(corpus, config("decoder"), tmp_path / "exp", tuning={"method": "full", "lambda_lr": 0})
    assert find_lambda(trained.downstream.model).current().tolist() == pytest.approx([0.2, 0.2])
    curve = json.loads((tmp_path / "exp" / "lambda.json").read_text())["lambda"]
    assert curve and all(row == [0.2, 0.2] for row in curve)
