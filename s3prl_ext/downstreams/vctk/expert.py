"""Speech recognition on VCTK: ``-d vctk``."""

from __future__ import annotations

from s3prl_ext.corpora.vctk import CORPUS
from s3prl_ext.downstreams.recognition.task import RecognitionTask


class DownstreamExpert(RecognitionTask):
    """CTC speech recognition on VCTK; see :class:`s3prl_ext.downstreams.recognition.task.RecognitionTask`."""

    name, corpus = "vctk", CORPUS
