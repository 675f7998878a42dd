"""How layers by similarity are written in a configuration."""

from __future__ import annotations

import pytest

from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import parse_config
from s3prl_ext.merging.layer_selection import LayerTable, ranking, top_k
from s3prl_ext.merging.resolution import resolve_lambdas
from s3prl_ext.merging.selection_config import ComparisonSettings, LayerSelection, parse_selection, parse_settings

WRITTEN = {"by": "swd", "top_k": 6, "pairs": "p.tsv"}


def test_a_selection_is_read():
    assert parse_selection(WRITTEN) == LayerSelection("swd", 6, pairs="p.tsv")
    full = {
        "share": "1e-1",
        "seed": 3,
        "projections": 400,
        "normalize": True,
        "level": "frame",
        "special_tokens": False,
    }
    settings = ComparisonSettings("frame", True, 400, False, 0.1, 3)
    assert parse_selection(WRITTEN | full | {"root": "/r"}) == LayerSelection(
        "swd", 6, None, "p.tsv", "/r", None, settings
    )
    assert parse_selection({"by": "swd", "top_k": 2, "from": "layers.json"}).file == "layers.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "swf"}, "unknown metric 'swf'; did you mean 'swd'"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"top_k": "six"}, "top_k must be a whole number of at least 1, got 'six'"),
        ({"top_k": True}, "top_k must be a whole number of at least 1"),
        ({"tpo_k": 3}, "unknown key 'tpo_k'; did you mean 'top_k'"),
        ({"pairs": 3}, "pairs must be a name, got 3"),
        ({"from": "x"}, "either pairs .* or from"),
        ({"share": 0}, r"share must be in \(0, 1\], got 0"),
        ({"share": 1.5}, r"share must be in \(0, 1\], got 1.5"),
        ({"share": "much"}, "share must be a number"),
        ({"projections": 0}, "projections must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"normalize": "yes"}, "normalize must be true or false"),
        ({"level": "token"}, "unknown level 'token'"),
        ({"level": "frame", "by": "euclidean"}, "which euclidean cannot: use swd"),
    ],
)
def test_each_problem_has_its_sentence(changes, message):
    with pytest.raises(UsageError, match=f"layers.*{message}"):
        parse_selection(WRITTEN | changes)


def test_all_problems_are_reported_together():
    with pytest.raises(
        UsageError, match="(?s)unknown key 'x'.*either pairs.*layers.by is missing.*layers.top_k is missing"
    ):
        parse_selection({"x": 1})
    with pytest.raises(UsageError, match="share, root cannot be set with from"):
        parse_selection({"by": "swd", "top_k": 1, "from": "f", "share": 0.2, "root": "/"})
    with pytest.raises(UsageError, match="(?s)unknown metric 'a'.*unknown metric 'b'"):
        parse_settings({}, ["a", "swd", "b"], "here")


def test_a_merge_takes_a_selection_also_for_one_of_several_sources():
    raw = {"target": {"model": "t"}, "lambda": 0.1, "layers": WRITTEN}
    config = parse_config(raw | {"source": {"model": "s"}}, "m.yaml")
    assert config.sources[0].layers == LayerSelection("swd", 6, pairs="p.tsv")
    with pytest.raises(UsageError, match="only known when both models are opened"):
        resolve_lambdas(config, 12)
    several = parse_config(raw | {"sources": [{"model": "a"}, {"model": "b", "layers": "0-3"}]}, "m.yaml")
    assert [type(source.layers) for source in several.sources] == [LayerSelection, str]
    with pytest.raises(UsageError, match="m.yaml: layers: unknown metric 'x'"):
        parse_config(raw | {"source": {"model": "s"}, "layers": {**WRITTEN, "by": "x"}}, "m.yaml")


def test_tables_of_some_layers_choose_by_their_own_numbers():
    table = LayerTable("swd", (3.0, 1.0, 2.0), (0, 4, 8))
    assert top_k(table, 2) == (4, 8) and ranking(table) == (4, 8, 0)
    assert ranking(LayerTable("inner_product", (3.0, 1.0, 3.0))) == (0, 2, 1)
    with pytest.raises(UsageError, match="the number of layers, 3, got 4"):
        top_k(table, 4)
