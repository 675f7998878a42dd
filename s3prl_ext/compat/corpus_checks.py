"""Corpora: refuse audio that is not 16 kHz mono and empty transcripts, where s3prl would train on nonsense.

s3prl reads the sample rate and ignores it, interleaves the channels of a stereo file (ASR, PR, SF), or passes a matrix
on as a waveform (IC, SID). Keyword spotting converts its audio itself and needs no check.
"""

from __future__ import annotations

import csv
import functools
import io
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat import audio
from s3prl_ext.compat.shim import Shim
from s3prl_ext.errors import DataError
from s3prl_ext.model_settings import SAMPLE_RATE
from s3prl_ext.reading import read_text

LONGEST_CLIP = 24 * 3600 * SAMPLE_RATE  # of a clip, in samples
SLACK = SAMPLE_RATE // 10  # samples by which a recording may be shorter than its duration in a table, which is rounded


def check_format(path: object, channels: int, rate: int) -> None:
    """Raise DataError unless a file has one channel at 16 kHz; the message names the command that converts it."""
    if channels != 1 or rate != SAMPLE_RATE:
        raise DataError(
            f"{path} has {channels} channel{'s' if channels != 1 else ''} at {rate} Hz, but s3prl needs mono at "
            f"{SAMPLE_RATE} Hz; convert the corpus, for example with `sox IN -r 16000 -c 1 OUT`."
        )


class CheckedTorchaudio:
    """torchaudio as a corpus module sees it: ``load`` checks the format, everything else is torchaudio's own."""

    def __init__(self, torchaudio: ModuleType) -> None:
        self._torchaudio = torchaudio

    def load(self, path: Any, *args: Any, **kwargs: Any) -> tuple[Any, int]:
        """Read a file as ``torchaudio.load`` does; DataError unless it is 16 kHz mono."""
        samples, rate = self._torchaudio.load(path, *args, **kwargs)
        check_format(path, samples.shape[0], rate)
        return samples, rate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torchaudio, name)


def _check_loading(module: ModuleType) -> None:
    module.torchaudio = CheckedTorchaudio(module.torchaudio)


def _check_recordings(module: ModuleType) -> None:
    load_wav = module.KaldiData.load_wav

    @functools.wraps(load_wav)
    def load_checked(self, recid, start=0, end=None):
        try:
            samples, rate = load_wav(self, recid, start, end)
        except RuntimeError as error:  # soundfile's errors
            raise DataError(audio.unreadable(self.wavs[recid], error)) from error
        check_format(self.wavs[recid], 1 if samples.ndim == 1 else samples.shape[1], rate)
        if end is not None and len(samples) < end - start - SLACK:  # s3prl stretches the features over the labels
            raise DataError(
                f"{self.wavs[recid]} lasts {(start + len(samples)) / rate:.2f} s, but {self.data_dir}/reco2dur gives "
                f"{recid} {self.reco2dur[recid]:.2f} s: make the tables again from these recordings."
            )
        return samples, rate

    module.KaldiData.load_wav = load_checked


def _check_folders(module: ModuleType) -> None:
    initialise = module.SequenceDataset.__init__

    @functools.wraps(initialise)
    def initialise_checked(self, split, bucket_size, dictionary, libri_root, bucket_file, **kwargs) -> None:
        for key, folder in (("libri_root", libri_root), ("bucket_file", bucket_file)):
            if not os.path.isdir(folder):
                raise DataError(
                    f"no such folder: {folder}; set LIBRISPEECH (and LIBRISPEECH_LENGTHS for the lists of lengths), "
                    f"or config.downstream_expert.datarc.{key} with -o."
                )
        names = kwargs[split] if isinstance(kwargs[split], (list, tuple)) else [kwargs[split]]
        tables = [Path(bucket_file) / f"{name}.csv" for name in names]
        missing = [str(table) for table in tables if not table.is_file()]  # s3prl leaves them out with a warning
        if missing or not tables:
            raise DataError(
                f"no list of lengths for split '{split}': {', '.join(missing) or 'it has no names'}; set "
                f"LIBRISPEECH_LENGTHS, or config.downstream_expert.datarc.{split} with -o."
            )
        listed = [path for table in tables for path in check_lengths(table)]
        initialise(self, split, bucket_size, dictionary, libri_root, bucket_file, **kwargs)
        if split != "train":
            batched = {path for batch in self.X for path in batch}
            left = [path for path in listed if path not in batched and self._parse_x_name(path) in self.Y]
            self.X += [[path] for path in left]

    module.SequenceDataset.__init__ = initialise_checked


