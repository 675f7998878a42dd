"""Train a small ViT on the 1797 real images of handwritten digits in scikit-learn: a source for merges on a CPU.

The folder holds a transformers ``ViTModel`` (8 x 8 pixels, patches of 2) as wide and deep as the model of
train_small_beats.py. Every fifth image is held out to state its error.

    pip install scikit-learn
    python recipes/mam/train_small_vit.py --out vit_small_digits
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import s3prl_ext

s3prl_ext.install()  # before transformers, which imports torchaudio

from transformers import ViTConfig, ViTForImageClassification

from s3prl_ext.writing import written_folder

logger = logging.getLogger("train_small_vit")

BATCH = 64
LR, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 0.1


def digits() -> tuple[Tensor, Tensor, Tensor]:
    """Return images [1797, 1, 8, 8] in -1 to 1, digits [1797], and which images are held out."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1  # grey values are 0 to 16
    return images, torch.tensor(data.target), torch.arange(len(images)) % 5 == 0


def train(layers: int, width: int, epochs: int, seed: int) -> ViTForImageClassification:
    """Return the trained classifier; log its error on the images held out."""
    torch.manual_seed(seed)
    images, targets, held_out = digits()
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 48,
            intermediate_size=4 * width,
            image_size=8,
            patch_size=2,
            num_channels=1,
            id2label={digit: str(digit) for digit in range(10)},
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    own = (~held_out).nonzero().flatten()
    steps = epochs * -(-len(own) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps, pct_start=WARMUP)
    model.train()
    for _ in tqdm(range(epochs), desc="ViT", unit="epoch"):
        for rows in own[torch.randperm(len(own))].split(BATCH):
            loss = F.cross_entropy(model(images[rows]).logits, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    model.eval()
    with torch.no_grad():
        wrong = model(images[held_out]).logits.argmax(1) != targets[held_out]
    logger.info("error on %d images held out: %.2f %%", len(wrong), 100 * wrong.float().mean().item())
    return model


def main() -> None:
    """Train and write the folder, which appears only when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=192, help="a multiple of 48, the width of a head")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.out.exists():
        parser.error(f"{args.out} already exists: give a new folder")
    model = train(args.layers, args.width, args.epochs, args.seed)
    with written_folder(args.out) as folder:
        model.vit.save_pretrained(folder)
    logger.info("saved to %s", args.out)


if __name__ == "__main__":
    main()
