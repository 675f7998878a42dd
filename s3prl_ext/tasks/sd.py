"""Speaker diarization on Libri2Mix (SUPERB's SD)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import means
from s3prl_ext.tasks.record import Reads, SingleClips, Task

LISTS = ("segments", "utt2spk", "reco2dur", "spk2utt")  # of a Kaldi data folder

TASK = Task(
    name="sd",
    downstream="diarization",
    metrics=("der",),
    best="best-states-dev.ckpt",
    kept_by="acc",  # of frames
    preset="sd/superb",
    variables={"LIBRI2MIX_DIARIZATION": "Libri2Mix, prepared for diarization"},
    reads=tuple(Reads(f"loaderrc.{split}_dir", divides=LISTS) for split in ("train", "dev", "test")),
    counts={"der": means("der", "recording")},  # s3prl's mean over recordings
    built=("frame_shift",),
    places={"expdir": "", "logging": "log.log", "score_dir": "scoring"},
    decoder="s3prl_ext.prediction.diarization:TurnDecoder",
    superb=("der",),  # as SUPERB scores it, see s3prl_ext.evaluation.diarization_scoring
    single_clips=SingleClips("loaderrc.eval_batchsize", "DER and accuracy are means over batches, which it changes"),
    modules=("s3prl.downstream.diarization.expert",),
)
