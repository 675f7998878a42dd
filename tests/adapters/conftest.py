"""The experiments of tests/training, for training with adapters."""

from tests.training.conftest import build, corpus_variables, hubert_ckpt, hubert_folder

__all__ = ["build", "corpus_variables", "hubert_ckpt", "hubert_folder"]
