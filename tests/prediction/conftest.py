"""Fixtures of the predictions' tests: miniature corpora and a Runner built in this process."""

from __future__ import annotations

from tests.training.conftest import build, corpus_variables, hubert_ckpt, hubert_folder

__all__ = ["build", "corpus_variables", "hubert_ckpt", "hubert_folder"]
