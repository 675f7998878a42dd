"""From the flags of ``s3prl-ext sweep`` to its files: build the models, score the grid, write the results."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from s3prl_ext import locks
from s3prl_ext.attention.weights import AttentionWeights, depth, sha256
from s3prl_ext.configs import value_at
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.aligner import Aligner
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.merging.layers import chosen_layers
from s3prl_ext.merging.merge import Source
from s3prl_ext.merging.noise import STREAMS, NoiseConfig
from s3prl_ext.merging.recorded import pairs_of
from s3prl_ext.merging.selection_config import LayerSelection, parse_selection
from s3prl_ext.models.fingerprint import settings_sha256
from s3prl_ext.papers.names import MAM_CORPORA
from s3prl_ext.studies.config import Resources
from s3prl_ext.studies.engines import open_engine
from s3prl_ext.sweeps import parts, report
from s3prl_ext.sweeps.experiment import SweepRunner, build, experiment_args, remove_if_empty
from s3prl_ext.sweeps.fingerprint import model_sha256
from s3prl_ext.sweeps.grid import BASELINE, Grid, Group, groups_of, printed_by
from s3prl_ext.sweeps.merged import otherwise
from s3prl_ext.sweeps.presets import PRESETS
from s3prl_ext.sweeps.run import Sweep
from s3prl_ext.sweeps.store import PLOT, TABLE, Store, origins_of
from s3prl_ext.sweeps.stored import titled
from s3prl_ext.sweeps.weights import ArmWeights
from s3prl_ext.tasks import task_of
from s3prl_ext.training import last_hidden_state
from s3prl_ext.training.results import provenance
from s3prl_ext.training.run_spec import RunSpec
from s3prl_ext.upstreams.layer_similarity.paired_alignment import align_by_pairs
from s3prl_ext.upstreams.layer_similarity.selection import choose_layers, match_layers
from s3prl_ext.upstreams.merged_attention.models import (
    OpenedMerge,
    OpenedSource,
    find_source,
    open_source,
    source_name,
)
from s3prl_ext.upstreams.merged_attention.record import describe_model
from s3prl_ext.upstreams.merged_attention.sources import aligner_of, prepare_sources

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ModelPair:
    """The two models of a sweep.

    Attributes:
        merge: the merge, with one source; its lambda, layers and noise kind are those of the arms.
        target: views of the target's attention parameters.
        layer_map: source layer for each target layer.
        prepared: the source under the target's slots; its base and the order of its heads.
        aligner: how the source and noise are brought into the target's coordinates, where the merge asks for it.
    """

    merge: OpenedMerge
    target: AttentionWeights
    layer_map: list[int | None]
    prepared: Source
    aligner: Aligner | None

    @property
    def source(self) -> OpenedSource:
        """The source; without weights where only noise is merged that needs none."""
        return self.merge.sources[0]

    @property
    def noise(self) -> NoiseConfig:
        """Seed and statistics of the noise controls."""
        return self.source.section.noise or NoiseConfig("standard")


def run(flags: argparse.Namespace, config: MergeConfig, grid: Grid) -> Path:
    """Build the models, score the grid, and write the results into the folder of ``-p``; return the table's file.

    Args:
        flags: of ``s3prl-ext sweep``.
        config: the merge, with one source.
        grid: as :func:`s3prl_ext.sweeps.grid.read_grid` returns it.

    Raises:
        UsageError, DataError: something does not fit; one sentence.
    """
    with locks.one_run(flags.expdir):
        locks.remove_unfinished(flags.expdir, below=("*", "*/*"))
        return _run(flags, config, grid)


def _run(flags: argparse.Namespace, config: MergeConfig, grid: Grid) -> Path:
    if flags.engine != "local" and flags.jobs == 1 and flags.part is None:
        raise UsageError(f"--engine {flags.engine} divides a sweep among processes: say how many with --jobs.")
    source = _read_source(config, grid)
    args, task = experiment_args(flags)
    try:
        runner = build(args, task, config)
        merge = OpenedMerge(config, [source], None if config.target.prefix else runner.upstream.model)
        pair = _open_pair(runner, match_layers(merge))
        _check_pairs(runner.downstream.model, [pair.source.match, dict(pair.prepared.facts)])
        sweep = _sweep(flags, runner, pair, grid)
        if flags.part is None:
            _say_what_is_ignored(config)
        if pair.source.match is not None:
            sweep.store.content["layer_match"] = pair.source.match
        if flags.part is None:
            parts.settle(sweep.store, flags.overwrite)
        if flags.jobs > 1:
            one = Resources(gpus=1 if args.device == "cuda" else 0)  # cuda:1 names the GPU of all parts
            engine = open_engine(flags.engine, flags.jobs, one, 0, flags.expdir)
            sweep.others = lambda check: parts.score(
                sweep.store, engine, flags.jobs, flags.argv, check, len(sweep.missing_on_dev())
            )
        runner.announce_cache(sweep.splits)
        summary = sweep.run()
    except BaseException:  # the Runner of a command ends with SystemExit
        remove_if_empty(flags.expdir)
        raise
    if sweep.part is not None:
        return sweep.store.path
    merged = source_name(dataclasses.replace(source.section, noise=None)) if source.path else "noise"
    content = sweep.store.content
    title = titled(_without_folders(merged), _without_folders(pair.merge.name), args.downstream, content)
    paper, words = _paper(flags, args.downstream), otherwise(content)
    if paper and words:
        logger.warning("MAM's figures are left out, which are of other merges than this one (%s)", ", ".join(words))
    return _write(sweep, summary, title, None if words else paper)


def _say_what_is_ignored(config: MergeConfig) -> None:
    """Log what else than one lambda, and which layers, the configuration asks for: the grid decides both."""
    (source,) = config.sources
    values = list(source.lambda_.values())
    if not isinstance(values[0], (int, float)) or any(value != values[0] for value in values):
        logger.warning(
            "an arm of a sweep has one lambda for all layers and projections: those of the configuration are ignored."
        )
    if source.layers != "all":
        logger.warning("a sweep takes its layers from --layers or --grid: those of the configuration are ignored.")


def _paper(flags: argparse.Namespace, downstream: str | None) -> str | None:
    """Return the corpus whose figures of the MAM paper are shown next to ours; None for none."""
    paper = flags.paper or (downstream if flags.grid in PRESETS else None)
    return paper if paper in MAM_CORPORA else None


def _without_folders(name: str) -> str:
    """Return a model's name for a title: of an absolute path the last part only."""
    return " ".join(Path(part).name if Path(part).is_absolute() else part for part in name.split(" "))


