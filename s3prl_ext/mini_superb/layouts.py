"""The seven tasks of SUPERB: under which names s3prl and the task files know them, and what writes their corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.mini_superb import esc50, ic, ks, librispeech, ljspeech, sd, sf, sid, vctk
from s3prl_ext.mini_superb.source import Source


@dataclass(frozen=True)
class Layout:
    """One task.

    Args:
        downstream: s3prl's name of it (``-d``).
        folder: folder of its corpus; asr and pr share one.
        variable: environment variable with which the task files find that folder.
        write: writes the corpus into a folder.
        mapping: what replaces what, for the README.
        upstream: features to try it with (``-u``).
    """

    downstream: str
    folder: str
    variable: str
    write: Callable[[Path, Source], None]
    mapping: str
    upstream: str = "fbank"


# The mean over time of mean-normalised features is the same for every clip: tasks that pool need them as they are.
_POOLED = "fbank_no_cmvn"

LAYOUTS: dict[str, Layout] = {
    "ks": Layout("speech_commands", "speech_commands", "SPEECH_COMMANDS", ks.write, ks.MAPPING, _POOLED),
    "ic": Layout("fluent_commands", "fluent_speech_commands", "FLUENT_SPEECH_COMMANDS", ic.write, ic.MAPPING, _POOLED),
    "sid": Layout("voxceleb1", "voxceleb1", "VOXCELEB1", sid.write, sid.MAPPING, _POOLED),
    "asr": Layout("asr", "librispeech", "LIBRISPEECH", librispeech.write_asr, librispeech.MAPPING_ASR),
    "pr": Layout("ctc", "librispeech", "LIBRISPEECH", librispeech.write_pr, librispeech.MAPPING_PR),
    "sf": Layout("ctc", "audio_snips", "AUDIO_SNIPS", sf.write, sf.MAPPING),
    "sd": Layout("diarization", "libri2mix_diarization", "LIBRI2MIX_DIARIZATION", sd.write, sd.MAPPING),
    "ljspeech": Layout("ljspeech", "LJSpeech-1.1", "LJSPEECH", ljspeech.write, ljspeech.MAPPING),
    "vctk": Layout("vctk", "VCTK-Corpus-0.92", "VCTK", vctk.write, vctk.MAPPING),
    "esc50": Layout("esc50", "ESC-50-master", "ESC50", esc50.write, esc50.MAPPING, _POOLED),
}
