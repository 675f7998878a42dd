"""A set of layers means the same wherever it is written: merges, sweeps, adapters, ``train_layers``."""

from __future__ import annotations

import pytest

from s3prl_ext import settings
from s3prl_ext.errors import UsageError
from s3prl_ext.layer_sets import parse_layers
from s3prl_ext.merging.layers import chosen_layers, parse_layer_choice
from s3prl_ext.sweeps.grid import read_grid
from s3prl_ext.training.parameter_groups import RatesConfig

SPELLINGS = {
    "12-19": tuple(range(12, 20)),
    "0 - 2": (0, 1, 2),
    "0-3,8": (0, 1, 2, 3, 8),
    "8, 0-1": (0, 1, 8),
    "7": (7,),
    "1,1,0-1": (0, 1),
}
WRONG = ["9-3", "encoder", "1.5", "-1", "4-", "1;2", "", True, 1.0]


@pytest.mark.parametrize(("value", "expected"), SPELLINGS.items())
def test_one_meaning_everywhere(value, expected):
    for written in (value, value.split(","), list(expected)):
        assert parse_layers(written, None) == parse_layers(written, 24) == expected
        assert settings.layers()(written, "houlsby: layers") == expected
        assert chosen_layers(parse_layer_choice(written), None, 24) == expected
        problems: list[str] = []
        RatesConfig.from_section({"train_layers": written}, problems)
        assert not problems
    (axis,) = read_grid({"lambda": 0.1, "layers": [value]}, {}, False, "grid")["layers"]
    assert parse_layers(axis, 24) == expected


@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_what_no_reader_takes(value):
    readers = [
        lambda: parse_layers(value, None),
        lambda: settings.layers()(value, "layers"),
        lambda: parse_layer_choice(value),
        lambda: read_grid({"lambda": 0.1, "layers": [value]}, {}, False, "grid"),
    ]
    for reader in readers:
        with pytest.raises(UsageError, match="is neither a layer index nor a range"):
            reader()
    problems: list[str] = []
    RatesConfig.from_section({"train_layers": value}, problems)
    assert any("is neither a layer index nor a range" in problem for problem in problems)