def _read_source(config: MergeConfig, grid: Grid) -> OpenedSource:
    """Return the source; without weights where the grid has only noise that needs none."""
    source = config.sources[0]
    kinds = {*grid["noise"], *(noise for arm in grid["arms"].values() for noise in arm["noise"])}
    if source.base_for(config.combination) is not None and kinds - {"none"}:
        noises = ", ".join(sorted(kinds - {"none"}))
        raise UsageError(
            f"noise {noises} replaces a source's matrices, but {config.combination.name} merges what training changed: "
            "take noise none only."
        )
    if source.model or source.package:
        return open_source(source, find_source(source))
    if kinds & {"none", "source"}:
        needed = " and ".join(sorted(kinds & {"none", "source"}))
        raise UsageError(f"noise {needed} needs a source model: name it in the merge.")
    return open_source(source, None)


def _open_pair(runner: SweepRunner, merge: OpenedMerge) -> ModelPair:
    """Check that the models fit each other, and return them."""
    target = runner.target_attention
    merge = align_by_pairs(merge)
    (source,) = merge.sources
    unmerged = dataclasses.replace(
        source.section,
        layers="all",
        noise=None if source.path else NoiseConfig("standard"),
        lambda_=dict.fromkeys(source.section.lambda_, 0.0),
    )
    (prepared,) = prepare_sources(merge.with_sources([dataclasses.replace(source, section=unmerged)]), target)
    layers = prepared.layers if prepared.layers is not None else range(depth(target))
    return ModelPair(merge, target, list(layers), prepared, aligner_of(merge, source))


