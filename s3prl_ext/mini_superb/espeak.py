"""Speak a batch of utterances with the eSpeak NG library.

The process that :mod:`s3prl_ext.mini_superb.synthesis` starts.

It imports little, because it starts anew for each batch.
"""

from __future__ import annotations

import ctypes
import io
import json
import sys
from typing import Any

import numpy as np

NOT_INSTALLED = 3  # exit status where the package espeakng-loader is missing

_RATE, _PITCH = 1, 3  # espeak_PARAMETER: words per minute, 0..100
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: return samples to the callback before espeak_Synth returns
_UTF8 = 1
_NO_SPEAKER_DEFAULTS = 0


class Espeak:
    """The eSpeak NG library, opened once in this process; `rate` is its sampling rate in Hz."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise RuntimeError("eSpeak NG did not start")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # it seeds its noise with the time of day otherwise
        self.chunks: list[np.ndarray] = []
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = signature(self._receive)  # kept alive as long as the library may call it
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
        """Return int16 samples of `text` at the library's own rate."""
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"eSpeak NG has no voice '{voice}'")
        self.library.espeak_SetParameter(_RATE, speed, _NO_SPEAKER_DEFAULTS)
        self.library.espeak_SetParameter(_PITCH, min(99, max(0, pitch)), _NO_SPEAKER_DEFAULTS)
        self.chunks.clear()
        encoded = text.encode() + b"\0"
        self.library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded)), 0, 0, 0, _UTF8, None, None)
        if not self.chunks:
            raise RuntimeError(f"eSpeak NG said nothing for '{text}'")
        return np.concatenate(self.chunks)


def serve() -> int:
    """Speak the JSON list of jobs on standard input; write the samples as one npz to standard output."""
    try:
        espeak = Espeak()
    except ImportError:
        return NOT_INSTALLED
    spoken = {f"clip{i}": espeak.speak(*job) for i, job in enumerate(json.load(sys.stdin))}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, rate=espeak.rate, **spoken)
    sys.stdout.buffer.write(content.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(serve())
