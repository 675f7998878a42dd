"""torchaudio: the compiled extension that does not load, and functions that 2.9 and later no longer have."""

from __future__ import annotations

import sys
from types import ModuleType

from s3prl_ext.compat import audio, sox
from s3prl_ext.compat.shim import Shim, absent, stub_module


def _lacks_extension(module: ModuleType) -> bool:
    return not hasattr(module, "fail_if_no_align")  # the last name that torchaudio/_extension/__init__.py defines


def _do_without_extension(module: ModuleType) -> None:
    def fail_if_no_align(function):
        def fail(*args, **kwargs):
            raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which does not load here.")

        return fail

    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module._load_lib = lambda library: False
    module._check_cuda_version = lambda: None
    module.fail_if_no_align = fail_if_no_align


def _lacks_audio_backend(module: ModuleType) -> bool:
    return not hasattr(module, "set_audio_backend")


def _ignore_audio_backend(module: ModuleType) -> None:
    module.set_audio_backend = lambda backend: None
    module.get_audio_backend = lambda: "soundfile"
    if not hasattr(module, "list_audio_backends"):
        module.list_audio_backends = lambda: ["soundfile"]


def _lacks_sox(module: ModuleType) -> bool:
    return absent("torchaudio.sox_effects") or "sox" not in module.list_audio_backends()


def _put_sox(module: ModuleType) -> None:
    names = ("apply_effects_tensor", "apply_effects_file", "effect_names")
    stand_in = stub_module("torchaudio.sox_effects", **{name: getattr(sox, name) for name in names})
    sys.modules["torchaudio.sox_effects"] = module.sox_effects = stand_in


def _resample_alike(module: ModuleType) -> None:
    module.apply_effects_file = sox.apply_effects_file


def _lacks_decoder(module: ModuleType) -> bool:
    """Tell whether ``torchaudio.load`` would fail: it needs torchcodec with ffmpeg, or before 2.9 some backend."""
    if not hasattr(module, "load_with_torchcodec"):
        return not hasattr(module, "list_audio_backends") or not module.list_audio_backends()
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return True
    return False


def _read_with_soundfile(module: ModuleType) -> None:
    module.load, module.save, module.info = audio.load, audio.save, audio.info


SHIMS = (
    Shim(
        name="torchaudio-extension",
        module="torchaudio._extension",
        needed=_lacks_extension,
        apply=_do_without_extension,
        tolerates=(OSError, ImportError, RuntimeError),
        reason="torchaudio's PyPI wheel is a CUDA build whose library does not load with a CPU build of torch or one "
        "for another CUDA version; only forced alignment and an optional filter speed-up use it",
        remove_when="PyPI serves one torchaudio that loads with every build of torch",
    ),
    Shim(
        name="torchaudio-backend",
        module="torchaudio",
        needed=_lacks_audio_backend,
        apply=_ignore_audio_backend,
        reason="s3prl calls torchaudio.set_audio_backend, which torchaudio 2.2 deprecated and 2.9 no longer has",
        remove_when="s3prl no longer calls it (run_downstream.py, upstream/byol_s)",
    ),
    Shim(
        name="torchaudio-soundfile",
        module="torchaudio",
        needed=_lacks_decoder,
        apply=_read_with_soundfile,
        reason="torchaudio.load and save of 2.9 and later need torchcodec and ffmpeg, and torchaudio.info is gone; "
        "soundfile reads the wav and flac files of all SUPERB tasks",
        remove_when="s3prl reads audio without torchaudio, or torchcodec comes with its own decoder",
    ),
    Shim(
        name="torchaudio-sox",
        module="torchaudio",
        needed=_lacks_sox,
        apply=_put_sox,
        reason="s3prl's keyword spotting and mos_prediction import torchaudio.sox_effects, which 2.9 removed",
        remove_when="s3prl no longer imports torchaudio.sox_effects",
    ),
    *(
        Shim(
            name=f"sox-{name}",
            module=f"s3prl.downstream.{module}.dataset",
            needed=lambda module: module.apply_effects_file is not sox.apply_effects_file,
            apply=_resample_alike,
            reason="s3prl resamples with sox where torchaudio has it, so that scores depend on torchaudio's version "
            "and differ from those of predict, for corpora that are not 16 kHz",
            remove_when="s3prl resamples alike with every torchaudio",
        )
        for name, module in (("qbe", "quesst14_dtw"), ("ks", "speech_commands"))
    ),
)
