"""Train a small BEATs on ESC-50 from scratch and save it in the released format: a target for merges on a CPU.

It is trained on the folds that `-d esc50` trains on with the same test fold, and is a target for that fold only. Its
linear head takes the mean over all tokens; short cuts of the clips come first, whole ones at the end. An interrupted
run goes on from OUT.state.

    python recipes/mam/train_small_beats.py --esc50 $ESC50 --fold 4 --out beats_small.pt
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import s3prl_ext

s3prl_ext.install()  # before torchaudio, which the filter banks need

from s3prl_ext.corpora.audio import read_audio
from s3prl_ext.corpora.esc50 import CLASSES, Esc50Clip, read_clips, split_clips
from s3prl_ext.upstreams.beats.config import PATCH, BeatsConfig
from s3prl_ext.upstreams.beats.frontend import FRAME_LENGTH, FRAME_SHIFT, fbank
from s3prl_ext.upstreams.beats.model import BANDS, Beats
from s3prl_ext.writing import written

logger = logging.getLogger("train_small_beats")

STEPS = 31  # time steps of a clip of 5 s
CUT_STEPS = 8  # time steps of a training cut, 1.28 s
WHOLE_EPOCHS = 2  # epochs on whole clips, at the end
BATCH = 32
LR, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.1
MIXUP = 0.3  # parameter of the beta distribution
MASKED_BANDS = 24  # widest band of frequencies hidden from training


def config(layers: int, width: int) -> BeatsConfig:
    """Return the sizes of a small model; its switches are those of the released models."""
    return BeatsConfig(
        embed_dim=width,
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=width // 48,
        deep_norm=True,
        relative_position_embedding=True,
        gru_rel_pos=True,
        conv_pos=32,
        max_distance=800,
    )


def filter_banks(clips: list[Esc50Clip], name: str) -> tuple[Tensor, Tensor]:
    """Return the filter banks of whole patches, [clips, 496, 128], and the classes [clips]."""
    samples = STEPS * PATCH * FRAME_SHIFT + FRAME_LENGTH - FRAME_SHIFT
    rows = []
    for clip in tqdm(clips, desc=name, unit="clip"):
        wav = torch.from_numpy(read_audio(clip.path))[:samples]
        rows.append(fbank(F.pad(wav, (0, samples - len(wav)))[None])[0])
    return torch.stack(rows), torch.tensor([clip.target for clip in clips])


def cut(features: Tensor, steps: int, rng: torch.Generator) -> Tensor:
    """Return for each clip the louder of two random cuts of `steps` time steps: many clips are padded with silence."""
    frames = steps * PATCH
    starts = torch.randint(0, features.shape[1] - frames + 1, (len(features), 2), generator=rng)
    pairs = [[row[s : s + frames] for s in pair] for row, pair in zip(features, starts)]
    return torch.stack([max(pair, key=lambda one: one.mean().item()) for pair in pairs])


def augment(features: Tensor, targets: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide a band of frequencies and mix pairs of clips; return features and class probabilities."""
    low, width = (int(torch.randint(0, n, (1,), generator=rng)) for n in (128 - MASKED_BANDS, MASKED_BANDS))
    features[:, :, low : low + width] = features.mean()
    gamma = torch._standard_gamma(torch.full((2,), MIXUP), generator=rng)
    share = float(gamma[0] / gamma.sum())
    order = torch.randperm(len(features), generator=rng)
    labels = F.one_hot(targets, len(CLASSES)).float()
    return share * features + (1 - share) * features[order], share * labels + (1 - share) * labels[order]


def logits(model: Beats, head: nn.Linear, features: Tensor) -> Tensor:
    """Return the class logits [clips, 50]."""
    return head(model.encode(features)[-1].mean(1))


@torch.no_grad()
def error(model: Beats, head: nn.Linear, data: tuple[Tensor, Tensor]) -> float:
    """Return the error on whole clips in per cent."""
    model.eval()
    wrong = sum(int((logits(model, head, x).argmax(1) != y).sum()) for x, y in zip(*(d.split(BATCH) for d in data)))
    return 100 * wrong / len(data[0])


def train(
    model: Beats, head: nn.Linear, data: dict[str, tuple[Tensor, Tensor]], epochs: int, seed: int, state: Path
) -> None:
    """Train in place; the state of every fifth epoch is kept in the file `state`."""
    features, targets = data["train"]
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=WEIGHT_DECAY)
    batches = math.ceil(len(features) / BATCH)
    total = epochs * batches
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min(1, n / (WARMUP * total)) * 0.5 * (1 + math.cos(math.pi * min(1, n / total))) + 1e-3,
    )
    parts: dict[str, Any] = {"model": model, "head": head, "optimizer": optimizer, "rate": rate}
    first = load_state(parts, state)
    for epoch in range(first, epochs):
        torch.manual_seed(seed + epoch)  # dropout
        rng = torch.Generator().manual_seed(seed + epoch)
        steps = STEPS if epoch >= epochs - WHOLE_EPOCHS else CUT_STEPS
        model.train()
        for rows in tqdm(torch.randperm(len(features), generator=rng).split(BATCH), desc=f"epoch {epoch + 1}"):
            x, y = augment(cut(features[rows], steps, rng), targets[rows], rng)
            loss = F.cross_entropy(logits(model, head, x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            rate.step()
        if (epoch + 1) % 5 == 0 or epoch + 1 == epochs:
            save({"epoch": epoch + 1} | {name: part.state_dict() for name, part in parts.items()}, state)
            logger.info(
                "epoch %d: loss %.3f, dev error %.2f %%", epoch + 1, loss.item(), error(model, head, data["dev"])
            )


def load_state(parts: dict[str, Any], state: Path) -> int:
    """Load what an interrupted run has left; return the number of epochs behind it."""
    if not state.is_file():
        return 0
    stored = torch.load(state, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    logger.info("going on after epoch %d of %s", stored["epoch"], state)
    return stored["epoch"]


def save(content: dict, path: Path) -> None:
    """Write a file that appears only when it is complete."""
    with written(path) as temporary:
        torch.save(content, temporary)


def main() -> None:
    """Train, report the errors and save ``{'cfg', 'model'}``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc50", type=Path, required=True, help="folder ESC-50-master")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--fold", type=int, default=4, help="test fold; the next one is dev (default: 4)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192, help="a multiple of 48, the width of a head")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    splits = split_clips(read_clips(args.esc50), "folds", args.fold)
    data = {name: filter_banks(clips, name) for name, clips in splits.items()}
    torch.manual_seed(args.seed)
    cfg = config(args.layers, args.width)
    model, head = Beats(cfg), nn.Linear(args.width, len(CLASSES))
    state = args.out.with_name(args.out.name + ".state")
    train(model, head, data, args.epochs, args.seed, state)
    logger.info("error: dev %.2f %%, test %.2f %%", *(error(model, head, data[name]) for name in ("dev", "test")))
    save({"cfg": dataclasses.asdict(cfg), "model": model.state_dict()}, args.out)
    state.unlink()
    logger.info("%d tokens a clip, saved to %s", STEPS * BANDS, args.out)


if __name__ == "__main__":
    main()
