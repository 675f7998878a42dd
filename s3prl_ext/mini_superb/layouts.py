"""The tasks that have a miniature corpus: its folder, and what writes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3prl_ext.mini_superb import er, esc50, ic, ks, librispeech, ljspeech, mixtures, ood, qbe, sd, sf, sid, vctk
from s3prl_ext.mini_superb.source import MiniBuild
from s3prl_ext.tasks import Task, named


@dataclass(frozen=True)
class Layout:
    """One task.

    Args:
        task: its record.
        folder: folder of its corpus; asr and pr share one.
        write: writes the corpus into a folder.
        mapping: what replaces what, for the README.
        upstream: features to try it with (``-u``).
    """

    task: Task
    folder: str
    write: Callable[[Path, MiniBuild], None]
    mapping: str
    upstream: str = "fbank"


# The mean over time of mean-normalised features is the same for every clip: tasks that pool need them as they are.
_POOLED = "fbank_no_cmvn"

LAYOUTS: dict[str, Layout] = {
    "ks": Layout(named("ks"), "speech_commands", ks.write, ks.MAPPING, _POOLED),
    "ic": Layout(named("ic"), "fluent_speech_commands", ic.write, ic.MAPPING, _POOLED),
    "sid": Layout(named("sid"), "voxceleb1", sid.write, sid.MAPPING, _POOLED),
    "asv": Layout(named("asv"), "voxceleb1", sid.write_asv, sid.MAPPING_ASV),
    "asr": Layout(named("asr"), "librispeech", librispeech.write_asr, librispeech.MAPPING_ASR),
    "pr": Layout(named("pr"), "librispeech", librispeech.write_pr, librispeech.MAPPING_PR),
    "sf": Layout(named("sf"), "audio_snips", sf.write, sf.MAPPING),
    "sd": Layout(named("sd"), "libri2mix_diarization", sd.write, sd.MAPPING),
    "qbe": Layout(named("qbe"), "quesst14Database", qbe.write, qbe.MAPPING),
    "er": Layout(named("er"), "IEMOCAP", er.write, er.MAPPING, _POOLED),
    "ood": Layout(named("ood"), "common_voice", ood.write, ood.MAPPING),
    "ss": Layout(named("ss"), "libri2mix_separation", mixtures.write_ss, mixtures.MAPPING_SS),
    "se": Layout(named("se"), "voicebank", mixtures.write_se, mixtures.MAPPING_SE),
    "ljspeech": Layout(named("ljspeech"), "LJSpeech-1.1", ljspeech.write, ljspeech.MAPPING),
    "vctk": Layout(named("vctk"), "VCTK-Corpus-0.92", vctk.write, vctk.MAPPING),
    "esc50": Layout(named("esc50"), "ESC-50-master", esc50.write, esc50.MAPPING, _POOLED),
}

TRAINED: dict[str, Layout] = {name: layout for name, layout in LAYOUTS.items() if layout.task.trains}
