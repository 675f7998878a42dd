"""Speech recognition on LibriSpeech (SUPERB's ASR)."""

from __future__ import annotations

from s3prl_ext.tasks.counts import edits, words
from s3prl_ext.tasks.record import OtherFigure, Reads, Task, Utterances

DECODING = "downstream_expert.datarc.decoder_args"
WITH_LM = "kenlm"  # decoder_type

TASK = Task(
    name="asr",
    downstream="asr",
    metrics=("wer",),
    dev="dev-clean",
    test="test-clean",
    best="dev-clean-best.ckpt",
    preset="asr/superb",
    variables={"LIBRISPEECH": "LibriSpeech"},
    reads=(
        Reads("datarc.libri_root", parts="datarc"),
        Reads("datarc.bucket_file", divides=("*.csv",)),
        Reads("datarc.dict_path"),
    ),
    divides_batches=2,  # every full bucket whose longest clip has more than 2000 samples
    counts={"wer": edits("target_words", "pred_words"), "uer": edits("target_tokens", "pred_tokens", words)},
    utterances=Utterances("{}-noLM-hyp.ark", "{}-noLM-ref.ark", "wer", "words"),
    other_figure=OtherFigure(
        f"{DECODING}.decoder_type",
        WITH_LM,
        "with LM",
        Utterances("{}-LM-hyp.ark", "{}-LM-ref.ark", "wer", "words"),
    ),
    writes=("*.ark",),
    decoder="s3prl_ext.prediction.transcription:words",
    superb=("wer",),
    modules=("s3prl.downstream.asr.expert",),
)
