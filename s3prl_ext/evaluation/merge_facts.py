"""Facts of a merge: what of its record tells runs apart, as plain values without names of files, paths or draws.

:data:`MERGE` lists them. ``lambda``, ``layers``, ``noise``, ``learnable`` and ``source`` are what tables show first;
the others are ``merge.*``, each only where there is something to say. Together they hold all that
:func:`s3prl_ext.upstreams.merged_attention.record.check_merge_record` compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.merging.learnable_config import LearnableConfig
from s3prl_ext.merging.recorded import of_basis, pairs_sha256, used_layers, without_pairs

Record = Mapping[str, Any]

MERGE = ("lambda", "layers", "noise", "learnable", "source", "merge")  # facts, and groups of facts, of a merge
# Of ``merge.*`` those that are hashes.
HASHES = tuple(f"merge.{name}_sha256" for name in ("target", "source", "base", "align", "pairs"))
# In what a merge may differ from MAM's, in the order in which it is said.
OTHERWISE = ("method", "biases", "align", "projections", "layer_map", "lambda", "sources", "learnable")


LONG = 60  # characters; what is longer is not said in the name of a row


def merge_facts(merge: Record | None, layers: str | None = None) -> dict[str, Any]:
    """Return the facts of a merge; empty where nothing was merged.

    ``lambda`` is one number where it is the same in all merged layers, otherwise a text with the values of each source.
    Where lambda is 0 throughout, it is the same model whatever was not merged into it: only the target counts.

    Args:
        merge: ``merge`` of a result file.
        layers: what the merged layers are called; None to name them here.
    """
    if not merge:
        return {}
    learnt, sources = merge.get("learnable"), merge["sources"]
    target = {"merge.target_sha256": _short((merge.get("target") or {}).get("attention_sha256"))}
    if not learnt and not any(value for source in sources for row in source["lambda"].values() for value in row):
        return _known({"lambda": 0.0, "layers": "none", "noise": "none", "learnable": False} | target)
    depth, sections = len(next(iter(sources[0]["lambda"].values()))), _learnt_by_source(learnt, len(sources))
    used = [used_layers(source, section.get("layers", [])) for source, section in zip(sources, sections, strict=True)]
    merged = sorted({layer for own in used for layer in own})
    numbers, chosen = name_layers(merged, depth), sources[0].get("layer_selection") or merge.get("layer_selection")
    name = layers or (f"{chosen['by']} top-{chosen['top_k']}" if chosen else numbers)
    values = [_values(source) for source in sources]
    extents = [name_layers(section.get("layers", []), depth) for section in sections]
    noises = [source["noise"]["kind"] if source.get("noise") else "none" for source in sources]
    facts = {
        "lambda": values[0][0] if len(values) == len(values[0]) == 1 else "; ".join(map(_listed, values)),
        "layers": name,
        "noise": noises[0] if len(set(noises)) == 1 else "; ".join(noises),
        "learnable": _learnable(learnt),
        "source": _joined([_name(source) for source in sources]),
        **target,
        "merge.method": described_method(merge["method"]) if merge.get("method") else None,
        "merge.biases": merge.get("biases") or None,
        "merge.sources": len(sources) if len(sources) > 1 else None,
        "merge.layers": numbers if name != numbers else None,
        "merge.lambda": _by_layer(sources, merged, depth),
        "merge.learnable": f"layers {'; '.join(extents)}" if len(set(extents)) > 1 else None,
    }
    own = [_of_source(*each) for each in zip(sources, used, sections, strict=True)]
    return _known(facts | {f"merge.{key}": _joined([one[key] for one in own]) for key in own[0]})


def deviations(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return in what a merge differs from MAM's, by the name of the fact and in words: ``{"biases": "biases"}``.

    Empty where it is MAM's: one source, one lambda, and in matrices of query, key and value of equal layers, which are
    interpolated as they are.
    """
    found = {name: facts[f"merge.{name}"] for name in OTHERWISE if f"merge.{name}" in facts}
    for name in ("layer_map", "lambda"):  # of many layers
        if len(str(found.get(name, ""))) > LONG:
            found[name] = "of its own" if name == "layer_map" else facts["lambda"]
    words = {"method": "{}", "biases": "biases", "projections": "only {}", "sources": "{} sources", "lambda": "λ {}"}
    return {name: words.get(name, f"{name} {{}}").format(value) for name, value in found.items()}


