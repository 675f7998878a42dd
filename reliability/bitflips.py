"""One flipped bit at a random place of the files that hold weights.

Refused or harmless, never silently other numbers.
"""

from __future__ import annotations

import collections
import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reliability.commands import whole
from reliability.shared import Figure, Place, same
from s3prl_ext.attention.files import load_torch, open_weights
from s3prl_ext.child_tuning import delta, mask_files
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import check_model
from s3prl_ext.training import checkpoint

TRIALS = 200


def measure(place: Place) -> Figure:
    """Flip `trials` bits of each kind of file; the goal is 0 silent."""
    totals: collections.Counter[str] = collections.Counter()
    files = make_files(place)
    contents = {path: (path.read_bytes(), copy.deepcopy(read(path))) for path, read in files.items()}
    for _ in place.numbers():
        for path, read in files.items():
            totals[f"{path.name}: {flip(place, path, *contents[path], read)}"] += 1
    print(*(f"{outcome}: {number}" for outcome, number in sorted(totals.items())), sep="\n")
    bad = sum(number for outcome, number in totals.items() if not outcome.endswith(("refused", "harmless")))
    return Figure(f"{totals.total()} bits, {bad} silent or without a sentence", bad)


def make_files(place: Place) -> dict[Path, Callable[[Path], Any]]:
    """Write one file of each kind; return how it is read."""
    run, exported, source = whole(place, "child")[0], place.folder / "exported", place.folder / "source"
    place.succeed(["export", "--delta", run / "delta.safetensors", "--out", exported], "export")
    source.mkdir()
    torch.save(checkpoint.load(run / "states-6.ckpt")["Downstream"], source / "pytorch_model.bin")
    return {
        run / "states-6.ckpt": lambda path: {k: v for k, v in checkpoint.load(path).items() if k != "Args"},
        run / "delta.safetensors": lambda path: vars(delta.load(path)),
        run / "masks.safetensors": _read_masks,
        source / "pytorch_model.bin": load_torch,
        exported / "model.safetensors": _read_export,
        exported / "head.ckpt": load_torch,
    }


def _read_masks(path: Path) -> Any:
    mask, info, _ = mask_files.load(path)
    return mask.indices, mask.levels, info


def _read_export(path: Path) -> Any:
    check_model(path.parent)
    weights = open_weights(path)
    return {name: weights[name] for name in weights.keys()}  # noqa: SIM118


def flip(place: Place, path: Path, content: bytes, expected: Any, read: Callable[[Path], Any]) -> str:
    """Flip one bit of a file, read it, and put it back; return what came of it."""
    changed = bytearray(content)
    changed[place.draw.randrange(len(content))] ^= 1 << place.draw.randrange(8)
    kept = path.with_name("kept")
    shutil.copy(path, kept)
    path.write_bytes(changed)
    try:
        return "harmless" if same(read(path), expected) else "SILENTLY OTHER NUMBERS"
    except (DataError, UsageError):
        return "refused"
    except Exception as error:  # noqa: BLE001 - any other is what is looked for
        return f"NO SENTENCE: {type(error).__name__}"
    finally:
        os.replace(kept, path)
