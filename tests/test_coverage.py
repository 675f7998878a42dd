"""The page of tasks, methods and families equals the records, and every cell of methods and families is what happens."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from s3prl_ext import adapters
from s3prl_ext.errors import UsageError
from s3prl_ext.models.architectures import Architecture, find_architecture
from s3prl_ext.training.methods import METHODS, prepare_upstream, resolve_tuning
from tests.adapters.models import MODELS, WITHOUT_BLOCKS, WITHOUT_PREFIX, build
from tests.support import coverage_table

OPTIONS = {"child": {"mask": "random", "density": 0.05}}


def test_the_page_equals_the_records():
    assert coverage_table.PAGE.read_text(encoding="utf-8") == coverage_table.page(), (
        "write it anew: python -m tests.support.coverage_table"
    )


@pytest.fixture(scope="module")
def row_of(tmp_path_factory) -> Callable[[str], Architecture]:
    """Return the row of a tiny model of tests/adapters, which is built once."""

    @functools.cache
    def row(name: str) -> Architecture:
        parameters = build(name, tmp_path_factory.mktemp(name)).named_parameters()
        return find_architecture(parameter for parameter, _ in parameters)

    return row


@pytest.mark.parametrize("name", MODELS)
def test_every_method_fits_or_is_refused_as_the_page_says(name, row_of, tmp_path):
    row, model = row_of(name), build(name, tmp_path)
    assert (bool(row.lacks(["blocks"])), bool(row.lacks(["mask"]))) == (name in WITHOUT_BLOCKS, name in WITHOUT_PREFIX)
    for method in METHODS:
        tuning = resolve_tuning({}, {"method": method} | OPTIONS.get(method, {}))
        model.requires_grad_(True)
        if coverage_table.refusal(method, row) is not None:
            with pytest.raises(UsageError, match="choose houlsby"):
                prepare_upstream(model, tuning)
            continue
        prepare_upstream(model, tuning)
        assert any(p.requires_grad for p in model.parameters()) == METHODS[method].trains_upstream, method
        assert (method in adapters.inserted(model)) == (method in adapters.ADAPTERS)
        if adapters.inserted(model):
            adapters.remove(model)


def test_every_family_of_the_page_has_a_tiny_model(row_of):
    assert {row.name for row in coverage_table.families()} == {row_of(name).name for name in MODELS}
