"""A finished sweep read again: complete or refused by name, whatever is damaged."""

from __future__ import annotations

import json

from s3prl_ext.errors import DataError
from s3prl_ext.sweeps.stored import read_sweep
from tests.support.result_files import damaged
from tests.support.sweep_files import GROUPS, write_sweep


def test_whatever_is_damaged_is_named_or_does_no_harm(tmp_path):
    path = write_sweep(tmp_path / "sweep", groups=GROUPS[1:2])
    whole = json.loads(path.read_text())
    whole["results"] = dict(list(whole["results"].items())[:4])
    refused = 0
    for _, broken in damaged(whole, values=(None, 5, "x", [])):
        path.write_text(json.dumps(broken))
        try:
            sweep = read_sweep(path)
            assert all(run.values for run in sweep.runs()) and sweep.title
        except DataError as error:
            refused += str(path) in str(error)
    assert refused > 100


def test_the_number_of_utterances_where_it_is_known(tmp_path):
    path = write_sweep(tmp_path / "sweep")
    assert read_sweep(path).items("dev") is None
    content = json.loads(path.read_text())
    for result in content["results"].values():
        result["items"] = 120
    path.write_text(json.dumps(content))
    assert read_sweep(path).items("test") == 120
