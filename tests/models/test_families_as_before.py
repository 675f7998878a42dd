"""What the table of architectures gives for a tiny model of every family: equal to the tables that came before it.

``tests/fixtures/families.json`` holds what 0.1.0 gave. ``python -m tests.models.test_families_as_before`` prints it anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn

from s3prl_ext.adapters.architectures import dimensions, find_encoder
from s3prl_ext.attention.layouts import find_attention
from s3prl_ext.child_tuning.eligible import eligible_names
from s3prl_ext.commands.methods import rows
from s3prl_ext.errors import ExtError
from s3prl_ext.evaluation.layer_share_plot import LayerShares
from s3prl_ext.training.parameter_groups import RatesConfig, upstream_rates
from tests.adapters.models import MODELS
from tests.support import factories

FIXTURE = Path(__file__).parent.parent / "fixtures" / "families.json"
SOURCES = (
    "bert",
    "roberta",
    "vit",
    "deit",
    "ast",
    "mgp_str",
    "distilbert",
    "modernbert",
    "dinov2",
)  # what only a merge reads


def load_source(name: str, folder: Path) -> nn.Module:
    path = getattr(factories, f"{name}_folder")(folder / name)
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    return getattr(transformers, architecture).from_pretrained(path)


def digest(lines: list[Any]) -> str:
    return f"{len(lines)} {hashlib.sha256(json.dumps(lines, default=str).encode()).hexdigest()[:16]}"


def attempt(function: Any) -> Any:
    try:
        return function()
    except ExtError as error:
        return type(error).__name__


def described(model: nn.Module) -> dict[str, Any]:
    """Return all that is known of a model through its family."""
    names = [name for name, _ in model.named_parameters()]
    decay = RatesConfig(lr=1.0, layer_decay=0.5)
    rates = attempt(lambda: upstream_rates(model, decay))
    eligible = attempt(lambda: eligible_names(names))
    known = {
        "attention": attempt(lambda: _attention(model)),
        "eligible": eligible if isinstance(eligible, str) else digest(eligible),
    }
    if isinstance(eligible, str):  # what only a merge reads
        return known
    return known | {
        "dimensions": attempt(lambda: json.loads(json.dumps(dataclasses.asdict(dimensions(model))))),
        "projections": attempt(lambda: list(find_encoder(model).projections())),
        "layer_decay": rates if isinstance(rates, str) else digest([rates[p].factor for p in model.parameters()]),
        "methods": [[row.method, row.trained] for row in rows(model)],
        "modules": attempt(lambda: _modules(model, eligible)),
    }


def _attention(model: nn.Module) -> list[Any]:
    keys = find_attention(model.state_dict(), "the model")
    return [
        keys.architecture.name,
        keys.prefix,
        keys.layers,
        digest([[*slot, key] for slot, key in keys.names.items()]),
    ]


def _modules(model: nn.Module, eligible: Any) -> list[Any]:
    """Return the modules of the picture of trained weights, and the number of weights in each module and layer."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if name in eligible}
    names, _ = LayerShares("", sizes, sizes).by_module()
    shares = LayerShares("", {name: 1 for name in sizes}, sizes).by_module()[1]
    return [names, digest(shares.round(9).tolist())]


def families(folder: Path) -> dict[str, Any]:
    models = {name: lambda build=build: build(folder) for name, build in MODELS.items()}
    models |= {name: lambda name=name: load_source(name, folder) for name in SOURCES}
    return {name: described(build()) for name, build in models.items()}


@pytest.mark.parametrize("name", [*MODELS, *SOURCES])
def test_family_is_read_as_before(name, tmp_path):
    model = MODELS[name](tmp_path) if name in MODELS else load_source(name, tmp_path)
    assert json.loads(json.dumps(described(model))) == json.loads(FIXTURE.read_text())[name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        json.dump(families(Path(place)), sys.stdout, indent=1)
