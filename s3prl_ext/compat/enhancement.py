"""Enhancement and separation: spectra without librosa, metrics without asteroid, on the device of the run.

The stand-ins are used whether librosa and asteroid are installed or not, so that a figure does not depend on that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from s3prl_ext.compat import audio
from s3prl_ext.compat.corpus_checks import check_format
from s3prl_ext.compat.shim import Shim, stub_module
from s3prl_ext.errors import DataError, UsageError
from s3prl_ext.reading import read_lines

if TYPE_CHECKING:
    import numpy as np

TASKS = ("enhancement_stft", "separation_stft")


def load(path: Any, sr: int | None = None) -> tuple[np.ndarray, int]:
    """Return the samples of a 16 kHz mono file, float32 [samples], and its rate.

    Raises:
        DataError: it is missing, unreadable, or of another form.
    """
    samples, rate = audio.load(path)
    check_format(path, samples.shape[0], rate)
    return samples[0].numpy(), rate


def stft(y: np.ndarray, n_fft: int, hop_length: int, win_length: int, window: str, center: bool) -> np.ndarray:
    """Return the short-time spectra of a signal, complex64 [bins, frames], as librosa 0.10 and later gives them."""
    import torch

    spectra = torch.stft(
        torch.from_numpy(y), n_fft, hop_length, win_length, _window(window, win_length), center, "constant",
        return_complex=True,
    )  # fmt: skip
    return spectra.numpy()


def istft(
    stft_matrix: np.ndarray, hop_length: int, win_length: int, window: str, center: bool, length: Any = None
) -> np.ndarray:
    """Return the signal of spectra [bins, frames], float32 [samples], of a length where one is given."""
    import torch

    n_fft = 2 * (stft_matrix.shape[0] - 1)
    size = None if length is None else int(length)
    spectra = torch.from_numpy(stft_matrix)
    return torch.istft(spectra, n_fft, hop_length, win_length, _window(window, win_length), center, length=size).numpy()


def _window(name: str, length: int) -> Any:
    import torch

    if name != "hann":
        raise UsageError(f"unknown window '{name}' (datarc.window). Known: hann.")
    return torch.hann_window(length)


def normalize(samples: np.ndarray, norm: float = float("inf"), axis: Any = None) -> np.ndarray:
    """Return samples scaled to a peak of 1; silence stays as it is."""
    import numpy as np

    peak = float(np.abs(samples).max())
    return samples / peak if peak > np.finfo(np.float32).tiny else samples


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB: of the projection on the reference, and the rest.

    Le Roux et al. 2019, "SDR: half-baked or well done?", without the removal of means.
    """
    import numpy as np

    reference, estimate = reference.astype(np.float64), estimate.astype(np.float64)
    projection = (estimate @ reference) / (reference @ reference) * reference
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10((projection @ projection) / np.sum((estimate - projection) ** 2)))


def stoi(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Return the short-time objective intelligibility, 0 to 1."""
    from pystoi import stoi as measured

    return float(measured(reference, estimate, rate, extended=False))


def pesq(reference: np.ndarray, estimate: np.ndarray, rate: int) -> float:
    """Return the perceptual evaluation of speech quality, wide band at 16 kHz, 1 to 4.64.

    Raises:
        DataError: it is not defined: a signal is silent or shorter than a quarter of a second.
    """
    from pesq import PesqError
    from pesq import pesq as measured

    if not estimate.any():
        raise DataError(
            "PESQ is not defined: the output of the model is silent; train it longer, or lower optimizer.lr."
        )
    try:
        return float(measured(rate, reference, estimate, "wb" if rate == 16000 else "nb"))
    except PesqError as error:
        raise DataError(
            f"PESQ is not defined for a clip of {len(reference) / rate:.2f} s ({_words(error)}): leave it out."
        ) from error


def _words(error: Exception) -> str:
    """Return what an error of pesq says, which may be bytes."""
    said = error.args[0] if error.args else ""
    return " ".join((said.decode(errors="replace") if isinstance(said, bytes) else str(said)).split())


def get_metrics(
    mix: np.ndarray, clean: np.ndarray, estimate: np.ndarray, sample_rate: int, metrics_list: Sequence[str],
    compute_permutation: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Return each metric of the estimates and, with ``input_`` before its name, of the mixture: means over sources.

    Args:
        mix: [1, samples].
        clean: [sources, samples].
        estimate: [sources, samples].
        sample_rate: in Hz.
        metrics_list: si_sdr, stoi, pesq.
        compute_permutation: take the order of the estimates with the best mean SI-SDR.

    Raises:
        DataError: a source is silent, or PESQ is not defined.
    """
    import numpy as np

    if not all(source.any() for source in clean):
        raise DataError("its clean speech is silent, against which nothing can be measured: leave it out.")

    functions: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "si_sdr": si_sdr,
        "stoi": functools.partial(stoi, rate=sample_rate),
        "pesq": functools.partial(pesq, rate=sample_rate),
    }
    orders = list(permutations(range(len(clean)))) if compute_permutation else [tuple(range(len(clean)))]
    levels = [np.mean([si_sdr(c, estimate[i]) for c, i in zip(clean, order, strict=True)]) for order in orders]
    best = orders[int(np.argmax(levels))] if len(orders) > 1 else orders[0]
    found = {}
    for name in metrics_list:
        found[name] = float(np.mean([functions[name](c, estimate[i]) for c, i in zip(clean, best, strict=True)]))
        found[f"input_{name}"] = float(np.mean([functions[name](c, mix[0]) for c in clean]))
    return found


