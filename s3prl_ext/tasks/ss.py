"""Source separation on Libri2Mix (SUPERB-SG's SS)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import means
from s3prl_ext.tasks.record import SingleClips, Task
from s3prl_ext.tasks.se import NEEDS, folders

TASK = Task(
    name="ss",
    downstream="separation_stft",
    metrics=("si_sdr",),  # the improvement over the mixture
    best="best-states-dev.ckpt",
    preset="ss/superb",
    variables={"LIBRI2MIX_SEPARATION": "Libri2Mix, prepared for separation"},
    reads=folders("train", "dev", "test"),
    settings="loaderrc",
    counts={name: means(name, name) for name in ("si_sdr", "stoi", "pesq")},
    writes=("*_metrics.txt",),
    decoder="s3prl_ext.prediction.separation:SourceDecoder",
    superb=("si_sdr",),
    frame_below="datarc.win_length",
    single_clips=SingleClips("loaderrc.eval_batchsize"),
    modules=("s3prl.downstream.separation_stft.expert",),
    needs=NEEDS,
)