def described_method(method: Record) -> str:
    """Return how matrices are combined, with its options: ``ties (density 0.2)``."""
    options = [f"{key} {value}" for key, value in method.items() if key != "name" and value is not None]
    return str(method["name"]) + (f" ({', '.join(options)})" if options else "")


def name_layers(layers: Sequence[int], depth: int) -> str:
    """Return ``all``, ``none``, a block such as ``12-19``, or a list such as ``3,5``."""
    if not layers:
        return "none"
    if len(layers) == depth:
        return "all"
    first, last = min(layers), max(layers)
    if len(layers) == last - first + 1 and len(layers) > 1:
        return f"{first}-{last}"
    return ",".join(map(str, sorted(layers)))


def last_part(value: Any) -> Any:
    """Return the last part of a path with folders, and anything else as it is."""
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and "/" in value else value


def _name(source: Record) -> str | None:
    """Return what a source is called; of noise without the number of its draw."""
    name, noise = source.get("name"), source.get("noise") or {}
    return last_part(name.removesuffix(f" (draw {noise.get('draw')}, seed {noise.get('seed')})")) if name else None


def _of_source(source: Record, used: Sequence[int], learnt: Record) -> dict[str, str | None]:
    """Return what is particular about one source; None for each that is as usual."""
    placed = source.get("projection") or {}
    aligned = without_pairs(source.get("align")), of_basis(source), without_pairs(placed)
    kinds = [kind for kind, there in (("heads", aligned[0] or placed.get("paired")), ("basis", aligned[1])) if there]
    projections = [name for name, row in source["lambda"].items() if any(row) or name in learnt.get("projections", ())]
    noise, pairing = source.get("noise") or {}, source.get("layer_map") or ()
    moved = [f"{theirs} in {layer}" for layer, theirs in enumerate(pairing) if layer in used and theirs != layer]
    return {
        "source_sha256": _short(source.get("attention_sha256")),
        "align": "+".join(kinds) or None,
        "projections": "+".join(name[0] for name in projections) if len(projections) < len(PROJECTIONS) else None,
        "layer_map": ", ".join(moved) or None,
        "base_sha256": _short((source.get("base") or {}).get("attention_sha256")),
        "align_sha256": _sha256(aligned) if any(aligned) else None,
        "pairs_sha256": _short(pairs_sha256(source.get("moments"))),
        "noise": ", ".join(f"{key} {noise.get(key)}" for key in ("seed", "statistics", "streams")) if noise else None,
    }


def _learnt_by_source(learnt: Record | None, sources: int) -> list[Record]:
    """Return for each source which layers and projections have a lambda to learn; nothing where it is fixed."""
    section = learnt or {}
    return section.get("sources") or [section] * sources


def _learnable(section: Record | None) -> bool | str:
    """Return whether lambda is learnt; one whose granularity or constraint is not the default is told apart."""
    default = LearnableConfig()
    given = [(section or {}).get(key, getattr(default, key)) for key in ("granularity", "constraint")]
    return ", ".join(given) if given != [default.granularity, default.constraint] else bool(section)


def _values(source: Record) -> list[float]:
    """Return the lambdas of a source, each once, ascending: those above 0, and 0 where there is no other."""
    return sorted({value for row in source["lambda"].values() for value in row if value}) or [0.0]


def _by_layer(sources: Sequence[Record], merged: Sequence[int], depth: int) -> str | None:
    """Return which lambda is where, such as ``0.9 in 0-3, 0.2 in 4-7 q``; None where each source has one throughout."""
    texts, even = [], True
    for source in sources:
        rows = {name: row for name, row in source["lambda"].items() if any(row)}
        even = even and len({row[layer] for row in rows.values() for layer in merged}) < 2
        places: dict[str, list[str]] = {}
        for name, row in rows.items():
            for value in dict.fromkeys(filter(None, row)):
                layers = [layer for layer, other in enumerate(row) if other == value]
                places.setdefault(f"{value:g} in {name_layers(layers, depth)}", []).append(name[0])
        texts.append(
            ", ".join(f"{place} {'+'.join(of)}" if len(of) < len(rows) else place for place, of in places.items())
        )
    return None if even else "; ".join(text or "0" for text in texts)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _joined(values: Sequence[str | None]) -> str | None:
    """Return what the sources have in one text; None where none has anything."""
    return "; ".join(value or "-" for value in values) if any(values) else None


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _short(sha256: Any) -> str | None:
    return None if sha256 is None else str(sha256)[:12]


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