class _NoPermutationLoss:
    def __init__(self, *_: Any, **__: Any) -> None:
        raise UsageError(
            "loss_type SISDR (downstream_expert.modelrc) needs asteroid, which is not used here: take MSE."
        )


def check_lists(folder: Path, conditions: Sequence[str]) -> None:
    """Check the lists of a split before s3prl reads them.

    Raises:
        DataError: naming what is missing, the first wrong line, or an utterance that is not in all lists.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}; prepare the corpus as s3prl's recipe does, or set its variable.")
    names: dict[str, set[str]] = {}
    for condition in conditions:
        path = folder / condition / "wav.scp"
        if not path.is_file():
            raise DataError(f"no such list: {path}; a split needs wav.scp in each of {', '.join(conditions)}.")
        rows = [line.split() for line in read_lines(path)]
        wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
        if wrong is not None:
            raise DataError(f"{path}, line {wrong} must be 'UTTERANCE PATH', without spaces in the path.")
        missing = next((row[1] for row in rows if not Path(row[1]).is_file()), None)
        if missing is not None:
            raise DataError(f"{path} lists {missing}, which is not there: prepare the corpus again where it is now.")
        names[condition] = {row[0] for row in rows}
    first, *others = conditions
    for other in others:
        if names[other] != names[first]:
            odd = min(names[other] ^ names[first])
            raise DataError(
                f"{odd} is in one of {folder}'s lists of {first} and {other} alone: prepare the corpus again."
            )


def _checked_dataset(module: ModuleType) -> None:
    initialise = module.SeparationDataset.__init__

    @functools.wraps(initialise)
    def initialise_checked(self: Any, data_dir: Any, *args: Any, **kwargs: Any) -> None:
        check_lists(Path(data_dir), [*kwargs["src"], *kwargs["tgt"]])
        initialise(self, data_dir, *args, **kwargs)

    def item_checked(self: Any, index: int) -> Any:
        item = read(self, index)
        name, mixture, _, sources, _ = item
        for condition, source in zip(self.tgt, sources, strict=True):
            if len(source) != len(mixture):
                files, given = self.reco2path[name], self.src[0]
                raise DataError(
                    f"{name}: {files[given]} has {len(mixture)} samples and {files[condition]} {len(source)}: make "
                    "them equally long, or take the clip out of all lists."
                )
        return item

    read = module.SeparationDataset.__getitem__
    module.SeparationDataset.__init__, module.SeparationDataset.__getitem__ = initialise_checked, item_checked


def _own_device(module: ModuleType) -> None:
    from importlib import import_module

    loss = import_module(module.__name__.replace("expert", "loss"))
    forward, postprocess = module.DownstreamExpert.forward, module.postprocess

    @functools.wraps(forward)
    def forward_there(self: Any, mode: str, features: Any, names: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        module.device = loss.device = features[0].device
        try:
            return forward(self, mode, features, names, *args, **kwargs)
        except DataError as error:
            raise DataError(f"clip {', '.join(names)} of split '{mode}': {error}") from error

    module.DownstreamExpert.forward = forward_there
    module.SISDRLoss = _NoPermutationLoss
    module.postprocess = lambda signal, *args: postprocess(signal, *args) if signal.any() else signal


def _librosa() -> Mapping[str, ModuleType]:
    util = stub_module("librosa.util", normalize=normalize)
    return {"librosa": stub_module("librosa", load=load, stft=stft, istft=istft, util=util), "librosa.util": util}


def _expert_stubs() -> Mapping[str, ModuleType]:
    metrics = stub_module("asteroid.metrics", get_metrics=get_metrics)
    losses = stub_module("asteroid.losses", PITLossWrapper=_NoPermutationLoss)
    asteroid = stub_module("asteroid", metrics=metrics, losses=losses)
    return {**_librosa(), "asteroid": asteroid, "asteroid.metrics": metrics, "asteroid.losses": losses}


def _always(module: ModuleType) -> bool:
    return True


REASON = "enhancement and separation import {}, which s3prl does not declare"

SHIMS = tuple(
    shim
    for task in TASKS
    for shim in (
        Shim(
            name=f"{task}-librosa",
            module=f"s3prl.downstream.{task}.dataset",
            needed=_always,
            stubs=_librosa,
            reason=REASON.format("librosa"),
            remove_when="s3prl declares librosa",
        ),
        Shim(
            name=f"{task}-asteroid",
            module=f"s3prl.downstream.{task}.expert",
            needed=_always,
            stubs=_expert_stubs,
            reason=REASON.format("asteroid (its last release does not run on today's torch)"),
            remove_when="s3prl takes its metrics from a package that is kept",
        ),
        Shim(
            name=f"{task}-lists",
            module=f"s3prl.downstream.{task}.dataset",
            needed=lambda module: not hasattr(module.SeparationDataset.__init__, "__wrapped__"),
            apply=_checked_dataset,
            reason="s3prl stops with an AssertionError without a word at a missing list, and later at a missing file",
            remove_when="s3prl names the missing file",
        ),
        Shim(
            name=f"{task}-device",
            module=f"s3prl.downstream.{task}.expert",
            needed=lambda module: not hasattr(module.DownstreamExpert.forward, "__wrapped__"),
            apply=_own_device,
            reason="s3prl puts masks and spectra on cuda:0 wherever there is a GPU, whatever --device says, and stops "
            "at an output of zeros",
            remove_when="s3prl takes the device of the features",
        ),
    )
)
