#!/usr/bin/env bash
# AD-TUNING, Fig. 3: dev curves of three child networks, each trained alone to the end, with the step at which AD-TUNING
# compares them and what it chose.
#
#   recipes/ad_tuning/fig3.sh [--tasks LIST] [--seeds LIST] [options]
#   recipes/ad_tuning/fig3.sh --mini --recordings DIR --ckpt DIR --tasks ks,asr --seeds 0,1,2
#
#   --tasks LIST       one panel each (default: asr,pr, those of the figure)
#   --seeds LIST       lines are means over these (default: 0)
#   --stage N --stop-stage N   1 train (runs of table2.sh are taken), 2 picture
#   --out DIR          default exp/ad_tuning; the picture is fig3.png in it
#   --upstream, --ckpt, --upstream-lr, --rates, --steps, --mini, --recordings, --jobs, --engine, --dry-run   as for
#                      table2.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning seeds=0 tasks="asr pr"
options="tasks $AD_TUNING_OPTIONS"
parse_options "$@"
choose_upstream wav2vec2
keep_rates

if due 1 "train"; then
  run_rows "$tasks" "child-0.1 child-0.01 child-0.001 ad_tuning"
fi
if due 2 "picture"; then
  execute python "$RECIPES/ad_tuning/figures.py" fig3 --runs "$out" --tasks "$(comma "$tasks")"
fi
