"""Where the miniature corpora get their speech from: real recordings, or synthesis where there are none."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from s3prl_ext.corpora.audio import SAMPLE_RATE, read_audio
from s3prl_ext.corpora.recordings import Clip, Recordings
from s3prl_ext.errors import DataError

logger = logging.getLogger(__name__)


@dataclass
class MiniBuild:
    """Recordings, seed and final place of one build.

    Args:
        final: folder in which the corpora lie once the build is complete, for tables that hold absolute paths.
        recordings: real recordings, or None for synthesis only.
        seed: decides which clips are taken, how they are split, and the synthesised sentences and noises.
        digit_strings: LibriSpeech, LJ Speech and VCTK are made of that many strings of spoken digits; 0 = of sentences.
        everything: LibriSpeech, LJ Speech and VCTK are all recordings with a text, of any length.
        takes: training takes of each recorded digit in the hard forms of KS and SID; 0 = the easy forms.
    """

    final: Path
    recordings: Recordings | None = None
    seed: int = 0
    digit_strings: int = 0
    everything: bool = False
    takes: int = 0
    notes: list[str] = field(default_factory=list)

    def rng(self, task: str) -> np.random.Generator:
        """Return the generator of one task; tasks do not influence each other."""
        return np.random.default_rng([self.seed, zlib.crc32(task.encode())])

    def clips(self, task: str, *names: str) -> list[Clip]:
        """Return the clips of the first corpus among `names` that is there; an empty list means: synthesise."""
        for name in names:
            if self.recordings is not None and self.recordings.has(name):
                self.note(task, f"real recordings of {name}")
                return self.recordings.clips(name)
        lacking = f" ({' or '.join(names)} is not among the recordings)" if self.recordings and names else ""
        self.note(task, f"synthesised speech{lacking}")
        return []

    def note(self, task: str, text: str) -> None:
        """Record one statement about `task` for the log and the README."""
        if (line := f"{task}: {text}") not in self.notes:
            self.notes.append(line)
            logger.info("%s", line)


def require(found: int, least: int, corpus: str, what: str) -> None:
    """Raise DataError where the recordings of `corpus` give fewer than `least` of `what`."""
    if found < least:
        raise DataError(
            f"the recordings of {corpus} give {found} {what}, but {least} are needed: add some, or remove its folder "
            "so that speech is synthesised."
        )


def cut_seconds(clip: Clip, start: float, length: float) -> np.ndarray:
    """Return up to `length` seconds of `clip` from `start` seconds on, float32 [samples]."""
    first = int(start * SAMPLE_RATE)
    return read_audio(clip.path)[first : first + int(length * SAMPLE_RATE)]
