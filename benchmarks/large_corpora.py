"""Corpora of real size: CPU time and memory of what a run reads before its first step, and how both grow.

``python -m benchmarks.large_corpora``: folders laid out as LibriSpeech (960 h), VoxCeleb1, Speech Commands, VCTK and
LJ Speech, whose audio files are links to one clip, first of a tenth of the size and then whole. Measured are the hash
of the corpus and the task's own table of utterances, each in a process of its own. ``--stock`` adds s3prl's search of a
list for the 100 hours of LibriSpeech. A tenth of the time, or a little more, is linear growth.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import s3prl_ext
from benchmarks import measure
from s3prl_ext.training.batching.corpus_hash import Corpus

LINKS = 60_000  # a file of ext4 has at most 65,000 names
TEXT = (
    "IT WAS A BRIGHT COLD DAY IN APRIL AND THE CLOCKS WERE STRIKING THIRTEEN AS WINSTON SMITH SLIPPED THROUGH THE DOORS"
)
PARTS = {"train-clean-100": 28_539, "train-clean-360": 104_014, "train-other-500": 148_688}
MODULES = ("speech_commands.expert", "asr.dataset", "asr.dictionary", "voxceleb1.dataset", "ctc.corpus.libriphone")
WORDS = sorted(set(TEXT.split()))


class Links:
    """Makes audio files that are names of one small clip."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made, self._clip = folder, 0, Path()

    def add(self, path: str) -> None:
        """Make one more; its folder must be there."""
        if self._made % LINKS == 0:
            self._clip = self._folder / f"clip-{self._made}"
            self._clip.write_bytes(bytes(100))
        self._made += 1
        os.link(self._clip, path)