def check_lengths(table: Path) -> list[str]:
    """Return the files that a table of lengths names; DataError unless each line has one and a length in samples."""
    files = []
    reader = csv.DictReader(io.StringIO(read_text(table), newline=""))
    try:
        if not {"file_path", "length"} <= set(reader.fieldnames or ()):
            raise DataError(f"{table}: its first line must name file_path and length; make the lists of lengths again.")
        for row in reader:
            if not row["file_path"] or "\0" in row["file_path"] or not _is_length(row["length"]):
                raise DataError(
                    f"{table}, line {reader.line_num}: file_path is {row['file_path']!r:.80} and length "
                    f"{row['length']!r:.40}, which must be a file and a number of samples; "
                    "make the lists of lengths again."
                )
            files.append(row["file_path"])
        if not files:
            raise DataError(f"{table} lists no clip; make the lists of lengths again.")
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.line_num}: {error}; make the lists of lengths again.") from error
    return files


def _is_length(text: str | None) -> bool:
    try:
        return 0 < float(text or "") < LONGEST_CLIP
    except ValueError:
        return False


def _check_transcripts(module: ModuleType) -> None:
    load_transcript = module.SequenceDataset._load_transcript

    @functools.wraps(load_transcript)
    def load_checked(self, x_list):
        for folder in sorted({os.path.dirname(path) for path in x_list}):
            table = os.path.join(self.libri_root, folder, "-".join(folder.split("/")[-2:]) + ".trans.txt")
            if not os.path.isfile(table):
                raise DataError(
                    f"no such transcripts: {table}, but the lists of lengths name clips in that folder; complete the "
                    "corpus, or set LIBRISPEECH to the folder with train-clean-100/."
                )
        transcripts = load_transcript(self, x_list)
        known = vars(self.dictionary).setdefault("known", frozenset(self.dictionary.symbols))  # later splits add theirs
        for path in x_list:
            text = transcripts.get(self._parse_x_name(path))
            if text is None:  # s3prl leaves the clip out, and with the last clip of a split its whole batch
                raise DataError(
                    f"the utterance {path} in {self.libri_root} has no transcript; complete its .trans.txt or "
                    "take the utterance out of the list of lengths."
                )
            strange = sorted(set(text.replace(" ", "")) - known)
            if strange:
                raise DataError(
                    f"the transcript of {path} in {self.libri_root} holds {strange[0]!r}, which the dictionary "
                    "(datarc.dict_path) and so the head lacks; write the transcripts with its characters, "
                    "or give another one."
                )
            if text.strip(" |") == "":
                raise DataError(
                    f"the utterance {path} in {self.libri_root} has an empty transcript; complete its .trans.txt or "
                    "take the utterance out of the list of lengths."
                )
        return transcripts

    module.SequenceDataset._load_transcript = load_checked


