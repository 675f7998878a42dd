"""``s3prl-ext sweep``: score many merges of one pair of models in one process; choose lambda on dev, report on test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3prl_ext import plugin
from s3prl_ext.configs import load_yaml
from s3prl_ext.errors import UsageError
from s3prl_ext.merging.config import MergeConfig
from s3prl_ext.metrics import metric
from s3prl_ext.papers.figures import CORPORA
from s3prl_ext.studies.engines import ENGINES, count_of_jobs
from s3prl_ext.sweeps.grid import KEYS, PRESETS, as_list, read_grid
from s3prl_ext.sweeps.parts import parse_part
from s3prl_ext.upstreams.merged_attention.config import read_config

OWN_UPSTREAM = "merged_attention"
EXAMPLE = """--grid takes a YAML file with the keys lambda, layers, noise, draws, by, top_k and arms (named settings), or one of
{presets}. Flags win over it. Ctrl-C keeps what is done; the same command goes on.

example (a model's own head transcribes; nothing is trained):
  s3prl-ext sweep -u mam_hubert_large_ls960_bert_large -d ljspeech --lambda 0,0.05,0.1,0.15,0.2,0.25 \\
      --layers all,8-15,12-19 --noise none,source,target,standard --draws 5 -p exp/sweep
  s3prl-ext sweep -u mam_hubert_large_ls960_bert_large -d ljspeech -c ljspeech/mam --grid table1-asr -p exp/table1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep and write ``sweep.json``, ``sweep.md`` and ``sweep.png``; returns the exit status.

    Args:
        argv: flags; None takes them from the command line.
    """
    flags = _parser().parse_args(argv)
    flags.argv = list(sys.argv[2:] if argv is None else argv)
    plugin.install()
    preset = None if flags.upstream == OWN_UPSTREAM else flags.upstream
    config = _one_source(read_config(flags.upstream_model_config, flags.upstream_ckpt, preset))
    grid = _grid(flags, config.allow_extrapolation)
    if flags.metric is not None:
        metric(flags.metric)
    from s3prl_ext.sweeps.pipeline import run  # s3prl is importable once the plug-in is installed

    found = run(flags, config, grid)
    if flags.part is None:
        sys.stdout.write(found.read_text(encoding="utf-8"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s3prl-ext sweep",
        description="Score many merges of one pair of models in one process: lambda is chosen on dev, reported on test.",
        epilog=EXAMPLE.replace("{presets}", ", ".join(PRESETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("experiment, as for s3prl-ext run").add_argument
    add("-u", "--upstream", default=OWN_UPSTREAM, help="a shipped merge, such as mam_... (default: -g names one)")
    add(
        "-g",
        "--upstream_model_config",
        help='merge: "my.yaml,,projections=[q_proj]"; its lambda and layers do not count',
    )
    add("-k", "--upstream_ckpt", help="replaces the target's checkpoint or model")
    add("-d", "--downstream", help="task")
    add("-c", "--config", help="task file or preset, such as ljspeech/mini")
    add("-e", "--past_exp", help="checkpoint of a head trained on the unmerged target; names task and task file too")
    add("-i", "--init_ckpt", help="the same, but with the task and task file of -d and -c")
    add("-s", "--upstream_feature_selection", help="features, as for s3prl")
    add("-l", "--upstream_layer_selection", type=int, help="layer of the features, as for s3prl")
    add("-v", "--downstream_variant", help="variant of the task, as for s3prl")
    add("-o", "--override", help="changes to the task file: config.KEY=VALUE,,config.KEY=VALUE")
    add("-p", "--expdir", type=Path, required=True, help="folder for the results")
    add("--seed", type=int, help="of every evaluation (default: 1337)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add = parser.add_argument_group("grid").add_argument
    add("--grid", help=f"YAML file, or one of {', '.join(PRESETS)}")
    add("--lambda", dest="lambda_", metavar="VALUES", help="such as 0,0.05,0.1; 0, the target itself, is always scored")
    add("--layers", help="sets of layers, such as all,0-2,3-5; join the parts of one set by +, as in 0-2+5")
    add("--noise", help="matrices to merge in: none (the source's), source, target, standard")
    add("--draws", type=int, help="draws of each noise control (default: 5)")
    add("--by", help="also the most similar layers by these metrics: euclidean, inner_product, swd")
    add("--top-k", help="numbers of most similar layers, such as 4,6,8")
    add("--similarity", help="for --by: layers.json of `s3prl-ext layers`, or a table or corpus folder of pairs")
    add = parser.add_argument_group("evaluation").add_argument
    add("--dev", help="split that chooses lambda (default: the task's: dev, of asr dev-clean)")
    add("--test", help="split to report (default: the task's: test, of asr test-clean); none leaves it out")
    add("--test-all", action="store_true", help="score every arm on test, not only the chosen ones")
    add(
        "--test-paper",
        action="store_true",
        help="score on test also what MAM prints for this grid, at the paper's lambda",
    )
    add("--metric", help="metric to compare (default: the task's main one)")
    add("--paper", choices=CORPORA, help="print MAM's numbers next to yours (default: of -d, with a preset of --grid)")
    add("--jobs", type=count_of_jobs, default=1, help="processes that divide the arms (default: 1, this one)")
    add("--engine", choices=ENGINES, default="local", help="where they run, as for s3prl-ext study (default: local)")
    add("--part", type=parse_part, help=argparse.SUPPRESS)  # what such a process is given
    add("--overwrite", action="store_true", help="begin anew where the folder holds a sweep")
    return parser


def _one_source(config: MergeConfig) -> MergeConfig:
    if len(config.sources) != 1:
        raise UsageError(f"a sweep varies one source, but the merge has {len(config.sources)}: keep one.")
    if config.learnable is not None:
        raise UsageError("a sweep varies a fixed lambda, but the merge has learnable: true: set it to false.")
    return config


def _grid(flags: argparse.Namespace, extrapolate: bool) -> dict[str, Any]:
    """Return the checked grid of ``--grid`` and the flags that win over it."""
    file, where = {}, "the grid"
    if flags.grid is not None:
        file, where = (PRESETS[flags.grid] if flags.grid in PRESETS else load_yaml(flags.grid)), str(flags.grid)
    texts = {
        "lambda": flags.lambda_,
        "layers": flags.layers,
        "noise": flags.noise,
        "by": flags.by,
        "top_k": flags.top_k,
    }
    given: dict[str, Any] = {key: as_list(text) for key, text in texts.items() if text is not None}
    if "layers" in given:
        given["layers"] = [name if "+" not in name else name.split("+") for name in given["layers"]]
    if "top_k" in given:
        given["top_k"] = [int(number) if number.isdecimal() else number for number in given["top_k"]]
    if flags.draws is not None:
        given["draws"] = flags.draws
    assert set(given) <= set(KEYS)
    grid = read_grid(file, given, extrapolate, where)
    if grid["by"] and flags.similarity is None:
        raise UsageError("--by needs --similarity: the layers.json of `s3prl-ext layers`, or a table of pairs.")
    return grid