def librispeech(folder: Path, links: Links, share: float) -> int:
    """Lay out the three parts in chapters of 50, with transcripts, lists of lengths and a lexicon; return the clips."""
    (folder / "lengths").mkdir()
    (folder / "lexicon.txt").write_text("".join(f"{word} AH0 B\n" for word in WORDS))
    count = 0
    for number, (part, size) in enumerate(PARTS.items()):
        rows = []
        for chapter in range(max(1, round(size * share) // 50)):
            name = f"{number + 1}{chapter // 6:04}-{chapter:05}"
            place = folder / part / name.split("-", maxsplit=1)[0] / name.split("-")[1]
            place.mkdir(parents=True)
            ids = [f"{name}-{clip:04}" for clip in range(50)]
            (place / f"{name}.trans.txt").write_text("".join(f"{id} {TEXT}\n" for id in ids))
            for id in ids:
                links.add(f"{place}/{id}.flac")
                rows.append(
                    f"{len(rows)},{part}/{name.replace('-', '/')}/{id}.flac,{100_000 + 37 * len(rows) % 150_000},"
                )
        (folder / "lengths" / f"{part}.csv").write_text("\n".join([",file_path,length,label", *rows]) + "\n")
        count += len(rows)
    return count


def voxceleb1(folder: Path, links: Links, share: float) -> int:
    """Lay out 22,496 videos of 1,251 speakers, 148,642 clips, and their list; return the clips."""
    lines = []
    for video in range(round(22_496 * share)):
        speaker = f"id{10_001 + video % 1251}"
        place = folder / "dev" / "wav" / speaker / f"video{video:06}"
        place.mkdir(parents=True)
        for clip in range(6 + (video % 5 < 3)):
            links.add(f"{place}/{clip + 1:05}.wav")
            lines.append(
                f"{1 + (len(lines) % 20 > 17) + (len(lines) % 20 > 18)} {speaker}/{place.name}/{clip + 1:05}.wav\n"
            )
    (folder / "split.txt").write_text("".join(lines))
    return len(lines)


def speech_commands(folder: Path, links: Links, share: float) -> int:
    """Lay out 100,000 clips of 35 words for training and 3,081 of 12 classes for the test; return the clips."""
    sizes = {"train": (35, round(2857 * share)), "test": (12, round(257 * share))}
    for name, (words, size) in sizes.items():
        for word in range(words):
            place = folder / name / f"word{word:02}"
            place.mkdir(parents=True)
            for clip in range(size):
                links.add(f"{place}/{clip * 2654435761 % 2**32:08x}_nohash_{word % 5}.wav")
    return sum(words * size for words, size in sizes.values())


def vctk(folder: Path, links: Links, share: float) -> int:
    """Lay out 44,000 utterances of 110 speakers with both microphones; return the utterances."""
    (folder / "speaker-info.txt").touch()
    sentences = round(400 * share)
    for speaker in range(225, 335):
        text, audio = folder / "txt" / f"p{speaker}", folder / "wav48_silence_trimmed" / f"p{speaker}"
        text.mkdir(parents=True)
        audio.mkdir(parents=True)
        for sentence in range(1, sentences + 1):
            name = f"p{speaker}_{sentence:03}"
            (text / f"{name}.txt").write_text(f"{TEXT.capitalize()}.\n")
            links.add(f"{audio}/{name}_mic1.flac")
            links.add(f"{audio}/{name}_mic2.flac")
    return 110 * sentences


def ljspeech(folder: Path, links: Links, share: float) -> int:
    """Lay out 13,100 clips of 50 chapters; return the clips."""
    (folder / "wavs").mkdir()
    names = [f"LJ{chapter:03}-{clip:04}" for chapter in range(1, 51) for clip in range(1, round(262 * share) + 1)]
    (folder / "metadata.csv").write_text("".join(f"{name}|{TEXT}|{TEXT}\n" for name in names))
    for name in names:
        links.add(f"{folder}/wavs/{name}.wav")
    return len(names)


def asr_table(folder: Path, parts: tuple[str, ...] = tuple(PARTS), stock: bool = False) -> None:
    """Build s3prl's ASR dataset; with `stock` it searches its list."""
    from s3prl.downstream.asr import dataset
    from s3prl.downstream.asr.dictionary import Dictionary

    if stock:
        vars(dataset)["list"] = list
    dictionary = Dictionary()
    for letter in sorted(set(TEXT.replace(" ", "|"))):
        dictionary.add_symbol(letter)
    dataset.SequenceDataset("train", 32, dictionary, str(folder), str(folder / "lengths"), train=list(parts))


def pr_table(folder: Path) -> None:
    """Build the dataset of phoneme recognition on the 100 hours."""
    from s3prl.downstream.ctc.corpus.libriphone import LibriPhoneDataset

    tokenizer = SimpleNamespace(vocab_to_idx=lambda phone: 1, unk_idx=0, encode=lambda text: [1] * len(text.split()))
    LibriPhoneDataset(["train-clean-100"], tokenizer, 16, str(folder), [str(folder / "lexicon.txt")])


def sid_table(folder: Path) -> None:
    """Build the datasets of speaker identification, all three splits, without their kept lists."""
    from s3prl.downstream.voxceleb1.dataset import SpeakerClassifiDataset

    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for split in ("train", "dev", "test"):
            SpeakerClassifiDataset(split, folder, folder / "split.txt")


def ks_table(folder: Path) -> None:
    """Build the datasets of keyword spotting."""
    from s3prl.downstream.speech_commands import expert

    settings = {"speech_commands_root": str(folder / "train"), "speech_commands_test_root": str(folder / "test")}
    for clips in expert.split_dataset(settings["speech_commands_root"]):
        expert.SpeechCommandsDataset(clips, **settings)
    expert.SpeechCommandsTestingDataset(**settings)


def own_table(name: str) -> Callable[[Path], None]:
    """Return what reads and divides a corpus of this package's own tasks."""

    def build(folder: Path) -> None:
        corpus = import_module(f"s3prl_ext.corpora.{name}").CORPUS
        corpus.splits(corpus.read(folder, "error"), "hash")

    return build


def hashed(downstream: str, keys: dict[str, str]) -> Callable[[Path], None]:
    """Return what hashes a corpus whose folders are at dotted keys of section ``downstream_expert``."""

    def run(folder: Path) -> None:
        expert: dict[str, Any] = {}
        for key, name in keys.items():
            section, _, last = key.partition(".")
            expert.setdefault(section, {})[last] = str(folder / name)
        corpus = Corpus(downstream, {"downstream_expert": expert})
        assert corpus.hash is not None

    return run


LAYOUTS: dict[str, tuple[Callable[[Path, Links, float], int], dict[str, Callable[[Path], None]]]] = {
    "LibriSpeech 960 h": (
        librispeech,
        {
            "hash": hashed("asr", {"datarc.libri_root": "", "datarc.bucket_file": "lengths"}),
            "asr": asr_table,
            "pr, 100 h": pr_table,
            "librispeech_zeroshot": own_table("librispeech"),
        },
    ),
    "VoxCeleb1": (voxceleb1, {"hash": hashed("voxceleb1", {"datarc.file_path": ""}), "sid": sid_table}),
    "Speech Commands": (
        speech_commands,
        {
            "hash": hashed(
                "speech_commands",
                {"datarc.speech_commands_root": "train", "datarc.speech_commands_test_root": "test"},
            ),
            "ks": ks_table,
        },
    ),
    "VCTK": (vctk, {"hash": hashed("vctk", {"datarc.path": ""}), "vctk": own_table("vctk")}),
    "LJ Speech": (ljspeech, {"hash": hashed("ljspeech", {"datarc.path": ""}), "ljspeech": own_table("ljspeech")}),
}


def main() -> None:
    """Lay out each corpus twice, measure, remove it, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of these (default: all)")
    parser.add_argument("--stock", action="store_true", help="also s3prl's own search, 100 h of LibriSpeech")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 1.0], help="of the real size (default 0.1 1)")
    flags = parser.parse_args()
    s3prl_ext.install()
    torch.set_num_threads(1)
    for module in MODULES:  # the imports are not what is measured
        import_module(f"s3prl.downstream.{module}")
    rows = {}
    for name in flags.corpora:
        lay_out, works = LAYOUTS[name]
        for share in flags.shares:
            with tempfile.TemporaryDirectory() as parent:
                folder = Path(parent) / "corpus"
                folder.mkdir()
                clips = lay_out(folder, Links(Path(parent)), share)
                for label, work in works.items():
                    rows[f"{name}, {label}, {clips} clips"] = measure.apart(partial(work, folder))
                if flags.stock and lay_out is librispeech:
                    hundred = partial(asr_table, folder, ("train-clean-100",))
                    rows[f"100 h, asr, share {share:g}"] = measure.apart(hundred)
                    rows[f"100 h, s3prl's list, share {share:g}"] = measure.apart(partial(hundred, stock=True))
    measure.report("large_corpora", rows)


if __name__ == "__main__":
    main()