def _check_background(module: ModuleType) -> None:
    initialise = module.SpeechCommandsDataset.__init__

    @functools.wraps(initialise)
    def initialise_checked(self, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        for path in (path for name, path in self.data if name == "_silence_"):
            found = audio.info(str(path))
            if found.num_frames < found.sample_rate:
                raise DataError(
                    f"{path} has {found.num_frames} samples at {found.sample_rate} Hz, but keyword spotting cuts its "
                    "silence, 1 s at a time, out of the recordings in _background_noise_: take this one out, or put a "
                    "longer one there."
                )

    module.SpeechCommandsDataset.__init__ = initialise_checked


def _check_words(module: ModuleType) -> None:
    initialise = module.SpeechCommandsTestingDataset.__init__

    @functools.wraps(initialise)
    def initialise_checked(self, **kwargs: Any) -> None:
        initialise(self, **kwargs)
        for word, path in self.data:
            if word not in self.class2index:
                raise DataError(
                    f"{Path(path).parent} is the folder of no class of keyword spotting, whose test set has "
                    f"{', '.join(module.CLASSES)}: take it out, or set SPEECH_COMMANDS to the folder with "
                    "speech_commands_test_set_v0.01/."
                )

    module.SpeechCommandsTestingDataset.__init__ = initialise_checked


def _check_intents(module: ModuleType) -> None:
    initialise = module.FluentCommandsDataset.__init__

    @functools.wraps(initialise)
    def initialise_checked(self, df: Any, base_path: Any, Sy_intent: Any) -> None:
        for slot in ("action", "object", "location") if any(Sy_intent.values()) else ():  # none: train is empty
            for value, path in zip(df[slot], df["path"], strict=True):
                if value not in Sy_intent[slot]:
                    raise DataError(
                        f"{path} in {base_path} has the {slot} {value!r}, which no clip in data/train_data.csv has, so "
                        "that the head has no output for it: take the clip out of its list, or add such clips to train."
                    )
        initialise(self, df, base_path, Sy_intent)

    module.FluentCommandsDataset.__init__ = initialise_checked


_FORMAT_REASON = "s3prl ignores the sample rate of a corpus file and mistakes several channels for one"
_FORMAT_END = "s3prl checks sample rate and channels of the files it reads"

SHIMS = (
    *(
        Shim(
            name=f"audio-format-{name}",
            module=module,
            needed=lambda module: not isinstance(module.torchaudio, CheckedTorchaudio),
            apply=_check_loading,
            reason=_FORMAT_REASON,
            remove_when=_FORMAT_END,
        )
        for name, module in (
            ("asr", "s3prl.downstream.asr.dataset"),
            ("ctc", "s3prl.downstream.ctc.data"),
            ("ic", "s3prl.downstream.fluent_commands.dataset"),
            ("sid", "s3prl.downstream.voxceleb1.dataset"),
            ("er", "s3prl.downstream.emotion.dataset"),
        )
    ),
    Shim(
        name="audio-format-sd",
        module="s3prl.downstream.diarization.dataset",
        needed=lambda module: not hasattr(module.KaldiData.load_wav, "__wrapped__"),
        apply=_check_recordings,
        reason=_FORMAT_REASON,
        remove_when=_FORMAT_END,
    ),
    Shim(
        name="ks-background",
        module="s3prl.downstream.speech_commands.dataset",
        needed=lambda module: not hasattr(module.SpeechCommandsDataset.__init__, "__wrapped__"),
        apply=_check_background,
        reason="s3prl stops at a recording of background noise that is shorter than a second, and does not name it",
        remove_when="s3prl names the file",
    ),
    Shim(
        name="ks-words",
        module="s3prl.downstream.speech_commands.dataset",
        needed=lambda module: not hasattr(module.SpeechCommandsTestingDataset.__init__, "__wrapped__"),
        apply=_check_words,
        reason="s3prl stops at the first evaluation of a test set with a folder of another word, and does not name it",
        remove_when="s3prl names the folder when it lists the test set",
    ),
    Shim(
        name="ic-intents",
        module="s3prl.downstream.fluent_commands.dataset",
        needed=lambda module: not hasattr(module.FluentCommandsDataset.__init__, "__wrapped__"),
        apply=_check_intents,
        reason="s3prl stops at a clip whose intent the training split lacks, when it reads it, and does not name it",
        remove_when="s3prl names the clip when it reads the lists",
    ),
    Shim(
        name="asr-folders",
        module="s3prl.downstream.asr.dataset",
        needed=lambda module: not hasattr(module.SequenceDataset.__init__, "__wrapped__"),
        apply=_check_folders,
        reason="s3prl tells who misses the folder of lengths to run a script that its package lacks, and does not name "
        "it; it leaves out a missing list, and the last clip of an evaluation where a batch would hold it alone",
        remove_when="s3prl names what is missing and evaluates every clip",
    ),
    Shim(
        name="asr-transcripts",
        module="s3prl.downstream.asr.dataset",
        needed=lambda module: not hasattr(module.SequenceDataset._load_transcript, "__wrapped__"),
        apply=_check_transcripts,
        reason="s3prl trains on an empty transcript as if it were one word boundary, and stops without a word at a "
        "missing file",
        remove_when="s3prl refuses an empty transcript and names the missing file",
    ),
)
