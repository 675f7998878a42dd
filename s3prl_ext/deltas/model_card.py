"""The README.md of an exported task: what it was made from, how it was tuned, what it scores, how to use it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from s3prl_ext.attention.layouts import PROJECTIONS
from s3prl_ext.configs import value_at
from s3prl_ext.merging.methods import MERGE_METHODS
from s3prl_ext.metrics import METRICS
from s3prl_ext.models.card import CardScore, write_card
from s3prl_ext.tables import grid
from s3prl_ext.tasks import task_of
from s3prl_ext.tasks.record import scored_part
from s3prl_ext.training.run_spec import UPSTREAM_ARGUMENTS, RunSpec
from s3prl_ext.upstreams.merged_attention.record import MergeRecord

HEAD_FILE, TASK_FILE, TRAINING_FILE = "head.ckpt", "task.yaml", "training.yaml"

ABOUT = (
    "A speech model with the weights that training on one task gave it, as a plain model, and the head of that task. "
    "Loaded again it has the tuned weights bit by bit."
)
LICENCE = (
    "The licence of the base model holds for this one too, and the terms of the corpus it was trained on; of a merged "
    "model those of all models above together. Read their cards before you pass it on."
)
RATIO = "between 0 and 1"

Score = tuple[float, Sequence[float] | None]  # value, ends of its 95 % interval


@dataclass(frozen=True)
class ExportRecord:
    """What is known of an exported model.

    Section ``model`` of its record, and what its card says beyond the task's info.

    Attributes:
        title: name of the exported model.
        upstream: flags ``-u`` and ``-k`` that load it, or empty where s3prl has no upstream for it.
        python: lines of Python that load it.
        source: the delta or checkpoint it was written from.
        base_sha256: hash of the untuned upstream.
        tuned_sha256: hash of the tuned one.
        changed: number of the upstream's weights that trained, None for all.
        added: number of an adapter's weights that were folded.
        head: number of weights of the task's head and featurizer.
        total: number of the upstream's weights.
        merge: record of a merged upstream, or None.
        learnt: learnt lambdas by name.
        hub_ids: those of the models that are on the Hugging Face hub.
        evaluations: by split and metric what later evaluations of the same checkpoint found.
    """

    title: str
    upstream: str
    python: str
    source: str
    base_sha256: str
    tuned_sha256: str
    changed: int | None
    added: int
    head: int
    total: int
    merge: MergeRecord | None = None
    learnt: Mapping[str, float] | None = None
    hub_ids: Sequence[str] = ()
    evaluations: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)

    @property
    def trained(self) -> int | None:
        """Number of weights that trained in the upstream, an adapter's included; None for all."""
        return None if self.changed is None else self.changed + self.added


def model_card(info: Mapping[str, Any], record: ExportRecord) -> str:
    """Return the card as Markdown with the header that the Hugging Face hub reads.

    Args:
        info: what a delta says of itself.
        record: what is known of the exported model.
    """
    tags = ["speech", "s3prl", str(info.get("downstream") or "")]
    tags += ["multimodal-attention-merging"] if record.merge else []
    again = (
        f"```sh\n{training_command(RunSpec.of(info))}\ns3prl-ext export --delta exp/again --out NEW_FOLDER\n```\n\n"
        f"`{TRAINING_FILE}` is the whole task file. Paths are relative to where the command was given."
    )
    scores, parts = _scores(info, record.evaluations), _parts(info, record.evaluations)
    sections = {
        "Model": _model(info, record),
        "Merged upstream": _merge(record.merge, record.learnt or {}) if record.merge else "",
        "Data": _data(info),
        "Scores": "\n\n".join(
            [_score_table(scores), *(f"Of {of} a part was scored: {by}." for of, by in parts.items())]
        ),
        "Use": _use(info, record),
        "Make it again": again,
        "Licence": LICENCE,
    }
    shown = [
        CardScore(str(info.get("downstream")), split, name, METRICS[name].unit, value)
        for split, name, value, _ in scores
        if name in METRICS and split not in parts
    ]
    return write_card(record.title, ABOUT, sections, [tag for tag in tags if tag], record.hub_ids, shown)


def _model(info: Mapping[str, Any], record: ExportRecord) -> str:
    tuning = info.get("tuning") or {}
    options = ", ".join(f"{key}: {value}" for key, value in tuning.items() if key != "method")
    trained = "all but frozen parts"
    if record.trained is not None:
        trained = f"{record.trained:,} of {record.total:,} ({record.trained / record.total:.3%})"
    rows = {
        "base upstream": f"`{info['upstream']}`",
        "its model (-k)": f"`{info['upstream_ckpt']}`" if info.get("upstream_ckpt") else "the upstream's own",
        "its configuration (-g)": f"`{info['upstream_model_config']}`" if info.get("upstream_model_config") else "none",
        "SHA-256 of the base": f"`{record.base_sha256}`",
        "SHA-256 of this model": f"`{record.tuned_sha256}`",
        "task": " ".join(str(info[key]) for key in ("downstream", "downstream_variant") if info.get(key)),
        "method": tuning.get("method") or "as s3prl does it, without a section `tuning`",
        "density": _density(info.get("density"), tuning.get("density")),
        "all settings of the method": options or "none",
        "upstream weights that trained": trained,
        "weights of featurizer and head": f"{record.head:,}",
        "steps": f"{info['step']:,}" if info.get("step") is not None else "unknown",
        "seed": info.get("seed"),
        "written from": f"`{record.source}`",
    }
    return grid(["", ""], rows.items())


