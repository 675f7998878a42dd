"""The page of tasks, methods and families equals the records, and every cell of methods and families is what happens."""

from __future__ import annotations

import pytest

from s3prl_ext import adapters
from s3prl_ext.errors import UsageError
from s3prl_ext.models.architectures import find_architecture
from s3prl_ext.training.methods import METHODS, prepare_upstream, resolve_tuning
from tests.adapters.models import MODELS, WITHOUT_BLOCKS, WITHOUT_PREFIX, build
from tests.support import coverage_table

OPTIONS = {"child": {"mask": "random", "density": 0.05}}


def test_the_page_equals_the_records():
    assert coverage_table.PAGE.read_text(encoding="utf-8") == coverage_table.page(), (
        "write it anew: python -m tests.support.coverage_table"
    )


def test_every_family_of_the_page_has_a_tiny_model(tmp_path):
    found = {find_architecture(n for n, _ in build(name, tmp_path).named_parameters()).name for name in MODELS}
    assert {row.name for row in coverage_table.families()} == found


@pytest.mark.parametrize("name", MODELS)
def test_every_method_fits_or_is_refused_as_the_page_says(name, tmp_path):
    for method in METHODS:
        model = build(name, tmp_path).requires_grad_(True)
        row = find_architecture(parameter for parameter, _ in model.named_parameters())
        tuning = resolve_tuning({}, {"method": method} | OPTIONS.get(method, {}))
        if coverage_table.refusal(method, row) is not None:
            with pytest.raises(UsageError, match="choose houlsby"):
                prepare_upstream(model, tuning)
            continue
        prepare_upstream(model, tuning)
        assert any(p.requires_grad for p in model.parameters()) == METHODS[method].trains_upstream, method
        assert (method in adapters.inserted(model)) == (method in adapters.ADAPTERS)


def test_the_lists_of_the_tests_of_adapters_are_those_of_the_page(tmp_path):
    for name in MODELS:
        row = find_architecture(parameter for parameter, _ in build(name, tmp_path).named_parameters())
        assert bool(row.lacks(["blocks"])) == (name in WITHOUT_BLOCKS), name
        assert bool(row.lacks(["mask"])) == (name in WITHOUT_PREFIX), name
