"""The decoder of a Whisper as the target of a merge: it is merged in the head that transcribes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3prl_ext.downstreams.recognition.recognizers import CtcRecognizer
from s3prl_ext.downstreams.recognition.whisper_head import WhisperRecognizer
from s3prl_ext.upstreams.merged_attention.decoder import check_decoder, decoder_merge, merge_decoder

UNMERGED = "unmerged_decoder"  # argument of a sweep, which merges one arm after another itself


def apply_merge(recognizer: CtcRecognizer | WhisperRecognizer, args: Mapping[str, Any]) -> None:
    """Merge the decoder of a recognizer where the upstream's configuration has ``target.prefix: decoder``.

    Args:
        args: the arguments of ``run_downstream.py``.

    Raises:
        UsageError: the task has another head than the decoder to be merged, or the models do not fit each other.
        DataError: the decoder is another model's.
    """
    config = decoder_merge(args)
    if config is None:
        return
    holder = recognizer.head if isinstance(recognizer, WhisperRecognizer) else None
    check_decoder(holder, config)
    if holder is not None and not args.get(UNMERGED):
        merge_decoder(holder, config)
