"""Speech recognition on VCTK with a model's own head, or a new one."""

from __future__ import annotations

from s3prl_ext.tasks.recognition import recognition

TASK = recognition("vctk", "vctk/mam", "VCTK", "VCTK", "vctk")
