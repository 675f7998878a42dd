"""The flags of ``s3prl-ext merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ext.merging.names import DARE_DENSITY, DELTA_METHODS, REGMEAN_CLIPS, TIES_DENSITY


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext merge",
        description="Write a merged model as a plain checkpoint: a transformers folder, or a file for s3prl's\n"
        "own upstreams. It needs neither the source nor this package. Or, with --deltas, merge what several tasks\n"
        "changed in one upstream: one delta a task, all with the merged weights, each with its own head.",
        epilog='examples:\n  s3prl-ext merge -u mam_hubert_base_bert_base -g "lambda=0.1,,layers=4-11" --out merged\n'
        "  s3prl-ext merge --deltas exp/ks exp/sid --method ties --lambda 0.5 --out merged_tasks",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-u", "--upstream", help="a shipped configuration, such as mam_...")
    parser.add_argument("-g", "--upstream_model_config", help='"my.yaml,,lambda=0.1", with -u overrides only')
    parser.add_argument("-k", "--upstream_ckpt", help="replaces the target's checkpoint or model")
    parser.add_argument("--out", type=Path, help="new folder for the model")
    parser.add_argument("--dry-run", action="store_true", help="show the matched tensors and write nothing")
    group = parser.add_argument_group("merging tuned tasks of one upstream")
    group.add_argument("--deltas", nargs="+", metavar="RUN", help="deltas, checkpoints or folders of runs")
    group.add_argument("--lambda", dest="lambdas", metavar="L[,L...]", help="lambda of all tasks, or one for each")
    group.add_argument("--method", choices=DELTA_METHODS, help="how their changes are combined (default: linear)")
    group.add_argument(
        "--density", help=f"share of each change that ties ({TIES_DENSITY}) or dare ({DARE_DENSITY}) keeps"
    )
    group.add_argument(
        "--fisher_scores", type=Path, metavar="DIR", help="where runs stored the Fisher scores that fisher takes"
    )
    group.add_argument(
        "--audio", nargs="+", type=Path, metavar="DIR", help="recordings of each task, in its order, that regmean reads"
    )
    group.add_argument("--clips", type=int, help=f"how many recordings of each are drawn (default: {REGMEAN_CLIPS})")
    group.add_argument("--seed", type=int, help="of the random choice of dare and of recordings (default: 0)")
    return parser
