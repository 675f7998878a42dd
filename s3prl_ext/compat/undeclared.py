"""catalyst, librosa, joblib: packages that s3prl imports without declaring them, and hardly uses.

A stand-in is visible only while the importing module is executed. A global one would mislead other libraries:
transformers, for one, stops with ``librosa.__spec__ is None``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from s3prl_ext.compat.shim import Shim, absent, stub_module
from s3prl_ext.configs import PACKAGE_DIR


def _catalyst() -> Mapping[str, ModuleType]:
    from torch.utils.data import DistributedSampler

    from s3prl_ext import randomness

    class DistributedSamplerWrapper(DistributedSampler):
        """Share out the indices that another sampler draws among the processes of distributed training.

        All processes draw the same ones, by the seed and the epoch of this sampler.

        Args:
            sampler: draws the indices, anew in each epoch.
            num_replicas: number of processes; by default that of the process group.
            rank: number of this process; by default that of the process group.
            shuffle: shuffle what was drawn before sharing it out.
        """

        def __init__(
            self, sampler: Any, num_replicas: int | None = None, rank: int | None = None, shuffle: bool = True
        ) -> None:
            positions: Any = range(len(sampler))
            super().__init__(positions, num_replicas=num_replicas, rank=rank, shuffle=shuffle)
            self.sampler = sampler

        def __iter__(self) -> Iterator[int]:
            with randomness.preserved(self.seed + self.epoch):
                drawn = list(self.sampler)
            return iter([drawn[position] for position in super().__iter__()])

    sampler = stub_module("catalyst.data.sampler", DistributedSamplerWrapper=DistributedSamplerWrapper)
    data = stub_module("catalyst.data", sampler=sampler)
    return {"catalyst": stub_module("catalyst", data=data), "catalyst.data": data, "catalyst.data.sampler": sampler}


def _librosa() -> Mapping[str, ModuleType]:
    def find_files(*args: object, **kwargs: object) -> list[str]:
        raise ImportError("librosa is not installed: `pip install librosa`.")

    util = stub_module("librosa.util", find_files=find_files)
    return {"librosa": stub_module("librosa", util=util), "librosa.util": util}


def _joblib() -> Mapping[str, ModuleType]:
    def unavailable(*args: object, **kwargs: object) -> None:
        raise ImportError("joblib is not installed: `pip install joblib`.")

    return {"joblib": stub_module("joblib", Parallel=unavailable, delayed=unavailable)}


def _is_from_s3prl_without_joblib(module: ModuleType) -> bool:
    # Where s3prl lacks these modules, those of this package take their place, and they need no joblib.
    return PACKAGE_DIR not in Path(module.__file__ or "").parents and absent("joblib")


CATALYST = Shim(
    name="catalyst",
    module="s3prl.downstream.speech_commands.expert",
    needed=lambda module: absent("catalyst"),
    stubs=_catalyst,
    reason="keyword spotting imports catalyst, which s3prl does not declare, for one sampler of distributed training",
    remove_when="s3prl declares catalyst or no longer imports it",
)

LIBROSA = Shim(
    name="librosa",
    module="s3prl.downstream.voxceleb1.dataset",
    needed=lambda module: absent("librosa"),
    stubs=_librosa,
    reason="speaker identification imports librosa, which s3prl does not declare, and never uses it",
    remove_when="s3prl declares librosa or no longer imports it",
)

JOBLIB = tuple(
    Shim(
        name=f"joblib-{corpus}",
        module=f"s3prl.downstream.ctc.corpus.{corpus}",
        needed=_is_from_s3prl_without_joblib,
        stubs=_joblib,
        reason=f"ctc/corpus/{corpus}.py of s3prl's repository may import joblib, which s3prl does not declare",
        remove_when="s3prl declares joblib or no longer imports it there",
    )
    for corpus in ("libriphone", "snips")
)

SHIMS = (CATALYST, LIBROSA, *JOBLIB)