def _density(reached: float | None, given: float | None) -> str:
    """Return the density of a task file, with that of a checkpoint from before ``gradual`` reaches it."""
    if reached is None or given is None or reached == given:
        return str(given or "-")
    return f"{reached:.4g}, on the way to {given:g}"


def _data(info: Mapping[str, Any]) -> str:
    """Return what the task was trained on: the paths of its task file, and the hashes of what was there."""
    expert = (info.get("config") or {}).get("downstream_expert") or {}
    reads = task_of(str(info.get("downstream")), expert).reads
    named = {f"`{row.key}`": value_at(expert, row.key) for row in reads}
    found = info.get("data") or {}
    rows = {key: f"`{value}`" for key, value in named.items() if value} | {
        "files": f"{found['files']:,}" if found else "not recorded",
        "SHA-256 of names and sizes": f"`{found['sha256']}`" if found else "not recorded",
        "SHA-256 of the split lists": f"`{found['splits_sha256']}`" if found.get("splits_sha256") else "not recorded",
    }
    return grid(["", ""], rows.items())


def _scores(
    info: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Score]]
) -> list[tuple[str, str, float, Sequence[float] | None]]:
    """Return split, metric, value and interval of each score: those stored with the weights, then later evaluations."""
    stored = {split: {name: (value, None) for name, value in row.items()}
              for split, row in (info.get("metrics") or {}).items()}  # fmt: skip
    found: dict[str, Mapping[str, Score]] = stored | dict(evaluations)
    return [(split, name, *score) for split, metrics in found.items() for name, score in metrics.items()]


def _parts(info: Mapping[str, Any], evaluations: Mapping[str, Any]) -> dict[str, str]:
    """Return by which settings the stored scores are of a part of their split; of later evaluations none is."""
    config = info.get("config") or {}
    task = task_of(str(info.get("downstream")), config.get("downstream_expert"))
    stored = [split for split in info.get("metrics") or {} if split not in evaluations]
    found = {split: scored_part(task, split, lambda key: value_at(config, key)) for split in stored}
    return {split: text for split, text in found.items() if text}


def _score_table(scores: Sequence[tuple[str, str, float, Sequence[float] | None]]) -> str:
    rows = []
    for split, name, value, interval in scores:
        known = METRICS.get(name)
        unit = "" if known is None else known.unit.replace("ratio", RATIO)
        better = "" if known is None else ("higher" if known.higher_is_better else "lower")
        ends = f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else ""
        rows.append((split, name, f"{value:.6g}{ends}", unit, better))
    if not rows:
        return "None were stored with the weights: evaluate it as below."
    return grid(["split", "metric", "value [95 % interval]", "unit", "better is"], rows)


def _merge(record: MergeRecord, learnt: Mapping[str, float]) -> str:
    target, method = record["target"], (record.get("method") or {"name": "linear"})["name"]
    rows = [("target", target["name"], "", f"`{target['attention_sha256']}`")]
    for number, source in enumerate(record["sources"]):
        role = f"source_{number}" if len(record["sources"]) > 1 else "source"  # as in the names of learnt lambdas
        rows.append((role, source["name"], _lambdas(source["lambda"]), f"`{source['attention_sha256']}`"))
        if source.get("base"):
            rows.append(("base", source["base"]["name"], "", f"`{source['base']['attention_sha256']}`"))
    text = (
        grid(["role", "model", "λ", "SHA-256 of query, key and value"], rows)
        + f"\n\nThe target's matrices, {MERGE_METHODS[method].about}; layers counted from 0."
    )
    if learnt:
        values = ", ".join(f"{name} {value:.4f}" for name, value in learnt.items())
        text += f" λ was learnt; the table shows where it began, it ended at: {values}."
    return text


def _lambdas(lambdas: Mapping[str, Sequence[float]]) -> str:
    """Return lambda in words: ``0.1 in layers 4, 5 (q_proj, k_proj, v_proj)``."""
    groups: dict[tuple[float, str], list[str]] = {}
    for projection in PROJECTIONS:
        values = lambdas.get(projection, [])
        for value in sorted({v for v in values if v}):
            layers = ", ".join(str(layer) for layer, v in enumerate(values) if v == value)
            groups.setdefault((value, layers), []).append(projection)
    named = [f"{value:g} in layers {layers} ({', '.join(names)})" for (value, layers), names in groups.items()]
    return "; ".join(named) or "0 everywhere"


def _use(info: Mapping[str, Any], record: ExportRecord) -> str:
    parts = []
    if record.upstream:
        splits = list(info.get("metrics") or {})
        split = next((name for name in splits if "test" in name), splits[0] if splits else "test")
        spec = RunSpec.of(info)
        chosen = [*spec.task_flags, "-c", TASK_FILE, "-i", HEAD_FILE, "-t", split, *spec.flags("seed")]
        flags = " ".join([record.upstream, *chosen])
        parts.append(
            "In this folder, with s3prl (the head is read from its checkpoint, corpus roots are in the task file):\n\n"
            f"```sh\ns3prl-ext run -m evaluate {flags} -p exp/check\n```"
        )
    parts.append(f"```python\n{record.python}\n```")
    return "\n\n".join(parts)


def training_command(spec: RunSpec) -> str:
    """Return the command that trains the task again."""
    upstream, seed = (map(shlex.quote, spec.flags(*names)) for names in (UPSTREAM_ARGUMENTS, ["seed"]))
    return " ".join(["s3prl-ext run -m train", *upstream, *spec.task_flags, "-c", TRAINING_FILE, *seed, "-p exp/again"])