def _sweep(flags: argparse.Namespace, runner: SweepRunner, pair: ModelPair, grid: Grid) -> Sweep:
    """Return the sweep, ready to run."""
    config, source = pair.merge.config, pair.source.section
    groups = groups_of(
        grid,
        lambda layers: chosen_layers(layers, source.layer_map, depth(pair.target)),
        lambda by, k: _similar(by, k, flags.similarity, pair, runner.downstream.model),
    )
    weights = ArmWeights(
        pair.target,
        pair.source.weights,
        pair.layer_map,
        list(source.lambda_),
        config.biases,
        pair.noise,
        method=config.combination,
        base=pair.prepared.base,
        aligner=pair.aligner,
        moments=pair.prepared.moments,
    )
    runner.open_cache()
    origin = _origin(runner.args.device)
    store = Store(flags.expdir, _settings(runner, pair), flags.overwrite, origin)
    _say_other_origin(store, origin)
    first = {"date": _now(), **origin} if not store.content["results"] else {}
    ckpt = Path(flags.upstream_ckpt).name if flags.upstream_ckpt else None
    named = {"upstream": flags.upstream, "upstream_ckpt": ckpt}
    store.content |= _facts(pair, grid) | named | first
    task = task_of(runner.args.downstream, runner.config["downstream_expert"])
    return Sweep(
        task=task,
        models=runner.models,
        weights=weights,
        groups=groups,
        store=store,
        folder=flags.expdir / "arms",
        dev=flags.dev or task.dev,
        test=None if flags.test == "none" else flags.test or task.test,
        seed=runner.args.seed,
        ratio=runner.runner_config.evaluate_ratio,
        metric_name=flags.metric,
        test_all=flags.test_all,
        anew=flags.overwrite,
        part=flags.part,
        paper=_tested_paper(flags, runner.args.downstream, groups),
    )


def _tested_paper(flags: argparse.Namespace, downstream: str, groups: Sequence[Group]) -> str | None:
    """Return the corpus of ``--test-paper``; without a figure in the paper there is nothing to score for it."""
    if not flags.test_paper:
        return None
    paper = _paper(flags, downstream)
    if paper is None or not printed_by(paper, groups):
        raise UsageError(
            "--test-paper: MAM prints no figure for an arm of this grid: name its corpus with --paper and take one of "
            f"--grid {', '.join(PRESETS)}, or score every arm with --test-all."
        )
    return paper


def _check_pairs(task: Any, record: Any) -> None:
    """Refuse pairs that the task scores, where it can tell."""
    for file, split in pairs_of(record) if hasattr(task, "check_pairs") else ():
        task.check_pairs(file, split)


def _similar(by: str, k: int, file: str, pair: ModelPair, task: Any) -> tuple[int, ...]:
    """Return the k layers that are most similar by a metric, from a ``layers.json``, a table or folder of pairs.

    A folder of the task's own corpus is divided as the task divides it.
    """
    kind = "from" if str(file).endswith(".json") else "pairs"
    split = task.split_of_pairs(str(file)) if hasattr(task, "split_of_pairs") else None
    section = {"by": by, "top_k": k, kind: str(file)} | ({"split": split} if split else {})
    selection: LayerSelection = parse_selection(section, "--similarity")
    source = dataclasses.replace(pair.source.section, layers=selection)
    chosen = choose_layers(pair.merge.with_sources([dataclasses.replace(pair.source, section=source)]))
    _check_pairs(task, chosen.sources[0].selection)
    return tuple(chosen.config.sources[0].layers)


