"""The fetch of an upstream: it is built once, and says whether each seed draws weights of it."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from s3prl_ext.studies import fetch
from tests.support import factories


@pytest.mark.parametrize(("lacks", "drawn"), [((), False), (("masked_spec_embed",), True)])
def test_weights_that_a_file_lacks_are_drawn_by_each_seed(tmp_path, lacks, drawn):
    """The mask embedding of a fine-tuned model; no hidden state depends on it, the hash of all weights does."""
    model = factories.hubert_folder(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    assert set(lacks) <= set(weights)
    kept = {name: tensor for name, tensor in weights.items() if name not in lacks}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    marker = tmp_path / "fetch" / "model"
    assert fetch.main([str(marker), "-u", "hf_hubert_custom", "-k", str(model)]) == 0
    assert json.loads(marker.read_text()) == {"drawn": drawn}


def test_features_without_weights_draw_none(tmp_path):
    assert fetch.main([str(tmp_path / "fbank"), "-u", "fbank"]) == 0
    assert json.loads((tmp_path / "fbank").read_text()) == {"drawn": False}
