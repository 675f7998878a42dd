"""Speech enhancement on VoiceBank-DEMAND (SUPERB-SG's SE)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import means
from s3prl_ext.tasks.record import Reads, SingleClips, Task

NEEDS = {"pesq": "pesq", "pystoi": "pystoi"}


def folders(*names: str) -> tuple[Reads, ...]:
    """Return what a task reads of each split: a folder with the lists of its audio, which divide the corpus."""
    return tuple(Reads(f"loaderrc.{name}_dir", divides=()) for name in names)


TASK = Task(
    name="se",
    downstream="enhancement_stft",
    metrics=("pesq",),
    best="best-states-dev.ckpt",
    preset="se/superb",
    variables={"VOICEBANK": "VoiceBank-DEMAND"},
    reads=folders("train", "dev", "test"),
    settings="loaderrc",
    counts={name: means(name, name) for name in ("pesq", "stoi", "si_sdr")},
    writes=("*_metrics.txt",),
    decoder="s3prl_ext.prediction.separation:SourceDecoder",
    superb=("pesq", "stoi"),
    frame_below="datarc.win_length",
    single_clips=SingleClips("loaderrc.eval_batchsize"),
    modules=("s3prl.downstream.enhancement_stft.expert",),
    needs=NEEDS,
)
