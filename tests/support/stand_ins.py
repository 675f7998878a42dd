"""Small stand-ins for what the pages name: models, recordings, a corpus in full layout. Each has a maker."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import soundfile
import torch

from s3prl_ext.downstreams.esc50.config import default_class_map
from s3prl_ext.downstreams.esc50.heads import read_class_map
from s3prl_ext.mini_superb.layouts import LAYOUTS
from tests.support import factories


def _clips(mini: Path, count: int) -> list[Path]:
    return sorted((mini / LAYOUTS["ks"].folder).rglob("speech_commands_v0.01/yes/*.wav"))[:count]


def _write_recordings(path: Path, mini: Path) -> None:
    path.mkdir()
    for clip in _clips(mini, 2):
        shutil.copy(clip, path)


def _write_clip(path: Path, mini: Path) -> None:
    shutil.copy(_clips(mini, 1)[0], path)


def _write_meeting(path: Path, mini: Path) -> None:
    recording = next((mini / LAYOUTS["sd"].folder / "test").rglob("*.wav"))
    soundfile.write(path, soundfile.read(recording)[0], 16000)


def _write_pairs(path: Path, mini: Path) -> None:
    rows = (mini / "LJSpeech-1.1" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:4]
    lines = [f"{mini / 'LJSpeech-1.1' / 'wavs' / row.split('|')[0]}.wav\t{row.split('|')[2]}" for row in rows]
    path.write_text("\n".join(["path\ttext", *lines]) + "\n", encoding="utf-8")


def _write_lj_speech(path: Path, mini: Path) -> None:
    """Write a corpus with the chapters of LJ Speech that its dev and test splits name, a few clips in each."""
    (path / "wavs").mkdir(parents=True)
    small = mini / "LJSpeech-1.1"
    rows = [row.split("|") for row in (small / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    chapters = ["LJ001"] * 20 + ["LJ005"] * 2 + ["LJ010"] * 2  # a tenth of the training clips is two
    table = []
    for number, (chapter, row) in enumerate(zip(chapters, itertools.cycle(rows), strict=False), start=1):
        (path / "wavs" / f"{chapter}-{number:04d}.wav").symlink_to(small / "wavs" / f"{row[0]}.wav")
        table.append("|".join([f"{chapter}-{number:04d}", *row[1:]]))
    (path / "metadata.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


def _write_table(path: Path, mini: Path) -> None:
    """Write a table of clips of two words for three splits."""
    path.parent.mkdir()
    lines = ["path\tlabel\tsplit"]
    for word in ("no", "yes"):
        found = sorted((mini / LAYOUTS["ks"].folder).rglob(f"speech_commands_v0.01/{word}/*.wav"))
        for clip, split in zip(found, ["train"] * 8 + ["dev"] * 2 + ["test"] * 2, strict=False):
            lines.append(f"{clip}\t{word}\t{split}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_t5(path: Path, mini: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes, vocab_size=40)).save_pretrained(path)


def _write_audioset_beats(path: Path, mini: Path) -> None:
    """Write a BEATs with a classifier of the labels that the class map of ESC-50 names."""
    labels = sorted({label for row in read_class_map(default_class_map()) for label in row})
    factories.beats_ckpt(path, finetuned_model=True, predictor_class=len(labels))
    torch.save(torch.load(path, weights_only=True) | {"label_dict": dict(enumerate(labels))}, path)


def _model(write: Callable[..., Any], **options: Any) -> Callable[[Path, Path], None]:
    def make(path: Path, mini: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, **options)

    return make


# the model of recipes/demo/make_hubert.py
STAND_IN_HUBERT = _model(factories.hubert_folder, layers=6, width=384, heads=12)

# name on the pages -> what makes it, given its path and the miniature corpora
STAND_INS: dict[str, Callable[[Path, Path], None]] = {
    "facebook/hubert-large-ls960-ft": _model(factories.hubert_folder, layers=6, ctc=True, stable_norm=True),
    "bert-large-uncased": _model(factories.bert_folder, layers=6),
    "bert-base-uncased": _model(factories.bert_folder, layers=6),
    "my-bert-lora": _model(factories.lora_folder, layers=6),
    "my-tuned-bert": _model(factories.bert_folder, layers=6, seed=9),
    "google/vit-base-patch16-224-in21k": _model(factories.vit_folder),
    "BEATs_iter3.pt": _model(factories.beats_ckpt),
    "BEATs_iter3_finetuned_on_AS2M_cpt1.pt": _write_audioset_beats,
    "whisper_base": _model(factories.whisper_folder),
    "hubert.pt": _model(factories.hubert_local_ckpt, layers=6),
    "hubert": _model(factories.hubert_folder),
    "bert": _model(factories.bert_folder),
    "t5": _write_t5,
    "recordings": _write_recordings,
    "clip.wav": _write_clip,
    "meeting.flac": _write_meeting,
    "pairs.tsv": _write_pairs,
    "LJSpeech-1.1": _write_lj_speech,
    "clips/table.tsv": _write_table,
}
