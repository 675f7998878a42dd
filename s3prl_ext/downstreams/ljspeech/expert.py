"""Speech recognition on LJ Speech: ``-d ljspeech``."""

from __future__ import annotations

from s3prl_ext.corpora.ljspeech import CORPUS
from s3prl_ext.downstreams.recognition.task import RecognitionTask


class DownstreamExpert(RecognitionTask):
    """CTC speech recognition on LJ Speech; see :class:`s3prl_ext.downstreams.recognition.task.RecognitionTask`."""

    name, corpus = "ljspeech", CORPUS
