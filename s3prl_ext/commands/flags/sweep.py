"""The flags of ``s3prl-ext sweep``."""

from __future__ import annotations

import argparse
from pathlib import Path

from s3prl_ext.merging.names import OWN_UPSTREAM, SIMILARITY_NAMES
from s3prl_ext.papers.names import MAM_CORPORA
from s3prl_ext.studies.names import ENGINES, count_of_jobs
from s3prl_ext.sweeps.presets import PRESETS

EXAMPLE = """--grid takes a YAML file with the keys lambda, layers, noise, draws, by, top_k and arms (named
settings), or one of {presets}. Flags win over it. Ctrl-C keeps what is done; rerun the same command to resume.

example (a model's own head transcribes; nothing is trained):
  s3prl-ext sweep -u mam_hubert_large_ls960_bert_large -d ljspeech --lambda 0,0.05,0.1,0.15,0.2,0.25 \\
      --layers all,8-15,12-19 --noise none,source,target,standard --draws 5 -p exp/sweep
  s3prl-ext sweep -u mam_hubert_large_ls960_bert_large -d ljspeech -c ljspeech/mam --grid table1-asr -p exp/table1
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="s3prl-ext sweep",
        description="Score many merges of one pair of models in one process: lambda is chosen on dev, reported on "
        "test.",
        epilog=EXAMPLE.replace("{presets}", ", ".join(PRESETS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("experiment, as for s3prl-ext run").add_argument
    add("-u", "--upstream", default=OWN_UPSTREAM, help="a shipped merge, such as mam_... (default: -g names one)")
    add(
        "-g",
        "--upstream_model_config",
        help='merge: "my.yaml,,projections=[q_proj]"; lambda and layers are those of the grid',
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
    add(
        "--noise",
        help="matrices to merge in: none (the source's), source, target, standard (default: as -u or -g says)",
    )
    add("--draws", type=int, help="draws of each noise control (default: 5)")
    add("--by", help=f"also the most similar layers by these metrics: {', '.join(SIMILARITY_NAMES)}")
    add("--top-k", help="numbers of most similar layers, such as 4,6,8")
    add("--similarity", help="for --by: layers.json of `s3prl-ext layers`, or a table or corpus folder of pairs")
    add = parser.add_argument_group("evaluation").add_argument
    add("--dev", help="split that chooses lambda (default: the task's: dev, of asr dev-clean)")
    add("--test", help="split to report, not --dev (default: the task's: test, of asr test-clean); none leaves it out")
    add("--test-all", action="store_true", help="score every arm on test, not only the chosen ones")
    add(
        "--test-paper",
        action="store_true",
        help="score on test also the merges, without noise, that MAM prints for this grid, at the paper's lambda",
    )
    add("--metric", help="metric to compare (default: the task's main one)")
    add(
        "--paper",
        choices=MAM_CORPORA,
        help="print MAM's numbers next to yours (default: of -d, with a preset of --grid)",
    )
    add("--jobs", type=count_of_jobs, default=1, help="processes that divide the arms (default: 1, this one)")
    add("--engine", choices=ENGINES, default="local", help="where they run, as for s3prl-ext study (default: local)")
    add("--part", type=_part, help=argparse.SUPPRESS)  # what such a process is given
    add("--overwrite", action="store_true", help="begin anew where the folder holds a sweep")
    return parser


def _part(text: str) -> tuple[int, int]:
    """Return number and count of ``1/4``.

    Raises:
        ValueError: it is something else; argparse turns this into a sentence.
    """
    number, _, of = text.partition("/")
    if not int(number) < int(of):
        raise ValueError(text)
    return int(number), int(of)