def _settings(runner: SweepRunner, pair: ModelPair) -> dict[str, Any]:
    """Return everything except arms and data that decides a result, as plain values."""
    args = runner.args
    return {
        "task": args.downstream,
        "variant": args.downstream_variant,
        "task file": runner.stored_config["downstream_expert"],
        "share of each split": runner.runner_config.evaluate_ratio,
        "seed": args.seed,
        "features": [
            args.upstream_feature_selection,
            args.upstream_layer_selection,
            args.upstream_feature_normalize,
        ],
        last_hidden_state.KEY: last_hidden_state.result_of(runner.upstream.model, RunSpec.of(args)),
        "target": model_sha256(runner.upstream.model),
        "featurizer": model_sha256(runner.featurizer.model),
        "head": model_sha256(runner.downstream.model),
        "target's settings": settings_sha256(runner.upstream.model),
        "head's settings": settings_sha256(runner.downstream.model),
        "source": sha256(pair.source.weights) if pair.source.weights else None,
        "layer_map": pair.layer_map,
        "projections": list(pair.source.section.lambda_),
        "biases": pair.merge.config.biases,
        "noise": {"seed": pair.noise.seed, "statistics": pair.noise.statistics, "streams": STREAMS},
    } | _options(runner, pair)


def _options(runner: SweepRunner, pair: ModelPair) -> dict[str, Any]:
    """Return the settings that a sweep names only where they are not the usual ones."""
    cache = runner.runner_config
    config, facts = pair.merge.config, {key: _without_file(part) for key, part in pair.prepared.facts.items()}
    options = {
        "runner.cache": f"{cache.cache} in {cache.cache_dtype}" if runner.clip_store else None,
        "merged part": config.target.prefix,
        "method": config.method.plain() if config.method else None,
        "base": facts["base"]["attention_sha256"] if "base" in facts else None,
        "align": {key: value for key, value in facts["align"].items() if key != "orders"} if "align" in facts else None,
        "basis": _without_file(pair.aligner.basis.facts) if pair.aligner and pair.aligner.basis else None,
        "projection": facts.get("projection"),
        "moments": facts.get("moments"),
    }
    return {key: value for key, value in options.items() if value}


def _without_file(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts about paired inputs without the place of their file, which may move.

    Their hash says which they are.
    """
    pairs = facts.get("pairs")
    return {**facts, "pairs": {**pairs, "file": None}} if pairs else dict(facts)


def _facts(pair: ModelPair, grid: Grid) -> dict[str, Any]:
    """Return what a reader of ``sweep.json`` wants to know in addition: models by name and hash, grid."""
    name = source_name(dataclasses.replace(pair.source.section, noise=None))
    return {
        "target": describe_model(pair.merge.name, pair.target),
        "source": describe_model(name, pair.source.weights) if pair.source.weights else None,
        "grid": grid,
    }


def _origin(device: str) -> dict[str, Any]:
    """Return by which commit and versions scores are made, and where."""
    return {
        "commit": provenance.commit(),
        "machine": provenance.machine(device),
        "versions": provenance.versions(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _say_other_origin(store: Store, origin: Mapping[str, Any]) -> None:
    """Warn where the results so far were made by another version of torch, or on another GPU."""
    for key, what in (("versions.torch", "torch"), ("machine.gpu", "GPU")):
        now = value_at(origin, key)
        others = {str(value_at(one, key) or "none") for one in origins_of(store.content)} - {str(now or "none")}
        if others:
            logger.warning(
                "%s holds results made with %s %s, what is missing is scored with %s; the report names both",
                store.path, what, ", ".join(sorted(others)), now or "none",
            )  # fmt: skip


def _write(sweep: Sweep, summary: list[dict[str, Any]], title: str, paper: str | None) -> Path:
    """Write table and picture next to ``sweep.json``, and return the table's file."""
    folder, name = sweep.store.path.parent, str(sweep.metric_name)
    report.write_table(
        folder / TABLE, sweep.groups, summary, sweep.dev, sweep.test, name, sweep.metric, sweep.lookup, title, paper
    )
    items = (sweep.store.get(BASELINE, sweep.dev) or {}).get("items")
    report.plot(folder / PLOT, sweep.groups, sweep.dev, name, sweep.lookup, title, items)
    logger.info("results written to %s: %s, %s, %s", folder, sweep.store.path.name, TABLE, PLOT)
    return folder / TABLE
