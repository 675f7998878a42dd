"""Speech recognition on LJ Speech with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks.recognition import recognition

TASK = recognition("ljspeech", "ljspeech/mam", "LJSPEECH", "LJ Speech", "ljspeech")
