"""Names of an upstream and of a file are matched by their tails and shapes, or refused."""

from __future__ import annotations

import pytest

from s3prl_ext.deltas.tensor_names import match_names
from s3prl_ext.errors import DataError

UPSTREAM = {"model.layer_norm.weight": (4,), "model.encoder.layer_norm.weight": (4,), "model.encoder.fc.weight": (8, 4)}


def strip(names: dict, prefix: str) -> dict:
    return {prefix + name.removeprefix("model."): shape for name, shape in names.items()}


@pytest.mark.parametrize("prefix", ["", "hubert.", "encoder.model.", "model."])
def test_prefixes(prefix):
    matches = match_names(UPSTREAM, strip(UPSTREAM, prefix) | {"lm_head.weight": (3, 4)}, "file")
    assert matches == {name: prefix + name.removeprefix("model.") for name in UPSTREAM}


def test_weight_norm_of_older_files():
    new = UPSTREAM | {f"model.encoder.pos.parametrizations.weight.original{i}": (2, i + 1) for i in (0, 1)}
    old = strip(UPSTREAM, "hubert.") | {"hubert.encoder.pos.weight_g": (2, 1), "hubert.encoder.pos.weight_v": (2, 2)}
    assert match_names(new, old, "file")["model.encoder.pos.parametrizations.weight.original1"].endswith("weight_v")
    assert match_names(old, new, "file")["hubert.encoder.pos.weight_g"].endswith("original0")


def test_another_shape_does_not_match():
    file = strip(UPSTREAM, "") | {"encoder.fc.weight": (4, 8)}
    assert set(match_names(UPSTREAM, file, "file")) == set(UPSTREAM) - {"model.encoder.fc.weight"}


def test_two_models_in_a_file_are_refused():
    with pytest.raises(DataError, match="several models"):
        match_names(UPSTREAM, strip(UPSTREAM, "a.") | strip(UPSTREAM, "b."), "file.pt")


def test_a_foreign_file_is_refused():
    with pytest.raises(DataError, match=r"file\.pt has no tensor of this upstream"):
        match_names(UPSTREAM, {"x": (4,)}, "file.pt")
