"""An experiment on miniature Speech Commands with a tiny HuBERT, built and trained in this process."""

from __future__ import annotations

import random
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import s3prl_ext
from tests.support import factories


@pytest.fixture(scope="session")
def hubert_ckpt(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny HuBERT in s3prl's own format, for -u hubert_local -k."""
    path = tmp_path_factory.mktemp("hubert") / "hubert.pt"
    factories.hubert_local_ckpt(path)
    return str(path)


@pytest.fixture(scope="session")
def hubert_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny HuBERT as transformers saves it, for -u hf_hubert_custom -k."""
    path = tmp_path_factory.mktemp("hf_hubert")
    factories.hubert_folder(path)
    return str(path)


@pytest.fixture
def corpus_variables(mini_superb: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corpus variables of the miniature corpora, as `. env.sh` sets them."""
    for name, value in re.findall(r"export (\w+)=[\"']?([^\"'\n]+)", (mini_superb / "env.sh").read_text()):
        monkeypatch.setenv(name, value)
    return mini_superb


@pytest.fixture
def build(corpus_variables: Path) -> Callable[..., Any]:
    """Build a Runner as s3prl's main does: seed, then construct. `stock=True` builds s3prl's own Runner."""
    s3prl_ext.install()

    def make(args: Namespace, config: dict[str, Any], stock: bool = False) -> Any:
        from s3prl_ext.configs import expand_variables
        from s3prl_ext.training.runner import Runner, StockRunner

        random.seed(args.seed)
        np.random.seed(args.seed)
        torch.manual_seed(args.seed)
        return StockRunner(args, expand_variables(config)) if stock else Runner(args, config)

    return make
