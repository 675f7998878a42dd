"""Names of the papers' tables and corpora, which flags and settings share. Without numpy."""

from __future__ import annotations

TABLE_NAMES = ("mam.table1", "mam.table2", "mam.table3", "mam.table5", "ad_tuning.table1", "ad_tuning.table2")
MAM_CORPORA = ("ljspeech", "vctk", "esc50")
OWN_HEAD = ("ljspeech", "vctk")  # of these, where MAM's models transcribe with the head that they have
