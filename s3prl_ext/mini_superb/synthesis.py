"""Synthesise English speech with eSpeak NG from the pip package ``espeakng-loader``: no system package, no network.

The library keeps state between utterances (wave phase, random numbers), so each batch is spoken by a fresh process
(:mod:`s3prl_ext.mini_superb.espeak`): the same batch gives the same samples, whatever was spoken before.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from s3prl_ext.configs import PACKAGE_DIR
from s3prl_ext.corpora.audio import resample
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.mini_superb.espeak import NOT_INSTALLED


@dataclass(frozen=True)
class Voice:
    """One synthetic speaker: eSpeak voice name, base pitch (0..100) and speed (words per minute)."""

    name: str
    pitch: int
    speed: int


# Variants of the American and British voices; pitch and speed set them further apart.
VOICES: tuple[Voice, ...] = (
    Voice("en-us", 45, 160),
    Voice("en-us+f2", 65, 165),
    Voice("en-us+m3", 35, 150),
    Voice("en-us+f4", 55, 175),
    Voice("en-us+m7", 25, 155),
    Voice("en-us+f5", 75, 150),
    Voice("en-gb-x-rp+m1", 50, 170),
    Voice("en-gb-x-rp+f3", 70, 160),
    Voice("en-gb-scotland", 40, 160),
    Voice("en-gb-scotland+f1", 60, 150),
    Voice("en-us+klatt2", 40, 165),
    Voice("en-us+klatt4", 60, 160),
    Voice("en-gb-x-rp+m5", 30, 180),
    Voice("en-us+linda", 80, 170),
    Voice("en-gb-scotland+m4", 20, 165),
    Voice("en-us+steph", 50, 145),
)


@dataclass(frozen=True)
class Speech:
    """One utterance to be spoken: text, voice, and changes of the voice's speed and pitch."""

    text: str
    voice: Voice
    faster: int = 0
    higher: int = 0


def synthesise(utterances: Sequence[Speech]) -> list[np.ndarray]:
    """Speak each utterance; return float32 samples [samples] at 16 kHz, peak 0.5, silence at both ends trimmed.

    Raises:
        UsageError: the package ``espeakng-loader`` is not installed.
        DataError: the synthesiser failed.
    """
    if not utterances:
        return []
    jobs = [
        (speech.text, speech.voice.name, speech.voice.pitch + speech.higher, speech.voice.speed + speech.faster)
        for speech in utterances
    ]
    command = [sys.executable, "-m", "s3prl_ext.mini_superb.espeak"]
    search_path = os.pathsep.join(filter(None, [str(PACKAGE_DIR.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": search_path}
    done = subprocess.run(command, input=json.dumps(jobs).encode(), capture_output=True, check=False, env=environment)
    if done.returncode == NOT_INSTALLED:
        raise UsageError("speech synthesis needs the package espeakng-loader: pip install 's3prl_ext[demo]'.")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise DataError(f"speech synthesis failed: {reason[-1]}; try: pip install --force-reinstall espeakng-loader.")
    with np.load(io.BytesIO(done.stdout)) as spoken:
        rate = int(spoken["rate"])
        return [_shape(spoken[f"clip{i}"], rate) for i in range(len(jobs))]


def _shape(samples: np.ndarray, rate: int) -> np.ndarray:
    """Convert int16 samples at `rate` to float32 at 16 kHz with peak 0.5 and 50 ms around what is audible."""
    wave = resample(samples.astype(np.float32) / 32768, rate)
    audible = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    margin = 800  # samples, 50 ms
    wave = wave[max(0, audible[0] - margin) : audible[-1] + margin]
    return (0.5 / np.abs(wave).max() * wave).astype(np.float32)
