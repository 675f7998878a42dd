#!/usr/bin/env bash
# AD-TUNING, Table 1: child networks of 10 % of the eligible weights, drawn at random (CHILD-TUNING_F) and by Fisher
# information (CHILD-TUNING_D), scored on test.
#
#   recipes/ad_tuning/table1.sh [--tasks LIST] [--seeds LIST] [options]
#   recipes/ad_tuning/table1.sh --mini --recordings DIR --ckpt DIR --tasks ks --seeds 0,1,2
#
#   --tasks LIST       out of asr,pr,sd,sid,sf,ic,ks (default: asr,pr,sd,sid,ic, those of the table)
#   --seeds LIST       one run each (default: 0)
#   --rates LIST       learning rates of single rows, random-0.1=1e-3,child-0.1=3e-4: one rate does not suit both masks;
#                      choose each on dev
#   --stage N --stop-stage N   1 train and score, 2 table
#   --out DIR          default exp/ad_tuning; CHILD-TUNING_D is also a row of table2.sh, which is not trained twice
#   --upstream, --ckpt, --upstream-lr, --steps, --mini, --recordings, --jobs, --engine, --dry-run   as for
#                      table2.sh
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../shared/stages.sh"
. "$RECIPES/ad_tuning/methods.sh"

out=exp/ad_tuning seeds=0 tasks="asr pr sd sid ic"
options="tasks $AD_TUNING_OPTIONS"
parse_options "$@"
choose_upstream wav2vec2
keep_rates

if due 1 "train and score"; then
  run_rows "$tasks" "random-0.1 child-0.1"
fi
if due 2 "table"; then
  execute python "$RECIPES/ad_tuning/tables.py" table1 --runs "$out" --tasks "$(comma "$tasks")"
fi
