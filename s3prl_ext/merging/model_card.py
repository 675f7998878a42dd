"""The README.md of a merged model: what it is made of, how to use it, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.merging.merge import MergeRow
from s3prl_ext.merging.methods import MERGE_METHODS
from s3prl_ext.models.card import write_card
from s3prl_ext.tables import grid

ABOUT = (
    "The query, key and value matrices of a target model, {how}. Everything else is the target's, bit for bit. Method: "
    "Multimodal Attention Merging for Improved Speech Recognition and Audio Event Classification (MAM)."
)
LICENCE = (
    "A merged model is made from all of the models above: the licences of each of them apply together. "
    "Read their cards before you pass it on."
)


@dataclass(frozen=True)
class Usage:
    """How a merged model is loaded.

    Attributes:
        upstream: flags for ``s3prl-ext run``.
        python: lines of Python, or empty.
    """

    upstream: str
    python: str = ""


def model_card(
    title: str,
    record: Mapping[str, Any],
    rows: Sequence[MergeRow],
    merged_sha256: str,
    config_yaml: str,
    usage: Usage,
    hub_ids: Sequence[str] = (),
) -> str:
    """Return the card as Markdown with the header that the Hugging Face hub reads.

    Args:
        title: name of the model.
        record: the merge as :func:`s3prl_ext.upstreams.merged_attention.expert.merge_record` describes it.
        rows: one per merged tensor and source.
        merged_sha256: hash of the merged attention parameters.
        config_yaml: the configuration as a file that makes the model again.
        usage: how to load it.
        hub_ids: those of the models that are on the Hugging Face hub.
    """
    python = f"\n\n```python\n{usage.python}\n```" if usage.python else ""
    sections = {
        "Models": _models(record, merged_sha256),
        "λ": _lambdas(record, rows),
        "Use": f"```sh\n{usage.upstream}\n```{python}",
        "Make it again": (
            "```sh\ns3prl-ext merge -g merge.yaml --out NEW_FOLDER\n```\n\n`merge.yaml` (paths are relative to where "
            f"the command was given):\n\n```yaml\n{config_yaml.strip()}\n```"
        ),
        "Licence": LICENCE,
    }
    how = MERGE_METHODS[(record.get("method") or {"name": "linear"})["name"]].about
    return write_card(title, ABOUT.format(how=how), sections, ["merge", "multimodal-attention-merging"], hub_ids)


def _models(record: Mapping[str, Any], merged_sha256: str) -> str:
    rows: list[list[object]] = []
    models = [("target", record["target"])]
    for source in record["sources"]:
        models += [("source", source), *([("base", source["base"])] if source.get("base") else [])]
    for role, model in models:
        cells = (model["layers"], model["width"], f"`{model['attention_sha256']}`")
        rows.append([role, model["name"], *(cells if model["layers"] is not None else ("-", "-", "-"))])
    target = record["target"]
    rows.append(["merged", "this one", target["layers"], target["width"], f"`{merged_sha256}`"])
    return grid(["role", "model", "layers", "width", "SHA-256 of query, key and value"], rows)


def _lambdas(record: Mapping[str, Any], rows: Sequence[MergeRow]) -> str:
    """Return a table with lambda of each source, layer and projection, and the largest relative change of a layer."""
    if not rows:
        return "λ is 0 everywhere: this is the target."
    several = len(record["sources"]) > 1
    head = ["layer", *(["source"] if several else []), "source layer", *PROJECTIONS, "largest relative change"]
    lines: list[list[str]] = []
    groups: dict[tuple[int, str, int], list[MergeRow]] = {}
    for row in rows:
        groups.setdefault((row.layer, row.source, row.source_layer), []).append(row)
    for (layer, source, source_layer), members in groups.items():
        values = {row.projection: f"{row.lambda_:g}" for row in members}
        change = max(row.relative_change for row in members)
        cells = [str(layer), *([source] if several else []), str(source_layer)]
        cells += [values.get(projection, "0") for projection in PROJECTIONS]
        lines.append([*cells, f"{change:.4f}"])
    biases = "\n\nThe biases are merged with the same λ." if record["biases"] else ""
    kept = [row.kept for row in rows if row.kept is not None]
    projected = ""
    if kept:
        projected = (
            "\n\nSources of another size or other heads were projected into the target's shape: "
            f"{min(kept):.2f} to {max(kept):.2f} of the norm of a matrix is kept."
        )
    return grid(head, lines) + biases + projected
