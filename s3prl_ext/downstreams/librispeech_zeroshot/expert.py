"""Speech recognition on LibriSpeech with a model's own head: ``-d librispeech_zeroshot``.

The task ``asr`` of s3prl trains one.
"""

from __future__ import annotations

from s3prl_ext.corpora.librispeech import CORPUS
from s3prl_ext.downstreams.recognition.task import RecognitionTask


class DownstreamExpert(RecognitionTask):
    """Speech recognition on LibriSpeech; see :class:`s3prl_ext.downstreams.recognition.task.RecognitionTask`."""

    name, corpus = "librispeech_zeroshot", CORPUS
